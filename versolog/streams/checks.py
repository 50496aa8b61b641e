"""What a table's rows are held to: each check by its name, as `set-checks` declares it and the table's settings keep it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from versolog.schemas.documents import Document, to_bytes, to_text
from versolog.schemas.errors import VersologError, refusal
from versolog.schemas.conflicts import ABSENT, Path
from versolog.streams.fields import EXACT, exact, field_path, value_at

CHECKS_MAX = 32
NAME_BYTES_MAX = 128
FIELDS_MAX = 16
"""In one check."""
FIELD_BYTES_MAX = 1_024
"""Of a field's path: refusals name it, and are kept for ever."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Both ends included; None where there is none."""

    least: Decimal | None = None
    most: Decimal | None = None

    def hold(self, number: Decimal) -> bool:
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:f}"
        ends = ("at least", self.least), ("at most", self.most)
        return " and ".join(f"{word} {end:f}" for word, end in ends if end is not None)


@dataclass(frozen=True, slots=True)
class Required:
    """Every row has these fields, and not as null."""

    fields: tuple[Path, ...]

    def fault(self, row: Document) -> str | None:
        """What is wrong with a row; None where nothing is."""
        missing = (path for path in self.fields if value_at(row, path) in (ABSENT, None))
        return next((f"{spelled(path)} is missing" for path in missing), None)


@dataclass(frozen=True, slots=True)
class Range:
    """A number (a decimal string too) is within bounds, where there is one."""

    path: Path
    bounds: Bounds

    def fault(self, row: Document) -> str | None:
        """What is wrong with a row; None where nothing is."""
        value = value_at(row, self.path)
        if value is ABSENT or value is None:
            return None
        number = _number_in(value)
        if number is None:
            return f"{spelled(self.path)} is {to_text(value)[:60]}, which is no number"
        return None if self.bounds.hold(number) else f"{spelled(self.path)} is {number:f}, not {self.bounds}"


@dataclass(frozen=True, slots=True)
class Unique:
    """No two rows have the same values in these fields. A row that lacks one, or has null there, is left out."""

    fields: tuple[Path, ...]

    def value_of(self, row: Document) -> str | None:
        """What no other row may have: the hash of the values' JSON."""
        values = [value_at(row, path) for path in self.fields]
        if any(value is ABSENT or value is None for value in values):
            return None
        return hashlib.sha256(to_bytes(values)).hexdigest()


@dataclass(frozen=True, slots=True)
class Sum:
    """The numbers in a field of all rows add up to something within bounds. Absent and null count nothing."""

    path: Path
    bounds: Bounds

    def amount_of(self, row: Document) -> Decimal | None:
        """What the row counts; None where that is no number that adds exactly."""
        value = value_at(row, self.path)
        return Decimal(0) if value is ABSENT or value is None else exact(value)


Check = Required | Range | Unique | Sum


def read_checks(settings: Document) -> dict[str, Check]:
    """The checks in a table's settings, by name. Raises the refusal of what is not of their form."""
    given = settings.get("checks", {})
    if not isinstance(given, dict):
        raise refusal("invalid", "`checks` is an object: each check by its name", field="checks")
    if len(given) > CHECKS_MAX:
        raise refusal("too-large", f"{len(given)} checks; a table may have {CHECKS_MAX}", limit=CHECKS_MAX)
    return {name: _read_check(name, definition) for name, definition in given.items()}


def is_constant(definition: Any) -> bool:
    """Whether it is of a sum that is to stay as it is when that is declared."""
    return isinstance(definition, dict) and definition.get("constant") is True and definition.keys() == {"sum", "constant"}


def as_kept(definition: Any) -> Any:
    """The form in which settings keep a check: a sum that is to stay equals what it was, still to be found."""
    return {"sum": definition["sum"], "equals": 0} if is_constant(definition) else definition


def spelled(path: Path) -> str:
    """The field's path for a sentence."""
    return ".".join(path)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """Their sum, exactly."""
    result = Decimal(0)
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def _read_check(name: str, definition: Any) -> Check:
    if not name or len(name.encode()) > NAME_BYTES_MAX:
        raise refusal("invalid", f"a check's name has 1 to {NAME_BYTES_MAX} bytes: {name[:60]!r}", field="checks")
    try:
        kinds = [kind for kind in _KINDS if kind in definition] if isinstance(definition, dict) else []
        if len(kinds) != 1:
            raise refusal("invalid", f"a check is one of {', '.join(_KINDS)}, with what it is of")
        return _KINDS[kinds[0]](definition)
    except VersologError as error:
        raise refusal("invalid", f"the check {name!r}: {error.detail}", field=f"checks/{name}") from error


def _required(definition: dict[str, Any]) -> Check:
    _refuse_others(definition, "required")
    return Required(_paths(definition["required"]))


def _range(definition: dict[str, Any]) -> Check:
    _refuse_others(definition, "range", "min", "max")
    return Range(_path(definition["range"]), _bounds(definition))


def _unique(definition: dict[str, Any]) -> Check:
    _refuse_others(definition, "unique")
    fields = definition["unique"]
    return Unique(_paths(fields if isinstance(fields, list) else [fields]))


def _sum(definition: dict[str, Any]) -> Check:
    _refuse_others(definition, "sum", "min", "max", "equals")
    if "equals" not in definition:
        return Sum(_path(definition["sum"]), _bounds(definition))
    if len(definition) > 2:
        raise refusal("invalid", "a sum that equals something has no other bounds")
    number = _number(definition["equals"])
    return Sum(_path(definition["sum"]), Bounds(number, number))


_KINDS: dict[str, Callable[[dict[str, Any]], Check]] = {
    "required": _required,
    "range": _range,
    "unique": _unique,
    "sum": _sum,
}


def _refuse_others(definition: dict[str, Any], *known: str) -> None:
    if others := sorted(definition.keys() - set(known)):
        raise refusal("invalid", f"{others[0][:60]!r} is not known; {', '.join(known)} are")


def _path(field: Any) -> Path:
    if not isinstance(field, str) or not field:
        raise refusal("invalid", "a field is named by its path, such as 'stock.left'")
    if len(field.encode()) > FIELD_BYTES_MAX:
        raise refusal("invalid", f"the path of a field has up to {FIELD_BYTES_MAX:,} bytes: {field[:60]!r}…")
    return field_path(field)


def _paths(fields: Any) -> tuple[Path, ...]:
    if not isinstance(fields, list) or not 1 <= len(fields) <= FIELDS_MAX:
        raise refusal("invalid", f"a list of fields is wanted, at least one and at most {FIELDS_MAX}")
    return tuple(map(_path, fields))


def _bounds(definition: dict[str, Any]) -> Bounds:
    least, most = (_number(definition[end]) if end in definition else None for end in ("min", "max"))
    if least is None and most is None:
        raise refusal("invalid", "`min` or `max` is wanted")
    if least is not None and most is not None and least > most:
        raise refusal("invalid", "`min` is above `max`")
    return Bounds(least, most)


def _number(value: Any) -> Decimal:
    number = _number_in(value)
    if number is None:
        raise refusal("invalid", f"{to_text(value)[:60]} is no number, nor a decimal in a string such as '12.50'")
    return number


def _number_in(value: Any) -> Decimal | None:
    """The number as the JSON spells it: 0.1 is a tenth, whatever a double makes of it."""
    return Decimal(repr(value)) if isinstance(value, float) else exact(value)
