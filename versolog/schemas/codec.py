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
from fastavro.schema import SchemaParseException, UnknownType

from versolog.schemas.errors import Invalid, Malformed

Record = dict[str, Any]

NAMESPACE = "versolog."
_FRAME = struct.Struct(">BI")
_MAGIC = 0
_NAMED = ("record", "enum", "fixed")
_TYPE_ORDER = ("type", "name", "namespace", "doc", "fields", "symbols", "size", "items", "logicalType")
_FIELD_ORDER = ("name", "type", "doc", "default")


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
    """The schema of the record type `name` as this version of versolog writes it.

    Its text is spelled as Avro's Java library spells a schema (`Schema.toString`), so that a registry which parses and
    prints what it is given gives back the same text, of which commits' hashes are made.
    """
    return schema_from_text(orjson.dumps(_inlined(name, set())).decode())


def schema_from_text(text: str) -> Schema:
    """The record type whose definition is `text`. Raises Malformed."""
    try:
        parsed = cast(Record, parse_schema(_without_logical_types(orjson.loads(text)), named_schemas={}))
        name = parsed["name"].removeprefix(NAMESPACE)
    except (SchemaParseException, UnknownType, ValueError, TypeError, LookupError, RecursionError) as error:
        raise Malformed(f"not an Avro schema of a record: {type(error).__name__}: {error}") from error
    return Schema(name, text, hashlib.sha256(text.encode()).digest(), parsed)


def encode(schema: Schema, record: Mapping[str, Any]) -> bytes:
    """The Avro body of `record`. Raises Invalid where the record doesn't fit the schema."""
    body = io.BytesIO()
    try:
        schemaless_writer(body, schema.parsed, record)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise Invalid(f"this can't be written as an Avro {schema.name}: {error}") from error
    return body.getvalue()


def decode(schema: Schema, body: bytes, *, writer: Schema | None = None) -> Record:
    """The record in `body`, written with `writer` (default: `schema`). Raises Malformed."""
    stream = io.BytesIO(body)
    try:
        if writer is None or writer is schema:
            record = schemaless_reader(stream, schema.parsed, None)
        else:
            record = schemaless_reader(stream, writer.parsed, schema.parsed)
    except Exception as error:  # the decoder raises whatever broken bytes lead it to
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
        self._own: dict[bytes, int] = {}
        self._by_id: dict[int, Schema] = {}

    def id_of(self, schema: Schema) -> int:
        """The id that `schema` goes by."""
        schema_id = self._own.get(schema.fingerprint)
        if schema_id is None:
            schema_id = self._own[schema.fingerprint] = self._ids.id_of(schema)
            self._by_id[schema_id] = schema
        return schema_id

    def learn(self, schema_id: int, text: str) -> None:
        """Take `text` for the schema that was registered as `schema_id`, so that nobody is asked for it."""
        if schema_id not in self._by_id:
            self._by_id[schema_id] = _ours_or(schema_from_text(text))

    def knows(self, schema_id: int) -> bool:
        """Whether the schema is at hand, so that reading a record of it asks nobody."""
        return schema_id in self._by_id

    def schema_of(self, schema_id: int) -> Schema:
        """The schema that was registered as `schema_id`. Raises Malformed for an unknown id."""
        found = self._by_id.get(schema_id)
        if found is None:
            found = self._by_id[schema_id] = _ours_or(schema_from_text(self._ids.text_of(schema_id)))
        return found

    def write(self, schema: Schema, record: Mapping[str, Any]) -> bytes:
        """`record` framed."""
        return frame(self.id_of(schema), encode(schema, record))

    def opened(self, value: bytes | None, *wanted: Schema) -> tuple[Schema, bytes]:
        """The schema that the record in `value`, which is of one of the `wanted` types, was written with, and its body.
        Raises Malformed."""
        schema_id, body = unframe(value)
        writer = self.schema_of(schema_id)
        # Its own schemas are the very objects that are wanted: what is read most is known without looking at names.
        if writer not in wanted and all(writer.name != candidate.name for candidate in wanted):
            names = " or ".join(candidate.name for candidate in wanted)
            raise Malformed(f"the record is a {writer.name}; {names} is wanted here")
        return writer, body

    def read(self, value: bytes | None, *wanted: Schema) -> tuple[Schema, Record]:
        """The record in `value` and which of the `wanted` types it is. Raises Malformed."""
        writer, body = self.opened(value, *wanted)
        ours = next(candidate for candidate in wanted if candidate.name == writer.name)
        return ours, decode(ours, body, writer=writer)


def _ours_or(registered: Schema) -> Schema:
    """Our own Schema object where the registered text is the same, so that reading needs no resolution."""
    if registered.name in _own_names():
        own = schema(registered.name)
        if own.fingerprint == registered.fingerprint:
            return own
    return registered


@cache
def _own_names() -> frozenset[str]:
    files = resources.files(__package__).joinpath("avsc").iterdir()
    return frozenset(file.name.removesuffix(".avsc") for file in files if file.name.endswith(".avsc"))


def _inlined(name: str, seen: set[str]) -> Any:
    """The definition of `name`, with every other type of ours put in where it is first named."""
    return _spelled(orjson.loads(resources.files(__package__).joinpath("avsc", f"{name}.avsc").read_bytes()), seen)


def _spelled(node: Any, seen: set[str]) -> Any:
    """`node` in Java's order and with its names short, for all of ours are in one namespace: the outermost type's."""
    if isinstance(node, str):
        name = node.removeprefix(NAMESPACE)
        return node if name == node else name if name in seen else _inlined(name, seen)
    if isinstance(node, list):
        return [_spelled(item, seen) for item in node]
    is_field = "name" in node and node["type"] not in _NAMED
    order = _FIELD_ORDER if is_field else _TYPE_ORDER
    assert node.keys() <= set(order), f"{node.keys() - set(order)} would be left out of the registered schema"
    spelled = {name: node[name] for name in order if name in node}
    if seen:
        spelled.pop("namespace", None)
    if "name" in spelled and not is_field:
        seen.add(spelled["name"])
    for name in ("type", "items", "fields"):
        if name in spelled:
            spelled[name] = _spelled(spelled[name], seen)
    return spelled


def _without_logical_types(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {name: value for name, value in node.items() if name not in ("logicalType", "doc")}
        return {name: value if name == "default" else _without_logical_types(value) for name, value in kept.items()}
    if isinstance(node, list):
        return [_without_logical_types(item) for item in node]
    return node
