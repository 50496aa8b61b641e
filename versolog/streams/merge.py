"""Three-way merging of rows: by row, then by field, recursively in objects; lists and scalars are atomic.

Pure, and the same in both directions but for which side is called ours. The yardsticks are Git (what conflicts), Dolt
(cells), lakeFS (the table of base, source and target) and Nessie (a resolution made against other values is stale).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from versolog.schemas.documents import INT64_MAX, INT64_MIN, to_bytes, to_text
from versolog.schemas.tables import incompatibility, table_schema

Path = tuple[str, ...]


class Absent:
    """No value: the row does not exist, or the object has no such field. Not the same as JSON's null."""

    _only: Absent | None = None

    def __new__(cls) -> Absent:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


@dataclass(frozen=True, slots=True)
class Conflict:
    """A place that both sides changed, each in its own way. The whole row where `path` is empty."""

    table: str
    key: str
    path: Path
    code: str
    """`both-changed`, `changed-deleted`, `both-added`; `type` where a merge function could not take the values, and
    `schema` for two schemas of a table of which neither takes the other's rows."""
    base: Any
    ours: Any
    theirs: Any
    stale: bool = False
    """Whether a resolution was given that was made against other values."""

    def to_json(self) -> dict[str, Any]:
        """Sides that are absent are left out."""
        told: dict[str, Any] = {"table": self.table, "key": self.key, "path": list(self.path), "code": self.code}
        sides = {"base": self.base, "ours": self.ours, "theirs": self.theirs}
        told |= {side: value for side, value in sides.items() if value is not ABSENT}
        return told | ({"stale": True} if self.stale else {})


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
        """Whether it was made against these values."""
        return all(
            same(mine, found)
            for mine, found in (
                (self.base, conflict.base), (self.ours, conflict.ours), (self.theirs, conflict.theirs),
            )
        )  # fmt: skip

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


@dataclass(frozen=True, slots=True)
class Rules:
    """How one table's conflicts are settled before anyone is asked."""

    row: str | None = None
    """A merge function for whole rows: `last`, `ours` or `theirs`."""
    fields: Mapping[Path, str] = field(default_factory=dict)
    """Merge functions by path: `sum`, `max`, `min`, `union`, `last`, `ours`, `theirs`."""


@dataclass(slots=True)
class Merge:
    """The merging of one table's rows, one after the other; what could not be merged is in `conflicts`."""

    table: str
    rules: Rules = Rules()
    policy: str = "fail"
    """What becomes of the conflicts that are left: `fail`, `ours` or `theirs`."""
    resolutions: Mapping[tuple[str, Path], Resolution] = field(default_factory=dict)
    """By key and path."""
    conflicts: list[Conflict] = field(default_factory=list)

    def row(self, key: str, base: Any, ours: Any, theirs: Any, *, ours_is_newer: bool = False) -> Any:
        """The merged row, ABSENT for none. Where there are conflicts, what stands there is of no use."""
        return self._value(key, (), base, ours, theirs, ours_is_newer)

    def _value(self, key: str, path: Path, base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> Any:
        if same(ours, theirs) or same(base, theirs):
            return ours
        if same(base, ours):
            return theirs
        function = self.rules.fields.get(path) if path else self.rules.row
        if function is None and isinstance(ours, dict) and isinstance(theirs, dict) and (path or base is not ABSENT):
            return self._fields(key, path, base if isinstance(base, dict) else {}, ours, theirs, ours_is_newer)
        code = _code(base, ours, theirs)
        if function is not None:
            merged = _FUNCTIONS[function](base, ours, theirs, ours_is_newer)
            if merged is not None:
                return merged[0]
            code = "schema" if function == "schema" else "type"
        return self._settle(Conflict(self.table, key, path, code, base, ours, theirs))

    def _fields(
        self, key: str, path: Path, base: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any], newer: bool
    ) -> dict[str, Any]:
        merged = {}
        for name in sorted(base.keys() | ours.keys() | theirs.keys()):
            one, other = ours.get(name, ABSENT), theirs.get(name, ABSENT)
            value = self._value(key, (*path, name), base.get(name, ABSENT), one, other, newer)
            if value is not ABSENT:
                merged[name] = value
        return merged

    def _settle(self, conflict: Conflict) -> Any:
        resolution = self.resolutions.get((conflict.key, conflict.path))
        if resolution is not None and resolution.fits(conflict):
            return resolution.result()
        if resolution is None and self.policy != "fail":
            return conflict.ours if self.policy == "ours" else conflict.theirs
        self.conflicts.append(
            Conflict(conflict.table, conflict.key, conflict.path, conflict.code, conflict.base, conflict.ours,
                     conflict.theirs, stale=resolution is not None)
        )  # fmt: skip
        return conflict.ours


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: true is not 1, and 1 is not 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _code(base: Any, ours: Any, theirs: Any) -> str:
    if ours is ABSENT or theirs is ABSENT:
        return "changed-deleted"
    return "both-added" if base is ABSENT else "both-changed"


# Merge functions: the merged value in a tuple, or None where the values are not of their kind.

_Function = Callable[[Any, Any, Any, bool], "tuple[Any] | None"]


def _exact(value: Any) -> Decimal | None:
    if value is ABSENT:
        return Decimal(0)
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, str):
        try:
            number = Decimal(value)
        except ArithmeticError:
            return None
        return number if number.is_finite() else None
    return None


def _sum(base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> tuple[Any] | None:
    """Both sides' deltas on the base."""
    numbers = [_exact(side) for side in (base, ours, theirs)]
    if any(number is None for number in numbers):
        return None
    zero, one, other = (number or Decimal(0) for number in numbers)
    total = one + other - zero
    if not any(isinstance(side, str) for side in (base, ours, theirs)):
        return (int(total),) if INT64_MIN <= total <= INT64_MAX else None
    return (format(total, "f"),)


def _extreme(greatest: bool) -> _Function:
    def function(base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> tuple[Any] | None:
        present = [side for side in (ours, theirs) if side is not ABSENT]
        kinds = {type(side) for side in present}
        if not kinds <= {int, float} and kinds != {str}:
            return None
        return ((max if greatest else min)(present),)

    return function


def _union(base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> tuple[Any] | None:
    """Lists as sets: what either side added, less what either side took away, in an order that both sides agree on."""
    lists: list[list[Any]] = [[] if side is ABSENT else side for side in (base, ours, theirs)]
    if not all(isinstance(side, list) for side in lists):
        return None
    before, one, other = ({_spelled(item): item for item in side} for side in lists)
    gone = {name for name in before if name not in one or name not in other}
    kept = {name: item for side in (before, one, other) for name, item in side.items() if name not in gone}
    return ([kept[name] for name in sorted(kept)],)


def _last(base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> tuple[Any] | None:
    return (ours if ours_is_newer else theirs,)


def _spelled(item: Any) -> str:
    return to_text(item)


def _schema(base: Any, ours: Any, theirs: Any, ours_is_newer: bool) -> tuple[Any] | None:
    """Of two schemas of a table the one that takes the other's rows as well; None where neither does."""
    if ours is ABSENT or theirs is ABSENT:
        return None
    one, other = table_schema(to_bytes(ours)), table_schema(to_bytes(theirs))
    if incompatibility(other, one) is None:
        return (theirs,)
    return (ours,) if incompatibility(one, other) is None else None


_FUNCTIONS: dict[str, _Function] = {
    "sum": _sum,
    "max": _extreme(greatest=True),
    "min": _extreme(greatest=False),
    "union": _union,
    "last": _last,
    "ours": lambda base, ours, theirs, newer: (ours,),
    "theirs": lambda base, ours, theirs, newer: (theirs,),
}
ROW_FUNCTIONS: Sequence[str] = ("last", "ours", "theirs")
FIELD_FUNCTIONS: Sequence[str] = tuple(_FUNCTIONS)
_FUNCTIONS["schema"] = _schema  # of system tables, not for users to set
