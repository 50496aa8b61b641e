"""Bodies put together by hand are the library's, byte for byte."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas.codec import decode, encode, schema
from versolog.schemas.written import (
    checkpoint_body,
    commit_body,
    outcome_body,
    outcomes_body,
    share_body,
    transaction_body,
    vote_body,
    votes_body,
)

ints = st.integers(-(2**31), 2**31 - 1)
longs = st.integers(-(2**63), 2**63 - 1)
hashes = st.binary(min_size=32, max_size=32)
maybe_long = st.none() | longs
words = st.text() | st.text("xé€𝄞", min_size=8_000, max_size=9_000).map(lambda word: word[:8_300])


def records(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields)


def lists(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, max_size=3)


commits = records(
    group=st.text(), version=longs, branch=st.text(), branch_id=longs, parents=lists(longs), previous_hash=hashes,
    transaction_id=st.text(), intent_hash=hashes, transaction_offset=longs, sequence_offset=maybe_long,
    others=lists(records(group=st.text(), version=longs)), author=st.text(), message=st.text(), type=st.text(),
    committed_at=longs, occurred_at=maybe_long, operation=st.text(), arguments=st.text(),
    changes=lists(records(table=st.text(), key=st.text(), row=st.none() | words)),
    refs=lists(records(kind=st.sampled_from(["branch", "tag"]), name=st.text(), version=maybe_long, parent=maybe_long)),
    schemas=lists(records(table=st.text(), fingerprint=hashes)), piece=st.integers(0, 2**31 - 1),
    pieces=st.integers(0, 2**31 - 1),
)  # fmt: skip
outcomes = records(
    transaction_id=st.text(), intent_hash=hashes, transaction_offset=longs, committed_at=longs,
    outcome=st.sampled_from(["committed", "refused"]),
    parts=lists(records(group=st.text(), branch=st.text(), version=longs, hash=hashes)),
    code=st.text(), detail=words, facts=st.text(),
)  # fmt: skip
checkpoints = records(
    next_offset=longs, clock=longs,
    undecided=lists(records(offset=longs, sequence_offset=maybe_long, clock=longs, verdict=st.text())),
    sequence_offset=maybe_long, votes_offset=longs, reads=lists(records(group=st.text(), committed_at=longs)),
    commits_offset=longs,
)  # fmt: skip

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
shares = records(
    sequence_offset=longs, previous=longs, intent_hash=hashes, participants=lists(ints),
    transaction=st.none() | transactions, code=st.text(), detail=words, facts=st.text(),
)  # fmt: skip
votes = records(
    partition=ints,
    votes=lists(
        records(
            sequence_offset=longs, verdict=st.text(), clock=longs, code=st.text(), detail=words, facts=st.text(),
            parts=lists(records(group=st.text(), branch=st.text(), version=longs)),
        )
    ),
)  # fmt: skip


@given(commits)
def test_commits(commit: dict[str, Any]) -> None:
    body = commit_body(commit)
    assert body == encode(schema("Commit"), commit)
    assert decode(schema("Commit"), body) == commit


@given(outcomes)
def test_outcomes(outcome: dict[str, Any]) -> None:
    assert outcome_body(outcome) == encode(schema("Outcome"), outcome)


@given(checkpoints)
def test_checkpoints(checkpoint: dict[str, Any]) -> None:
    assert checkpoint_body(checkpoint) == encode(schema("Checkpoint"), checkpoint)


@given(st.integers(0, 300), outcomes, st.none() | checkpoints)
def test_outcomes_of_a_batch(count: int, outcome: dict[str, Any], checkpoint: dict[str, Any] | None) -> None:
    end = None if checkpoint is None else checkpoint_body(checkpoint)
    whole = {"results": [outcome] * count, "checkpoint": checkpoint}
    assert outcomes_body([outcome_body(outcome)] * count, end) == encode(schema("Outcomes"), whole)


@given(transactions)
def test_transactions(transaction: dict[str, Any]) -> None:
    assert transaction_body(transaction) == encode(schema("Transaction"), transaction)


@given(shares)
def test_shares(share: dict[str, Any]) -> None:
    assert share_body(share) == encode(schema("Share"), share)


@given(votes)
def test_votes(told: dict[str, Any]) -> None:
    body = votes_body(told["partition"], [vote_body(vote) for vote in told["votes"]])
    assert body == encode(schema("Votes"), told)
