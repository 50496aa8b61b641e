"""Logs: which commits led to a place, or were made in a group, and what they are searched for.

A page looks at LOOKED_AT_MAX commits at most, so one that few commits fit can be short, or empty, and go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.codec import Record
from versolog.streams.graph import Ancestry
from versolog.streams.state import Level, Row, Step
from versolog.streams.versions import At, first_parent, levels_at, standing

LOOKED_AT_MAX = 1_000
"""Commits that one page looks at, some 30 ms. One whose changes must be read counts for more, by the two numbers below."""
CHANGES_LOOKS = 2
CHANGES_A_LOOK = 50


class Sought(NamedTuple):
    """What commits are searched for: all that is given must hold."""

    table: str | None = None
    """Changed this table."""
    key: str | None = None
    """And this row of it."""
    author: str | None = None
    type: str | None = None
    operation: str | None = None
    message: str | None = None
    """Has this in its message, in capitals or small."""
    since_ms: int | None = None
    """committed_at is this or later."""
    until_ms: int | None = None
    """committed_at is this or earlier."""


EVERYTHING = Sought()


class Log(NamedTuple):
    """Commits without their changes, the newest first."""

    commits: list[Record]
    before: int | None
    """The version to go on below; None at the end. There can be one with fewer commits than the limit, or none."""


class GraphLog(NamedTuple):
    """As `Log`, by whatever parents."""

    commits: list[Record]
    open: list[int] | None
    """The tips to go on at; None at the end."""


class GraphPlace(NamedTuple):
    """A commit's place in the drawn graph."""

    parents: list[int]
    """Commits all of them, where a recorded parent can be the operation on refs that a branch was made at."""
    branches: list[str]
    """That stand here now."""
    tags: list[str]


def log(view: View, at: At, *, limit: int, before: int | None = None, sought: Sought = EVERYTHING) -> Log:
    """The commits that led to `at` by first parents, operations on refs left out.

    `until_ms` costs nothing to reach, and with a key only the commits that changed the row are looked at.
    """
    store = view.store
    if sought.table is not None and sought.key is not None:
        states = view.states(at, sought.table, sought.key, _below(store, at.group, sought, before))
        return _page(view, at.group, _steps_of(store, at.group, states), sought._replace(table=None), limit)
    if before is None and sought.until_ms is not None:
        earlier = _as_of(store, at, store.version_at(at.group, sought.until_ms))
        if earlier is None:
            return Log([], None)
        at = earlier
    return _page(view, at.group, _first_parents(store, at, before), sought, limit)


def log_of_group(
    view: View, group: str, *, limit: int, before: int | None = None, sought: Sought = EVERYTHING, refs: bool = True
) -> Log:
    """Every commit of the group, whatever its branch, the newest first; operations on refs too, unless `refs` is off."""
    store = view.store
    head = store.head(group)
    newest = 0 if head is None else head.version
    below = _below(store, group, sought, before)
    if below is not None:
        newest = min(newest, below - 1)
    if sought.table is not None and sought.key is not None:
        steps = _steps_of(store, group, store.versions_anywhere(group, newest, sought.table, sought.key))
        sought = sought._replace(table=None)
    else:
        steps = (step for version in range(newest, 0, -1) if (step := store.step(group, version)) is not None)
    return _page(view, group, steps, sought, limit, refs=refs)


def graph(view: View, at: At, *, limit: int, open: list[int] | None = None, sought: Sought = EVERYTHING) -> GraphLog:
    """The commits that led to `at` by whatever parents: those that merges brought, too."""
    ancestry = Ancestry(view.store, at.group, [at.version] if open is None else open)
    page = _page(view, at.group, ancestry, sought, limit)
    return GraphLog(page.commits, None if page.before is None else ancestry.open)


def graph_places(store: Store, group: str, commits: Sequence[Record]) -> list[GraphPlace]:
    """Where to draw each commit, and the names that stand there. Costs the names there are; those that can't stand at
    one of these commits, very little."""
    oldest = min((commit["version"] for commit in commits), default=0)
    branches: dict[int, list[str]] = {}
    tags: dict[int, list[str]] = {}
    for branch in store.branches(group):
        if branch.head >= oldest:
            own = branch.head != branch.fork  # a head of its own is a commit; what it began at can be an operation
            branches.setdefault(branch.head if own else _stands_for(store, group, branch.fork), []).append(branch.name)
    for tag, version in store.tags(group).items():
        if version >= oldest:
            tags.setdefault(_stands_for(store, group, version), []).append(tag)
    return [
        GraphPlace(
            [_stands_for(store, group, parent) for parent in commit["parents"]],
            branches.get(commit["version"], []),
            tags.get(commit["version"], []),
        )
        for commit in commits
    ]


def _stands_for(store: Store, group: str, version: int) -> int:
    """The commit whose rows a read of the version sees."""
    step = standing(store, group, version)
    return 0 if step is None else step.version


def _page(
    view: View, group: str, steps: Iterable[Step], sought: Sought, limit: int, *, refs: bool = True
) -> Log:
    """Up to `limit` of `steps`, which come newest first, that are what is sought: whether they changed the table only
    where one is named."""
    commits: list[Record] = []
    looked_at, last = 0, 0
    for step in steps:
        if sought.since_ms is not None and step.committed_at < sought.since_ms:
            break  # committed_at never falls within a group: all that follows is older
        if len(commits) == limit or looked_at >= LOOKED_AT_MAX:
            return Log(commits, last)
        looked_at, last = looked_at + 1, step.version
        if not (refs or step.tip == step.version) or not _step_fits(step, sought):
            continue
        heading = view.heading(group, step.version)
        if not _heading_fits(heading, sought):
            continue
        if sought.table is not None:
            record = view.store.commit(group, step.version)
            assert record is not None, "its heading was read"
            looked_at += CHANGES_LOOKS + len(record["changes"]) // CHANGES_A_LOOK
            if not any(_change_fits(change, sought) for change in record["changes"]):
                continue
        commits.append(heading)
    return Log(commits, None)


def _step_fits(step: Step, sought: Sought) -> bool:
    return (sought.operation is None or step.operation == sought.operation) and (
        sought.until_ms is None or step.committed_at <= sought.until_ms
    )


def _heading_fits(heading: Record, sought: Sought) -> bool:
    return (
        (sought.author is None or heading["author"] == sought.author)
        and (sought.type is None or heading["type"] == sought.type)
        and (sought.message is None or sought.message.casefold() in heading["message"].casefold())
    )


def _change_fits(change: Record, sought: Sought) -> bool:
    return bool(change["table"] == sought.table) and (sought.key is None or change["key"] == sought.key)


def _first_parents(store: Store, at: At, before: int | None) -> Iterator[Step]:
    step = standing(store, at.group, at.version if before is None else before)
    if before is not None and step is not None:
        step = first_parent(store, at.group, step)
    while step is not None:
        yield step
        step = first_parent(store, at.group, step)


def _steps_of(store: Store, group: str, states: Iterator[Row]) -> Iterator[Step]:
    """The commits that left a row in these states."""
    for state in states:
        step = store.step(group, state.version)
        assert step is not None, f"version {state.version} of {group!r} changed a row and is not in the commit index"
        yield step


def _below(store: Store, group: str, sought: Sought, before: int | None) -> int | None:
    """The version that commits not later than what is sought are below."""
    if sought.until_ms is None:
        return before
    after = store.version_at(group, sought.until_ms) + 1
    return after if before is None else min(before, after)


def _as_of(store: Store, at: At, version: int) -> At | None:
    """`at` as it stood when its group stood at `version`; None where nothing of it was there."""
    way = levels_at(store, at._replace(version=min(at.version, version)))
    for level in way:
        if level.branch <= level.upto <= version:
            return _standing_on(store, at.group, level)
    return None


def _standing_on(store: Store, group: str, level: Level) -> At:
    """The head that a branch had at a version, which may be the one that deleted it."""
    branch, step = store.branch_by_id(group, level.branch), store.step(group, level.upto)
    assert branch is not None and step is not None, "a level is of a branch, up to a version"
    if step.branch == level.branch:
        return At(group, branch.name, level.branch, level.upto)
    line = store.line(group, branch.name, level.upto)
    assert line is not None, "the branch was there by then"
    return At(group, branch.name, level.branch, line.upto)
