"""Bodies taken apart by hand are read as the library reads them, and what it refuses is refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_written import checkpoints, commits, lists, longs, maybe_long, outcomes, records
from versolog.schemas.codec import decode, encode, schema
from versolog.schemas.errors import Malformed
from versolog.schemas.readings import read_commit, read_outcomes, read_transaction
from versolog.schemas.written import outcome_body

changes = records(
    op=st.sampled_from(["put", "patch", "add", "delete"]), table=st.text(), key=st.text(),
    row=st.none() | st.text(max_size=200),
)  # fmt: skip
parts = records(
    group=st.text(), branch=st.text(), expect_head=maybe_long,
    expect=lists(records(table=st.text(), key=st.text(), version=longs)), changes=lists(changes),
    operation=st.none() | records(kind=st.text(), arguments=st.text()),
)  # fmt: skip
transactions = records(
    id=st.text(), author=st.text(), message=st.text(), type=st.text(), occurred_at=maybe_long, parts=lists(parts)
)
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


@given(transactions, harm)
def test_transactions(transaction: dict[str, Any], how: tuple[int, str, int]) -> None:
    body = encode(schema("Transaction"), transaction)
    assert read_transaction(body) == transaction
    harmed = broken(body, how)
    assert told(read_transaction, harmed) == told(lambda body: decode(schema("Transaction"), body), harmed)


@given(commits, harm)
def test_commits(commit: dict[str, Any], how: tuple[int, str, int]) -> None:
    body = encode(schema("Commit"), commit)
    assert read_commit(body) == commit
    harmed = broken(body, how)
    assert told(read_commit, harmed) == told(lambda body: decode(schema("Commit"), body), harmed)


@given(st.lists(outcomes, max_size=5), checkpoints)
def test_outcomes(results: list[dict[str, Any]], checkpoint: dict[str, Any] | None) -> None:
    read = read_outcomes(encode(schema("Outcomes"), {"results": results, "checkpoint": checkpoint}))
    assert [(one.transaction_id, one.code, one.body) for one in read.told] == [
        (one["transaction_id"], one["code"], outcome_body(one)) for one in results
    ]
    whole = {"results": results, "checkpoint": checkpoint}
    assert read.checkpoint == decode(schema("Outcomes"), encode(schema("Outcomes"), whole))["checkpoint"]
