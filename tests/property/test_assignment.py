"""Sharing out partitions, for all groups of members and all that they may claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from versolog.streams.assignment import Claim, share_out

PARTITIONS = st.integers(1, 24)
CLAIMS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.builds(Claim, st.integers(0, 3), st.frozensets(st.integers(0, 30))),
    min_size=1,
    max_size=10,
)


def claimed(shares: dict[str, list[int]], number: int) -> dict[str, Claim]:
    return {member: Claim(number, frozenset(share)) for member, share in shares.items()}


@given(PARTITIONS, CLAIMS)
def test_every_partition_has_one_owner_and_shares_are_even(partitions: int, claims: dict[str, Claim]) -> None:
    shares = share_out(partitions, claims)
    assert shares.keys() == claims.keys()
    assert sorted(p for share in shares.values() for p in share) == list(range(partitions))
    sizes = {len(share) for share in shares.values()}
    assert max(sizes) - min(sizes) <= 1


@given(PARTITIONS, CLAIMS)
def test_nothing_moves_when_nobody_comes_or_goes(partitions: int, claims: dict[str, Claim]) -> None:
    shares = share_out(partitions, claims)
    assert share_out(partitions, claimed(shares, 1)) == shares


@given(PARTITIONS, CLAIMS)
def test_only_what_a_leaver_had_moves_when_it_leaves(partitions: int, claims: dict[str, Claim]) -> None:
    before = share_out(partitions, claims | {"leaver": Claim(0, frozenset())})
    after = share_out(partitions, {m: c for m, c in claimed(before, 1).items() if m != "leaver"})
    for member, share in after.items():
        assert set(before[member]) <= set(share)


@given(PARTITIONS, CLAIMS)
def test_only_what_a_comer_gets_moves_when_it_comes(partitions: int, claims: dict[str, Claim]) -> None:
    before = share_out(partitions, claims)
    after = share_out(partitions, claimed(before, 1) | {"comer": Claim(0, frozenset())})
    for member, share in before.items():
        assert set(after[member]) <= set(share)


@given(PARTITIONS, CLAIMS)
def test_a_member_that_was_away_does_not_get_back_what_was_given_out_since(
    partitions: int, claims: dict[str, Claim]
) -> None:
    shares = claimed(share_out(partitions, claims), 2)
    after = share_out(partitions, shares | {"frozen": Claim(1, frozenset(range(partitions)))})
    for member, claim in shares.items():
        assert set(after[member]) <= claim.partitions
