"""Ancestry in a group's commit graph. A commit's number is above its parents', so the graph is walked by number.

A fast-forward takes a version, as every operation does, but is no place of its own in the graph: it stands for the
commit that it moved its branch to. So two branches that were brought together so have nothing to merge, as in Git.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from versolog.streams.state import State, Step
from versolog.streams.versions import standing, touched

MERGE = "merge"

_ONE, _OTHER, _BOTH, _BELOW = 1, 2, 3, 4


class Apart(NamedTuple):
    """How two versions stand to each other."""

    ahead: int
    """Commits that lead to the first and not to the second."""
    behind: int
    """Commits that lead to the second and not to the first."""


def is_fast_forward(step: Step) -> bool:
    """Whether the commit only moved its branch to where another stood."""
    return step.operation == MERGE and len(step.parents) == 1


def node(state: State, group: str, version: int) -> Step | None:
    """The commit that `version` stands for in the graph: itself, what an operation on refs found, or what a
    fast-forward moved to. None where nothing was committed on its branch by then."""
    step = standing(state, group, version)
    while step is not None and is_fast_forward(step):
        step = standing(state, group, step.parents[0])
    return step


def merge_bases(state: State, group: str, ones: Sequence[int], other: int) -> list[int]:
    """The best common ancestors of `other` and of what a merge of `ones` would be, newest first: common ancestors that
    are none of each other's.

    More than one after merges that crossed. The cost is that of the commits since.
    """
    walk = _walk(state, group, ones, [other])
    return [step.version for step, marks in walk if marks == _BOTH]


def is_ancestor(state: State, group: str, ancestor: int, descendant: int) -> bool:
    """Whether `descendant` has all that led to `ancestor`, which may be the same."""
    step = node(state, group, ancestor)
    return step is None or merge_bases(state, group, [ancestor], descendant) == [step.version]


def is_kept(state: State, group: str, version: int, tips: Sequence[int]) -> bool:
    """Whether one of `tips` has all that led to `version`."""
    walk = _walk(state, group, [version], tips)
    return all(marks != _ONE for _, marks in walk)


def apart(state: State, group: str, one: int, other: int) -> Apart:
    """How many commits each of two versions has that the other has not."""
    marks = [found for _, found in _walk(state, group, [one], [other])]
    return Apart(marks.count(_ONE), marks.count(_OTHER))


def missing_from(state: State, group: str, version: int, known: Sequence[int]) -> Iterator[Step]:
    """The commits that lead to `version` and to none of `known`, newest first."""
    return (step for step, marks in _walk(state, group, [version], known) if marks == _ONE)


def brought(state: State, group: str, base: int, tip: int) -> set[tuple[str, str]]:
    """Every (table, key) that can differ between `tip` and its ancestor `base` (0: nothing).

    Those that commits changed since, merges left out: what a merge brings, its other parents' commits changed, and what
    it settles, both sides changed. So a branch that main was merged into costs what the branch did, not what main did.
    That does not hold where merges crossed: there a row can be settled twice, in two ways, and changed by neither side
    since. First parents then tell.
    """
    rows: set[tuple[str, str]] = set()
    for step in missing_from(state, group, tip, [base] if base else []):
        if len(step.parents) < 2:
            record = state.commit(group, step.version)
            assert record is not None, f"version {step.version} of {group!r} has a place in the graph and no record"
            rows.update((change["table"], change["key"]) for change in record["changes"])
        elif len(merge_bases(state, group, step.parents[:1], step.parents[1])) > 1:
            return touched(state, group, base, tip).rows
    return rows


def _walk(state: State, group: str, ones: Sequence[int], others: Sequence[int]) -> Iterator[tuple[Step, int]]:
    """The commits from all these versions down to where nothing but common ancestors of common ancestors is left,
    newest first, each marked by which of the two sides it leads to; `_BOTH` only where no descendant is marked so."""
    marks: dict[int, int] = {}
    steps: dict[int, Step] = {}
    queue: list[int] = []
    open_ = 0  # how many in the queue are not known to be below a common ancestor

    def mark(version: int, found: int) -> int:
        step = node(state, group, version)
        if step is None:
            return 0
        before = marks.get(step.version)
        after = marks[step.version] = (before or 0) | found
        if before is None:
            steps[step.version] = step
            heapq.heappush(queue, -step.version)
        was_open = before is not None and not before & _BELOW
        return (not after & _BELOW) - was_open

    for side, versions in ((_ONE, ones), (_OTHER, others)):
        for version in versions:
            open_ += mark(version, side)
    while open_:
        version = -heapq.heappop(queue)
        found, step = marks.pop(version), steps.pop(version)
        open_ -= not found & _BELOW
        for parent in step.parents:
            open_ += mark(parent, found | _BELOW if found & _BOTH == _BOTH else found)
        if not found & _BELOW:
            yield step, found
