"""Ancestry in a group's commit graph. A commit's number is above its parents', so the graph is walked by number."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from versolog.streams.state import State, Step
from versolog.streams.versions import standing

_ONE, _OTHER, _BOTH, _BELOW = 1, 2, 3, 4


class Apart(NamedTuple):
    """How two versions stand to each other."""

    ahead: int
    """Commits that lead to the first and not to the second."""
    behind: int
    """Commits that lead to the second and not to the first."""


def merge_bases(state: State, group: str, one: int, other: int) -> list[int]:
    """The best common ancestors of two versions, newest first: common ancestors that are none of each other's.

    More than one after merges that crossed. The cost is that of the commits since. Operations on refs stand for the
    commit that they found.
    """
    bases = []
    for step, marks in _walk(state, group, one, other):
        if marks == _BOTH:
            bases.append(step.version)
    return bases


def is_ancestor(state: State, group: str, ancestor: int, descendant: int) -> bool:
    """Whether `descendant` has all that led to `ancestor`, which may be the same."""
    step = standing(state, group, ancestor)
    return step is None or merge_bases(state, group, ancestor, descendant) == [step.version]


def apart(state: State, group: str, one: int, other: int) -> Apart:
    """How many commits each of two versions has that the other has not."""
    marks = [found for _, found in _walk(state, group, one, other)]
    return Apart(marks.count(_ONE), marks.count(_OTHER))


def missing_from(state: State, group: str, version: int, known: int) -> Iterator[Step]:
    """The commits that lead to `version` and not to `known`, newest first."""
    return (step for step, marks in _walk(state, group, version, known) if marks == _ONE)


def _walk(state: State, group: str, one: int, other: int) -> Iterator[tuple[Step, int]]:
    """The commits from both versions down to where nothing but common ancestors of common ancestors is left, newest
    first, each marked by which of the two it leads to; `_BOTH` only where no descendant is marked so."""
    marks: dict[int, int] = {}
    queue: list[int] = []
    open_ = 0  # how many in the queue are not known to be below a common ancestor

    def mark(version: int, found: int) -> int:
        step = standing(state, group, version)
        if step is None:
            return 0
        before = marks.get(step.version)
        after = marks[step.version] = (before or 0) | found
        if before is None:
            heapq.heappush(queue, -step.version)
        was_open = before is not None and not before & _BELOW
        return (not after & _BELOW) - was_open

    open_ += mark(one, _ONE)
    open_ += mark(other, _OTHER)
    while open_:
        version = -heapq.heappop(queue)
        found = marks.pop(version)
        open_ -= not found & _BELOW
        step = state.step(group, version)
        assert step is not None, f"version {version} of {group!r} has no place in the graph"
        for parent in step.parents:
            open_ += mark(parent, found | _BELOW if found & _BOTH == _BOTH else found)
        if not found & _BELOW:
            yield step, found
