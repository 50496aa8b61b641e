"""Votes as records: many in one, and none too large."""

from __future__ import annotations

import pytest

from versolog.schemas import codec, limits
from versolog.schemas.errors import refusal
from versolog.schemas.written import votes_body
from versolog.streams.ballots import VOTES_IN_RECORD, runs
from versolog.streams.shares import COMMIT, REFUSE, Vote, VotedPart

VOTE = codec.schema("Vote")
LONGEST = VotedPart("\u20ac" * (limits.GROUP_BYTES_MAX // 3), "b" * limits.NAME_BYTES_MAX, 1 << 40)


def test_small_votes_stand_many_in_a_record() -> None:
    votes = [Vote(number, 2, COMMIT, 1, (VotedPart("g", "main", number),)) for number in range(VOTES_IN_RECORD + 1)]
    assert [len(run) for run in runs(votes)] == [VOTES_IN_RECORD, 1]
    assert [body for run in runs(votes) for body in run] == [codec.encode(VOTE, vote.record()) for vote in votes]


@pytest.mark.parametrize(
    "vote",
    [
        Vote(7, 2, COMMIT, 1, (LONGEST,) * limits.GROUPS_MAX),
        Vote(7, 2, REFUSE, 1, error=refusal("invalid", "\u20ac" * 50_000)),
    ],
    ids=["all the groups that there may be", "a long reason"],
)
def test_no_record_is_too_large(vote: Vote) -> None:
    told = runs([vote] * 20)
    assert sum(map(len, told)) == 20
    for run in told:
        assert len(votes_body(2, run)) < limits.RECORD_BYTES_MAX
