"""Sharing out partitions: evenly, and with as few moves as that allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Claim(NamedTuple):
    """What a member had when it joined, and the number of the sharing out that gave it; 0 before its first."""

    round: int
    partitions: frozenset[int]


def share_out(partitions: int, claims: Mapping[str, Claim]) -> dict[str, list[int]]:
    """Each of `range(partitions)` to exactly one member; no member has two more than another.

    Members keep what they claim as far as that is even. Of two that claim the same partition the one of the later
    round is right: the other was away while the partition was given out again. A function of its arguments alone.
    """
    owners: dict[int, str] = {}
    for member in sorted(claims, key=lambda member: (claims[member].round, member)):
        owners |= dict.fromkeys((p for p in claims[member].partitions if p < partitions), member)
    kept: dict[str, list[int]] = {member: [] for member in sorted(claims)}
    for partition, member in sorted(owners.items()):
        kept[member].append(partition)

    least, over = divmod(partitions, len(kept))
    by_load = sorted(kept, key=lambda member: -len(kept[member]))
    quota = {member: least + (rank < over) for rank, member in enumerate(by_load)}
    shares = {member: held[: quota[member]] for member, held in kept.items()}
    left = _missing(partitions, list(shares.values()))
    for member, share in shares.items():
        wanted = quota[member] - len(share)
        share += left[:wanted]
        del left[:wanted]
    return {member: sorted(share) for member, share in shares.items()}


def _missing(partitions: int, shares: Sequence[Sequence[int]]) -> list[int]:
    given = {partition for share in shares for partition in share}
    return [partition for partition in range(partitions) if partition not in given]
