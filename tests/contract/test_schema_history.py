"""Facts are kept for ever, so every schema that ever wrote one can be read, and old readers read what is written today.

`schema_history/<Record>/<n>.avsc` holds the texts as they were registered, which are never changed. A changed schema
needs the next number beside them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.utils import generate_many

from versolog.schemas.codec import Schema, decode, encode, schema, schema_from_text
from versolog.schemas.errors import Malformed

HISTORY = Path(__file__).with_name("schema_history")
ON_THEIR_OWN = ("Transaction", "Tick", "Share", "Votes", "Commit", "Outcomes", "Outcome", "Checkpoint")
"""The record types that stand by themselves in a topic or in a store; the others only inside of these."""
SAMPLES = 40


def versions(name: str) -> list[str]:
    """The texts of all versions of a schema, the first one first."""
    files = sorted((HISTORY / name).glob("*.avsc"), key=lambda file: int(file.stem))
    assert [file.stem for file in files] == [str(number) for number in range(1, len(files) + 1)], f"a gap in {name}"
    return [file.read_text().removesuffix("\n") for file in files]


PAST = [pytest.param(name, text, id=f"{name}-{n}") for name in ON_THEIR_OWN for n, text in enumerate(versions(name), 1)]


def test_the_history_is_that_of_the_records_on_their_own() -> None:
    assert {directory.name for directory in HISTORY.iterdir()} == set(ON_THEIR_OWN)


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_todays_schema_is_the_last_of_its_history(name: str) -> None:
    texts = versions(name)
    assert schema(name).text == texts[-1], (
        f"{name} has changed: write its text to schema_history/{name}/{len(texts) + 1}.avsc, and leave the others alone"
    )


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_no_version_stands_in_the_history_twice(name: str) -> None:
    assert len(set(versions(name))) == len(versions(name))


@pytest.mark.parametrize(("name", "text"), PAST)
def test_today_reads_what_was_written_with_every_version(name: str, text: str) -> None:
    assert_reads(schema(name), schema_from_text(text))


@pytest.mark.parametrize(("name", "text"), PAST)
def test_every_version_reads_what_is_written_today(name: str, text: str) -> None:
    """Consumers of the topics, and workers that are not restarted yet, are older than the writer."""
    assert_reads(schema_from_text(text), schema(name))


@pytest.mark.parametrize(("name", "text"), PAST)
def test_any_avro_reader_reads_across_the_versions(name: str, text: str) -> None:
    """As a stock consumer does: the texts as registered, with nothing of ours in between."""
    today, past = fastavro.parse_schema(json.loads(schema(name).text)), fastavro.parse_schema(json.loads(text))
    for writer, reader in ((today, past), (past, today), (past, past)):
        for record in generate_many(writer, SAMPLES):
            body = io.BytesIO()
            fastavro.schemaless_writer(body, writer, record)
            body.seek(0)
            assert isinstance(fastavro.schemaless_reader(body, writer, reader), dict)


@pytest.mark.parametrize(
    "change",
    [
        {"fields": {"version": {"name": "version", "type": "string"}}},
        {"fields": {"version": {"name": "number", "type": "long"}}},
        {"fields": {"version": None}},
        {"fields": {"colour": {"name": "colour", "type": "string"}}},
        {"name": "Fact"},
    ],
    ids=["type", "renamed", "removed", "added without default", "another name"],
)
def test_a_change_that_is_not_compatible_would_be_noticed(change: dict[str, Any]) -> None:
    definition = json.loads(schema("Commit").text)
    fields = {field["name"]: field for field in definition["fields"]} | change.get("fields", {})
    definition["fields"] = [field for field in fields.values() if field is not None]
    changed = schema_from_text(json.dumps(definition | {"name": change.get("name", "Commit")}))
    assert not (reads(schema("Commit"), changed) and reads(changed, schema("Commit")))


def reads(reader: Schema, writer: Schema) -> bool:
    try:
        assert_reads(reader, writer)
    except AssertionError:
        return False
    return True


def assert_reads(reader: Schema, writer: Schema) -> None:
    """Any record that `writer` can write has a meaning for `reader`, the same in all fields that both have."""
    assert reader.name == writer.name, f"{writer.name} has become {reader.name}"
    for record in generate_many(writer.parsed, SAMPLES):
        try:
            read = decode(reader, encode(writer, record), writer=writer)
        except Malformed as error:
            raise AssertionError(f"a {reader.name} can't be read: {error}") from error
        assert_agree(read, record)


def assert_agree(read: Any, written: Any) -> None:
    if isinstance(written, dict):
        for name in written.keys() & read.keys():
            assert_agree(read[name], written[name])
    elif isinstance(written, list):
        assert len(read) == len(written)
        for one, other in zip(read, written, strict=True):
            assert_agree(one, other)
    else:
        assert read == written
