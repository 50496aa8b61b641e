"""Merge, revert and cherry-pick: each a three-way merge of rows onto a branch, from another base and another side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from versolog.schemas.documents import row_from_text, to_bytes
from versolog.schemas.errors import refusal
from versolog.streams.changes import Line
from versolog.streams.graph import is_ancestor, merge_bases
from versolog.streams.merge import ABSENT, Conflict, Merge, Resolution, Rules
from versolog.streams.state import SETTINGS_TABLE, Level, Row, State, Step
from versolog.streams.versions import At, first_parent, levels_at, resolve, row_at, standing, touched

CONFLICTS_TOLD_MAX = 100
CONFLICTS_BYTES_MAX = 256 * 1024
POLICIES = ("fail", "ours", "theirs")

Place = tuple[str, str]
"""Table and key."""
Side = Callable[[str, str], Any]
"""The row at one side of a merge: a document, or ABSENT."""


class Unknown:
    """A row that bases which crossed do not agree on: equal to nothing, so both sides count as changed."""


@dataclass(slots=True)
class Settling:
    """How conflicts end: the caller's policy and resolutions."""

    policy: str = "fail"
    resolutions: dict[str, dict[tuple[str, tuple[str, ...]], Resolution]] = field(default_factory=dict)
    """By table; then by key and path."""


@dataclass(slots=True)
class Merged:
    """What merging came to."""

    conflicts: list[Conflict] = field(default_factory=list)
    rows: int = 0
    """How many rows were looked at."""

    def refuse(self) -> None:
        """Raise the refusal that the conflicts are, with as many of them as an outcome can tell."""
        if not self.conflicts:
            return
        told, size = [], 0
        for conflict in self.conflicts[:CONFLICTS_TOLD_MAX]:
            found = conflict.to_json()
            size += len(to_bytes(found))
            if size > CONFLICTS_BYTES_MAX:
                break
            told.append(found)
        total = len(self.conflicts)
        raise refusal(
            "merge-conflict",
            f"{total:,} conflict{'s' if total > 1 else ''}: send it again with a resolution for each, or with a policy",
            total=total, conflicts=told,
        )  # fmt: skip


def merge_onto(
    line: Line, places: Iterable[Place], base: Side, theirs: Side, settling: Settling, newer: Newer
) -> Merged:
    """Merge the rows at `places` onto `line`: what the changes from `base` to `theirs` make of what stands there."""
    merged = Merged()
    merges: dict[str, Merge] = {}
    for table, key in sorted(places):
        merged.rows += 1
        merge = merges.get(table)
        if merge is None:
            resolutions = settling.resolutions.get(table, {})
            merge = merges[table] = Merge(table, rules_of(line, table), settling.policy, resolutions, merged.conflicts)
        text = line.text(table, key)
        ours = ABSENT if text is None else row_from_text(text)
        found = merge.row(key, base(table, key), ours, theirs(table, key), ours_is_newer=newer(table, key))
        result = None if found is ABSENT else to_bytes(found)
        if result != text:
            line.changed[table, key] = result
    return merged


Newer = Callable[[str, str], bool]
"""Whether our row was changed later than theirs."""


def rules_of(line: Line, table: str) -> Rules:
    """The merge functions that the table was given."""
    if table == SETTINGS_TABLE:
        return Rules(fields={("schema",): "schema"})
    settings = line.settings(table)
    merge = settings.get("merge") or {}
    fields = {tuple(path.split(".")): function for path, function in (merge.get("fields") or {}).items()}
    return Rules(merge.get("row"), fields)


# The operations


def merge(state: State, line: Line, ours: At, source: str, *, no_ff: bool, settling: Settling) -> tuple[int, ...]:
    """Merge what `source` names onto `line`, which stands at `ours`; answers the parents of the commit.

    Raises the refusal `merge-conflict`, and `nothing-to-merge` where `source` brings nothing.
    """
    theirs = resolve(state, ours.group, source)
    if is_ancestor(state, ours.group, theirs.version, ours.version):
        raise refusal(
            "nothing-to-merge", f"{ours.branch!r} has all that led to {source!r} already",
            group=ours.group, branch=ours.branch, source=source,
        )  # fmt: skip
    bases = merge_bases(state, ours.group, ours.version, theirs.version)
    tip = _standing(state, theirs)
    way = levels_at(state, theirs)
    places = set[Place]()
    for version in bases or [0]:
        places |= touched(state, ours.group, version, theirs.version).rows
    base = base_side(state, ours.group, bases)
    merged = merge_onto(
        line, places, base, _side(state, ours.group, way), settling, _later(state, ours.group, line.levels, way)
    )
    merged.refuse()
    if not no_ff and bases == [_standing(state, ours)]:
        return (tip,)
    return (_standing(state, ours), tip)


def revert(
    state: State, line: Line, group: str, versions: Sequence[int], parent: int | None, settling: Settling
) -> None:
    """Undo commits, the newest first: a merge with the commit as base and its parent as theirs."""
    merged = Merged()
    for step in _commits(state, group, sorted(set(versions), reverse=True)):
        before = _parent_of(state, group, step, parent)
        _apply(state, line, group, base=step, theirs=before, settling=settling, merged=merged)
    merged.refuse()


def cherry_pick(
    state: State, line: Line, group: str, versions: Sequence[int], parent: int | None, settling: Settling
) -> None:
    """Do again what commits did, in the order given: a merge with the commit's parent as base."""
    merged = Merged()
    for step in _commits(state, group, versions):
        before = _parent_of(state, group, step, parent)
        _apply(state, line, group, base=before, theirs=step, settling=settling, merged=merged)
    merged.refuse()


def _apply(
    state: State, line: Line, group: str, *, base: Step | None, theirs: Step | None, settling: Settling, merged: Merged
) -> None:
    one, other = (step.version if step is not None else 0 for step in (base, theirs))
    places = touched(state, group, one, other).rows
    sides = [_side_of_version(state, group, version) for version in (one, other)]
    way = [] if theirs is None else levels_at(state, resolve(state, group, str(other)))
    done = merge_onto(line, places, sides[0], sides[1], settling, _later(state, group, line.levels, way))
    merged.conflicts += done.conflicts
    merged.rows += done.rows


def _commits(state: State, group: str, versions: Iterable[int]) -> Iterator[Step]:
    for version in versions:
        resolve(state, group, str(version))
        step = state.step(group, version)
        assert step is not None, "a version that resolves has a place in the graph"
        if step.tip != step.version:
            raise refusal(
                "invalid", f"version {version} of {group!r} is a {step.operation}: it changed no rows",
                group=group, version=version,
            )  # fmt: skip
        yield step


def _parent_of(state: State, group: str, step: Step, parent: int | None) -> Step | None:
    if len(step.parents) > 1 and parent is None:
        raise refusal(
            "parent-needed", f"version {step.version} of {group!r} is a merge: say which parent, 1 or 2",
            group=group, version=step.version, parents=list(step.parents),
        )  # fmt: skip
    if parent is None or parent == 1:
        return first_parent(state, group, step)
    if not 1 <= parent <= len(step.parents):
        raise refusal(
            "invalid", f"version {step.version} of {group!r} has no parent {parent}", group=group, version=step.version,
        )  # fmt: skip
    return standing(state, group, step.parents[parent - 1])


# The sides


def base_side(state: State, group: str, bases: Sequence[int]) -> Side:
    """The rows at the merge base. Several bases (merges that crossed) are merged themselves, as Git does: what they
    do not agree on is equal to neither side."""
    if not bases:
        return lambda table, key: ABSENT
    side = _side_of_version(state, group, bases[0])
    so_far = bases[0]
    for other in bases[1:]:
        below = base_side(state, group, merge_bases(state, group, so_far, other))
        side = _agreed(below, side, _side_of_version(state, group, other))
    return side


def _agreed(base: Side, one: Side, other: Side) -> Side:
    def side(table: str, key: str) -> Any:
        merge = Merge(table)
        row = merge.row(key, base(table, key), one(table, key), other(table, key))
        return Unknown() if merge.conflicts else row

    return side


def _side_of_version(state: State, group: str, version: int) -> Side:
    if version == 0:
        return lambda table, key: ABSENT
    return _side(state, group, levels_at(state, resolve(state, group, str(version))))


def _side(state: State, group: str, way: list[Level]) -> Side:
    def side(table: str, key: str) -> Any:
        row = row_at(state, group, way, table, key)
        return ABSENT if row is None or row.text is None else row_from_text(row.text)

    return side


def _later(state: State, group: str, ours: list[Level], theirs: list[Level]) -> Newer:
    def newer(table: str, key: str) -> bool:
        return _version(_at(state, group, ours, table, key)) >= _version(_at(state, group, theirs, table, key))

    return newer


def _at(state: State, group: str, way: list[Level], table: str, key: str) -> Row | None:
    """The row's newest state along `way`, a deleted one too: deleting is a change like any other."""
    return next((row for level in way if (row := state.row(group, level, table, key)) is not None), None)


def _version(row: Row | None) -> int:
    return 0 if row is None else row.version


def _standing(state: State, at: At) -> int:
    step = standing(state, at.group, at.version)
    return 0 if step is None else step.version


# What callers send


def read_settling(arguments: dict[str, Any]) -> Settling:
    """The policy and resolutions in an operation's arguments. Raises the refusal of what is not of their form."""
    policy = arguments.get("policy") or "fail"
    if policy not in POLICIES:
        raise refusal("invalid", f"the policy {policy!r} is not one of {', '.join(POLICIES)}", field="policy")
    settling = Settling(policy)
    for number, given in enumerate(arguments.get("resolutions") or []):
        where = f"resolutions/{number}"
        try:
            place = (given["key"], tuple(given.get("path", [])))
            settling.resolutions.setdefault(given["table"], {})[place] = _resolution(given, where)
        except (KeyError, TypeError, AttributeError) as error:
            raise refusal(
                "invalid", f"{where}: table, key, path, base, ours, theirs and take are wanted: {error}", field=where
            ) from error
    return settling


def _resolution(given: dict[str, Any], where: str) -> Resolution:
    base, ours, theirs = (given.get(side, ABSENT) for side in ("base", "ours", "theirs"))
    match given["take"]:
        case "ours" | "theirs" as side:
            return Resolution(base, ours, theirs, side)
        case {"value": value}:
            return Resolution(base, ours, theirs, "value", value)
        case {"delete": True}:
            return Resolution(base, ours, theirs, "delete")
        case other:
            raise refusal(
                "invalid", f'{where}/take is "ours", "theirs", {{"value": …}} or {{"delete": true}}, not {other!r}',
                field=f"{where}/take",
            )  # fmt: skip
