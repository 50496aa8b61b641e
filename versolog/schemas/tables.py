"""A table's own Avro schema: what its rows must look like, and which schema may follow which.

Rows stay JSON; the schema says which JSON. Avro's types are read as in its JSON encoding, except that a union's
value stands by itself, without the name of its branch: {"delay": 7}, not {"delay": {"int": 7}}.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

from versolog.schemas.documents import INT64_MAX, INT64_MIN
from versolog.schemas.errors import Invalid, TooLarge

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_PROMOTES = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "bytes": {"string"},
}
"""What reads what, as the values stand in JSON: text is no bytes there, which are characters below 256."""
_RECORDS = ("record", "error")
STEPS_MAX = 1_000_000
"""Places of a row held against places of a schema, or of one schema against another's: about a second."""


@dataclass(frozen=True, slots=True, eq=False)
class TableSchema:
    """A record schema for a table's rows."""

    definition: Any
    """The schema with every named type written out where it is first used, and all names with their namespaces."""
    names: dict[str, Any]
    fingerprint: bytes
    """SHA-256 of its JSON with sorted keys."""


@lru_cache(maxsize=1_024)
def table_schema(text: bytes) -> TableSchema:
    """The schema in the JSON `text`. Raises Invalid where it is not an Avro record schema."""
    definition = orjson.loads(text)
    try:
        parsed = parse_schema(definition, named_schemas={})
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"not an Avro schema: {type(error).__name__}: {error}", code="invalid") from error
    if not isinstance(definition, dict) or definition.get("type") != "record":
        raise Invalid("a table's schema is an Avro record: its rows are JSON objects", code="invalid")
    names: dict[str, Any] = {}
    _collect_names(parsed, names)
    return TableSchema(parsed, names, hashlib.sha256(text).digest())


def misfit(schema: TableSchema, row: Any) -> tuple[str, str] | None:
    """Where and why `row` does not fit, as (path, reason); None where it fits. Raises TooLarge where finding that out would
    take too long."""
    return _Fitting(schema).misfit(schema.definition, row, "")


def incompatibility(new: TableSchema, old: TableSchema) -> str | None:
    """Why a row that fits `old` might not fit `new`; None where it always does.

    Avro's resolution rules, and stricter, since rows keep what they hold: no field and no symbol can be removed. Raises
    TooLarge where finding that out would take too long.
    """
    comparison = _Comparison(new, old)
    while True:
        known = len(comparison.reasons)
        reason = comparison.between(new.definition, old.definition, "")
        if reason is not None or len(comparison.reasons) == known:
            return reason
        comparison.begun.clear()  # what was taken for granted of a pair may have turned out otherwise


def _collect_names(node: Any, names: dict[str, Any]) -> None:
    if isinstance(node, list):
        for item in node:
            _collect_names(item, names)
    elif isinstance(node, dict):
        kind = node.get("type")
        if kind in (*_RECORDS, "enum", "fixed"):
            names[node["name"]] = node
        for field in node.get("fields", ()):
            _collect_names(field["type"], names)
        for part in ("items", "values"):
            if part in node:
                _collect_names(node[part], names)
        if isinstance(kind, dict | list):
            _collect_names(kind, names)


def _plain(schema: TableSchema, node: Any) -> Any:
    """`node` with names resolved and wrappers such as {"type": "string"} taken off: a str, a list or a dict."""
    while True:
        if isinstance(node, str):
            found = schema.names.get(node)
            if found is None:
                return node
            return found
        if isinstance(node, dict) and (not isinstance(node["type"], str) or _is_wrapper(schema, node["type"])):
            node = node["type"]
        else:
            return node


def _is_wrapper(schema: TableSchema, kind: str) -> bool:
    return kind in schema.names or kind in _PRIMITIVES


def _is_int(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


_PRIMITIVES: dict[str, Any] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "int": lambda value: _is_int(value, _INT32_MIN, _INT32_MAX),
    "long": lambda value: _is_int(value, INT64_MIN, INT64_MAX),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "double": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "bytes": lambda value: isinstance(value, str) and all(ord(character) < 256 for character in value),
}


class _Steps:
    """Counts what is looked at: schemas that refer to themselves can be made to ask for any amount of it."""

    def __init__(self, what: str) -> None:
        self._what, self._left = what, STEPS_MAX

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLarge(f"{self._what} takes more than {STEPS_MAX:,} steps; use a simpler schema", limit=STEPS_MAX)


class _Fitting:
    """Holds one row against a schema. Each place of the row meets each type once, however many unions lead there."""

    def __init__(self, schema: TableSchema) -> None:
        self._schema, self._steps = schema, _Steps("holding the row against its schema")
        self._found: dict[tuple[int, int], tuple[str, str] | None] = {}

    def misfit(self, node: Any, value: Any, path: str) -> tuple[str, str] | None:
        self._steps.take()
        schema = self._schema
        node = _plain(schema, node)
        if isinstance(node, str):
            return None if _PRIMITIVES[node](value) else (path, f"{_shown(value)} is not a {node}")
        if not isinstance(value, dict | list):
            return self._misfit(node, value, path)
        place = id(node), id(value)
        if place not in self._found:
            self._found[place] = self._misfit(node, value, path)
        return self._found[place]

    def _misfit(self, node: Any, value: Any, path: str) -> tuple[str, str] | None:
        schema = self._schema
        if isinstance(node, list):
            if any(self.misfit(branch, value, path) is None for branch in node):
                return None
            kinds = " or ".join(_name_of(schema, branch) for branch in node)
            return path, f"{_shown(value)} is not {kinds}"
        kind = node["type"]
        if kind in _RECORDS:
            return self._record_misfit(node, value, path)
        if kind == "enum":
            fits = isinstance(value, str) and value in node["symbols"]
            return None if fits else (path, f"{_shown(value)} is not one of {', '.join(node['symbols'])}")
        if kind == "fixed":
            fits = _PRIMITIVES["bytes"](value) and len(value) == node["size"]
            return None if fits else (path, f"{_shown(value)} is not {node['size']} bytes")
        if kind == "array":
            if not isinstance(value, list):
                return path, f"{_shown(value)} is not an array"
            found = (self.misfit(node["items"], item, f"{path}/{i}") for i, item in enumerate(value))
        else:
            if not isinstance(value, dict):
                return path, f"{_shown(value)} is not a map"
            found = (self.misfit(node["values"], item, f"{path}/{name}") for name, item in value.items())
        return next((misfit for misfit in found if misfit is not None), None)

    def _record_misfit(self, node: Any, value: Any, path: str) -> tuple[str, str] | None:
        if not isinstance(value, dict):
            return path, f"{_shown(value)} is not an object"
        fields = {field["name"]: field for field in node["fields"]}
        for name in value:
            if name not in fields:
                return f"{path}/{name}", "the schema has no such field"
        for name, field in fields.items():
            if name in value:
                found = self.misfit(field["type"], value[name], f"{path}/{name}")
                if found is not None:
                    return found
            elif "default" not in field:
                return f"{path}/{name}", "the field is missing and has no default"
        return None


class _Comparison:
    """Compares pairs of types of two schemas. That one is compatible is taken for granted while it is looked at, since types
    may refer to themselves; what is found not to be stays so."""

    def __init__(self, new: TableSchema, old: TableSchema) -> None:
        self._new, self._old, self._steps = new, old, _Steps("comparing the schemas")
        self.begun: set[tuple[int, int]] = set()
        self.reasons: dict[tuple[int, int], str] = {}

    def between(self, reader: Any, writer: Any, path: str) -> str | None:
        """Why what fits `writer` might not fit `reader`."""
        self._steps.take()
        reader, writer = _plain(self._new, reader), _plain(self._old, writer)
        if isinstance(reader, str) and isinstance(writer, str):
            return self._compared(reader, writer, path)
        pair = id(reader), id(writer)
        if pair in self.reasons:
            return self.reasons[pair]
        if pair in self.begun:
            return None
        self.begun.add(pair)
        reason = self._compared(reader, writer, path)
        if reason is not None:
            self.reasons[pair] = reason
        return reason

    def _compared(self, reader: Any, writer: Any, path: str) -> str | None:
        if isinstance(writer, list):
            found = (self.between(reader, branch, path) for branch in writer)
            return next((reason for reason in found if reason is not None), None)
        if isinstance(reader, list):
            if any(self.between(branch, writer, path) is None for branch in reader):
                return None
            return f"{path or '/'}: {_name_of(self._old, writer)} is no longer allowed"
        reader_kind = reader if isinstance(reader, str) else reader["type"]
        writer_kind = writer if isinstance(writer, str) else writer["type"]
        if reader_kind != writer_kind:
            if reader_kind in _PROMOTES.get(writer_kind, ()):
                return None
            return f"{path or '/'}: {writer_kind} can't be read as {reader_kind}"
        if reader_kind in _RECORDS:
            return self._records(reader, writer, path)
        if reader_kind == "enum":
            gone = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            return f"{path or '/'}: the symbols {', '.join(gone)} are gone" if gone else None
        if reader_kind == "fixed":
            return None if reader["size"] == writer["size"] else f"{path or '/'}: the size changed"
        if reader_kind in ("array", "map"):
            part = "items" if reader_kind == "array" else "values"
            return self.between(reader[part], writer[part], f"{path}/*")
        return None

    def _records(self, reader: Any, writer: Any, path: str) -> str | None:
        written = {field["name"]: field["type"] for field in writer["fields"]}
        wanted = {field["name"]: field for field in reader["fields"]}
        for name in written:
            if name not in wanted:
                return f"{path}/{name}: the field is gone, and rows that hold it would no longer fit"
        for name, field in wanted.items():
            if name not in written:
                if "default" not in field:
                    return f"{path}/{name}: a new field needs a default"
                continue
            reason = self.between(field["type"], written[name], f"{path}/{name}")
            if reason is not None:
                return reason
        return None


def _name_of(schema: TableSchema, node: Any) -> str:
    node = _plain(schema, node)
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return " or ".join(_name_of(schema, branch) for branch in node)
    return str(node.get("name", node["type"]))


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:57] + "…"
