"""A graph whose edges are of several kinds, and the short cycles in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

SEARCH_STEPS_MAX = 200_000


class Graph:
    """Nodes are numbers from 0; a kind of edge is a bit, and edges of several kinds can join the same two nodes.

    Edges of the kind `transitive` that follow from others of that kind may be left out: ways have them all the same.
    """

    def __init__(self, nodes: int, transitive: int = 0) -> None:
        self._transitive = transitive
        self._out: list[dict[int, int]] = [{} for _ in range(nodes)]

    def link(self, source: int, target: int, kind: int) -> None:
        """Add an edge. One from a node to itself is left out."""
        if source != target:
            out = self._out[source]
            out[target] = out.get(target, 0) | kind

    def kinds(self, source: int, target: int) -> int:
        """The kinds of edges from `source` to `target`, together, without those that follow from others."""
        return self._out[source].get(target, 0)

    def knots(self, kinds: int, nodes: Collection[int]) -> list[list[int]]:
        """The strongly connected components of two nodes or more among `nodes`, by edges of `kinds` alone.

        Tarjan, Depth-first search and linear graph algorithms (SIAM J. Comput. 1972), without recursion.
        """
        knots: list[list[int]] = []
        low: dict[int, int] = {}
        number: dict[int, int] = {}
        stack: list[int] = []
        done: set[int] = set()
        for root in nodes:
            path = [] if root in number else [(root, self._targets(root, kinds, nodes))]
            while path:
                node, targets = path[-1]
                if node not in number:
                    number[node] = low[node] = len(number)
                    stack.append(node)
                for target in targets:
                    if target not in number:
                        path.append((target, self._targets(target, kinds, nodes)))
                        break
                    if target not in done:
                        low[node] = min(low[node], low[target])
                else:
                    path.pop()
                    if path:
                        caller = path[-1][0]
                        low[caller] = min(low[caller], low[node])
                    if low[node] == number[node]:
                        knot = _popped(stack, node)
                        done.update(knot)
                        if len(knot) > 1:
                            knots.append(sorted(knot))
        return knots

    def cycle(
        self, knot: Sequence[int], first: int, rest: int, known: Callable[[Sequence[int]], bool]
    ) -> list[int] | None:
        """The shortest cycle in `knot` that is not `known`, its first edge of kind `first`, the others of kinds `rest`.

        One way back is tried for each first edge, so a cycle can be missed where that one is known; and the search ends
        after `SEARCH_STEPS_MAX`, with the shortest one until then.
        """
        within, best, steps = set(knot), None, 0
        for node in knot:
            for target in self._targets(node, first, within):
                limit = len(within) - 1 if best is None else len(best) - 2
                way, taken = self._way(target, node, rest, within, limit)
                steps += taken
                if way is not None and not known(way):
                    best = [node, *way[:-1]]
                if steps > SEARCH_STEPS_MAX or (best is not None and len(best) == 2):
                    return best
        return best

    def _way(
        self, source: int, target: int, kinds: int, within: Collection[int], limit: int
    ) -> tuple[list[int] | None, int]:
        """A shortest way of at most `limit` edges, both ends included, and how many edges were looked at."""
        came_from, reached, steps = {source: source}, [source], 0
        for _ in range(limit):
            further: list[int] = []
            for kind in (kinds & self._transitive, kinds & ~self._transitive):
                for node in reached:
                    ahead = [node] if kind else []
                    while ahead:
                        for following in self._targets(ahead.pop(), kind, within):
                            steps += 1
                            if following in came_from:
                                continue
                            came_from[following] = node
                            if following == target:
                                return _traced(came_from, source, target), steps
                            further.append(following)
                            if kind == self._transitive:
                                ahead.append(following)
            reached = further
            if not reached:
                break
        return None, steps

    def _targets(self, node: int, kinds: int, within: Collection[int]) -> Iterator[int]:
        return (target for target, has in self._out[node].items() if has & kinds and target in within)


def _popped(stack: list[int], node: int) -> list[int]:
    popped = [stack.pop()]
    while popped[-1] != node:
        popped.append(stack.pop())
    return popped


def _traced(came_from: dict[int, int], source: int, target: int) -> list[int]:
    way = [target]
    while way[-1] != source:
        way.append(came_from[way[-1]])
    return way[::-1]
