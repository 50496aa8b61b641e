"""The logs, who writes and reads them, and a schedule of their steps, drawn from a seed.

Real are the cores that decide: `Allotment`, `Participant`, `Holds`, `decide`, the overlay. The log is lists in memory.
What the shell around the cores may do wrong without being at fault, happens here: it crashes between any two steps,
what it sends is late, twice, in another order, or lost with it, and whoever was replaced goes on without knowing it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from tests.nothing import NOTHING
from tests.simulator.intents import SEQUENCE, Clients, Intent, Known
from versolog.schemas import codec
from versolog.schemas.codec import Record
from versolog.streams.decide import OUTCOME, Asked, Decision, asked_by_share, fold
from versolog.streams.overlay import Layer, Overlay
from versolog.streams.participant import Ballot, Job, Participant, Undecided
from versolog.streams.shares import SHARE, VOTES, Allotment, Vote
from versolog.streams.state import Level

CHECKPOINT = codec.schema("Checkpoint")

START_MS = 1_000
PHASE_STEPS = 100
REST_ROUNDS_MAX = 400
SHARE_BYTES = 100


class Entry(NamedTuple):
    """A record of a partition's transactions: a client's intent, a share, or (neither of them) a tick."""

    timestamp: int
    intent: Intent | None = None
    share: Record | None = None


class Decided(NamedTuple):
    """A decision, and the offset of what it decides."""

    offset: int
    decision: Decision


class Batch(NamedTuple):
    """What one Kafka transaction makes durable."""

    decided: list[Decided]
    checkpoint: Record


@dataclass(slots=True)
class Delivery:
    """A record on its way into a partition of `votes`."""

    sender: Owner
    votes: Record
    to: int
    sending: Sending
    slow: bool


@dataclass(slots=True)
class Sending:
    """What was voted in one turn, and the partitions it is still on its way to."""

    sequence_offsets: list[int]
    missing: set[int]


@dataclass
class Protocol:
    """The cores that are simulated: the real ones, or such as are broken in one place."""

    participant: type[Participant] = Participant
    allotment: type[Allotment] = Allotment
    saves_undelivered: bool = False
    """Whether a sequencer's checkpoint runs ahead of what it has delivered: wrong."""


class World:
    """Everything that there is in one run."""

    def __init__(self, seed: int, protocol: Protocol, say: Callable[[str], None] | None = None) -> None:
        self.random = random = Random(seed)
        self.protocol, self.say = protocol, say
        self.seen: Counter[str] = Counter()
        self.partitions = partitions = random.randint(2, 4)
        self.transactions: list[list[Entry]] = [[] for _ in range(partitions)]
        self.sequence: list[Intent] = []
        self.votes: list[list[Record]] = [[] for _ in range(partitions)]
        self.durable: list[list[Batch]] = [[] for _ in range(partitions)]
        self.saved: tuple[int, list[int] | None] = (0, None)
        """The sequencer's checkpoint: the next offset of `sequence`, and the links of the shares before it."""
        self.voted: dict[tuple[int, int], Record] = {}
        """By G and voter the vote that was made first."""
        self.bounds = [0] * partitions
        """By partition the time that its durable checkpoint closes."""
        self.wire: list[Delivery] = []
        self.owners: list[Owner | None] = [None] * partitions
        self.zombies: list[Owner] = []
        self.sequencer: Sequencer | None = None
        self.zombie_sequencers: list[Sequencer] = []
        self._clocks = [START_MS + random.choice((0, 0, 5, 40)) for _ in range(partitions)]
        self.clients = Clients(random, partitions, Known(self._head, self._row), random.choice((0.3, 0.6, 0.9)))
        self.to_send = random.randint(8, 25)
        self.slow = random.choice((0.0, 0.05, 0.3))
        """How many votes come much later than others."""
        self._lengthy = random.choice((0, 1, 3))
        self.room = random.choice((2, 6, 1_000, 1_000))
        """With so many undecided, an owner reads no further in its transactions."""

    def is_lengthy(self, asked: Asked) -> bool:
        """Some take long, and are looked at aside, while all else goes on."""
        return asked.offset % 8 < self._lengthy and asked.transaction is not None

    # The logs

    def append(self, partition: int, intent: Intent | None = None, share: Record | None = None) -> None:
        """Add to a partition's transactions. Brokers' clocks stand still, jump, and go back a little."""
        self._clocks[partition] += self.random.choice((0, 0, 0, 1, 2, 7, 30, -3))
        self.transactions[partition].append(Entry(self._clocks[partition], intent, share))

    def make_durable(self, owner: Owner, batch: Batch) -> None:
        """A Kafka transaction of the owner has committed."""
        partition = owner.partition
        bound = self.bounds[partition]
        for _, decision in batch.decided:
            for sealed in decision.commits:
                committed_at = sealed.whole["committed_at"]
                assert committed_at >= bound, f"partition {partition} commits at {committed_at}; {bound} was closed"
        clock = batch.checkpoint["clock"]
        closed = min([clock, *(one["clock"] for one in batch.checkpoint["undecided"])])
        assert closed >= bound, f"the closed time of partition {partition} falls from {bound} to {closed}"
        self.bounds[partition] = closed
        self.durable[partition].append(batch)

    def _head(self, group: str) -> int:
        return next((head.version for head in self._heads(group)), 0)

    def _heads(self, group: str) -> list[Any]:
        found = (owner.store.head(group) for owner in self.owners if owner is not None)
        return [head for head in found if head is not None]

    def _row(self, group: str, table: str, key: str) -> int:
        for owner in self.owners:
            if owner is not None and (branch := owner.store.branch(group, "main")) is not None:
                row = owner.store.row(group, Level(branch.id, branch.head), table, key)
                return 0 if row is None or row.text is None else row.version
        return 0

    # The schedule

    def run(self) -> None:
        """Steps in an order drawn from the seed, in phases in which some are seldom and others frequent, so that things
        pile up here and there; then to rest without faults."""
        random = self.random
        steps: list[Callable[[], None]] = [
            self.send, self.tick, self.sequence_step, self.deliver_share, self.save, self.crash_sequencer,
            self.start_owner, self.read, self.hear, self.begin, self.settle, self.deliver_vote, self.acknowledge,
            self.look, self.crash_owner, self.zombie_step,
        ]  # fmt: skip
        calm = random.choice((1.0, 3.0, 10.0))
        usual = (6, 1, 8, 10, 2, 1 / calm, 8, 14, 14, 10, 8, 18, 12, 6, 2 / calm, 4)
        moods = (0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0)
        for _ in range(random.randint(3, 9)):
            weights = [weight * random.choice(moods) for weight in usual]
            for step in random.choices(steps, weights, k=PHASE_STEPS):
                step()
        self.seen["decided before the rest"] += sum(len(batch.decided) for log in self.durable for batch in log)
        self.rest()
        self.seen["decided"] += sum(len(batch.decided) for log in self.durable for batch in log)

    def send(self) -> None:
        if self.to_send == 0:
            return
        self.to_send -= 1
        to, intent = self.clients.next()
        if to == SEQUENCE:
            if self.say:
                self.say(f"client appends to sequence[{len(self.sequence)}]: {_shown(intent)}")
            self.sequence.append(intent)
        else:
            self.append(to, intent)
            if self.say:
                offset, timestamp = len(self.transactions[to]) - 1, self.transactions[to][-1].timestamp
                self.say(f"client appends to transactions[{to}]@{offset} at {timestamp}: {_shown(intent)}")

    def tick(self) -> None:
        self.append(self.random.randrange(self.partitions))

    def sequence_step(self) -> None:
        if self.sequencer is None:
            self.sequencer = Sequencer(self)
        for _ in range(self.random.choice((1, 2, 5))):
            self.sequencer.read()

    def deliver_share(self) -> None:
        if self.sequencer is not None and (queued := self.sequencer.queued):
            partition = self.random.choice(queued)
            for _ in range(self.random.choice((1, 1, 4))):
                self.sequencer.deliver(partition)

    def save(self) -> None:
        if self.sequencer is not None:
            self.sequencer.save()

    def crash_sequencer(self) -> None:
        sequencer, self.sequencer = self.sequencer, None
        if sequencer is None:
            return
        goes_on = self.random.random() < 0.5
        self.seen["sequencer " + ("replaced" if goes_on else "crashed")] += 1
        if self.say:
            self.say("the sequencer " + ("is replaced, and goes on" if goes_on else "crashes"))
        if goes_on:
            self.zombie_sequencers.append(sequencer)
        else:
            sequencer.leave_behind()

    def start_owner(self) -> None:
        if (
            free := [number for number, owner in enumerate(self.owners) if owner is None]
        ) and self.random.random() < 0.7:
            partition = self.random.choice(free)
            self.owners[partition] = Owner(self, partition)

    def read(self) -> None:
        if owner := self._owner(lambda owner: owner.can_read):
            owner.read(self.random.choice((1, 1, 2, 5)))

    def hear(self) -> None:
        if owner := self._owner(lambda owner: owner.heard_next < len(self.votes[owner.partition])):
            owner.hear(self.random.choice((1, 2, 5)))

    def begin(self) -> None:
        if owner := self._owner(lambda owner: owner.in_flight is None):
            owner.begin()

    def settle(self) -> None:
        if owner := self._owner(lambda owner: owner.in_flight is not None):
            owner.settle()

    def deliver_vote(self) -> None:
        for _ in range(min(len(self.wire), self.random.choice((1, 1, 3)))):
            index = self.random.randrange(len(self.wire))
            if not self.wire[index].slow or self.random.random() < 0.1:
                self._deliver(index, again=self.random.random() < 0.1)

    def look(self) -> None:
        if owner := self._owner(lambda owner: bool(owner.jobs)):
            owner.look()

    def acknowledge(self) -> None:
        if owner := self._owner(lambda owner: bool(owner.acknowledged)):
            owner.acknowledge()

    def crash_owner(self) -> None:
        partition = self.random.randrange(self.partitions)
        owner, self.owners[partition] = self.owners[partition], None
        if owner is None:
            return
        if owner.in_flight is not None:  # whether it had become durable, only the log tells
            settled = self.random.random() < 0.5
            self.seen["batch in flight " + ("kept" if settled else "lost")] += 1
            if settled:
                self.make_durable(owner, owner.in_flight[0])
        goes_on = self.random.random() < 0.5
        self.seen["owner " + ("replaced" if goes_on else "crashed")] += 1
        if self.say:
            self.say(f"{owner} " + ("is replaced, and goes on" if goes_on else "crashes"))
        if goes_on:
            owner.in_flight = None
            self.zombies.append(owner)
        else:
            self._lose(owner)

    def zombie_step(self) -> None:
        random = self.random
        if self.zombie_sequencers and random.random() < 0.5:
            sequencer = random.choice(self.zombie_sequencers)
            for _ in range(random.randint(1, 4)):
                sequencer.deliver(random.randrange(self.partitions))
            if random.random() < 0.4:
                sequencer.read()
            if random.random() < 0.1:
                sequencer.save()
        elif self.zombies:
            zombie = random.choice(self.zombies)
            random.choice((lambda: zombie.read(2), lambda: zombie.hear(2), zombie.look, zombie.acknowledge))()

    def _lose(self, owner: Owner) -> None:
        """What it had sent comes to nothing, or still arrives in part."""
        arrive = self.random.choice((0.0, 0.0, 0.5, 1.0))
        self.wire = [one for one in self.wire if one.sender is not owner or self.random.random() < arrive]

    def _owner(self, can: Callable[[Owner], bool]) -> Owner | None:
        """One of those that can do something, if there are any."""
        able = [owner for owner in self.owners if owner is not None and can(owner)]
        return self.random.choice(able) if able else None

    def _deliver(self, index: int, again: bool = False) -> None:
        delivery = self.wire[index]
        self.votes[delivery.to].append(delivery.votes)
        sending = delivery.sending
        if sending.missing:
            sending.missing.discard(delivery.to)
            if not sending.missing:
                delivery.sender.acknowledged.append(sending.sequence_offsets)
        if self.say:
            where = f"votes[{delivery.to}]@{len(self.votes[delivery.to]) - 1}"
            self.say(f"in {where}: {_votes_shown(delivery.votes)}")
        if not again:
            self.wire[index] = self.wire[-1]
            self.wire.pop()

    # The end

    def rest(self) -> None:
        """Without faults, until nothing is left to be done."""
        if self.say:
            self.say("from here on without faults")
        for zombie in self.zombies:
            self._lose(zombie)
        self.zombies, self.zombie_sequencers = [], []
        for _ in range(REST_ROUNDS_MAX):
            if not self._round():
                break
        else:
            raise AssertionError("it does not come to rest")
        for owner in self.owners:
            assert owner is not None
            left = [undecided.asked.offset for undecided in owner.participant.waiting]
            assert not left, f"partition {owner.partition} leaves undecided what stands at {left}"

    def _round(self) -> bool:
        """Let everyone do what there is to do; whether there was anything."""
        begun = self._progress()
        while self.to_send:
            self.send()
        if self.sequencer is None:
            self.sequencer = Sequencer(self)
        while self.sequencer.read():
            pass
        for partition in range(self.partitions):
            while self.sequencer.deliver(partition):
                pass
        self.sequencer.save()
        while self.wire:
            self._deliver(self.random.randrange(len(self.wire)))
        for partition in range(self.partitions):
            owner = self.owners[partition]
            if owner is None:
                owner = self.owners[partition] = Owner(self, partition)
            owner.read(1 << 30)
            owner.hear(1 << 30)
            while owner.look() or owner.acknowledge():
                pass
            owner.settle()
            owner.begin()
            owner.settle()
        return self._progress() != begun

    def _progress(self) -> list[int]:
        """Numbers of which one grows with everything that happens."""
        logs: list[Sequence[Any]] = [*self.transactions, *self.votes, self.sequence]
        read = [(0, 0) if owner is None else (owner.read_next, owner.heard_next) for owner in self.owners]
        durable = [sum(len(batch.decided) for batch in batches) for batches in self.durable]
        return [*(len(log) for log in logs), *(number for pair in read for number in pair), *durable, len(self.wire)]


class Sequencer:
    """Gives out shares, from the saved checkpoint on. Each partition's are sent in order, and not at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next, last = world.saved
        self._allotment = world.protocol.allotment(world.partitions, last)
        self._queues: list[deque[Record]] = [deque() for _ in range(world.partitions)]
        self._links = {self._next: list(self._allotment.last)}
        """By offset of `sequence`, the links before it."""
        if world.say:
            world.say(f"a sequencer begins at sequence[{self._next}] with the links {self._allotment.last}")

    def read(self) -> bool:
        """Take in the next of `sequence`; whether there was one."""
        sequence = self._world.sequence
        if self._next == len(sequence):
            return False
        intent = sequence[self._next]
        for partition, share in self._allotment.shares(self._next, *_allotted(intent)).items():
            self._queues[partition].append(share)
        self._next += 1
        self._links[self._next] = list(self._allotment.last)
        return True

    def deliver(self, partition: int) -> bool:
        """The next share for the partition is in its log; whether there was one."""
        queue = self._queues[partition]
        if not queue:
            return False
        share = queue.popleft()
        world = self._world
        world.append(partition, share=codec.decode(SHARE, codec.encode(SHARE, share)))
        if world.say:
            offset, timestamp = len(world.transactions[partition]) - 1, world.transactions[partition][-1].timestamp
            number, previous = share["sequence_offset"], share["previous"]
            world.say(f"share of G {number} after {previous} is in transactions[{partition}]@{offset} at {timestamp}")
        return True

    @property
    def queued(self) -> list[int]:
        """The partitions that have shares on their way."""
        return [partition for partition, queue in enumerate(self._queues) if queue]

    def leave_behind(self) -> None:
        """It crashed: of what it had sent some is written all the same. Where Kafka's client does its best, nothing is
        written behind a gap; here it may be."""
        world = self._world
        for partition, queue in enumerate(self._queues):
            if world.random.random() < 0.3:
                queue = self._queues[partition] = deque(one for one in queue if world.random.random() < 0.6)
                while queue:
                    self.deliver(partition)
                    world.seen["share left behind"] += 1

    def save(self) -> None:
        """Save a checkpoint: everything before it was delivered."""
        least = min((queue[0]["sequence_offset"] for queue in self._queues if queue), default=self._next)
        if self._world.protocol.saves_undelivered:
            least = self._next
        self._world.saved = (least, list(self._links[least]))


class Owner:
    """A partition's owner: reads its log and its votes, decides, makes durable. One that was replaced does so too, but
    for the last."""

    def __init__(self, world: World, partition: int) -> None:
        """Begins from what is durable."""
        self._world, self.partition = world, partition
        self.name = f"owner {world.seen['owners']} of {partition}"
        world.seen["owners"] += 1
        batches = world.durable[partition]
        self.store = Overlay(NOTHING)
        for batch in batches:
            _store(self.store, batch)
        self.overlay = Overlay(self.store)
        checkpoint = codec.decode(CHECKPOINT, codec.encode(CHECKPOINT, batches[-1].checkpoint)) if batches else None
        self.participant = recording(world.protocol.participant)(
            self.overlay, partition, world.partitions, checkpoint, world.is_lengthy
        )
        self.read_next: int = self.participant.first_offset
        self.heard_next: int = self.participant.votes_offset
        self.acknowledged: list[list[int]] = []
        """By turn, the transactions voted on whose votes are in the log for all, and not told to the participant."""
        self.jobs: list[Job] = []
        """What is being looked at aside."""
        self._decided: list[Decided] = []
        self.in_flight: tuple[Batch, Layer] | None = None
        if world.say:
            world.say(f"{self} reads from @{self.read_next}, votes from @{self.heard_next}; checkpoint {checkpoint}")

    def __str__(self) -> str:
        return self.name

    @property
    def can_read(self) -> bool:
        world = self._world
        return self.read_next < len(world.transactions[self.partition]) and self._has_room

    @property
    def _has_room(self) -> bool:
        return self.participant.undecided_count < self._world.room

    def read(self, count: int) -> None:
        """Take in what the log says next."""
        log = self._world.transactions[self.partition]
        for offset in range(self.read_next, min(self.read_next + count, len(log)) if self._has_room else 0):
            entry = log[offset]
            clock = self.participant.place(offset, entry.timestamp)
            self.read_next = offset + 1
            asked = None if clock is None else asked_of(entry, offset, clock)
            if asked is not None:
                self.participant.take(asked)
            if not self._has_room:
                self._world.seen["owner full"] += 1
                break
        self._turn(f"has read up to @{self.read_next}")

    def hear(self, count: int) -> None:
        """Take in the votes that come next."""
        log = self._world.votes[self.partition]
        for offset in range(self.heard_next, min(self.heard_next + count, len(log))):
            self.heard_next = offset + 1
            votes = log[offset]
            for vote in votes["votes"]:
                self.participant.hear(Vote.of(votes["partition"], vote), offset)
        self._turn(f"has heard up to votes@{self.heard_next}")

    def acknowledge(self) -> bool:
        """Learn that what was voted in a turn is in the log for all; whether there was such a turn."""
        if not self.acknowledged:
            return False
        numbers = self.acknowledged.pop(self._world.random.randrange(len(self.acknowledged)))
        for number in numbers:
            self.participant.cast(number)
        self._turn(f"has cast its votes on G {numbers}")
        return True

    def look(self) -> bool:
        """Learn what came of something that was looked at aside; whether there was such a thing."""
        if not self.jobs:
            return False
        job = self.jobs.pop(self._world.random.randrange(len(self.jobs)))
        self._world.seen["looked at aside"] += 1
        self.participant.looked_at(job.offset, job.look())
        self._turn(f"has looked at @{job.offset} aside")
        return True

    def begin(self) -> None:
        """Begin to make durable what is decided."""
        if self.in_flight is None:
            batch = Batch(self._decided, self.participant.checkpoint())
            self._decided = []
            self.in_flight = (batch, self.overlay.push())

    def settle(self) -> None:
        """What began to be made durable is."""
        if self.in_flight is None:
            return
        batch, layer = self.in_flight
        self.in_flight = None
        self._world.make_durable(self, batch)
        _store(self.store, batch)
        self.overlay.drop(layer)
        if self._world.say and batch.decided:
            self._world.say(f"{self} has made durable {[decided.offset for decided in batch.decided]}")

    def _turn(self, what: str) -> None:
        participant, world = self.participant, self._world
        turn = participant.turn()
        offsets = participant.offsets
        decided = [Decided(*pair) for pair in zip(offsets, turn.decisions, strict=True)]
        self._decided += decided
        offsets.clear()
        self.jobs += turn.jobs
        if turn.ballots:
            self._send(turn.ballots)
        check_waiting(participant.waiting)
        if world.say:
            ends = "".join(f"; @{one.offset} {_end_shown(one.decision)}" for one in decided)
            ballots = "".join(f"; votes {_vote_shown(ballot.vote.record())}" for ballot in turn.ballots)
            waits = [one.asked.offset for one in participant.waiting]
            world.say(f"{self} {what}{ends}{ballots}" + (f"; undecided {waits}" if waits else ""))

    def _send(self, ballots: list[Ballot]) -> None:
        world = self._world
        by_partition: dict[int, list[Record]] = {}
        for vote, to in ballots:
            record = vote.record()
            first = world.voted.setdefault((vote.sequence_offset, vote.partition), record)
            assert first == record, f"{self} votes {record}, and before it was {first}"
            for hearer in to:
                by_partition.setdefault(hearer, []).append(record)
        sending = Sending([ballot.vote.sequence_offset for ballot in ballots], set(by_partition))
        slow = world.random.random() < world.slow
        for one, records in by_partition.items():
            votes = {"partition": self.partition, "votes": records}
            world.wire.append(Delivery(self, codec.decode(VOTES, codec.encode(VOTES, votes)), one, sending, slow))


class Recording(Participant):
    """Says which offset each decision is of."""

    offsets: list[int]


def recording(participant: type[Participant]) -> type[Recording]:
    """The participant, and what it decides in which order."""
    if participant not in _RECORDING:
        _RECORDING[participant] = _recording(participant)
    return _RECORDING[participant]


def _recording(participant: Any) -> type[Recording]:
    class Both(participant):  # type: ignore[misc]
        def __init__(self, *arguments: Any) -> None:
            self.offsets: list[int] = []
            super().__init__(*arguments)

        def take(self, asked: Asked) -> None:
            super().take(asked)
            if len(self._decisions) > len(self.offsets):  # at once, without waiting for a turn
                self.offsets.append(asked.offset)

        def _decided(self, undecided: Undecided) -> Decision | None:
            decision: Decision | None = super()._decided(undecided)
            if decision is not None:
                self.offsets.append(undecided.asked.offset)
            return decision

    return Both


_RECORDING: dict[type[Participant], type[Recording]] = {}


def _allotted(intent: Intent) -> tuple[bytes, Record | None, Any]:
    return intent.hash, intent.record, intent.fault


def asked_of(entry: Entry, offset: int, clock: int) -> Asked | None:
    if entry.intent is not None:
        return Asked(offset, clock, entry.intent.hash, entry.intent.record, entry.intent.fault, size=SHARE_BYTES)
    share = entry.share
    if share is None:
        return None
    return asked_by_share(offset, clock, share, SHARE_BYTES)


def _store(store: Overlay, batch: Batch) -> None:
    """Fold what is durable, as a store does: an id that has an outcome keeps it."""
    for _, decision in batch.decided:
        fold(store, decision)


def check_waiting(waiting: list[Undecided]) -> None:
    """Whoever waits for its turn waits for something that it touches and that one before it touches."""
    if not waiting:
        return
    touched: set[tuple[str, str]] = set()
    for undecided in waiting:
        record = undecided.asked.transaction
        own = (
            set() if record is None else {("id", record["id"]), *(("group", part["group"]) for part in record["parts"])}
        )
        if undecided.vote is None and not undecided.is_aside:
            assert own & touched, f"@{undecided.asked.offset} waits, and nothing that it touches is held"
        else:
            assert not own & touched, f"@{undecided.asked.offset} was voted on while what it touches was held"
        touched |= own


def _shown(intent: Intent) -> str:
    if intent.record is None:
        return "garbage"
    parts = []
    for part in intent.record["parts"]:
        head = "" if part["expect_head"] is None else f" at head {part['expect_head']}"
        rows = "".join(f" {row['table']}/{row['key']} at {row['version']}" for row in part["expect"])
        changes = "".join(f" {one['op']} {one['table']}/{one['key']} {one['row'] or ''}" for one in part["changes"])
        parts.append(f"{part['group']}:{head}{rows}{changes}")
    return f"{intent.record['id']!r} {{{'; '.join(parts)}}}"


def _votes_shown(votes: Record) -> str:
    return f"votes of {votes['partition']}: " + ", ".join(map(_vote_shown, votes["votes"]))


def _vote_shown(vote: Record) -> str:
    return f"{vote['verdict']} {vote['code']} at {vote['clock']} on G {vote['sequence_offset']}"


def _end_shown(decision: Decision) -> str:
    outcome = codec.decode(OUTCOME, decision.outcome)
    versions = ", ".join(f"{part['group']}~{part['version']}" for part in outcome["parts"] if part["version"])
    again = " (again)" if decision.repeated else ""
    return f"{outcome['outcome']} {outcome['code']}{versions} at {outcome['committed_at']}{again}"
