"""Ancestry in a group's commit graph. A commit's number is above its parents', so the graph is walked by number.

Each branch is a line: of two commits on it, the older led to the newer. So a walk does not go from commit to commit but
from one merge, or beginning of a branch, to the next, and costs as many steps as there are of these, however many
commits were made meanwhile.

A fast-forward takes a version, as every operation does, but is no place of its own in the graph: it stands for the
commit that it moved its branch to. So two branches that were brought together so have nothing to merge, as in Git.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from versolog.streams.state import Join, Level, State, Step
from versolog.streams.turns import ITEMS_A_TURN, give_way
from versolog.streams.versions import MERGE, Touched, first_parent, standing, touched


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
    are none of each other's. More than one after merges that crossed."""
    return _Descent(state, group, ones, [other]).bases


def is_ancestor(state: State, group: str, version: int, tips: Sequence[int]) -> bool:
    """Whether one of `tips` has all that led to `version`, or is it."""
    step = node(state, group, version)
    return step is None or _Descent(state, group, [version], tips).bases == [step.version]


def apart(state: State, group: str, one: int, other: int) -> Apart:
    """How many commits each of two versions has that the other has not. Costs these."""
    descent = _Descent(state, group, [one], [other])
    return Apart(*(sum(1 for _ in _commits(state, group, descent, side)) for side in (_ONE, _OTHER)))


def missing_from(state: State, group: str, version: int, known: Sequence[int]) -> Iterator[Step]:
    """The commits that lead to `version` and to none of `known`. Costs these."""
    return _commits(state, group, _Descent(state, group, [version], known), _ONE)


def brought(state: State, group: str, base: int, tip: int) -> set[tuple[str, str]]:
    """Every (table, key) that can differ between `tip` and its ancestor `base` (0: nothing).

    Those that commits changed since, merges left out: what a merge brings, its other parents' commits changed, and what
    it settles, both sides changed. So a branch that main was merged into costs what the branch did, not what main did.
    That does not hold where merges crossed: there a row can be settled twice, in two ways, and changed by neither side
    since. First parents then tell.
    """
    return _brought(state, group, base, tip, None).rows


def differing(state: State, group: str, one: int, other: int, *, changes_max: int) -> Touched:
    """Every (table, key) that can differ between two versions: what each has brought since their merge base.

    So that of a branch and of what it often merged costs what the branch did. `changes_max` bounds the commits and
    changes that are looked at on each side.
    """
    bases = merge_bases(state, group, [one], other)
    if len(bases) != 1:
        return touched(state, group, one, other, changes_max=changes_max)
    rows: set[tuple[str, str]] = set()
    for tip in (one, other):
        side = _brought(state, group, bases[0], tip, changes_max)
        if not side.complete:
            return side
        rows |= side.rows
    return Touched(rows, complete=True)


def _brought(state: State, group: str, base: int, tip: int, changes_max: int | None) -> Touched:
    rows: set[tuple[str, str]] = set()
    looked_at = turn = 0
    for step in missing_from(state, group, tip, [base] if base else []):
        if looked_at > turn:
            give_way()
            turn = looked_at + ITEMS_A_TURN
        if changes_max is not None and looked_at > changes_max:
            return Touched(rows, complete=False)
        if len(step.parents) < 2:
            record = state.commit(group, step.version)
            assert record is not None, f"version {step.version} of {group!r} has a place in the graph and no record"
            rows.update((change["table"], change["key"]) for change in record["changes"])
            looked_at += len(record["changes"])
        elif len(merge_bases(state, group, step.parents[:1], step.parents[1])) > 1:
            return touched(state, group, base, tip, changes_max=changes_max)
        looked_at += 1
    return Touched(rows, complete=True)


class Ancestry:
    """The commits that lead to `tips`, these too, by whatever parents, the newest first. Costs what is taken of them.

    Of what is open on one branch only the newest is kept: it leads to the others. So there is never more open than
    there were branches side by side.
    """

    def __init__(self, state: State, group: str, tips: Sequence[int]) -> None:
        self._state, self._group = state, group
        self._newest: dict[int, Step] = {}
        self._queue: list[tuple[int, int]] = []  # -version and branch; one that is not the newest there is passed over
        for tip in tips:
            self._meet(tip)

    @property
    def open(self) -> list[int]:
        """The tips of what is yet to come, the one yielded last among them as long as no other was asked for."""
        return sorted((step.version for step in self._newest.values()), reverse=True)

    def __iter__(self) -> Iterator[Step]:
        while self._queue:
            negative, branch = self._queue[0]
            step = self._newest.get(branch)
            if step is None or step.version != -negative:
                heapq.heappop(self._queue)
                continue
            yield step
            heapq.heappop(self._queue)
            del self._newest[branch]
            for parent in step.parents:
                self._meet(parent)

    def _meet(self, version: int) -> None:
        step = standing(self._state, self._group, version)
        if step is None:
            return
        known = self._newest.get(step.branch)
        if known is None or known.version < step.version:
            self._newest[step.branch] = step
            heapq.heappush(self._queue, (-step.version, step.branch))


def found_by(state: State, group: str, step: Step) -> Step | None:
    """The commit that stood at the head of its branch when `step` was made: what it changed, it changed of that.

    Its first parent, but for a fast-forward, which has none on its branch.
    """
    return _before(state, group, step) if is_fast_forward(step) else first_parent(state, group, step)


_ONE, _OTHER, _BOTH, _BELOW = 1, 2, 3, 4
_ARRIVAL, _JOIN, _BEGINNING = range(3)


class _Run(NamedTuple):
    """The commits of a branch from version `upto`, itself one, down to above `above`."""

    branch: int
    above: int
    upto: int
    marks: int
    """Which of the two sides they lead to."""


class _Descent:
    """Goes down from two sides at once, by version, until all that is left leads to both by way of what is found."""

    def __init__(self, state: State, group: str, ones: Sequence[int], others: Sequence[int]) -> None:
        self._state, self._group = state, group
        self.bases: list[int] = []
        self.runs: list[_Run] = []
        """What leads to one side alone is in one of them."""
        self._queue: list[tuple[int, int, int, int]] = []
        """What is met next: -version, which of three it is, the branch, and the marks that arrive or what joins."""
        self._open = 0  # arrivals in the queue, and branches gone down, that are not below a base
        self._marks: dict[int, int] = {}
        self._since: dict[int, int] = {}
        self._joins: dict[int, Iterator[Join]] = {}
        for marks, versions in ((_ONE, ones), (_OTHER, others)):
            for version in versions:
                self._arrive(version, marks)
        while self._open:
            self._go_on()

    def _arrive(self, version: int, marks: int) -> None:
        step = node(self._state, self._group, version)
        if step is not None:
            self._open += _is_open(marks)
            heapq.heappush(self._queue, (-step.version, _ARRIVAL, step.branch, marks))

    def _go_on(self) -> None:
        negative, what, branch, told = heapq.heappop(self._queue)
        if what == _ARRIVAL:
            self._open -= _is_open(told)
            while self._queue and self._queue[0][:3] == (negative, what, branch):
                more = heapq.heappop(self._queue)[3]
                self._open -= _is_open(more)
                told |= more
            self._meet(branch, -negative, told)
        elif what == _JOIN:
            self._arrive(told, self._marks[branch])
            self._expect_join(branch)
        else:
            self._begin(branch)

    def _meet(self, branch: int, version: int, marks: int) -> None:
        """Something arrives at a commit of a branch, and goes on down the branch."""
        before = self._marks.get(branch, 0)
        after = before | marks
        if after & _BOTH == _BOTH and not after & _BELOW:
            self.bases.append(version)
            after |= _BELOW
        if after == before:
            return
        if before:
            self.runs.append(_Run(branch, version, self._since[branch], before))
            self._open -= _is_open(before)
        else:
            self._joins[branch] = self._state.joins(self._group, Level(branch, version))
            self._expect_join(branch)
            heapq.heappush(self._queue, (-branch, _BEGINNING, branch, 0))
        self._open += _is_open(after)
        self._marks[branch], self._since[branch] = after, version

    def _expect_join(self, branch: int) -> None:
        join = next(self._joins[branch], None)
        if join is not None:
            heapq.heappush(self._queue, (-join.version, _JOIN, branch, join.other))

    def _begin(self, branch: int) -> None:
        """A branch began here: what led to it is on the branch it was made from."""
        marks = self._marks.pop(branch)
        self.runs.append(_Run(branch, branch - 1, self._since[branch], marks))
        self._open -= _is_open(marks)
        made = self._state.branch_by_id(self._group, branch)
        assert made is not None, f"group {self._group!r} has no branch with id {branch}"
        if made.fork:
            self._arrive(made.fork, marks)


def _is_open(marks: int) -> bool:
    return not marks & _BELOW


def _commits(state: State, group: str, descent: _Descent, marks: int) -> Iterator[Step]:
    """The commits that lead to one side alone, those of each branch newest first."""
    for run in descent.runs:
        step = state.step(group, run.upto) if run.marks == marks else None
        while step is not None and step.branch == run.branch and step.version > run.above:
            if is_fast_forward(step):
                step = _before(state, group, step)
            else:
                yield step
                step = first_parent(state, group, step)


def _before(state: State, group: str, step: Step) -> Step | None:
    """The commit that a fast-forward found on its branch."""
    branch = state.branch_by_id(group, step.branch)
    assert branch is not None, f"group {group!r} has no branch with id {step.branch}"
    level = state.line(group, branch.name, step.version - 1)
    return None if level is None else standing(state, group, level.upto)
