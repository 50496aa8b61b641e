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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import BrokenLog, Malformed, Unavailable, VersologError
from versolog.schemas.limits import RECORD_BYTES_MAX
from versolog.schemas.topics import Topics
from versolog.schemas.written import outcomes_body
from versolog.streams.chain import intent_hash
from versolog.streams.decide import COMMIT, Asked, Decision, decide
from versolog.streams.failpoints import reach
from versolog.streams.lanes import Record as LogRecord
from versolog.streams.overlay import Layer, Overlay
from versolog.streams.state import State

TRANSACTION = avro.schema("Transaction")
TICK = avro.schema("Tick")
OUTCOMES = avro.schema("Outcomes")
CHECKPOINT = avro.schema("Checkpoint")

SLICE_TRANSACTIONS = 50
"""Decided between two turns of the event loop: about two milliseconds of it."""
BATCH_TRANSACTIONS_MIN = 1_000
"""While more records are at hand, a batch waits until it has so many: each Kafka transaction costs the same few
milliseconds, whatever it holds."""
BATCH_TRANSACTIONS_MAX = 4_000
BATCH_BYTES_MAX = 8 * 1024 * 1024
KAFKA_TRANSACTION_TIMEOUT_MS = 10_000
COMMIT_TIMEOUT_S = 15.0
FENCE_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
ABORT_TIMEOUT_S = 3.0

Answer = TypeVar("Answer")

logger = structlog.get_logger(__name__)


class Batch:
    """What was decided since the last commit began."""

    __slots__ = ("bytes", "clock", "decisions", "layer", "next_offset", "transactions")

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.transactions = 0
        """Records taken in, ticks and garbage included."""
        self.bytes = 0
        self.next_offset = 0
        self.clock = 0
        self.layer: Layer | None = None

    @property
    def full(self) -> bool:
        return self.transactions >= BATCH_TRANSACTIONS_MAX or self.bytes >= BATCH_BYTES_MAX

    @property
    def checkpoint(self) -> Record:
        """Where the next owner goes on from once this batch is committed."""
        return {
            "next_offset": self.next_offset,
            "clock": self.clock,
            "undecided": [],
            "sequence_offset": None,
            "votes_offset": 0,
        }


@dataclass(slots=True)
class Written:
    """A batch that Kafka has committed, and where its records stand."""

    decisions: list[Decision]
    checkpoint: Record
    values: list[bytes] = field(default_factory=list)
    """The pieces of all commits as written, in order."""
    first_commit_offset: int = -1
    """-1 where the batch made no commit. The records of a batch stand without gaps: a partition has one writer."""
    last_outcome_offset: int = -1


class Replica(Protocol):
    """The owner's own copy of the partition: what is decided is folded into it."""

    @property
    def state(self) -> State: ...
    @property
    def checkpoint(self) -> Record | None:
        """The last one that was folded."""

    def outcomes(self, transaction_ids: Sequence[str]) -> Sequence[bytes | None]:
        """For each id the outcome it has in the store."""

    def catch_up(self) -> None:
        """Fold the log up to its last stable offset. Blocks. Raises BrokenLog."""

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
        threads: ThreadPoolExecutor,
        tally: Tally,
        log_start: Callable[[int], int],
    ) -> None:
        """`log_start` answers the first offset that `transactions[partition]` still holds; it may block."""
        self._partition, self._partitions = partition, partitions
        self._replica, self._kafka, self._topics, self._codec = replica, kafka, topics, codec
        self._threads, self._tally, self._log_start = threads, tally, log_start
        self._commit_schema_id = codec.id_of(COMMIT)
        self._outcomes_schema_id = codec.id_of(OUTCOMES)
        self._producer: Producer | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._stopping = False
        self._log = logger.bind(partition=partition)

    async def recover(self) -> int:
        """Fence every other owner, catch up with the log, and return the offset to decide from.

        In this order: whoever was fenced can add nothing any more to what is then read.
        """
        await self._abandon()
        self._producer = await self._in_thread(self._fenced_producer)
        reach("owner-fenced")
        await self._in_thread(self._replica.catch_up)
        reach("owner-caught-up")
        checkpoint = self._replica.checkpoint
        self._next_offset: int = checkpoint["next_offset"] if checkpoint else 0
        self._clock: int = checkpoint["clock"] if checkpoint else 0
        start = await self._in_thread(partial(self._log_start, self._partition))
        if start > self._next_offset:
            raise BrokenLog(
                f"transactions[{self._partition}] begins at offset {start}, and {self._next_offset} is the first that "
                "is not decided: records were deleted before they were decided",
                partition=self._partition, expected=self._next_offset, found=start,
            )  # fmt: skip
        self._overlay = Overlay(self._replica.state)
        self._open = Batch()
        self._has_work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._loop_task = asyncio.create_task(self._commit_batches(), name=f"committer-{self._partition}")
        return self._next_offset

    async def take(self, records: Sequence[LogRecord]) -> None:
        """Decide `records`. Returns once they are decided and handed on; waits while too much is on its way.

        Raises what ended the committer; nothing of what it held was lost then, and `recover` is the way on.
        """
        for start in range(0, len(records), SLICE_TRANSACTIONS):
            await self._until_room()
            some = records[start : start + SLICE_TRANSACTIONS]
            await self._learn_schemas(some)
            self._decide(record for record in some if record.offset >= self._next_offset)
            last = start + SLICE_TRANSACTIONS >= len(records)
            if self._open.transactions >= BATCH_TRANSACTIONS_MIN or (last and self._open.transactions):
                self._has_work.set()
            if self._open.full:
                self._has_work.set()
                self._has_room.clear()
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Commit what is decided and end; a commit that fails or hangs is left to the next owner's recovery."""
        if self._loop_task is not None and not self._loop_task.done():
            self._stopping = True
            self._has_work.set()
            await asyncio.wait({self._loop_task}, timeout=STOP_TIMEOUT_S)
        await self._abandon()

    # Deciding, on the event loop

    async def _until_room(self) -> None:
        assert self._loop_task is not None, "recover comes first"
        if not self._has_room.is_set() and not self._loop_task.done():
            room = asyncio.create_task(self._has_room.wait())
            await asyncio.wait({room, self._loop_task}, return_when=asyncio.FIRST_COMPLETED)
            room.cancel()
        if self._loop_task.done():
            self._loop_task.result()
            raise Unavailable("the committer was stopped", partition=self._partition)

    async def _learn_schemas(self, records: Sequence[LogRecord]) -> None:
        """Have every schema named by the records at hand, so that deciding never waits for the network."""
        named = {record.value[1:5] for record in records if record.value is not None and len(record.value) >= 5}
        for schema_id in {int.from_bytes(name, "big") for name in named}:
            if not self._codec.knows(schema_id):
                with contextlib.suppress(Malformed):  # told again, and refused, where the record is read
                    await self._in_thread(partial(self._codec.schema_of, schema_id))

    def _decide(self, records: Iterable[LogRecord]) -> None:
        asked = [self._asked(record) for record in records]
        if not asked:
            return
        open_, overlay = self._open, self._overlay
        ids = [one.transaction["id"] for one in asked if one is not None and one.transaction is not None]
        overlay.prefetch(ids, self._replica.outcomes(ids))
        for one in asked:
            open_.transactions += 1
            if one is None:
                continue
            decision = decide(overlay, one, self._partition, self._partitions)
            open_.decisions.append(decision)
            open_.bytes += len(decision.outcome)
            for sealed in decision.commits:
                for piece in sealed.pieces:
                    open_.bytes += len(piece.body)
            if one.fault is not None:
                self._log.warning("poison-record", offset=one.offset, reason=one.fault.detail)
        overlay.prefetch((), ())
        open_.next_offset, open_.clock = self._next_offset, self._clock

    def _asked(self, record: LogRecord) -> Asked | None:
        """The record as deciding sees it; None for a tick, which asks for nothing."""
        self._next_offset = record.offset + 1
        self._clock = max(self._clock, record.timestamp)
        try:
            schema_id, body = avro.unframe(record.value)
            if not self._codec.knows(schema_id):
                raise Malformed(f"no schema is registered as {schema_id}")
            schema, transaction = self._codec.read(record.value, TRANSACTION, TICK)
        except VersologError as fault:
            return Asked(record.offset, self._clock, intent_hash(record.value or b""), None, fault)
        if schema is TICK:
            return None
        return Asked(record.offset, self._clock, intent_hash(body), transaction)

    # Committing, one batch after the other

    async def _commit_batches(self) -> None:
        while self._open.transactions or not self._stopping:
            await self._has_work.wait()
            self._has_work.clear()
            batch, self._open = self._open, Batch()
            self._has_room.set()
            if not batch.transactions:
                continue
            batch.layer = self._overlay.push()
            reach("batch-decided")
            begun = time.perf_counter()
            await self._in_thread(partial(self._commit, batch))
            self._tally.committed(self._partition, batch.transactions, time.perf_counter() - begun)
            self._overlay.drop(batch.layer)
            self._replica.applied(batch.decisions)
            self._tally.decided(self._partition, batch.decisions)

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
        first = _Placed()
        for decision in batch.decisions:
            for sealed in decision.commits:
                key = sealed.whole["group"].encode()
                for piece in sealed.pieces:
                    value = avro.frame(schema_id, piece.body)
                    producer.produce(commits, value, key, partition, None if written.values else first)
                    written.values.append(value)
        last = _Placed()
        for value in self._outcome_records(batch, written.checkpoint):
            producer.produce(self._topics.outcomes, value, None, partition, on_delivery=last)
        reach("records-produced")
        producer.commit_transaction(COMMIT_TIMEOUT_S)
        written.first_commit_offset, written.last_outcome_offset = first.offset, last.offset

    def _outcome_records(self, batch: Batch, checkpoint: Record) -> list[bytes]:
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
        bodies.append(outcomes_body(runs[-1], avro.encode(CHECKPOINT, checkpoint)))
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
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
        producer = Producer(settings, logger=_KafkaLog(self._log))
        try:
            producer.init_transactions(FENCE_TIMEOUT_S)
        except KafkaException as error:
            raise Unavailable(
                f"the log did not make this worker the owner of partition {self._partition}: {error}",
                partition=self._partition,
            ) from error
        return producer

    async def _abandon(self) -> None:
        """Let go of the producer and of all that is decided and not committed."""
        task, self._loop_task = self._loop_task, None
        if task is not None and not task.done():
            # A commit on its way is waited for and not cancelled: its thread would go on beside the next owner's.
            self._open, self._stopping = Batch(), True
            self._has_work.set()
            await asyncio.wait({task})
        if task is not None and not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("committer-ended", reason=str(error))
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._in_thread(partial(_discard, producer))
        self._stopping = False

    async def _in_thread(self, blocking: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking)


class _Placed:
    """A delivery report that keeps the record's offset."""

    __slots__ = ("offset",)

    def __init__(self) -> None:
        self.offset = -1

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is None:  # with an error the commit fails, and says so
            offset = message.offset()
            assert offset is not None
            self.offset = offset


def _discard(producer: Producer) -> None:
    """Abort what is open, so that readers need not wait for the time-out, and let go."""
    with contextlib.suppress(KafkaException):
        producer.abort_transaction(ABORT_TIMEOUT_S)
    producer.purge(in_queue=True, in_flight=True, blocking=False)


class _KafkaLog:
    """librdkafka's own log lines, as ours: it takes a logger of the standard library's shape."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def log(self, level: int, line: str, *values: Any) -> None:
        self._log.log(level, "kafka-client", line=line % values if values else line)
