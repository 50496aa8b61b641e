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
from versolog.schemas.errors import Invalid

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_PROMOTES = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}


@dataclass(frozen=True, slots=True, eq=False)
class TableSchema:
    """A record schema for a table's rows."""

    definition: Any
    """The schema with every named type written out where it is first used."""
    names: dict[str, Any]
    fingerprint: bytes
    """SHA-256 of its JSON with sorted keys."""


@lru_cache(maxsize=1_024)
def table_schema(text: bytes) -> TableSchema:
    """The schema in the JSON `text`. Raises Invalid where it is not an Avro record schema."""
    definition = orjson.loads(text)
    try:
        parse_schema(definition, named_schemas={})
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"not an Avro schema: {type(error).__name__}: {error}", code="invalid") from error
    if not isinstance(definition, dict) or definition.get("type") != "record":
        raise Invalid("a table's schema is an Avro record: its rows are JSON objects", code="invalid")
    names: dict[str, Any] = {}
    _collect_names(definition, definition.get("namespace", ""), names)
    return TableSchema(definition, names, hashlib.sha256(text).digest())


def misfit(schema: TableSchema, row: Any) -> tuple[str, str] | None:
    """Where and why `row` does not fit, as (path, reason); None where it fits."""
    return _misfit(schema, schema.definition, row, "")


def incompatibility(new: TableSchema, old: TableSchema) -> str | None:
    """Why a row that fits `old` might not fit `new`; None where it always does.

    Avro's resolution rules, and stricter in one: a field can't be removed, since rows keep what they hold.
    """
    return _incompatibility(new, new.definition, old, old.definition, "", set())


def _collect_names(node: Any, namespace: str, names: dict[str, Any]) -> None:
    if isinstance(node, list):
        for item in node:
            _collect_names(item, namespace, names)
    elif isinstance(node, dict):
        kind = node.get("type")
        if kind in ("record", "enum", "fixed"):
            namespace = node.get("namespace", namespace)
            names[node["name"]] = node
            names[f"{namespace}.{node['name']}".lstrip(".")] = node
        for field in node.get("fields", ()):
            _collect_names(field["type"], namespace, names)
        for part in ("items", "values"):
            if part in node:
                _collect_names(node[part], namespace, names)
        if isinstance(kind, dict | list):
            _collect_names(kind, namespace, names)


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


def _misfit(schema: TableSchema, node: Any, value: Any, path: str) -> tuple[str, str] | None:
    node = _plain(schema, node)
    if isinstance(node, str):
        return None if _PRIMITIVES[node](value) else (path, f"{_shown(value)} is not a {node}")
    if isinstance(node, list):
        if any(_misfit(schema, branch, value, path) is None for branch in node):
            return None
        kinds = " or ".join(_name_of(schema, branch) for branch in node)
        return path, f"{_shown(value)} is not {kinds}"
    kind = node["type"]
    if kind == "record":
        return _record_misfit(schema, node, value, path)
    if kind == "enum":
        fits = isinstance(value, str) and value in node["symbols"]
        return None if fits else (path, f"{_shown(value)} is not one of {', '.join(node['symbols'])}")
    if kind == "fixed":
        fits = _PRIMITIVES["bytes"](value) and len(value) == node["size"]
        return None if fits else (path, f"{_shown(value)} is not {node['size']} bytes")
    if kind == "array":
        if not isinstance(value, list):
            return path, f"{_shown(value)} is not an array"
        found = (_misfit(schema, node["items"], item, f"{path}/{i}") for i, item in enumerate(value))
    else:
        if not isinstance(value, dict):
            return path, f"{_shown(value)} is not a map"
        found = (_misfit(schema, node["values"], item, f"{path}/{name}") for name, item in value.items())
    return next((misfit for misfit in found if misfit is not None), None)


def _record_misfit(schema: TableSchema, node: Any, value: Any, path: str) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return path, f"{_shown(value)} is not an object"
    fields = {field["name"]: field for field in node["fields"]}
    for name in value:
        if name not in fields:
            return f"{path}/{name}", "the schema has no such field"
    for name, field in fields.items():
        if name in value:
            found = _misfit(schema, field["type"], value[name], f"{path}/{name}")
            if found is not None:
                return found
        elif "default" not in field:
            return f"{path}/{name}", "the field is missing and has no default"
    return None


def _incompatibility(
    new: TableSchema, reader: Any, old: TableSchema, writer: Any, path: str, seen: set[tuple[int, int]]
) -> str | None:
    reader, writer = _plain(new, reader), _plain(old, writer)
    if (id(reader), id(writer)) in seen:
        return None
    seen = seen | {(id(reader), id(writer))}
    if isinstance(writer, list):
        found = (_incompatibility(new, reader, old, branch, path, seen) for branch in writer)
        return next((reason for reason in found if reason is not None), None)
    if isinstance(reader, list):
        if any(_incompatibility(new, branch, old, writer, path, seen) is None for branch in reader):
            return None
        return f"{path or '/'}: {_name_of(old, writer)} is no longer allowed"
    reader_kind = reader if isinstance(reader, str) else reader["type"]
    writer_kind = writer if isinstance(writer, str) else writer["type"]
    if reader_kind != writer_kind:
        if reader_kind in _PROMOTES.get(writer_kind, ()):
            return None
        return f"{path or '/'}: {writer_kind} can't be read as {reader_kind}"
    if reader_kind == "record":
        return _record_incompatibility(new, reader, old, writer, path, seen)
    if reader_kind == "enum":
        gone = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
        return f"{path or '/'}: the symbols {', '.join(gone)} are gone" if gone and "default" not in reader else None
    if reader_kind == "fixed":
        return None if reader["size"] == writer["size"] else f"{path or '/'}: the size changed"
    if reader_kind in ("array", "map"):
        part = "items" if reader_kind == "array" else "values"
        return _incompatibility(new, reader[part], old, writer[part], f"{path}/*", seen)
    return None


def _record_incompatibility(
    new: TableSchema, reader: Any, old: TableSchema, writer: Any, path: str, seen: set[tuple[int, int]]
) -> str | None:
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
        reason = _incompatibility(new, field["type"], old, written[name], f"{path}/{name}", seen)
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
