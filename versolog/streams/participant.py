"""One partition's part in deciding: its transactions in the order of the log, and those over several partitions by vote.

Pure: no I/O, no clock. Everything here is a function of what the partition's log says and of the votes it hears, in
whatever order these come, so a second participant on the same log votes and decides the same.

A transaction of this partition alone is decided when its turn comes: at once, unless one before it that is undecided
holds one of its groups, or its id. A share of a transaction over several partitions, when its turn comes, holds its
groups, and the partition votes. With the votes of all participants everyone comes to the same decision by itself:
commit, at the greatest clock that was voted, or refuse, for the reason of the first that did (that the id had another
content goes before all others). Then its groups are free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from versolog.schemas.codec import Record
from versolog.schemas.readings import read_outcome
from versolog.streams.decide import (
    ID_REUSED,
    Asked,
    Decision,
    Prepared,
    commit,
    decide,
    decision_on,
    fold,
    prepare,
    refuse,
    unchanged,
)
from versolog.streams.holds import Holds, Name
from versolog.streams.overlay import Overlay
from versolog.streams.shares import COMMIT, FIRST, REFUSE, REPEAT, Vote, fault_of


class Ballot(NamedTuple):
    """A vote, and the partitions that have to hear it. Once it is in the log for all of them, `Participant.cast`."""

    vote: Vote
    to: tuple[int, ...]


class Job(NamedTuple):
    """Something that takes long: to be looked at aside, on a state that does not change, while all else goes on.
    `Participant.looked_at` takes what comes of it."""

    offset: int
    look: Callable[[], Prepared | Decision]
    """In any thread."""


class Turn(NamedTuple):
    """What came of what was taken in since the last one."""

    decisions: list[Decision]
    ballots: list[Ballot]
    jobs: list[Job]


class Settled(NamedTuple):
    """How far everything is decided."""

    offset: int
    """What stands below it in the partition's log is."""
    clock: int
    """What has an earlier committed_at is, in milliseconds: what waits comes later than its own clock, or at it."""


@dataclass(slots=True)
class Undecided:
    """A transaction that waits: for its turn, or for votes."""

    asked: Asked
    prepared: Prepared | Decision | None = None
    """What it would do; None while its turn has not come, or it is looked at aside."""
    is_aside: bool = False
    vote: Vote | None = None
    """Ours."""
    cast: bool = False
    """Whether our vote is in the log. Before that nothing may come of it: who crashed after having decided would not
    vote again, and the others would wait for ever."""

    @property
    def groups(self) -> frozenset[str]:
        transaction = self.asked.transaction
        return frozenset(part["group"] for part in transaction["parts"]) if transaction is not None else frozenset()

    @property
    def sequence_offset(self) -> int | None:
        return None if self.asked.share is None else self.asked.share.sequence_offset


@dataclass(slots=True)
class _Heard:
    """The votes of the others on one transaction."""

    first_offset: int
    """Where the first of them stands in the partition of `votes`."""
    by_partition: dict[int, Vote] = field(default_factory=dict)


class Participant:
    """A partition from a checkpoint on. `overlay` is the state there, and takes what is decided."""

    def __init__(
        self, overlay: Overlay, partition: int, partitions: int, checkpoint: Record | None,
        is_lengthy: Callable[[Asked], bool] = lambda asked: False,
    ) -> None:  # fmt: skip
        """What `is_lengthy` is looked at aside."""
        self._is_lengthy = is_lengthy
        self._overlay, self._partition, self._partitions = overlay, partition, partitions
        undecided = checkpoint["undecided"] if checkpoint else []
        self._left: dict[int, Record] = {one["offset"]: one for one in undecided}
        """What the checkpoint leaves undecided and was not taken in again yet, by offset."""
        self.next_offset: int = checkpoint["next_offset"] if checkpoint else 0
        """Of the partition's transactions: everything below it was taken in, or is undecided by the checkpoint."""
        self.clock: int = checkpoint["clock"] if checkpoint else 0
        sequence_offset = checkpoint["sequence_offset"] if checkpoint else None
        self._sequence_offset = FIRST if sequence_offset is None else sequence_offset
        self._votes_next: int = checkpoint["votes_offset"] if checkpoint else 0
        reads = checkpoint["reads"] if checkpoint else []
        self._read_at: dict[str, int] = {one["group"]: one["committed_at"] for one in reads}
        """By group the greatest committed_at of what has read it without changing it, where that is not closed yet. What
        changes the group afterwards is committed no earlier, or else a cut between the two would show it alone."""
        self._holds = Holds()
        self._undecided: dict[int, Undecided] = {}
        """By offset, in order."""
        self._by_sequence: dict[int, Undecided] = {}
        self._heard: dict[int, _Heard] = {}
        """By G: of what is undecided here, and of what has not come here yet."""
        self._decisions: list[Decision] = []
        self._ballots: list[Ballot] = []
        self._jobs: list[Job] = []
        self.undecided_bytes = 0

    # What is taken in

    @property
    def first_offset(self) -> int:
        """The offset of the partition's transactions to read from."""
        return min(self._left, default=self.next_offset)

    @property
    def votes_offset(self) -> int:
        """The first offset of the partition's votes that is still of use."""
        return min((heard.first_offset for heard in self._heard.values()), default=self._votes_next)

    def place(self, offset: int, timestamp: int) -> int | None:
        """The partition's clock at a record of its log, to be taken in next; None where it was decided before."""
        if offset >= self.next_offset:
            self.next_offset = offset + 1
            self.clock = max(self.clock, timestamp)
            return self.clock
        left = self._left.get(offset)
        return None if left is None else int(left["clock"])

    def take(self, asked: Asked) -> None:
        """Take in the next transaction or share, in the order of the log, each with the clock that `place` gave it."""
        left = self._left.pop(asked.offset, None)
        if asked.share is None:
            blocked = bool(self._undecided) and self._holds.blocks(_names(asked))
            if not blocked and not self._is_lengthy(asked):
                self._end(asked, decide(self._overlay, asked, self._partition, self._partitions, self._floor(asked)))
                return
        elif left is None:
            if asked.share.previous != self._sequence_offset:
                return  # seen before, or from who began too early or too late: the right one comes, or came
            self._sequence_offset = asked.share.sequence_offset
        undecided = self._undecided[asked.offset] = Undecided(asked)
        self.undecided_bytes += asked.size
        if asked.share is not None:
            self._by_sequence[asked.share.sequence_offset] = undecided
        if self._holds.enter(asked.offset, _names(asked)):
            self._turns(asked.offset)
        if left is not None and left["verdict"] and undecided.vote is not None:
            found = _said(undecided)
            assert found == left["verdict"], f"offset {asked.offset} was voted {left['verdict']!r}, and now {found!r}"

    def hear(self, vote: Vote, offset: int) -> None:
        """Take in the vote of another participant, which stands at `offset` of the partition's votes."""
        self._votes_next = max(self._votes_next, offset + 1)
        undecided = self._by_sequence.get(vote.sequence_offset)
        if undecided is None and not self._is_to_come(vote.sequence_offset):
            return  # it was decided here
        heard = self._heard.setdefault(vote.sequence_offset, _Heard(offset))
        heard.by_partition.setdefault(vote.partition, vote)
        if undecided is not None:
            self._turns(undecided.asked.offset)

    def cast(self, sequence_offset: int) -> None:
        """Our vote on that transaction is in the log, for all to hear."""
        undecided = self._by_sequence.get(sequence_offset)
        if undecided is not None and undecided.vote is not None:
            undecided.cast = True
            self._turns(undecided.asked.offset)

    def looked_at(self, offset: int, found: Prepared | Decision) -> None:
        """What came of a job."""
        self._undecided[offset].prepared = found
        self._turns(offset)

    def turn(self) -> Turn:
        """What came of all that, since the last time; decisions in the order they were made."""
        turn = Turn(self._decisions, self._ballots, self._jobs)
        self._decisions, self._ballots, self._jobs = [], [], []
        return turn

    # What it stands at

    @property
    def waiting(self) -> list[Undecided]:
        """The undecided, in the order of the log."""
        return list(self._undecided.values())

    @property
    def undecided_count(self) -> int:
        return len(self._undecided)

    def settled(self, groups: Collection[str] | None = None, checkpoint: Record | None = None) -> Settled:
        """How far everything is decided, of these groups alone where they are given; was, at a checkpoint of this
        participant. What that leaves undecided and is decided meanwhile counts for all groups."""
        if checkpoint is not None:
            undecided = [one for one in checkpoint["undecided"] if self._concerns(one["offset"], groups)]
            return settled_at({**checkpoint, "undecided": undecided})
        waiting = ((offset, one.asked.clock) for offset, one in self._undecided.items() if self._concerns(offset, groups))
        left = ((offset, int(one["clock"])) for offset, one in self._left.items())
        return Settled(*min((*waiting, *left), default=(self.next_offset, self.clock)))

    def _concerns(self, offset: int, groups: Collection[str] | None) -> bool:
        undecided = self._undecided.get(offset)
        return groups is None or undecided is None or not undecided.groups.isdisjoint(groups)

    def missing(self, undecided: Undecided) -> list[int]:
        """The participants whose vote is not heard yet; our own while it is not in the log."""
        share = undecided.asked.share
        if share is None:
            return []
        heard = self._heard.get(share.sequence_offset)
        there = set() if heard is None else set(heard.by_partition)
        return [one for one in share.participants if one not in there and (one != self._partition or not undecided.cast)]

    def checkpoint(self) -> Record:
        """Where the next owner goes on, once all decisions so far are in the log."""
        undecided: list[Record] = [
            {
                "offset": offset,
                "sequence_offset": one.sequence_offset,
                "clock": one.asked.clock,
                "verdict": "" if one.vote is None else _said(one),
            }
            for offset, one in self._undecided.items()
        ]
        undecided = sorted([*undecided, *self._left.values()], key=_offset_of)
        checkpoint: Record = {
            "next_offset": self.next_offset,
            "clock": self.clock,
            "undecided": undecided,
            "sequence_offset": None if self._sequence_offset == FIRST else self._sequence_offset,
            "votes_offset": self.votes_offset,
        }
        closed = settled_at(checkpoint).clock
        self._read_at = {group: at for group, at in self._read_at.items() if at > closed}
        reads = [{"group": group, "committed_at": at} for group, at in self._read_at.items()]
        return {**checkpoint, "reads": reads}

    # Turns

    def _is_to_come(self, sequence_offset: int) -> bool:
        return sequence_offset > self._sequence_offset or any(
            left["sequence_offset"] == sequence_offset for left in self._left.values()
        )

    def _turns(self, offset: int) -> None:
        """Go on with one whose turn it is, and with all whose turn comes by that."""
        due = deque([offset])
        while due:
            undecided = self._undecided[due[0]]
            decision = self._decided(undecided)
            if decision is None:
                due.popleft()
                continue
            offset = due.popleft()
            self._end(undecided.asked, decision)
            del self._undecided[offset]
            self.undecided_bytes -= undecided.asked.size
            if undecided.asked.share is not None:
                del self._by_sequence[undecided.asked.share.sequence_offset]
                self._heard.pop(undecided.asked.share.sequence_offset, None)
            due.extend(self._holds.leave(offset))

    def _decided(self, undecided: Undecided) -> Decision | None:
        """The decision, folded; None while votes are missing, or it is looked at aside."""
        asked = undecided.asked
        if undecided.prepared is None:
            if self._holds.waits(asked.offset) or not self._prepare(undecided):
                return None
        if asked.share is None:
            decision = undecided.prepared
            assert isinstance(decision, Decision)
        else:
            if undecided.vote is None:
                self._vote(undecided)
            if self.missing(undecided):
                return None
            decision = self._by_votes(undecided)
        fold(self._overlay, decision)
        return decision

    def _prepare(self, undecided: Undecided) -> bool:
        """See what it would do, its groups being free; False where that is done aside."""
        asked, floor = undecided.asked, self._floor(undecided.asked)
        look = decision_on if asked.share is None else prepare
        if undecided.is_aside:
            return False
        if self._is_lengthy(asked):
            state = self._overlay.snapshot()
            undecided.is_aside = True
            self._jobs.append(Job(asked.offset, partial(look, state, asked, self._partition, self._partitions, floor)))
            return False
        undecided.prepared = look(self._overlay, asked, self._partition, self._partitions, floor)
        return True

    def _vote(self, undecided: Undecided) -> None:
        asked, prepared = undecided.asked, undecided.prepared
        share = asked.share
        assert share is not None
        assert prepared is not None
        number, by = share.sequence_offset, self._partition
        if isinstance(prepared, Prepared):
            vote = Vote(number, by, COMMIT, prepared.clock, tuple(prepared.parts()))
        else:
            verdict = REPEAT if prepared.error is None else REFUSE
            error = prepared.error or fault_of(read_outcome(prepared.outcome))
            parts = tuple(unchanged(asked.transaction)) if asked.transaction is not None else ()
            vote = Vote(number, by, verdict, asked.clock, parts, error)
        undecided.vote = vote
        others = tuple(one for one in share.participants if one != by)
        if others:
            self._ballots.append(Ballot(vote, others))
        else:
            undecided.cast = True

    def _by_votes(self, undecided: Undecided) -> Decision:
        """The decision that all votes make."""
        asked, prepared, own = undecided.asked, undecided.prepared, undecided.vote
        assert asked.share is not None
        assert own is not None
        heard = self._heard.get(asked.share.sequence_offset)
        others = heard.by_partition if heard is not None else {}
        votes = [own if one == self._partition else others[one] for one in asked.share.participants]
        if own.verdict == REPEAT:
            assert isinstance(prepared, Decision)
            return prepared
        # Who was sent the whole transaction alone has refused it before; the others do so for the same reason.
        assert all(vote.error for vote in votes if vote.verdict == REPEAT), f"{asked.share} was committed, but not here"
        decided_at = max(vote.clock for vote in votes)
        elsewhere = [part for vote in votes if vote is not own for part in vote.parts]
        errors = [vote.error for vote in votes if vote.error is not None]
        if errors:
            # Where the id was used before, its first outcome is not to be replaced by another reason to refuse this one.
            reused = (error for error in errors if error.code == ID_REUSED)
            return refuse(asked, next(reused, errors[0]), decided_at, elsewhere)
        assert isinstance(prepared, Prepared)
        return commit(asked, prepared, decided_at, elsewhere)

    def _end(self, asked: Asked, decision: Decision) -> None:
        self._decisions.append(decision)
        if decision.code or decision.repeated or asked.transaction is None:
            return
        read = [part["group"] for part in asked.transaction["parts"] if not part["changes"] and not part["operation"]]
        if read:
            committed_at = read_outcome(decision.outcome)["committed_at"]
            for group in read:
                self._read_at[group] = max(committed_at, self._read_at.get(group, 0))

    def _floor(self, asked: Asked) -> int:
        """The least committed_at that the reads before it leave."""
        if not self._read_at or asked.transaction is None:
            return 0
        return max((self._read_at.get(part["group"], 0) for part in asked.transaction["parts"]), default=0)


def settled_at(checkpoint: Record | None) -> Settled:
    """How far everything is decided at a checkpoint; none is the beginning."""
    if checkpoint is None:
        return Settled(0, 0)
    undecided = ((int(one["offset"]), int(one["clock"])) for one in checkpoint["undecided"])
    return Settled(*min(undecided, default=(int(checkpoint["next_offset"]), int(checkpoint["clock"]))))


def _names(asked: Asked) -> tuple[Name, ...]:
    """What the transaction touches. Its id too: of two with one id the first in the log must come first."""
    if asked.transaction is None:
        return ()
    groups = dict.fromkeys(part["group"] for part in asked.transaction["parts"])
    return (("id", asked.transaction["id"]), *(("group", group) for group in groups))


def _said(undecided: Undecided) -> str:
    """Our vote as the checkpoint keeps it."""
    vote = undecided.vote
    assert vote is not None
    return vote.error.code if vote.verdict == REFUSE and vote.error is not None else vote.verdict


def _offset_of(record: Record) -> int:
    return int(record["offset"])
