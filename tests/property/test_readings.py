"""Bodies taken apart by hand are read as the library reads them, and what it refuses is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_written import (
    checkpoints,
    commits,
    outcomes,
    shares,
    transactions,
    votes,
)
from versolog.schemas.codec import decode, encode, schema
from versolog.schemas.errors import Malformed
from versolog.schemas.readings import (
    read_checkpoint,
    read_commit,
    read_outcome,
    read_outcomes,
    read_share,
    read_transaction,
    read_votes,
)
from versolog.schemas.written import outcome_body

harm = st.tuples(st.integers(0, 400), st.sampled_from(["cut", "flip", "add"]), st.integers(1, 255))


def broken(body: bytes, how: tuple[int, str, int]) -> bytes:
    place, kind, byte = how
    place = place % (len(body) + 1)
    if kind == "cut" or place == len(body):
        return body[:place]
    if kind == "add":
        return body[:place] + bytes([byte]) + body[place:]
    return body[:place] + bytes([body[place] ^ byte]) + body[place + 1 :]


def told(read: Any, body: bytes) -> Any:
    try:
        return read(body)
    except Malformed:
        return Malformed


READERS = {
    "Outcome": (read_outcome, outcomes),
    "Transaction": (read_transaction, transactions),
    "Commit": (read_commit, commits),
    "Share": (read_share, shares),
    "Votes": (read_votes, votes),
}


@pytest.mark.parametrize("name", READERS)
@given(data=st.data(), how=harm)
def test_records(name: str, data: st.DataObject, how: tuple[int, str, int]) -> None:
    read, bodies = READERS[name]
    record = data.draw(bodies)
    body = encode(schema(name), record)
    assert read(body) == record
    harmed = broken(body, how)
    assert told(read, harmed) == told(lambda body: decode(schema(name), body), harmed)


@given(st.lists(outcomes, max_size=5), st.none() | checkpoints, st.booleans())
def test_outcomes(results: list[dict[str, Any]], checkpoint: dict[str, Any] | None, is_by_hand: bool) -> None:
    writer = schema("Outcomes") if is_by_hand else replace(schema("Outcomes"))
    read = read_outcomes(encode(schema("Outcomes"), {"results": results, "checkpoint": checkpoint}), writer)
    assert [(one.transaction_id, one.code, one.body) for one in read.told] == [
        (one["transaction_id"], one["code"], outcome_body(one)) for one in results
    ]
    assert (None if read.checkpoint is None else read_checkpoint(read.checkpoint)) == checkpoint
