"""Shares are a function of `sequence` alone, and shares and votes come through their records unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import codec, limits
from versolog.schemas.errors import Malformed, VersologError, refusal
from versolog.schemas.topics import partition_of
from versolog.streams.chain import intent_hash
from versolog.streams.shares import COMMIT, FIRST, REFUSE, SHARE, VOTES, Allotment, Vote, VotedPart, fault_of
from versolog.streams.transaction import Transaction

PARTITIONS = 3
GROUPS = [next(name for name in map(str, range(99)) if partition_of(name, PARTITIONS) == p) for p in range(PARTITIONS)]


def asked(*partitions: int, id: str = "x") -> tuple[bytes, dict[str, Any]]:
    tx = Transaction(None, id=id)
    for partition in partitions:
        tx.group(GROUPS[partition]).put("t", "k", {"of": partition})
    return intent_hash(tx.intent()), tx.record()


def test_each_partition_gets_its_own_parts_of_the_whole() -> None:
    hash_, record = asked(0, 2)
    shares = Allotment(PARTITIONS).shares(5, hash_, record)
    assert list(shares) == [0, 2]
    for partition, share in shares.items():
        assert (share["sequence_offset"], share["previous"], share["participants"]) == (5, FIRST, [0, 2])
        assert share["intent_hash"] == hash_
        assert [part["group"] for part in share["transaction"]["parts"]] == [GROUPS[partition]]
        assert share["transaction"] | {"parts": record["parts"]} == record
        assert fault_of(share) is None


def test_each_share_names_the_one_before_it_in_its_partition() -> None:
    allotment = Allotment(PARTITIONS)
    links = [
        {partition: share["previous"] for partition, share in allotment.shares(offset, *asked(*partitions)).items()}
        for offset, partitions in enumerate([(0, 1), (1, 2), (0, 1, 2)])
    ]
    assert links == [{0: FIRST, 1: FIRST}, {1: 0, 2: FIRST}, {0: 0, 1: 1, 2: 1}]


def test_one_of_a_single_partition_has_one_share() -> None:
    (share,) = Allotment(PARTITIONS).shares(0, *asked(1)).values()
    assert share["participants"] == [1]


@given(st.lists(st.sets(st.integers(0, PARTITIONS - 1), min_size=1), min_size=1, max_size=12), st.integers(0, 11))
def test_whoever_goes_on_from_a_checkpoint_writes_the_same(sequence: list[set[int]], at: int) -> None:
    def allotted(allotment: Allotment, first: int) -> list[dict[int, Any]]:
        return [allotment.shares(offset, *asked(*sequence[offset])) for offset in range(first, len(sequence))]

    at = min(at, len(sequence))
    one = Allotment(PARTITIONS)
    for offset in range(at):
        one.shares(offset, *asked(*sequence[offset]))
    assert allotted(Allotment(PARTITIONS, one.last), at) == allotted(Allotment(PARTITIONS), 0)[at:]


def test_what_cannot_be_read_comes_to_an_end_in_partition_0() -> None:
    (share,) = Allotment(PARTITIONS).shares(0, bytes(32), None, Malformed("not Avro")).values()
    assert (share["participants"], share["transaction"]) == ([0], None)
    fault = fault_of(share)
    assert fault is not None
    assert (fault.code, fault.detail) == ("malformed", "not Avro")


def test_what_names_no_group_comes_to_an_end_in_partition_0() -> None:
    shares = Allotment(PARTITIONS).shares(0, bytes(32), asked(0)[1] | {"parts": []})
    assert list(shares) == [0]
    assert shares[0]["transaction"]["parts"] == []


def test_what_is_too_large_only_as_a_whole_is_refused_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tx = Transaction(None, id="x")
    for partition in (0, 1):
        for number in range(limits.CHANGES_MAX // 2):
            tx.group(GROUPS[partition]).delete("t", str(number))
    record = tx.record()
    assert all(fault_of(share) is None for share in Allotment(PARTITIONS).shares(0, bytes(32), record).values())
    record["parts"][0]["changes"] = [*record["parts"][0]["changes"], record["parts"][0]["changes"][0]]
    faults = [fault_of(share) for share in Allotment(PARTITIONS).shares(0, bytes(32), record).values()]
    assert [fault and (fault.code, fault.facts) for fault in faults] == [
        ("too-large", {"limit": limits.CHANGES_MAX})
    ] * 2


def test_too_many_groups_as_a_whole_are_refused_by_all() -> None:
    whole = asked(0)[1]
    whole["parts"] = [{**whole["parts"][0], "group": f"g{number}"} for number in range(limits.GROUPS_MAX)]
    assert all(fault_of(share) is None for share in Allotment(PARTITIONS).shares(0, bytes(32), whole).values())
    whole["parts"] = [*whole["parts"], {**whole["parts"][0], "group": "one more"}]
    faults = [fault_of(share) for share in Allotment(PARTITIONS).shares(0, bytes(32), whole).values()]
    assert [fault and (fault.code, fault.facts) for fault in faults] == [
        ("too-large", {"limit": limits.GROUPS_MAX})
    ] * PARTITIONS


def test_a_share_comes_through_its_record() -> None:
    for share in Allotment(PARTITIONS).shares(7, *asked(0, 1)).values():
        assert codec.decode(SHARE, codec.encode(SHARE, share)) == share


@pytest.mark.parametrize(
    "error",
    [None, refusal("head-mismatch", "no", group="g", branch="main", expected=1, found=2), refusal("invalid", "bare")],
    ids=["none", "with facts", "without facts"],
)
def test_a_vote_comes_through_its_record(error: VersologError | None) -> None:
    parts = (VotedPart("g", "main", 3), VotedPart("h", "plan", 0)) if error is None else ()
    vote = Vote(4, 2, COMMIT if error is None else REFUSE, 1_767_225_600_000, parts, error)
    record = {"partition": vote.partition, "votes": [vote.record()]}
    (told,) = codec.decode(VOTES, codec.encode(VOTES, record))["votes"]
    read = Vote.of(vote.partition, told)
    assert read.record() == vote.record()
    assert (read.sequence_offset, read.partition, read.verdict, read.clock, read.parts) == (
        4,
        2,
        vote.verdict,
        vote.clock,
        parts,
    )
    assert (read.error is None) == (error is None)
    assert read.error is None or (type(read.error), read.error.facts) == (type(error), error.facts if error else {})


def test_facts_may_have_any_name() -> None:
    told = Vote(4, 2, REFUSE, 1, error=refusal("invalid", "no")).record() | {"facts": '{"self":1,"kind":2}'}
    error = Vote.of(2, told).error
    assert error is not None
    assert error.facts == {"self": 1, "kind": 2}


@pytest.mark.parametrize("facts", ["x", "[]", "7", '{"code":"other"}', '{"status":200}'])
def test_facts_that_no_participant_tells_are_malformed(facts: str) -> None:
    told = Vote(4, 2, REFUSE, 1, error=refusal("invalid", "no")).record() | {"facts": facts}
    with pytest.raises(Malformed):
        Vote.of(2, told)
