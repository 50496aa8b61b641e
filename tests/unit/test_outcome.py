"""How a transaction ended, as Avro, as JSON, as a token and as an error."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import codec
from versolog.schemas.errors import Conflict, Malformed, PreconditionFailed, VersologError
from versolog.schemas.outcome import Outcome, PartOutcome, read_token

OUTCOME = codec.schema("Outcome")
HASH = bytes(range(32))
NO_HASH = bytes(32)
AT = 1_370_088_000_123


def avro(**changes: Any) -> dict[str, Any]:
    record = {
        "transaction_id": "t-1", "intent_hash": HASH, "transaction_offset": 7, "committed_at": AT,
        "outcome": "committed", "code": "", "detail": "", "facts": "",
        "parts": [{"group": "UA", "branch": "main", "version": 42, "hash": HASH}],
        **changes,
    }  # fmt: skip
    return codec.decode(OUTCOME, codec.encode(OUTCOME, record))


REFUSED = {
    "outcome": "refused", "code": "version-mismatch", "detail": "the row moved on",
    "parts": [{"group": "UA", "branch": "main", "version": 0, "hash": NO_HASH}],
    "facts": '{"expected":40,"found":41,"group":"UA","key":"k1","table":"flights"}',
}  # fmt: skip


def test_a_committed_outcome_says_where() -> None:
    outcome = Outcome.from_avro(avro())
    assert outcome.raise_for_refusal() is outcome
    assert (outcome.error(), outcome.problem()) == (None, None)
    assert (outcome.version, outcome.hash, outcome.transaction_offset) == (42, HASH, 7)
    assert outcome.to_json() == {
        "id": "t-1", "outcome": "committed", "committed_at": "2013-06-01T12:00:00.123Z",
        "group": "UA", "branch": "main", "version": 42, "hash": HASH.hex(), "token": "UA:42",
    }  # fmt: skip


def test_an_outcome_over_groups_lists_its_parts() -> None:
    parts = [
        {"group": "a,b:c/é", "branch": "main", "version": 3, "hash": HASH},
        {"group": "UA", "branch": "plan", "version": 0, "hash": NO_HASH},
    ]
    outcome = Outcome.from_avro(avro(parts=parts))
    assert outcome.to_json()["parts"] == [
        {"group": "a,b:c/é", "branch": "main", "version": 3, "hash": HASH.hex()},
        {"group": "UA", "branch": "plan", "version": 0, "hash": None},
    ]
    assert outcome.token.isascii()
    assert read_token(outcome.token) == {"a,b:c/é": 3}, "nothing has to be waited for where nothing was committed"


def test_a_refusal_is_a_typed_error_with_its_facts() -> None:
    outcome = Outcome.from_avro(avro(**REFUSED))
    with pytest.raises(PreconditionFailed, match="the row moved on") as refused:
        outcome.raise_for_refusal()
    assert refused.value.code == "version-mismatch"
    assert refused.value.facts == {
        "expected": 40, "found": 41, "group": "UA", "key": "k1", "table": "flights", "id": "t-1",
    }  # fmt: skip
    assert outcome.to_json()["found"] == 41
    assert outcome.token == ""


def test_a_refusal_as_a_problem_names_the_transaction() -> None:
    problem = Outcome.from_avro(avro(**REFUSED)).problem()
    assert problem is not None
    assert problem["status"] == 412
    assert problem["type"].endswith("/version-mismatch")
    assert (problem["id"], problem["outcome"], problem["expected"]) == ("t-1", "refused", 40)


@pytest.mark.parametrize("name", ["code", "detail", "status", "type", "title", "id", "outcome"])
def test_a_fact_can_t_take_the_place_of_the_outcome_s_own_words(name: str) -> None:
    facts = orjson.dumps({name: "forged", "key": "k1"}).decode()
    outcome = Outcome.from_avro(avro(outcome="refused", code="id-reused", detail="decided before", facts=facts))
    assert isinstance(outcome.error(), Conflict)
    problem = outcome.problem()
    assert problem is not None
    assert problem[name] != "forged"
    assert problem["key"] == "k1"
    if name not in ("status", "type", "title"):
        assert outcome.to_json()[name] != "forged"


def test_a_kind_of_refusal_that_this_version_does_not_know_is_still_an_error() -> None:
    outcome = Outcome.from_avro(avro(outcome="refused", code="too-late", detail="came after the gate closed"))
    with pytest.raises(VersologError, match="gate closed") as refused:
        outcome.raise_for_refusal()
    assert refused.value.code == "too-late"


@pytest.mark.parametrize("record", [{}, REFUSED, {"parts": []}])
def test_json_tells_the_other_side_the_same(record: dict[str, Any]) -> None:
    outcome = Outcome.from_avro(avro(**record))
    told = Outcome.from_json(orjson.loads(orjson.dumps(outcome.to_json())))
    assert told.to_json() == outcome.to_json()
    assert (told.committed, told.version, told.hash) == (outcome.committed, outcome.version, outcome.hash)
    problem = outcome.problem()
    if problem is not None:
        assert Outcome.from_json(problem).facts == outcome.facts


@pytest.mark.parametrize(
    "obj",
    [
        None, [], {}, {"outcome": "undecided"}, {"id": "t", "outcome": "committed"},
        {"id": "t", "outcome": "refused", "committed_at": "yesterday"},
        {"id": "t", "outcome": "committed", "committed_at": "2013-06-01T12:00:00Z", "parts": [7]},
        {"id": "t", "outcome": "committed", "committed_at": "2013-06-01T12:00:00Z", "group": "g", "branch": "main",
         "version": 1, "hash": "xyz"},
    ],
)  # fmt: skip
def test_what_is_no_outcome_is_malformed(obj: Any) -> None:
    with pytest.raises(Malformed, match="not an outcome"):
        Outcome.from_json(obj)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 10**17), max_size=4)
)
def test_any_group_survives_the_token(versions: dict[str, int]) -> None:
    parts = tuple(PartOutcome(group, "main", version, HASH) for group, version in versions.items())
    token = Outcome("t", committed=True, committed_at=AT, parts=parts).token
    assert read_token(token) == versions
    assert token.isascii()
    assert " " not in token


def test_a_token_put_together_from_several_wants_the_newest() -> None:
    assert read_token("UA:3,AA:1,UA:7,UA:5") == {"UA": 7, "AA": 1}


@pytest.mark.parametrize(
    "token", [",", "UA", "UA:", ":3", "UA:3,", "UA:-3", "UA:٣", "UA:3.0", "UA:" + "9" * 19, "%FF:3"]
)
def test_what_is_no_token_is_malformed(token: str) -> None:
    with pytest.raises(Malformed, match="token"):
        read_token(token)
