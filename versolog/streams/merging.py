"""Merge, revert and cherry-pick: each a three-way merge of rows onto a branch, from another base and another side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import orjson

from versolog.schemas.documents import row_from_text, to_bytes
from versolog.schemas.conflicts import ABSENT, Conflict
from versolog.schemas.errors import MergeConflict, VersologError, refusal
from versolog.schemas.limits import ROW_BYTES_MAX
from versolog.streams.changes import Line
from versolog.streams.fields import value_at
from versolog.streams.graph import brought, is_fast_forward, merge_bases, node
from versolog.streams.merge import UNKNOWN, Merge, Resolution, Rules, Settling, Spot
from versolog.streams.settings import RULES_OF_SETTINGS, check_settings, merge_rules
from versolog.streams.state import DERIVED_TABLES, SETTINGS_TABLE, Level, State, Step
from versolog.streams.turns import ITEMS_A_TURN, give_way
from versolog.streams.versions import (
    At,
    VersionRef,
    first_parent,
    levels_at,
    parents_told,
    resolve,
    resolve_ref,
    rows_at,
    standing,
    touched,
)

CONFLICTS_TOLD_MAX = 100
CONFLICTS_BYTES_MAX = 256 * 1024
CROSSINGS_MAX = 32
"""Merge bases of merge bases that are looked at. Deeper down, what two bases differ in is unknown."""
ROWS_AT_ONCE = 1_000
RANGE_MAX = 10_000
"""Commits that are reverted or picked at once by naming where they begin and end."""
POLICIES = ("fail", "ours", "theirs")

Place = tuple[str, str]
"""Table and key."""


class Sides(NamedTuple):
    """The versions that are merged."""

    at: int
    """The group's newest version then: what all references of the operation meant, they meant at that one."""
    branch: str
    ours: int
    theirs: int
    """0 for nothing, before the first commit."""
    bases: Sequence[int]

    def to_json(self) -> dict[str, Any]:
        """As a refusal names them."""
        return {"version": self.at, "ours": self.ours, "theirs": self.theirs, "bases": list(self.bases)}


class Unmerged(MergeConflict):
    """A refused merge: `every` conflict there is, by place; the facts hold as many of them as an outcome can."""

    def __init__(self, group: str, sides: Sides, every: Sequence[Conflict], version: int | None = None) -> None:
        self.every = every
        facts: dict[str, Any] = {} if version is None else {"version": version}
        super().__init__(
            _what_to_do(every, version), group=group, branch=sides.branch, at=sides.to_json(),
            total=len(every), conflicts=list(_told(every)), **facts,
        )  # fmt: skip


def _what_to_do(conflicts: Sequence[Conflict], version: int | None) -> str:
    if conflicts[0].code == "no-conflict":
        return f"{_count(conflicts, 'resolution')} for what is in no conflict with these values: leave out what is told"
    of = f" with what version {version} did" if version is not None else ""
    detail = f"{_count(conflicts, 'conflict')}{of}: send it again, with a resolution for each or a policy"
    stale = [conflict for conflict in conflicts if conflict.stale]
    return f"{detail}; {_count(stale, 'resolution')} on values that have changed since" if stale else detail


def _count(listed: Sequence[Conflict], what: str) -> str:
    return f"{len(listed):,} {what}{'' if len(listed) == 1 else 's'}"


@dataclass(slots=True)
class Merged:
    """What merging onto a line came to."""

    conflicts: list[Conflict] = field(default_factory=list)


# The operations


def merge(state: State, line: Line, ours: At, source: str, *, no_ff: bool, settling: Settling) -> tuple[int, ...]:
    """Merge what `source` names onto `line`, which stands at `ours`; answers the parents of the commit.

    Raises Unmerged, and the refusal `nothing-to-merge` where `source` brings nothing.
    """
    group = ours.group
    theirs = resolve(state, group, source)
    bases = merge_bases(state, group, [ours.version], theirs.version)
    tip, here = node(state, group, theirs.version), node(state, group, ours.version)
    if tip is None or bases == [tip.version]:
        raise refusal(
            "nothing-to-merge", f"{ours.branch!r} has all that led to {source!r} already: merge what has more",
            group=group, branch=ours.branch, source=source,
        )  # fmt: skip
    places = set[Place]()
    for base in bases or [0]:
        places |= brought(state, group, base, tip.version)
    merged = merge_onto(line, places, _base(state, line, bases), Stand(state, theirs), settling)
    _refuse(line, _sides(state, ours, theirs.version, bases), merged, settling)
    parents = [standing(state, group, at.version) for at in (ours, theirs)]
    if here is None or (bases == [here.version] and not no_ff):
        parents = parents[1:]
    return tuple(parent.version for parent in parents if parent is not None)


def revert(
    state: State, line: Line, ours: At, versions: Sequence[int], parent: int | None, settling: Settling
) -> None:
    """Undo commits, the newest first: a merge with the commit as base and its parent as theirs.

    Raises Unmerged of the first commit that meets conflicts.
    """
    for step, before in _commits(state, ours.group, sorted(set(versions), reverse=True), parent):
        _apply(state, line, ours, step, base=step, theirs=before, settling=settling)
    _refuse(line, _sides(state, ours, ours.version, [ours.version]), Merged(), settling)


def cherry_pick(
    state: State, line: Line, ours: At, versions: Sequence[int], parent: int | None, settling: Settling
) -> None:
    """Do again what commits did, in the order given: a merge with the commit's parent as base.

    Raises Unmerged of the first commit that meets conflicts.
    """
    for step, before in _commits(state, ours.group, versions, parent):
        _apply(state, line, ours, step, base=before, theirs=step, settling=settling)
    _refuse(line, _sides(state, ours, ours.version, [ours.version]), Merged(), settling)


def in_range(state: State, group: str, first: str | None, last: str, branch: str) -> list[int]:
    """The commits that led from one place to another by first parents, the oldest first: what `diff` of the two shows.

    Raises the refusal of a beginning that is not on that line, and of more than RANGE_MAX commits.
    """
    if first is None:
        raise refusal("invalid", "a range needs `from`: the place before its first commit", field="from")
    begin, step = (node(state, group, resolve(state, group, at, branch).version) for at in (first, last))
    found: list[int] = []
    while step is not None and (begin is None or step.version > begin.version):
        found.append(step.version)
        if len(found) > RANGE_MAX:
            raise refusal(
                "too-large", f"over {RANGE_MAX:,} commits lead from {first!r} to {last!r}; roll back instead",
                group=group, limit=RANGE_MAX,
            )  # fmt: skip
        before = first_parent(state, group, step)
        step = None if before is None else node(state, group, before.version)
    if step != begin or not found:
        raise refusal(
            "invalid", f"no commits lead from {first!r} to {last!r} by first parents; name `versions`, or two places "
            "of one line, the earlier one first", group=group, field="from",
        )  # fmt: skip
    return found[::-1]


def _apply(
    state: State, line: Line, ours: At, step: Step, *, base: Step | None, theirs: Step | None, settling: Settling
) -> None:
    group = line.group
    one, other = (found.version if found is not None else 0 for found in (base, theirs))
    places = touched(state, group, one, other).rows
    merged = merge_onto(line, places, _stand(state, group, one), _stand(state, group, other), settling)
    if merged.conflicts:
        sides = _sides(state, ours, other, [one] if one else [])
        raise Unmerged(group, sides, merged.conflicts, step.version)


def _sides(state: State, ours: At, theirs: int, bases: Sequence[int]) -> Sides:
    head = state.head(ours.group)
    assert head is not None, "what is merged is of a group that exists"
    return Sides(head.version, ours.branch, ours.version, theirs, bases)


def _commits(state: State, group: str, versions: Iterable[int], parent: int | None) -> list[tuple[Step, Step | None]]:
    """The commits, each with what stood before it; all that can't be done is refused before anything is."""
    commits = []
    for version in versions:
        resolve_ref(state, group, VersionRef(version), None)
        step = state.step(group, version)
        assert step is not None, "a version that resolves has a place in the graph"
        if step.tip != step.version:
            raise refusal(
                "invalid", f"version {version} of {group!r} is a {step.operation}, which changed no rows: name one that did",
                group=group, version=version,
            )  # fmt: skip
        if is_fast_forward(step):
            raise refusal(
                "invalid",
                f"version {version} of {group!r} is a fast-forward to version {step.parents[0]}: name the commits that "
                f"it brought, or roll back", group=group, version=version, parents=list(step.parents),
            )  # fmt: skip
        commits.append((step, _parent_of(state, group, step, parent)))
    return commits


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
            "invalid", f"version {step.version} of {group!r} has no parent {parent}: {parents_told(step)}",
            group=group, version=step.version, parents=list(step.parents),
        )  # fmt: skip
    return standing(state, group, step.parents[parent - 1])


# Merging rows


def merge_onto(line: Line, places: Iterable[Place], base: Side, theirs: Side, settling: Settling) -> Merged:
    """Merge the rows at `places` onto `line`: what the changes from `base` to `theirs` make of what stands there.

    Settings are merged before the rows that they settle, so both directions go by the same ones. What follows from the
    rows is not merged: it is made of the merged rows.
    """
    merged = Merged()
    ordered = _ordered(places)
    ours = _Ours(line)
    merges: dict[str, Merge] = {}
    for start in range(0, len(ordered), ROWS_AT_ONCE):
        give_way()
        some = ordered[start : start + ROWS_AT_ONCE]
        for place, before, one, other in zip(some, base.rows(some), ours.rows(some), theirs.rows(some), strict=True):
            if before == other:
                continue
            table, key = place
            merge = merges.get(table)
            if merge is None:
                merge = merges[table] = Merge(table, rules_of(line, table), settling, merged.conflicts)
            result = other if before == one else _merged(merge, place, (before, one, other), (ours, theirs))
            if result != one:
                line.changed[place] = result
                if table == SETTINGS_TABLE and result is not None:
                    check_settings(key, row_from_text(result))
    return merged


def _ordered(places: Iterable[Place]) -> list[Place]:
    """The settings first, then by table and key; without what follows from the rows."""
    keys: dict[str, list[str]] = {}
    for number, (table, key) in enumerate(places):
        if number % ITEMS_A_TURN == 0:
            give_way()
        keys.setdefault(table, []).append(key)
    tables = sorted(keys.keys() - DERIVED_TABLES, key=lambda table: (table != SETTINGS_TABLE, table))
    ordered: list[Place] = []
    for table in tables:
        give_way()
        keys[table].sort()
        ordered += [(table, key) for key in keys[table]]
    return ordered


def _merged(merge: Merge, place: Place, rows: tuple[Any, Any, Any], sides: tuple[Side, Side]) -> bytes | None:
    """The merged row as text."""
    if rows[1] == rows[2] and not merge.rules.counts:
        return _text(rows[1])
    one, other = sides
    base, mine, its = map(_document, rows)
    found = merge.row(place[1], base, mine, its, newer=lambda: one.changed(place) >= other.changed(place))
    if found is ABSENT:
        return None
    text = to_bytes(found)
    if len(text) > ROW_BYTES_MAX:
        table, key = place
        raise refusal(
            "too-large", f"the row {key!r} of {table!r} would have {len(text):,} bytes once merged; the limit is "
            f"{ROW_BYTES_MAX:,}", table=table, key=key, limit=ROW_BYTES_MAX,
        )  # fmt: skip
    return text


def rules_of(line: Line, table: str) -> Rules:
    """The merge functions that the table was given."""
    return RULES_OF_SETTINGS if table == SETTINGS_TABLE else merge_rules(line.settings(table))


def _document(row: Any) -> Any:
    """A row as merging takes it. Merged bases are documents already, of which something may not be known."""
    if row is None:
        return ABSENT
    return orjson.loads(row) if isinstance(row, bytes) else row


def _text(row: Any) -> bytes | None:
    assert row is None or isinstance(row, bytes), "what stands on a branch is known"
    return row


def _refuse(line: Line, sides: Sides, merged: Merged, settling: Settling) -> None:
    """Raise the conflicts, or, where there are none, what resolutions were given for nothing."""
    if merged.conflicts:
        raise Unmerged(line.group, sides, merged.conflicts)
    if unused := list(settling.unused()):
        raise Unmerged(line.group, sides, [_no_conflict(line, spot) for spot in unused])


def _no_conflict(line: Line, spot: Spot) -> Conflict:
    found = value_at(_document(line.text(spot.table, spot.key)), spot.path)
    return Conflict(spot.table, spot.key, spot.path, "no-conflict", ABSENT, found, ABSENT, stale=True)


def _told(conflicts: Sequence[Conflict]) -> Iterator[dict[str, Any]]:
    size = 0
    for conflict in conflicts[:CONFLICTS_TOLD_MAX]:
        told = conflict.to_json()
        size += len(to_bytes(told))
        if size > CONFLICTS_BYTES_MAX:
            break
        yield told


# The sides of a merge


class Side(Protocol):
    """What stands at one side of a merge."""

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        """The rows: JSON text, None where there is none; at merged bases also what is known of a row, or UNKNOWN."""

    def changed(self, place: Place) -> int:
        """The version that last changed the row, by deleting it too; 0 where none ever did."""


class Nothing:
    """Before the first commit."""

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        return [None] * len(places)

    def changed(self, place: Place) -> int:
        return 0


class Stand:
    """The rows at one version."""

    def __init__(self, state: State, at: At) -> None:
        self._state, self._group, self._way = state, at.group, levels_at(state, at)

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        return [None if row is None else row.text for row in rows_at(self._state, self._group, self._way, places)]

    def changed(self, place: Place) -> int:
        return _changed(self._state, self._group, self._way, place)


class _Ours:
    """The line that is merged onto, what was merged already included."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        return self._line.texts(places)

    def changed(self, place: Place) -> int:
        return self._line.last_changed(place)


class Crossed:
    """Several merge bases (merges that crossed), merged themselves, as Git does. What they do not agree on is UNKNOWN,
    and so equal to neither side."""

    def __init__(self, state: State, line: Line, bases: Sequence[int], depth: int) -> None:
        self._state, self._line, self._depth = state, line, depth
        self._bases = sorted(bases)
        self._sides = [_stand(state, line.group, base) for base in self._bases]
        self._below: dict[int, Side] = {}
        self._known: dict[Place, Any] = {}

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        new = [place for place in places if place not in self._known]
        found = list(self._sides[0].rows(new))
        for number, side in enumerate(self._sides[1:], start=1):
            differing = [
                (index, place, other)
                for index, (place, other) in enumerate(zip(new, side.rows(new), strict=True))
                if found[index] != other or rules_of(self._line, place[0]).counts
            ]
            before = self._before(number).rows([place for _, place, _ in differing]) if differing else ()
            for (index, place, other), base in zip(differing, before, strict=True):
                found[index] = self._merged(number, place, base, found[index], other)
        self._known.update(zip(new, found, strict=True))
        return [self._known[place] for place in places]

    def changed(self, place: Place) -> int:
        return max(side.changed(place) for side in self._sides)

    def _before(self, number: int) -> Side:
        """The base on which the base of that number is merged with those before it."""
        side = self._below.get(number)
        if side is None:
            bases = merge_bases(self._state, self._line.group, self._bases[:number], self._bases[number])
            side = self._below[number] = _base(self._state, self._line, bases, self._depth - 1)
        return side

    def _merged(self, number: int, place: Place, base: Any, one: Any, other: Any) -> Any:
        """The two bases' rows merged: a document, or None, for it may hold what is not known."""
        table, key = place
        merge = Merge(table, rules_of(self._line, table), settling=None)
        sides = self._sides[:number], self._sides[number]
        found = merge.row(
            key, _document(base), _document(one), _document(other),
            newer=lambda: max(side.changed(place) for side in sides[0]) >= sides[1].changed(place),
        )  # fmt: skip
        return None if found is ABSENT else found


class _Lost:
    """Too many crossings down to look."""

    def rows(self, places: Sequence[Place]) -> Sequence[Any]:
        return [UNKNOWN] * len(places)

    def changed(self, place: Place) -> int:
        return 0


def _base(state: State, line: Line, bases: Sequence[int], depth: int = CROSSINGS_MAX) -> Side:
    if len(bases) > 1:
        return Crossed(state, line, bases, depth) if depth else _Lost()
    return _stand(state, line.group, bases[0] if bases else 0)


def _stand(state: State, group: str, version: int) -> Side:
    return Stand(state, resolve(state, group, str(version))) if version else Nothing()


def _changed(state: State, group: str, way: Iterable[Level], place: Place) -> int:
    found = (state.row(group, level, *place) for level in way)
    return next((row.version for row in found if row is not None), 0)


# What callers send


def read_settling(arguments: dict[str, Any]) -> Settling:
    """The policy and resolutions in an operation's arguments. Raises the refusal of what is not of their form."""
    policy = arguments.get("policy") or "fail"
    if policy not in POLICIES:
        raise refusal("invalid", f"the policy {policy!r} is not one of {', '.join(POLICIES)}", field="policy")
    resolutions: dict[Spot, list[Resolution]] = {}
    for number, given in enumerate(arguments.get("resolutions") or []):
        try:
            spot, resolution = _read_resolution(given)
        except VersologError as error:
            where = f"resolutions/{number}"
            raise refusal("invalid", f"{where}: {error.detail}", field=where) from error
        others = resolutions.setdefault(spot, [])
        if any(resolution.made_on_the_values_of(other) for other in others):
            raise refusal("invalid", f"resolutions/{number}: two end the same conflict", field=f"resolutions/{number}")
        others.append(resolution)
    return Settling(policy, resolutions)


def _read_resolution(given: Any) -> tuple[Spot, Resolution]:
    match given:
        case {"table": str(table), "key": str(key), "take": take}:
            path = given.get("path", [])
        case _:
            raise refusal("invalid", "an object with table, key, path, base, ours, theirs and take is wanted")
    if not isinstance(path, list) or not all(isinstance(name, str) for name in path):
        raise refusal("invalid", "path is a list of the names of fields, empty for the whole row")
    base, ours, theirs = (given.get(side, ABSENT) for side in ("base", "ours", "theirs"))
    match take:
        case "ours" | "theirs":
            resolution = Resolution(base, ours, theirs, take)
        case {"value": value} if len(take) == 1:
            resolution = Resolution(base, ours, theirs, "value", value)
        case {"delete": True} if len(take) == 1:
            resolution = Resolution(base, ours, theirs, "delete")
        case _:
            raise refusal("invalid", f'take is "ours", "theirs", {{"value": …}} or {{"delete": true}}, not {take!r}')
    if not path and resolution.take == "value" and not isinstance(resolution.value, dict):
        raise refusal("invalid", "a row is a JSON object: take a value that is one, or name a field's path")
    return Spot(table, key, tuple(path)), resolution
