"""Transactions over several partitions: the order that `sequence` gives them, each partition's share, and the votes.

A transaction's offset in the topic `sequence` is its place in one order over all partitions: G. Each partition that it
has parts in gets its share, in the order of G, and each share names the one before it. What is written is a function of
`sequence` alone, so that anybody may write it, twice too: a share that does not follow on the last one is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from versolog.schemas import codec
from versolog.schemas.codec import Record
from versolog.schemas.documents import from_text, to_text
from versolog.schemas.errors import Malformed, VersologError, refusal
from versolog.schemas.limits import CHANGES_MAX, GROUPS_MAX
from versolog.schemas.topics import partition_of

SHARE = codec.schema("Share")
VOTES = codec.schema("Votes")

FIRST = -1
"""Where the shares of a partition begin: the `previous` of its first one."""
_NOT_FACTS = {"code", "detail", "status"}
COMMIT, REFUSE, REPEAT = "commit", "refuse", "repeat"


class Share(NamedTuple):
    """Where one partition's share stands in the order over partitions."""

    sequence_offset: int
    """G."""
    previous: int
    """The G of the partition's share before this one; FIRST for its first."""
    participants: tuple[int, ...]
    """The partitions that have a share, in order."""


class VotedPart(NamedTuple):
    """What one group gets of a transaction."""

    group: str
    branch: str
    version: int
    """The version that it makes; 0 for a part that holds only preconditions."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one participant says of a transaction."""

    sequence_offset: int
    partition: int
    """Who votes."""
    verdict: str
    """COMMIT, REFUSE, or REPEAT where the id was decided before."""
    clock: int
    """Milliseconds: the least committed_at that it can give."""
    parts: tuple[VotedPart, ...] = ()
    error: VersologError | None = None
    """Why it is refused, or was where it is a REPEAT of a refusal."""

    def record(self) -> Record:
        """As a record of the topic `votes` has it, beside who votes."""
        return {
            "sequence_offset": self.sequence_offset,
            "verdict": self.verdict,
            "clock": self.clock,
            "parts": [part._asdict() for part in self.parts],
            **_reason(self.error),
        }

    @classmethod
    def of(cls, partition: int, record: Record) -> Vote:
        """The vote of `partition` in a record."""
        parts = tuple(VotedPart(part["group"], part["branch"], part["version"]) for part in record["parts"])
        return cls(record["sequence_offset"], partition, record["verdict"], record["clock"], parts, fault_of(record))


class Allotment:
    """Gives each partition its shares, in the order of `sequence`."""

    def __init__(self, partitions: int, last: Sequence[int] | None = None) -> None:
        """`last` is, for each partition, the G of the last share that it was given; without it none ever was."""
        self.last = list(last) if last is not None else [FIRST] * partitions
        assert len(self.last) == partitions, "partitions are never added"

    def shares(
        self, offset: int, intent_hash: bytes, transaction: Record | None, fault: VersologError | None = None
    ) -> dict[int, Record]:
        """By partition the share of what stands at `offset` of `sequence`. What could not be read goes to partition 0,
        so that it comes to an end like everything else."""
        parts: dict[int, list[Record]] = {}
        for part in transaction["parts"] if transaction is not None else ():
            parts.setdefault(partition_of(part["group"], len(self.last)), []).append(part)
        if transaction is not None:
            fault = _fault_of_whole(transaction)
        participants = sorted(parts) or [0]
        shares = {}
        for partition in participants:
            own = None if transaction is None else {**transaction, "parts": parts.get(partition, [])}
            shares[partition] = {
                "sequence_offset": offset,
                "previous": self.last[partition],
                "intent_hash": intent_hash,
                "participants": participants,
                "transaction": own,
                **_reason(fault),
            }
            self.last[partition] = offset
        return shares


def _fault_of_whole(transaction: Record) -> VersologError | None:
    """What no single share shows: a transaction that is too large only as a whole."""
    parts = transaction["parts"]
    if len(parts) > GROUPS_MAX:
        return too_many_groups(len(parts))
    changes = sum(len(part["changes"]) for part in parts)
    if changes > CHANGES_MAX:
        return refusal("too-large", f"{changes:,} changes; the limit is {CHANGES_MAX:,}", limit=CHANGES_MAX)
    return None


def too_many_groups(count: int) -> VersologError:
    """The refusal of a transaction of so many groups."""
    return refusal("too-large", f"{count:,} groups; the limit is {GROUPS_MAX:,}", limit=GROUPS_MAX)


def _reason(error: VersologError | None) -> Record:
    return {
        "code": "" if error is None else error.code,
        "detail": "" if error is None else error.detail,
        "facts": "" if error is None or not error.facts else to_text(error.facts),
    }


def fault_of(record: Record) -> VersologError | None:
    """The refusal that a share or a vote carries. Raises Malformed."""
    if not record["code"]:
        return None
    facts: Any = from_text(record["facts"]) if record["facts"] else {}
    if not isinstance(facts, dict) or not facts.keys().isdisjoint(_NOT_FACTS):
        raise Malformed("the facts of a refusal are an object, and none of them is its code, detail or status")
    return refusal(record["code"], record["detail"], **facts)
