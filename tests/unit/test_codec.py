"""Records to bytes and back, and what is made of bytes that somebody else wrote."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import codec
from versolog.schemas.codec import Codec, Schema, decode, encode, frame, schema, schema_from_text, unframe
from versolog.schemas.errors import Invalid, Malformed
from versolog.streams.transaction import Transaction

TRANSACTION, COMMIT, OUTCOMES, TICK = (schema(name) for name in ("Transaction", "Commit", "Outcomes", "Tick"))
BODY = (
    Transaction("UA", id="t", author="ops").put("flights", "k1", {"delay": 2}).expect_absent("flights", "k2").intent()
)


class Ids:
    """A registry in memory. It counts what it is asked."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.asked = 0

    def id_of(self, schema: Schema) -> int:
        self.asked += 1
        if schema.text not in self.texts:
            self.texts.append(schema.text)
        return self.texts.index(schema.text) + 1

    def text_of(self, schema_id: int) -> str:
        self.asked += 1
        if not 0 < schema_id <= len(self.texts):
            raise Malformed(f"no schema {schema_id}")
        return self.texts[schema_id - 1]

    def register(self, text: str) -> int:
        self.texts.append(text)
        return len(self.texts)


@pytest.fixture
def ids() -> Ids:
    return Ids()


def test_a_record_survives_the_wire(ids: Ids) -> None:
    record = decode(TRANSACTION, BODY)
    value = Codec(ids).write(TRANSACTION, record)
    assert Codec(ids).read(value, TICK, TRANSACTION) == (TRANSACTION, record)


def test_a_known_schema_is_not_asked_for_again(ids: Ids) -> None:
    records = Codec(ids)
    value = records.write(TICK, {})
    records.read(value, TICK)
    asked = ids.asked
    for _ in range(3):
        records.read(records.write(TICK, {}), TICK)
    assert ids.asked == asked


def test_two_schemas_of_one_name_have_two_ids(ids: Ids) -> None:
    """A process may read what an older version of itself registered."""
    older = schema_from_text(TICK.text.replace("Asks for nothing.", "Asks for little."))
    records = Codec(ids)
    assert older.name == TICK.name
    assert records.id_of(older) != records.id_of(TICK)


def test_times_are_integers_in_their_unit() -> None:
    record = decode(TRANSACTION, BODY) | {"occurred_at": 1_370_088_000_000_001}
    assert decode(TRANSACTION, encode(TRANSACTION, record))["occurred_at"] == 1_370_088_000_000_001
    assert '"logicalType":"timestamp-micros"' in TRANSACTION.text, "other readers learn what the integer means"


@pytest.mark.parametrize(
    "change",
    [
        {"id": 5}, {"id": None}, {"id": "\ud800"}, {"parts": None}, {"parts": [{}]}, {"occurred_at": 2**63},
        {"occurred_at": "now"},
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit_is_refused_by_name(change: dict[str, object]) -> None:
    with pytest.raises(Invalid, match="Avro Transaction"):
        encode(TRANSACTION, decode(TRANSACTION, BODY) | change)


def test_a_number_over_64_bits_is_not_cut() -> None:
    record = decode(TRANSACTION, BODY)
    record["parts"][0]["expect"][0]["version"] = 2**63
    with pytest.raises(Invalid, match="too large"):
        encode(TRANSACTION, record)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_malformed(garbage: bytes) -> None:
    _decodes_or_malformed(garbage)


@given(st.lists(st.tuples(st.integers(0, len(BODY) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_record_is_a_record_or_malformed(damages: list[tuple[int, int]]) -> None:
    body = bytearray(BODY)
    for place, byte in damages:
        body[place] = byte
    _decodes_or_malformed(bytes(body))


@given(st.integers(0, len(BODY) - 1))
def test_a_record_cut_short_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        decode(TRANSACTION, BODY[:length])


def test_bytes_behind_a_record_are_malformed() -> None:
    with pytest.raises(Malformed, match="3 bytes are left over"):
        decode(TRANSACTION, BODY + b"end")


def test_a_string_of_impossible_length_takes_no_memory() -> None:
    with pytest.raises(Malformed):
        decode(TRANSACTION, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01")


@pytest.mark.parametrize("value", [None, b"", b"\x00", b"\x00\x00\x00\x00", b"{}", b"\x01\x00\x00\x00\x01body"])
def test_a_value_without_a_frame_is_malformed(value: bytes | None) -> None:
    with pytest.raises(Malformed, match="wire format"):
        unframe(value)


@given(st.integers(0, 2**32 - 1), st.binary())
def test_a_frame_is_what_confluent_describes(schema_id: int, body: bytes) -> None:
    value = frame(schema_id, body)
    assert value[0] == 0
    assert int.from_bytes(value[1:5], "big") == schema_id
    assert unframe(value) == (schema_id, body)


def test_an_unknown_id_is_malformed(ids: Ids) -> None:
    with pytest.raises(Malformed, match="no schema 7"):
        Codec(ids).read(frame(7, BODY), TRANSACTION)


def test_another_type_of_ours_is_malformed_here(ids: Ids) -> None:
    records = Codec(ids)
    with pytest.raises(Malformed, match="is a Tick; Transaction or Outcomes is wanted"):
        records.read(records.write(TICK, {}), TRANSACTION, OUTCOMES)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "7", "[]", "{", '"string"', '["null"]', '{"type":"record"}', '{"type":"array","items":"string"}',
        '{"type":"record","name":"versolog.Transaction","fields":7}',
        '{"type":"record","name":"versolog.Transaction","fields":[{"name":"a","type":"Missing"}]}',
        '{"type":{"type":"record"},"name":"versolog.Transaction"}',
        '{"type":"record","name":"a b","fields":[{"name":"-","type":"long"}]}',
    ],
)  # fmt: skip
def test_what_others_registered_can_t_break_a_reader(ids: Ids, text: str) -> None:
    with pytest.raises(Malformed):
        Codec(ids).read(frame(ids.register(text), BODY), TRANSACTION)


def test_a_name_that_looks_like_a_path_opens_no_file(ids: Ids) -> None:
    value = frame(ids.register('{"type":"record","name":"../avsc/Tick","fields":[]}'), b"")
    with pytest.raises(Malformed, match="Tick is wanted"):
        Codec(ids).read(value, TICK)


def test_an_older_writer_is_read_with_defaults(ids: Ids) -> None:
    definition = json.loads(TRANSACTION.text)
    definition["fields"] = [field for field in definition["fields"] if field["name"] != "message"]
    older = schema_from_text(json.dumps(definition))
    record = decode(TRANSACTION, BODY)
    value = frame(ids.register(older.text), encode(older, record))
    assert Codec(ids).read(value, TRANSACTION) == (TRANSACTION, record)


def test_a_newer_writer_is_read_without_what_we_do_not_know(ids: Ids) -> None:
    definition = json.loads(TRANSACTION.text)
    definition["fields"].insert(0, {"name": "colour", "type": ["null", "string"], "default": None})
    newer = schema_from_text(json.dumps(definition))
    record = decode(TRANSACTION, BODY)
    value = frame(ids.register(newer.text), encode(newer, record | {"colour": "red"}))
    assert Codec(ids).read(value, TRANSACTION) == (TRANSACTION, record)


def test_an_incompatible_writer_is_malformed(ids: Ids) -> None:
    definition = {"type": "record", "name": "Transaction", "namespace": "versolog", "fields": []}
    with pytest.raises(Malformed, match="not an Avro Transaction"):
        Codec(ids).read(frame(ids.register(json.dumps(definition)), b""), TRANSACTION)


@pytest.mark.parametrize("name", sorted(codec._own_names()))
def test_every_schema_stands_by_itself(name: str) -> None:
    """What is registered names no type that it doesn't hold, and is the same in every process."""
    text = schema(name).text
    assert "versolog." not in text, "names are short: all are in the outermost type's namespace"
    assert schema_from_text(text).fingerprint == schema(name).fingerprint
    assert json.loads(text)["namespace"] == "versolog"


def _decodes_or_malformed(body: bytes) -> None:
    try:
        record = decode(TRANSACTION, body)
    except Malformed:
        return
    assert decode(TRANSACTION, encode(TRANSACTION, record)) == record
