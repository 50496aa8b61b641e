"""Records to bytes and back: Avro in the Confluent wire format (0x00, 4-byte schema id, body)."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Protocol, cast

import orjson
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from versolog.schemas.errors import Malformed

Record = dict[str, Any]

NAMESPACE = "versolog."
_FRAME = struct.Struct(">BI")
_MAGIC = 0


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """One Avro record type: its JSON as registered, that text's SHA-256, and the parsed form that reads and writes.

    The parsed form leaves logical types out: times are integers in our code, in the unit that the field's type names.
    """

    name: str
    text: str
    fingerprint: bytes
    parsed: Any


class SchemaIds(Protocol):
    """Where schema ids come from: the `schemas` topic or a Schema Registry."""

    def id_of(self, schema: Schema) -> int:
        """The id of `schema`, registered now if it was not."""

    def text_of(self, schema_id: int) -> str:
        """The schema's JSON as registered. Raises Malformed for an id that nobody registered."""


@cache
def schema(name: str) -> Schema:
    """The schema of the record type `name` as this version of versolog writes it."""
    whole = _inlined(NAMESPACE + name, set())
    return _schema_from_text(orjson.dumps(whole).decode())


def _schema_from_text(text: str) -> Schema:
    definition = orjson.loads(text)
    name = f"{definition.get('namespace', '')}.{definition['name']}".removeprefix(NAMESPACE)
    parsed = parse_schema(_without_logical_types(definition), named_schemas={})
    return Schema(name, text, hashlib.sha256(text.encode()).digest(), parsed)


def encode(schema: Schema, record: Mapping[str, Any]) -> bytes:
    """The Avro body of `record`."""
    body = io.BytesIO()
    schemaless_writer(body, schema.parsed, record)
    return body.getvalue()


def decode(schema: Schema, body: bytes, *, writer: Schema | None = None) -> Record:
    """The record in `body`, written with `writer` (default: `schema`). Raises Malformed."""
    stream = io.BytesIO(body)
    try:
        if writer is None or writer is schema:
            record = schemaless_reader(stream, schema.parsed, None)
        else:
            record = schemaless_reader(stream, writer.parsed, schema.parsed)
    except Exception as error:  # noqa: BLE001 - the decoder raises whatever broken bytes lead it to
        raise Malformed(f"not an Avro {schema.name}: {type(error).__name__}: {error}") from error
    if stream.tell() != len(body):
        raise Malformed(f"{len(body) - stream.tell()} bytes are left over after an Avro {schema.name}")
    return cast(Record, record)


def frame(schema_id: int, body: bytes) -> bytes:
    """`body` in the Confluent wire format."""
    return _FRAME.pack(_MAGIC, schema_id) + body


def unframe(value: bytes | None) -> tuple[int, bytes]:
    """The schema id and the body of a value in the Confluent wire format. Raises Malformed."""
    if value is None or len(value) < _FRAME.size or value[0] != _MAGIC:
        raise Malformed("not in the Confluent wire format: a zero byte, a 4-byte schema id and an Avro body are wanted")
    return int.from_bytes(value[1:5], "big"), value[5:]


class Codec:
    """Reads and writes framed records, with ids from `ids`. A writer's older or newer schema is resolved to ours."""

    def __init__(self, ids: SchemaIds) -> None:
        self._ids = ids
        self._own: dict[str, int] = {}
        self._by_id: dict[int, Schema] = {}

    def id_of(self, schema: Schema) -> int:
        """The id that `schema` goes by."""
        schema_id = self._own.get(schema.name)
        if schema_id is None:
            schema_id = self._own[schema.name] = self._ids.id_of(schema)
            self._by_id[schema_id] = schema
        return schema_id

    def knows(self, schema_id: int) -> bool:
        """Whether the schema is at hand, so that reading a record of it asks nobody."""
        return schema_id in self._by_id

    def schema_of(self, schema_id: int) -> Schema:
        """The schema that was registered as `schema_id`. Raises Malformed for an unknown id."""
        found = self._by_id.get(schema_id)
        if found is None:
            registered = _schema_from_text(self._ids.text_of(schema_id))
            found = _ours_or(registered)
            self._by_id[schema_id] = found
        return found

    def write(self, schema: Schema, record: Mapping[str, Any]) -> bytes:
        """`record` framed."""
        return frame(self.id_of(schema), encode(schema, record))

    def read(self, value: bytes | None, *wanted: Schema) -> tuple[Schema, Record]:
        """The record in `value` and which of the `wanted` types it is. Raises Malformed."""
        schema_id, body = unframe(value)
        writer = self.schema_of(schema_id)
        for candidate in wanted:
            if writer is candidate:
                return candidate, decode(candidate, body)
            if writer.name == candidate.name:
                return candidate, decode(candidate, body, writer=writer)
        names = " or ".join(candidate.name for candidate in wanted)
        raise Malformed(f"the record is a {writer.name}; {names} is wanted here")


def _ours_or(registered: Schema) -> Schema:
    """Our own Schema object where the registered text is the same, so that reading needs no resolution."""
    if resources.files(__package__).joinpath("avsc", f"{registered.name}.avsc").is_file():
        own = schema(registered.name)
        if own.fingerprint == registered.fingerprint:
            return own
    return registered


def _inlined(name: str, seen: set[str]) -> Any:
    """The definition of `name` with every other type of ours put in where it is first named."""
    seen.add(name)
    text = resources.files(__package__).joinpath("avsc", f"{name.removeprefix(NAMESPACE)}.avsc").read_bytes()
    return _with_types_inlined(orjson.loads(text), seen)


def _with_types_inlined(node: Any, seen: set[str]) -> Any:
    if isinstance(node, str):
        return _inlined(node, seen) if node.startswith(NAMESPACE) and node not in seen else node
    if isinstance(node, list):
        return [_with_types_inlined(item, seen) for item in node]
    if node.get("type") in ("record", "enum", "fixed"):
        seen.add(NAMESPACE + node["name"])
    whole = dict(node)
    for part in ("type", "items"):
        if part in node:
            whole[part] = _with_types_inlined(node[part], seen)
    if "fields" in node:
        whole["fields"] = [_with_types_inlined(field, seen) for field in node["fields"]]
    return whole


def _without_logical_types(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_logical_types(value) for name, value in node.items() if name not in ("logicalType", "doc")}
    if isinstance(node, list):
        return [_without_logical_types(item) for item in node]
    return node
