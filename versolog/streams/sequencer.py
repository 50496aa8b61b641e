"""The sequencer: gives each partition its shares of the transactions over several, in the order of `sequence`.

What it writes is a function of `sequence` alone, and each share names the one before it, so a second sequencer, or one
that begins again further back, does no harm: participants ignore what they have seen and what doesn't follow. Nobody
has to be fenced. It runs beside the owner of partition 0.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import BrokenLog, TooLarge, Unavailable, VersologError
from versolog.schemas.limits import TRANSACTION_BYTES_MAX
from versolog.schemas.readings import read_transaction
from versolog.schemas.topics import Topics
from versolog.schemas.written import share_body
from versolog.streams.chain import intent_hash
from versolog.streams.failpoints import reach
from versolog.streams.readers import reader
from versolog.streams.shares import FIRST, SHARE, Allotment
from versolog.streams.stalls import Stalls

TRANSACTION = avro.schema("Transaction")

POLL_S = 0.05
RECORDS_AT_ONCE = 500
CHECKPOINT_EVERY_S = 0.5
START_AGAIN_S = 1.0
STOP_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 10.0
FRAME_BYTES = 5
"""Before the Avro body: the magic byte and the schema's id."""
UNDER_WAY_MAX = 20_000
"""Shares handed to Kafka's client and not acknowledged yet."""
CHECKPOINT_BYTES_MAX = 4_000
"""Kafka's own limit for what stands beside a committed offset is 4,096 bytes."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Run:
    """Shares that were handed to Kafka's client together, and where the sequencer stood after them."""

    next_offset: int
    last: list[int]
    left: int
    """Not acknowledged yet."""


class Sequencer:
    """A thread that goes on from the last checkpoint, from `start` to `stop`."""

    def __init__(self, kafka: dict[str, Any], topics: Topics, codec: Codec, partitions: int) -> None:
        self._kafka, self._topics, self._codec, self._partitions = kafka, topics, codec, partitions
        self._schema_id = codec.id_of(SHARE)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, where it has not."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End. Blocks for a moment. What it has under way may still be written, which does no harm."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        stopping, stalls = self._stopping, Stalls()
        while not stopping.is_set():
            try:
                _Sequencing(
                    self._kafka, self._topics, self._codec, self._partitions, self._schema_id, stalls
                ).run(stopping)  # fmt: skip
            except Exception as error:  # whatever it was, it begins again from the checkpoint
                logger.warning("sequencer-starts-again", in_s=START_AGAIN_S, reason=str(error))
                stopping.wait(START_AGAIN_S)


class _Sequencing:
    """One run, from the last checkpoint to the first failure."""

    def __init__(
        self, kafka: dict[str, Any], topics: Topics, codec: Codec, partitions: int, schema_id: int, stalls: Stalls
    ) -> None:
        self._topics, self._codec, self._schema_id, self._partitions = topics, codec, schema_id, partitions
        self._kafka, self._stalls = kafka, stalls
        self._place = TopicPartition(topics.sequence, 0)
        self._runs: deque[_Run] = deque()
        self._done: _Run | None = None
        self._under_way = 0
        self._failure: KafkaError | None = None
        self._saved_at = time.monotonic()
        self._saved = self._next_offset = -1

    def run(self, stopping: threading.Event) -> None:
        producer = self._writer()
        try:
            with closing(self._reader()) as consumer:
                offset, last = self._checkpoint(consumer)
                self._allotment = Allotment(self._partitions, last)
                self._saved = self._next_offset = offset
                consumer.assign([TopicPartition(self._topics.sequence, 0, offset)])
                logger.info("sequencer", offset=offset)
                while not stopping.is_set():
                    self._read(consumer, producer)
                    producer.poll(0)
                    self._refuse_failure()
                    self._save(consumer)
                    self._stalls.look(consumer, lambda: {(self._topics.sequence, 0): self._next_offset})
        finally:
            producer.purge(blocking=False)

    def _read(self, consumer: Consumer, producer: Producer) -> None:
        if self._under_way > UNDER_WAY_MAX:
            producer.poll(POLL_S)
            return
        message = consumer.poll(POLL_S if not self._under_way else 0.002)
        if message is None:
            return
        messages = [message, *consumer.consume(RECORDS_AT_ONCE, 0)]
        run = _Run(0, [], 0)
        told = self._told(run)
        for one in messages:
            if (error := one.error()) is not None:
                self._meet(error)
                continue
            self._share_out(one, producer, run, told)
        if run.next_offset:
            run.last = list(self._allotment.last)
            self._runs.append(run)
            reach("shares-produced")

    def _share_out(
        self, message: Message, producer: Producer, run: _Run, told: Callable[[KafkaError | None, Message], None]
    ) -> None:
        offset, value = message.offset(), message.value()
        assert offset is not None
        assert value is None or isinstance(value, bytes)
        transaction, fault = None, None
        try:
            writer, body = self._codec.opened(value, TRANSACTION)
            transaction = read_transaction(body, writer)
            self._check_size(value or b"")
        except Unavailable:
            raise
        except VersologError as error:
            logger.warning("poison-record", topic=self._topics.sequence, offset=offset, reason=error.detail)
            transaction, fault = None, error
        hash_ = intent_hash((value or b"")[FRAME_BYTES:])
        for partition, share in self._allotment.shares(offset, hash_, transaction, fault).items():
            body = avro.frame(self._schema_id, share_body(share))
            run.left += 1
            self._under_way += 1
            self._produce(producer, partition, body, told)
        run.next_offset = self._next_offset = offset + 1

    def _check_size(self, value: bytes) -> None:
        """Refuse what is larger than any builder makes it: a share of it might not fit a record."""
        if (size := len(value) - FRAME_BYTES) > TRANSACTION_BYTES_MAX:
            limit = TRANSACTION_BYTES_MAX
            raise TooLarge(f"the transaction has {size:,} bytes; the limit is {limit:,}", limit=limit)

    def _produce(
        self, producer: Producer, partition: int, body: bytes, told: Callable[[KafkaError | None, Message], None]
    ) -> None:
        while True:
            try:
                producer.produce(self._topics.transactions, body, None, partition, told)
                return
            except BufferError:
                producer.poll(POLL_S)

    def _told(self, run: _Run) -> Callable[[KafkaError | None, Message], None]:
        def told(error: KafkaError | None, _: Message) -> None:
            self._under_way -= 1
            run.left -= 1
            if error is not None and self._failure is None:
                self._failure = error

        return told

    def _refuse_failure(self) -> None:
        if self._failure is not None:
            raise Unavailable(f"a share was not written: {self._failure}")

    def _meet(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise BrokenLog(f"{self._topics.sequence} does not hold the offset to go on from: {error}")
        if error.fatal():
            raise KafkaException(error)

    # The checkpoint: an offset committed under a group of its own, and beside it each partition's last share

    def _save(self, consumer: Consumer) -> None:
        """Note how far all is written, now and then."""
        while self._runs and not self._runs[0].left:
            self._done = self._runs.popleft()
        if time.monotonic() - self._saved_at < CHECKPOINT_EVERY_S:
            return
        self._saved_at = time.monotonic()
        done = self._done
        if done is None or done.next_offset <= self._saved:
            return
        beside = _links_to_text(done.next_offset, done.last)
        if len(beside) > CHECKPOINT_BYTES_MAX:
            return  # thousands of partitions: it begins further back, which costs time and nothing else
        try:
            place = TopicPartition(self._topics.sequence, 0, done.next_offset, beside)
            consumer.commit(offsets=[place], asynchronous=False)
            self._saved = done.next_offset
        except KafkaException as error:
            logger.info("sequencer-checkpoint-not-saved", reason=str(error))

    def _checkpoint(self, consumer: Consumer) -> tuple[int, Sequence[int] | None]:
        found = consumer.committed([self._place], ASK_TIMEOUT_S)[0]
        if found.error is not None:
            raise KafkaException(found.error)
        if found.offset < 0:
            return 0, None
        return found.offset, _links_from_text(found.offset, found.metadata or "")

    def _reader(self) -> Consumer:
        """Under a group of its own, for its checkpoint."""
        group_id = f"{self._topics.prefix}sequencer"
        return reader(self._kafka, **{"client.id": "versolog-sequencer", "group.id": group_id})

    def _writer(self) -> Producer:
        return Producer(
            {
                **self._kafka,
                "client.id": "versolog-sequencer",
                "enable.idempotence": True,  # in order, and without a gap, for each partition
                "acks": "all",
                "message.timeout.ms": 0,
                "linger.ms": 0,
                # What comes while one request is on its way goes into the next: lone ones go at once, many together.
                "max.in.flight.requests.per.connection": 1,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 100_000,
            }
        )


def _links_to_text(offset: int, last: Sequence[int]) -> str:
    """How far before `offset` each partition's last share is, in base 36; nothing where it never had one."""
    return ",".join("" if one == FIRST else _base36(offset - one) for one in last)


def _links_from_text(offset: int, text: str) -> list[int]:
    return [FIRST if not one else offset - int(one, 36) for one in text.split(",")]


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"
