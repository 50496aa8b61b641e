"""Three-way merging of rows: by row, then by field, recursively in objects; lists and scalars are atomic.

Pure, and the same in both directions but for which side is called ours. `docs/decisions/merging.md` has the rules, and
a test has them as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from versolog.schemas.conflicts import ABSENT, Conflict, Path
from versolog.schemas.documents import DECIMAL, INT64_MAX, INT64_MIN, to_bytes
from versolog.schemas.errors import VersologError
from versolog.schemas.tables import incompatibility, table_schema
from versolog.streams.fields import EXACT, exact
from versolog.streams.state import SETTINGS_TABLE


class Unknown:
    """What merge bases that crossed do not agree on: equal to nothing, itself included, so that whatever stands on the
    two sides of a merge counts as changed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a conflict is to end, and the values that it was decided on."""

    base: Any
    ours: Any
    theirs: Any
    take: str
    """`ours`, `theirs`, `value` or `delete`."""
    value: Any = None

    def fits(self, conflict: Conflict) -> bool:
        """Whether it was made against these values, as the conflict told them."""
        made_on = (self.base, self.ours, self.theirs)
        return all(map(same, made_on, (conflict.base, conflict.ours, conflict.theirs)))

    def made_on_the_values_of(self, other: Resolution) -> bool:
        """Whether both fit the same conflicts."""
        return all(map(same, (self.base, self.ours, self.theirs), (other.base, other.ours, other.theirs)))

    def result(self) -> Any:
        match self.take:
            case "ours":
                return self.ours
            case "theirs":
                return self.theirs
            case "delete":
                return ABSENT
            case _:
                return self.value


class Spot(NamedTuple):
    """Where a conflict can be."""

    table: str
    key: str
    path: Path


@dataclass(slots=True)
class Settling:
    """How conflicts end: by the resolutions given, and those that have none by a policy."""

    policy: str = "fail"
    """`fail`, `ours` or `theirs`."""
    resolutions: Mapping[Spot, Sequence[Resolution]] = field(default_factory=dict)
    """Several for one spot where several commits meet conflicts there, each with values of its own."""
    used: list[Resolution] = field(default_factory=list)

    def unused(self) -> Iterator[Spot]:
        """Where resolutions were given and met no conflict with their values."""
        used = set(map(id, self.used))
        return (spot for spot, given in self.resolutions.items() for one in given if id(one) not in used)


@dataclass(frozen=True, slots=True)
class Rules:
    """How one table's conflicts are settled before anyone is asked."""

    row: str | None = None
    """A function for rows as a whole, `last`, `ours` or `theirs`: they are not taken apart."""
    fields: Mapping[Path, str] = field(default_factory=dict)
    """Functions by the path of a field: `sum`, `max`, `min`, `union`, `last`, `ours`, `theirs`."""
    others: str | None = None
    """The function of conflicts in all other fields."""
    whole: Path | None = None
    """Where objects stand that are not taken apart: those in the fields of this one."""

    @property
    def by_field(self) -> bool:
        """Whether fields have functions."""
        return bool(self.fields) or self.others is not None

    @property
    def counts(self) -> bool:
        """Whether there are counters: what both sides added is then added twice, though both came to the same."""
        return self.others == "sum" or "sum" in self.fields.values()


def _ours_is_newer() -> bool:
    raise AssertionError("the rules say `last`, and nobody says which side is")


@dataclass(slots=True)
class Merge:
    """The merging of one table's rows, one after the other; what could not be merged is in `conflicts`."""

    table: str
    rules: Rules = Rules()
    settling: Settling | None = field(default_factory=Settling)
    """None where conflicts have no end: what stands in one is then UNKNOWN."""
    conflicts: list[Conflict] = field(default_factory=list)
    _key: str = ""
    _newer: Callable[[], bool] = _ours_is_newer

    def row(self, key: str, base: Any, ours: Any, theirs: Any, newer: Callable[[], bool] = _ours_is_newer) -> Any:
        """The merged row, ABSENT for none; where there are conflicts, ours stands there. `newer` says, where it
        matters, whether our row was changed later than theirs."""
        self._key, self._newer = key, newer
        return self._value((), base, ours, theirs)

    def _value(self, path: Path, base: Any, ours: Any, theirs: Any) -> Any:
        if same(base, theirs):
            return ours
        if same(base, ours):
            return theirs
        alike = same(ours, theirs)
        if alike and not self.rules.counts:
            return ours
        function = self.rules.fields.get(path) if path else self.rules.row
        if function is None and isinstance(ours, dict) and isinstance(theirs, dict) and self._by_field(path, base):
            return self._fields(path, base, ours, theirs)
        if function is None and path:
            function = self.rules.others
        if alike and function != "sum":
            return ours
        code = _code(base, ours, theirs)
        if function is not None and (function in _ALWAYS or (ours is not ABSENT and theirs is not ABSENT)):
            merged = _FUNCTIONS[function](base, ours, theirs, self._newer)
            if merged is not None:
                return merged[0]
            if base is not UNKNOWN:
                code = "schema" if function == "schema" else "type"
        if alike:
            return ours
        return self._settled(Conflict(self.table, self._key, path, code, _known(base), ours, theirs))

    def _by_field(self, path: Path, base: Any) -> bool:
        """Rows that both sides added are one conflict, not one for each field, but where fields have functions; and so
        are objects that only mean something whole."""
        if path and path[:-1] == self.rules.whole:
            return False
        return bool(path) or base is not ABSENT or self.rules.by_field or self.settling is None

    def _fields(self, path: Path, base: Any, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        merged = {}
        before = base if isinstance(base, dict) else {}
        none = UNKNOWN if base is UNKNOWN else ABSENT
        for name in sorted(before.keys() | ours.keys() | theirs.keys()):
            one, other = ours.get(name, ABSENT), theirs.get(name, ABSENT)
            value = self._value((*path, name), before.get(name, none), one, other)
            if value is not ABSENT:
                merged[name] = value
        return merged

    def _settled(self, conflict: Conflict) -> Any:
        settling = self.settling
        if settling is None:
            return UNKNOWN
        given = settling.resolutions.get(Spot(conflict.table, conflict.key, conflict.path), ())
        fitting = next((resolution for resolution in given if resolution.fits(conflict)), None)
        if fitting is not None:
            settling.used.append(fitting)
            if _can_stand(conflict, fitting.result()):
                return fitting.result()
        elif not given and settling.policy != "fail":
            chosen = conflict.ours if settling.policy == "ours" else conflict.theirs
            if _can_stand(conflict, chosen):
                return chosen
        stale = bool(given) and fitting is None
        self.conflicts.append(replace(conflict, stale=True) if stale else conflict)
        return conflict.ours


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON text: true is not 1, 1 is not 1.0, and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict | list) and one != other:
        return False  # the most, told in no time: what is the same JSON is equal
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return bool(one == other)


def _known(value: Any) -> Any:
    """`value` without what is not known of it."""
    if value is UNKNOWN:
        return ABSENT
    if isinstance(value, dict):
        return {name: _known(item) for name, item in value.items() if item is not UNKNOWN}
    return value


def _code(base: Any, ours: Any, theirs: Any) -> str:
    if ours is ABSENT or theirs is ABSENT:
        return "changed-deleted"
    return "both-added" if base is ABSENT else "both-changed"


def _can_stand(conflict: Conflict, chosen: Any) -> bool:
    """Whether a conflict may end so. A schema must take the rows that stand on our side, for they stay as they are;
    those that come from the other side are checked one by one."""
    wanted, ours = _schema_in(conflict, chosen), _schema_in(conflict, conflict.ours)
    if wanted is ABSENT or same(wanted, ours):
        return True
    if ours is ABSENT:
        return False  # rows stand that follow no schema
    try:
        return incompatibility(table_schema(to_bytes(wanted)), table_schema(to_bytes(ours))) is None
    except VersologError:
        return False


def _schema_in(conflict: Conflict, value: Any) -> Any:
    """The table's schema, where it is what the conflict is about, in one of its values; ABSENT without one."""
    if conflict.table != SETTINGS_TABLE:
        return ABSENT
    if not conflict.path:
        return value.get("schema", ABSENT) if isinstance(value, dict) else ABSENT
    return value if tuple(conflict.path) == ("schema",) else ABSENT


# Merge functions: the merged value in a tuple, or None where the values are not of their kind. All but those of
# `_ALWAYS` are for values: where one side is absent they are not asked.

_Function = Callable[[Any, Any, Any, Callable[[], bool]], "tuple[Any] | None"]


def _sum(base: Any, ours: Any, theirs: Any, newer: Callable[[], bool]) -> tuple[Any] | None:
    """What both sides added to the base; where that is absent, to nothing."""
    sides = [0 if base is ABSENT else base, ours, theirs]
    before, one, other = map(exact, sides)
    if before is None or one is None or other is None:
        return None
    total = EXACT.subtract(EXACT.add(one, other), before)
    if not any(isinstance(side, str) for side in sides):
        return (int(total),) if INT64_MIN <= total <= INT64_MAX else None
    text = format(total, "f")
    return (text,) if DECIMAL.fullmatch(text) else None


def _extreme(choose: Callable[..., Any]) -> _Function:
    """The greatest or the least: of numbers, of decimals in strings, or of texts by code point."""

    def function(base: Any, ours: Any, theirs: Any, newer: Callable[[], bool]) -> tuple[Any] | None:
        sides = (ours, theirs)
        ranks: tuple[Any, ...]
        if all(isinstance(side, int | float) and not isinstance(side, bool) for side in sides):
            ranks = sides
        elif None not in (numbers := tuple(map(exact, sides))):
            ranks = numbers
        elif all(isinstance(side, str) for side in sides):
            ranks = sides
        else:
            return None
        # Of 1 and 1.0, or "1.0" and "1.00", the same one in both directions.
        return (choose(zip(ranks, map(to_bytes, sides), sides, strict=True), key=lambda ranked: ranked[:2])[2],)

    return function


def _union(base: Any, ours: Any, theirs: Any, newer: Callable[[], bool]) -> tuple[Any] | None:
    """Lists as sets: what either side added, less what either side took away. What stays keeps the base's order, and
    what is new follows by its spelling, so that both directions agree."""
    lists = [[] if base is ABSENT else base, ours, theirs]
    if not all(isinstance(side, list) for side in lists):
        return None
    before, one, other = ({to_bytes(item): item for item in side} for side in lists)
    kept = [item for spelled, item in before.items() if spelled in one and spelled in other]
    new = {spelled: item for side in (one, other) for spelled, item in side.items() if spelled not in before}
    return (kept + [new[spelled] for spelled in sorted(new)],)


def _last(base: Any, ours: Any, theirs: Any, newer: Callable[[], bool]) -> tuple[Any] | None:
    return (ours if newer() else theirs,)


def _schema(base: Any, ours: Any, theirs: Any, newer: Callable[[], bool]) -> tuple[Any] | None:
    """Of two schemas of a table the one that takes the other's rows as well; None where neither does."""
    one, other = table_schema(to_bytes(ours)), table_schema(to_bytes(theirs))
    widest = [ours] if incompatibility(one, other) is None else []
    widest += [theirs] if incompatibility(other, one) is None else []
    return (min(widest, key=to_bytes),) if widest else None


_ALWAYS = frozenset({"last", "ours", "theirs"})
_FUNCTIONS: dict[str, _Function] = {
    "sum": _sum,
    "max": _extreme(max),
    "min": _extreme(min),
    "union": _union,
    "last": _last,
    "ours": lambda base, ours, theirs, newer: (ours,),
    "theirs": lambda base, ours, theirs, newer: (theirs,),
}
ROW_FUNCTIONS: Sequence[str] = tuple(sorted(_ALWAYS))
FIELD_FUNCTIONS: Sequence[str] = tuple(_FUNCTIONS)
_FUNCTIONS["schema"] = _schema  # of system tables, not for users to set
