"""The owner of one partition: decides its transactions in batches, and commits each batch exactly once.

A batch is one Kafka transaction {commits, outcomes with the checkpoint}, and after that has succeeded one write to the
store. While a batch commits, the next one is decided above it (`Overlay`). Whatever goes wrong on the way ends the
producer: `recover` fences it, folds what the log holds into the store and goes on from the checkpoint there, so the
question whether a lost answer meant yes or no is always put to the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import NOT_OF_THE_TRANSACTION, BrokenLog, Malformed, Unavailable, VersologError
from versolog.schemas.limits import RECORD_BYTES_MAX
from versolog.schemas.readings import read_share, read_transaction
from versolog.schemas.topics import RECORD_LIMIT_BYTES, Topics
from versolog.schemas.written import checkpoint_body, outcomes_body
from versolog.streams.ballots import Ballots
from versolog.streams.chain import intent_hash
from versolog.streams.decide import COMMIT, Asked, Decision, asked_by_share, is_lengthy
from versolog.streams.failpoints import reach
from versolog.streams.lanes import Record as LogRecord
from versolog.streams.overlay import Layer, Overlay
from versolog.streams.pace import Pace
from versolog.streams.participant import Job, Participant, Settled, settled_at
from versolog.streams.shares import SHARE, Vote
from versolog.streams.state import State

TRANSACTION = avro.schema("Transaction")
TICK = avro.schema("Tick")
OUTCOMES = avro.schema("Outcomes")

SLICE_TRANSACTIONS = 50
"""Decided between two turns of the event loop: about two milliseconds of it."""
BATCH_TRANSACTIONS_MIN = 1_000
"""While more records are at hand, a batch waits until it has so many: each Kafka transaction costs the same few
milliseconds, whatever it holds."""
BATCH_TRANSACTIONS_MAX = 4_000
BATCH_BYTES_MAX = 8 * 1024 * 1024
UNDECIDED_MAX = 2_000
"""Transactions that may wait, for a turn or for votes; with as many, the partition's transactions are held back. Its
votes are not, so what waits goes on."""
UNDECIDED_BYTES_MAX = 32 * 1024 * 1024
SCHEMAS_ASKED_AT_ONCE = 10
TICKS_REST_S = 0.2
KAFKA_TRANSACTION_TIMEOUT_MS = 10_000
COMMIT_TIMEOUT_S = 15.0
FENCE_TIMEOUT_S = 30.0
TURN_S = 0.5
"""Kafka's client is asked to go on in turns of this length, so that letting go of it needn't wait for the whole."""
STOP_TIMEOUT_S = 2.0
ABORT_TIMEOUT_S = 2.0

Answer = TypeVar("Answer")

logger = structlog.get_logger(__name__)


class Batch:
    """What was decided since the last commit began."""

    __slots__ = ("bytes", "checkpoint", "decisions", "layer", "settled", "transactions")

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.transactions = 0
        """Records taken in, ticks and garbage included."""
        self.settled = False
        """Whether any of it is done with, so that there is something to commit: not while all of it waits."""
        self.bytes = 0
        self.layer: Layer | None = None
        self.checkpoint: Record = {}
        """Where the next owner of the partition goes on from once this batch is committed."""

    @property
    def full(self) -> bool:
        return self.transactions >= BATCH_TRANSACTIONS_MAX or self.bytes >= BATCH_BYTES_MAX

    def add(self, decisions: Sequence[Decision]) -> None:
        self.decisions += decisions
        for decision in decisions:
            self.bytes += len(decision.outcome)
            for sealed in decision.commits:
                for piece in sealed.pieces:
                    self.bytes += len(piece.body)


@dataclass(slots=True)
class Written:
    """A batch that Kafka has committed, and where its records stand."""

    decisions: list[Decision]
    checkpoint: Record
    checkpoint_body: bytes = b""
    """As Avro."""
    values: list[bytes] = field(default_factory=list)
    """The pieces of all commits as written, in order."""
    first_commit_offset: int = -1
    """-1 where the batch made no commit. The records of a batch stand without gaps: a partition has one writer."""
    last_outcome_offset: int = -1


class Stand(NamedTuple):
    """The offsets that the next records of a partition will have in its two topics, while it has one writer."""

    commits: int
    outcomes: int


class Waiting(NamedTuple):
    """A transaction that is not decided yet."""

    transaction_id: str
    groups: frozenset[str]
    partition: int
    offset: int
    since_ms: int
    """When the log took it."""
    awaited: tuple[int, ...]
    """The partitions that have not voted on it; none where it waits for those before it."""


class Replica(Protocol):
    """The owner's own copy of the partition: what is decided is folded into it."""

    @property
    def state(self) -> State: ...
    @property
    def checkpoint(self) -> Record | None:
        """The last one that was folded."""

    @property
    def next_commit_offset(self) -> int:
        """The offset behind the last record of commits that was folded."""

    @property
    def awaited(self) -> int:
        """How many outcomes somebody waits for here."""

    def outcomes(self, transaction_ids: Sequence[str]) -> Sequence[bytes | None]:
        """For each id the outcome it has in the store."""

    def catch_up(self) -> Stand:
        """Fold the log up to its end. Blocks. Raises BrokenLog, and Unavailable while the end is not settled."""

    def apply(self, written: Written) -> None:
        """Fold a committed batch in one write. Blocks."""

    def applied(self, decisions: Sequence[Decision]) -> None:
        """Tell who waits, on the event loop, that the batch is in the store."""


class Tally(Protocol):
    """Who counts."""

    def decided(self, partition: int, decisions: Sequence[Decision]) -> None: ...
    def committed(self, partition: int, transactions: int, commit_s: float) -> None: ...


class Committer:
    """Decides and commits the transactions of one partition, from `recover` until `stop` or a failure."""

    def __init__(
        self,
        partition: int,
        *,
        partitions: int,
        replica: Replica,
        kafka: dict[str, Any],
        topics: Topics,
        codec: Codec,
        ballots: Ballots,
        pace: Pace,
        threads: ThreadPoolExecutor,
        asiders: ThreadPoolExecutor,
        tally: Tally,
        first_kept: Callable[[int], int],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Commits, and whatever else blocks, take `threads`; operations that take long have `asiders`, so that many of
        them hold up no commit. `first_kept` answers the first offset that `transactions[partition]` still holds; it may
        block. `failed` is called on the event loop when a commit failed: `take` would say so too, but it may be long
        until the next."""
        self._partition, self._partitions = partition, partitions
        self._replica, self._kafka, self._topics, self._codec = replica, kafka, topics, codec
        self._ballots, self._pace = ballots, pace
        self._participant: Participant | None = None
        self._threads, self._asiders = threads, asiders
        self._tally, self._first_kept, self._failed = tally, first_kept, failed
        self._commit_schema_id = codec.id_of(COMMIT)
        self._outcomes_schema_id = codec.id_of(OUTCOMES)
        self._producer: Producer | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = self._abandoned = False
        self._committing: Layer | None = None
        """The top layer of the batch that is on its way into Kafka and from there into the store. Those below it are of the
        same batch: each operation that took long has begun one."""
        self._commit_later: asyncio.TimerHandle | None = None
        self._aside: set[asyncio.Task[None]] = set()
        self._log = logger.bind(partition=partition)

    async def recover(self) -> int:
        """Fence every other owner, catch up with the log, and return the offset to decide from.

        In this order: whoever was fenced can add nothing any more to what is then read.
        """
        await self._abandon()
        self._stopping = self._abandoned = False
        self._producer = await self._in_thread(self._fenced_producer)
        reach("owner-fenced")
        self._stand = await self._in_thread(self._replica.catch_up)
        self._commits_offset = self._replica.next_commit_offset
        reach("owner-caught-up")
        overlay = self._overlay = Overlay(self._replica.state)
        checkpoint = self._replica.checkpoint
        participant = Participant(overlay, self._partition, self._partitions, checkpoint, is_lengthy)
        first = participant.first_offset
        start = await self._in_thread(partial(self._first_kept, self._partition))
        if start > first:
            raise BrokenLog(
                f"transactions[{self._partition}] begins at offset {start}, and {first} is the first that is not "
                "decided: records were deleted before they were decided",
                partition=self._partition, expected=first, found=start,
            )  # fmt: skip
        self._participant = participant
        self._decided = self._stored = 0
        self._ticks_rest_until_s = 0.0
        self._open = Batch()
        self._has_work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._loop_task = asyncio.create_task(self._commit_batches(), name=f"committer-{self._partition}")
        self._loop_task.add_done_callback(self._loop_ended)
        self._ballots.follow(self._partition, participant.votes_offset, partial(self._hear, participant), self._fail)
        return first

    async def take(self, records: Sequence[LogRecord]) -> None:
        """Decide `records`. Returns once they are decided and handed on; waits while too much is on its way.

        Raises what ended the committer; nothing of what it held was lost then, and `recover` is the way on.
        """
        for start in range(0, len(records), SLICE_TRANSACTIONS):
            some = records[start : start + SLICE_TRANSACTIONS]
            await self._learn_schemas(some)
            await self._until_room()  # the last to wait: it also says whether there is still a participant
            try:
                self._decide(some)
            except BaseException:
                self._break_off()
                raise
            if self._decided == self._stored:
                self._replica.applied(())  # what was taken in settles something, and no commit will say so
            last = start + SLICE_TRANSACTIONS >= len(records)
            if self._open.settled and (last or self._open.transactions >= BATCH_TRANSACTIONS_MIN):
                self._commit_soon()
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Commit what is decided and end; a commit that fails or hangs is left to the next owner's recovery."""
        if self._loop_task is not None and not self._loop_task.done():
            self._stopping = True
            self._has_work.set()
            await asyncio.wait({self._loop_task}, timeout=STOP_TIMEOUT_S)
        await self._abandon()

    def waiting(self) -> list[Waiting]:
        """What is undecided, in the order of the log."""
        participant = self._participant
        if participant is None:
            return []
        return [
            Waiting(
                one.asked.transaction["id"] if one.asked.transaction is not None else "",
                one.groups,
                self._partition,
                one.asked.offset,
                one.asked.clock,
                tuple(participant.missing(one)) if one.vote is not None else (),
            )
            for one in participant.waiting
        ]

    def settled(self, groups: Collection[str] | None) -> Settled | None:
        """How far everything is decided and can be read from the replica, of these groups alone where they are given; None
        while this is not the owner."""
        participant = self._participant
        if participant is None:
            return None
        if self._decided == self._stored:
            return participant.settled(groups)
        checkpoint = self._replica.checkpoint
        return settled_at(None) if checkpoint is None else participant.settled(groups, checkpoint)

    def committing(self, group: str | None) -> Layer | None:
        """The batch on its way into the store, where it changes `group`, or any group: who follows the log may have read
        it there already, and told of it."""
        layer = self._committing
        if layer is None or group is None:
            return layer
        return layer if self._overlay.changed(group, layer) else None

    def deciding(self, transaction_id: str) -> Layer | None:
        """As `committing`, where it holds the outcome of a transaction."""
        layer = self._committing
        return layer if layer is not None and self._overlay.decided(transaction_id, layer) else None

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if task is self._loop_task and not self._abandoned and not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    # Deciding, on the event loop

    @property
    def _is_full(self) -> bool:
        participant = self._participant
        assert participant is not None, "recover comes first"
        return (
            self._open.full
            or participant.undecided_count >= UNDECIDED_MAX
            or participant.undecided_bytes >= UNDECIDED_BYTES_MAX
        )

    async def _until_room(self) -> None:
        assert self._loop_task is not None, "recover comes first"
        while self._participant is not None and self._is_full and not self._loop_task.done():
            if self._open.settled:
                self._has_work.set()
            self._has_room.clear()
            room = asyncio.create_task(self._has_room.wait())
            await asyncio.wait({room, self._loop_task}, return_when=asyncio.FIRST_COMPLETED)
            room.cancel()
        if self._loop_task.done():
            self._loop_task.result()
        if self._participant is None or self._loop_task.done():
            raise Unavailable("the committer was stopped", partition=self._partition)

    async def _learn_schemas(self, records: Sequence[LogRecord]) -> None:
        """Have every schema named by the records at hand, so that deciding never waits for the network."""
        named = {record.value[:5] for record in records if record.value is not None and len(record.value) >= 5}
        ids = {int.from_bytes(name[1:], "big") for name in named if name[0] == 0}
        if unknown := [schema_id for schema_id in ids if not self._codec.knows(schema_id)]:
            few = asyncio.Semaphore(SCHEMAS_ASKED_AT_ONCE)
            await asyncio.gather(*(self._learn_schema(schema_id, few) for schema_id in unknown))

    async def _learn_schema(self, schema_id: int, few: asyncio.Semaphore) -> None:
        async with few:
            with contextlib.suppress(Malformed):  # told again, and refused, where the record is read
                await self._in_thread(partial(self._codec.schema_of, schema_id))

    def _decide(self, records: Iterable[LogRecord]) -> None:
        participant, open_, overlay = self._participant, self._open, self._overlay
        assert participant is not None, "recover comes first"
        asked: list[Asked] = []
        for record in records:
            clock = participant.place(record.offset, record.timestamp)
            if clock is not None:
                open_.transactions += 1
                if (one := self._asked(record, clock)) is not None:
                    asked.append(one)
                else:
                    open_.settled = True
        ids = [one.transaction["id"] for one in asked if one.transaction is not None]
        overlay.prefetch(ids, self._replica.outcomes(ids))
        waiting = participant.undecided_count
        for one in asked:
            participant.take(one)
        overlay.prefetch((), ())
        open_.settled |= participant.undecided_count - waiting < len(asked)
        self._take_turn()

    def _commit_soon(self) -> None:
        """Commit the open batch; one of ticks alone not at once, where another commit was not long ago: nobody who asks
        here waits for it."""
        if self._open.decisions or time.perf_counter() >= self._ticks_rest_until_s:
            self._has_work.set()
        elif self._commit_later is None:
            left_s = self._ticks_rest_until_s - time.perf_counter()
            self._commit_later = asyncio.get_running_loop().call_later(left_s, self._commit_ticks)

    def _commit_ticks(self) -> None:
        self._commit_later = None
        self._has_work.set()

    def _take_turn(self) -> None:
        """Put what was decided into the open batch, and send the votes."""
        participant = self._participant
        assert participant is not None, "recover comes first"
        decisions, ballots, jobs = participant.turn()
        self._open.add(decisions)
        self._decided += len(decisions)
        for decision in decisions:
            if decision.code == "undecidable":
                self._log.error("undecidable", id=decision.transaction_id, reason=str(decision.error))
        if ballots:
            offsets = [ballot.vote.sequence_offset for ballot in ballots]
            self._ballots.cast(self._partition, ballots, partial(self._were_cast, participant, offsets))
        for job in jobs:
            aside = asyncio.create_task(self._look(participant, job), name=f"aside-{self._partition}-{job.offset}")
            self._aside.add(aside)
            aside.add_done_callback(self._aside.discard)
        if decisions:
            self._has_room.set()

    async def _look(self, participant: Participant, job: Job) -> None:
        """Look at what takes long in a thread, while the transactions on other groups go on."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._asiders, job.look)
        except Exception as error:  # a store that failed: recovery is the way on
            if participant is self._participant:
                self._log.exception("not-looked-at", offset=job.offset)
                self._fail(error)
            return
        self._go_on(participant, lambda: participant.looked_at(job.offset, found))

    def _hear(self, participant: Participant, votes: Sequence[tuple[Vote, int]]) -> None:
        """Take in what other participants vote."""

        def hear() -> None:
            for vote, offset in votes:
                participant.hear(vote, offset)

        self._go_on(participant, hear)

    def _were_cast(self, participant: Participant, sequence_offsets: Sequence[int]) -> None:
        """Our votes are in the log."""

        def cast() -> None:
            for sequence_offset in sequence_offsets:
                participant.cast(sequence_offset)

        self._go_on(participant, cast)

    def _go_on(self, participant: Participant, step: Callable[[], None]) -> None:
        """Let `participant` take in what came beside the log, and commit what is decided by that."""
        if participant is not self._participant:
            return  # another one took its place meanwhile, and will hear and see the same
        try:
            step()
            self._take_turn()
        except Exception as error:  # a broken invariant, or a store that failed: recovery is the way on
            self._log.exception("not-taken-in")
            self._fail(error)
            return
        if self._open.decisions:
            self._open.settled = True
            self._has_work.set()

    def _fail(self, error: BaseException) -> None:
        """Break off for what came beside the log: `take`, which may wait for room, ends, and nobody else would tell."""
        self._break_off()
        self._failed(error)

    def _break_off(self) -> None:
        """Commit nothing more, for a step failed midway: the participant may have passed what no batch holds, and its next
        checkpoint would leave that out for ever. All that is not committed is decided again after `recover`."""
        self._participant = None
        self._open = Batch()
        self._has_work.set()
        self._has_room.set()

    def _asked(self, record: LogRecord, clock: int) -> Asked | None:
        """The record as deciding sees it; None for a tick, which asks for nothing."""
        body = record.value or b""
        try:
            schema_id, body = avro.unframe(record.value)
            if not self._codec.knows(schema_id):
                raise Malformed(f"no schema is registered as {schema_id}")
            schema = self._codec.schema_of(schema_id)
            if schema.name == TRANSACTION.name:
                return Asked(record.offset, clock, intent_hash(body), read_transaction(body, schema), size=len(body))
            if schema.name == SHARE.name:
                return asked_by_share(record.offset, clock, read_share(body, schema), len(body))
            self._codec.read(record.value, TRANSACTION, SHARE, TICK)
            return None
        except NOT_OF_THE_TRANSACTION:
            raise
        except VersologError as fault:
            self._log.warning("poison-record", offset=record.offset, reason=fault.detail)
            return Asked(record.offset, clock, intent_hash(body), None, fault)

    # Committing, one batch after the other

    async def _commit_batches(self) -> None:
        """Commit what is decided, again and again, until this is stopped. It may rest in between, unless a large batch is at
        hand."""
        with self._pace.kept(self._partition):
            await self._commit_each_batch()

    async def _commit_each_batch(self) -> None:
        participant = self._participant
        assert participant is not None, "recover comes first"
        ended = commit_s = 0.0
        while self._open.settled or not self._stopping:
            if not self._open.settled:
                self._pace.end(self._partition)
            await self._has_work.wait()
            self._has_work.clear()
            if not self._open.settled:
                continue
            self._pace.begin(self._partition)
            awaited, at_hand = self._replica.awaited, self._open.transactions
            rest_s = ended + self._pace.rest_s(self._partition, commit_s, at_hand, awaited=awaited) - time.perf_counter()
            if rest_s > 0 and at_hand < BATCH_TRANSACTIONS_MIN:
                await self._rest(rest_s, participant)
            if participant is not self._participant:
                return  # broken off or let go of while it rested: the batch is gone, and its checkpoint must not stay
            batch, self._open = self._open, Batch()
            batch.checkpoint = participant.checkpoint()
            batch.layer = self._committing = self._overlay.push()
            self._has_room.set()
            reach("batch-decided")
            begun = time.perf_counter()
            await self._in_thread(partial(self._commit, batch))
            ended = time.perf_counter()
            commit_s = ended - begun
            self._ticks_rest_until_s = ended + TICKS_REST_S
            self._tally.committed(self._partition, batch.transactions, commit_s)
            self._overlay.drop(batch.layer)
            self._stored += len(batch.decisions)
            self._committing = None
            self._replica.applied(batch.decisions)
            self._tally.decided(self._partition, batch.decisions)

    async def _rest(self, for_s: float, participant: Participant) -> None:
        """Rest, no longer than until the open batch is full, for deciding waits then, or until this ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                while not (self._open.full or self._stopping) and participant is self._participant:
                    self._has_work.clear()
                    await self._has_work.wait()

    def _commit(self, batch: Batch) -> None:
        """One Kafka transaction, and after it one write to the store."""
        written = Written(batch.decisions, batch.checkpoint)
        try:
            self._write_to_log(batch, written)
        except KafkaException as error:
            raise Unavailable(
                f"the Kafka transaction of partition {self._partition} did not come to a known end: {error}",
                partition=self._partition,
            ) from error
        reach("kafka-committed")
        self._replica.apply(written)
        reach("store-written")

    def _write_to_log(self, batch: Batch, written: Written) -> None:
        producer, partition = self._producer, self._partition
        assert producer is not None, "recover makes the producer"
        producer.begin_transaction()
        reach("transaction-begun")
        commits, schema_id = self._topics.commits, self._commit_schema_id
        keys: list[bytes] = []
        commits_offset = self._commits_offset
        for decision in batch.decisions:
            for sealed in decision.commits:
                written.values += (avro.frame(schema_id, piece.body) for piece in sealed.pieces)
                keys += [sealed.whole["group"].encode()] * len(sealed.pieces)
        commits_placed = _Placed(len(written.values))
        for value, key, told in zip(written.values, keys, commits_placed.reports, strict=True):
            producer.produce(commits, value, key, partition, told)
        reach("commits-produced")
        if written.values:
            commits_offset = self._stand.commits + len(written.values)
        written.checkpoint["commits_offset"] = commits_offset
        written.checkpoint_body = checkpoint_body(written.checkpoint)
        outcomes = self._outcome_records(batch, written.checkpoint_body)
        outcomes_placed = _Placed(len(outcomes))
        for value, told in zip(outcomes, outcomes_placed.reports, strict=True):
            producer.produce(self._topics.outcomes, value, None, partition, told)
        reach("records-produced")
        self._patiently(producer.commit_transaction, COMMIT_TIMEOUT_S)
        written.first_commit_offset, written.last_outcome_offset = commits_placed.first, outcomes_placed.last
        self._commits_offset = commits_offset
        self._stand = Stand(
            commits=self._after(commits, self._stand.commits, commits_placed),
            outcomes=self._after(self._topics.outcomes, self._stand.outcomes, outcomes_placed),
        )

    def _after(self, topic: str, expected: int, placed: _Placed) -> int:
        """The offset that the next record will have: the transaction's marker takes one. Raises BrokenLog where the
        batch does not stand where the last one ended: what stands between is to be read first."""
        if not placed.count:
            return expected
        if (placed.first, placed.last) != (expected, expected + placed.count - 1):
            raise BrokenLog(
                f"{topic}[{self._partition}] has another writer, or Kafka, starting again, has written a marker twice: "
                f"{placed.count} records from offset {expected} on were written to {placed.first} to {placed.last}",
                partition=self._partition, topic=topic, expected=expected, found=placed.first,
            )  # fmt: skip
        return placed.last + 2

    def _outcome_records(self, batch: Batch, checkpoint: bytes) -> list[bytes]:
        """The batch's outcomes in records below the size limit, the checkpoint in the last of them."""
        runs: list[list[bytes]] = [[]]
        size = 0
        for decision in batch.decisions:
            if size + len(decision.outcome) > RECORD_BYTES_MAX - 16 * 1024:
                runs.append([])
                size = 0
            runs[-1].append(decision.outcome)
            size += len(decision.outcome)
        bodies = [outcomes_body(run, None) for run in runs[:-1]]
        bodies.append(outcomes_body(runs[-1], checkpoint))
        return [avro.frame(self._outcomes_schema_id, body) for body in bodies]

    # The producer's life

    def _fenced_producer(self) -> Producer:
        """A transactional producer, alone from now on: whoever had this partition's transactional id is fenced."""
        settings = {
            **self._kafka,
            "transactional.id": f"{self._topics.prefix}committer-{self._partition}",
            "transaction.timeout.ms": KAFKA_TRANSACTION_TIMEOUT_MS,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 20,  # a commit flushes at once; until then, full batches
            "batch.size": 1_000_000,
            "message.max.bytes": RECORD_LIMIT_BYTES,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
        producer = Producer(settings, logger=_KafkaLog(self._log))
        try:
            self._patiently(producer.init_transactions, FENCE_TIMEOUT_S)
        except KafkaException as error:
            raise Unavailable(
                f"the log did not make this worker the owner of partition {self._partition}: {error}",
                partition=self._partition,
            ) from error
        return producer

    def _patiently(self, ask: Callable[[float], object], timeout_s: float) -> None:
        """Have Kafka's client try for `timeout_s`, or until it is to be let go of."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                ask(TURN_S)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._abandoned or time.monotonic() > deadline:
                    raise

    async def _abandon(self) -> None:
        """Let go of the producer and of all that is decided and not committed."""
        task = self._loop_task
        self._abandoned = True
        self._ballots.leave(self._partition)
        self._participant = None
        if task is not None and not task.done():
            # A commit on its way is waited for and not cancelled: its thread would go on beside the next owner's.
            self._open, self._stopping = Batch(), True
            self._has_work.set()
            await asyncio.wait({task})
        self._loop_task = None
        if task is not None and not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("committer-ended", reason=str(error))
        self._committing = None
        if self._producer is not None:
            producers, self._producer = [self._producer], None
            await self._in_thread(partial(_discard, producers))

    async def _in_thread(self, blocking: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking)


class _Placed:
    """Where the first and the last of `count` records in one topic were written."""

    __slots__ = ("count", "first", "last")

    def __init__(self, count: int) -> None:
        self.count, self.first, self.last = count, -1, -1

    @property
    def reports(self) -> Iterator[Callable[[KafkaError | None, Message], None] | None]:
        """For each record what its delivery is reported to."""
        return (self._report if number in (0, self.count - 1) else None for number in range(self.count))

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:  # with an error the commit fails, and says so
            offset = message.offset()
            assert offset is not None
            self.first = offset if self.first < 0 else min(offset, self.first)
            self.last = max(offset, self.last)


def _discard(producers: list[Producer]) -> None:
    """Abort what is open, so that readers need not wait for the time-out, and let go of the only one in `producers`,
    here and not where it would hold up the event loop."""
    producer = producers.pop()
    with contextlib.suppress(KafkaException):
        producer.abort_transaction(ABORT_TIMEOUT_S)
    producer.purge(in_queue=True, in_flight=True, blocking=False)


class _KafkaLog:
    """librdkafka's own log lines, as ours: it takes a logger of the standard library's shape."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def log(self, level: int, line: str, *values: Any) -> None:
        self._log.log(level, "kafka-client", line=line % values if values else line)
