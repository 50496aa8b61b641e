"""The heading of a commit: its fields before the changes, read without reading those."""

from __future__ import annotations

import io
from typing import Any, cast

from fastavro import schemaless_reader

from versolog.schemas.codec import Codec, Record, schema, unframe
from versolog.schemas.errors import Malformed

FIRST_LEFT_OUT = "changes"


class Headings:
    """Reads headings. Avro stands in the order of its schema, so that of the first fields reads just those."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._writers: dict[int, Any] = {}
        self._reader = _heading_of(schema("Commit").parsed)

    def read(self, value: bytes) -> Record:
        """The heading in a framed commit. Raises Malformed."""
        schema_id, body = unframe(value)
        writer = self._writers.get(schema_id)
        if writer is None:
            writer = self._writers[schema_id] = _heading_of(self._codec.schema_of(schema_id).parsed)
        reader = None if writer == self._reader else self._reader
        try:
            return cast(Record, schemaless_reader(io.BytesIO(body), writer, reader))
        except Exception as error:
            raise Malformed(f"not a commit's heading: {type(error).__name__}: {error}") from error


def _heading_of(parsed: Any) -> Any:
    names = [field["name"] for field in parsed["fields"]]
    return {**parsed, "fields": parsed["fields"][: names.index(FIRST_LEFT_OUT)]}
