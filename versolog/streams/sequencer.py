"""The sequencer: gives each partition its shares of the transactions over several, in the order of `sequence`.

What it writes is a function of `sequence` alone, and each share names the one before it, so a second sequencer, or one
that begins again further back, does no harm: participants ignore what they have seen and what doesn't follow. Nobody
has to be fenced. It runs beside the owner of one partition.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import NOT_OF_THE_TRANSACTION, BrokenLog, TooLarge, VersologError
from versolog.schemas.limits import TRANSACTION_BYTES_MAX
from versolog.schemas.readings import read_transaction
from versolog.schemas.topics import Topics
from versolog.schemas.written import share_body
from versolog.streams.carrier import Carrier
from versolog.streams.chain import intent_hash
from versolog.streams.failpoints import reach
from versolog.streams.readers import reader
from versolog.streams.shares import FIRST, SHARE, Allotment
from versolog.streams.stalls import Stalls

TRANSACTION = avro.schema("Transaction")

SEQUENCER_BESIDE = 0
"""The partition beside whose owner the sequencer runs."""
POLL_S = 0.05
RECORDS_AT_ONCE = 500
CHECKPOINT_EVERY_S = 0.5
START_AGAIN_S = 1.0
STOP_TIMEOUT_S = 2.0
ASK_TIMEOUT_S = 10.0
FRAME_BYTES = 5
"""Before the Avro body: the magic byte and the schema's id."""
UNDER_WAY_MAX = 20_000
"""Shares handed on and not acknowledged yet."""
ROOM_POLL_S = 0.01
CHECKPOINT_BYTES_MAX = 4_000
"""Kafka's own limit for what stands beside a committed offset is 4,096 bytes."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Run:
    """Shares that were handed on together, and where the sequencer stood after them."""

    next_offset: int
    last: list[int]
    shares: int
    written: bool = False

    def were_written(self) -> None:
        """All of them are in the log."""
        self.written = True


class Sequencer:
    """A thread that goes on from the last checkpoint, from `start` to `stop`."""

    def __init__(
        self, kafka: dict[str, Any], topics: Topics, codec: Codec, partitions: int, carrier: Carrier
    ) -> None:
        self._kafka, self._topics, self._codec, self._partitions = kafka, topics, codec, partitions
        self._carrier = carrier
        self._schema_id = codec.id_of(SHARE)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, where it has not."""
        if self._thread is None:
            self._stopping = threading.Event()  # its own: the one before may take longer to end than was waited for
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="sequencer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End. Blocks for a moment. What it has under way may still be written, which does no harm."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join(STOP_TIMEOUT_S)

    def _run(self, stopping: threading.Event) -> None:
        stalls = Stalls()
        while not stopping.is_set():
            try:
                _Sequencing(
                    self._kafka, self._topics, self._codec, self._partitions, self._carrier, self._schema_id, stalls
                ).run(stopping)  # fmt: skip
            except Exception as error:  # whatever it was, it begins again from the checkpoint
                logger.warning("sequencer-starts-again", in_s=START_AGAIN_S, reason=str(error))
                stopping.wait(START_AGAIN_S)


class _Sequencing:
    """One run, from the last checkpoint to the first failure."""

    def __init__(
        self, kafka: dict[str, Any], topics: Topics, codec: Codec, partitions: int, carrier: Carrier, schema_id: int,
        stalls: Stalls,
    ) -> None:  # fmt: skip
        self._topics, self._codec, self._schema_id, self._partitions = topics, codec, schema_id, partitions
        self._kafka, self._carrier, self._stalls = kafka, carrier, stalls
        self._place = TopicPartition(topics.sequence, 0)
        self._runs: deque[_Run] = deque()
        self._done: _Run | None = None
        self._under_way = 0
        self._saved_at = time.monotonic()
        self._saved = self._next_offset = -1

    def run(self, stopping: threading.Event) -> None:
        with closing(self._reader()) as consumer:
            offset, last = self._checkpoint(consumer)
            self._allotment = Allotment(self._partitions, last)
            self._saved = self._next_offset = offset
            consumer.assign([TopicPartition(self._topics.sequence, 0, offset)])
            logger.info("sequencer", offset=offset)
            while not stopping.is_set():
                self._read(consumer, stopping)
                self._save(consumer)
                self._stalls.look(consumer, lambda: {(self._topics.sequence, 0): self._next_offset})

    def _read(self, consumer: Consumer, stopping: threading.Event) -> None:
        if self._under_way > UNDER_WAY_MAX:
            stopping.wait(ROOM_POLL_S)
            return
        message = consumer.poll(POLL_S)
        if message is None:
            return
        shares: list[tuple[int, bytes]] = []
        for one in [message, *consumer.consume(RECORDS_AT_ONCE, 0)]:
            if (error := one.error()) is not None:
                self._meet(error)
            else:
                shares += self._shares(one)
        if shares:  # every record has one at least
            run = _Run(self._next_offset, list(self._allotment.last), len(shares))
            self._runs.append(run)
            self._under_way += run.shares
            self._carrier.carry_from_thread(self._topics.transactions, shares, run.were_written)
            reach("shares-produced")

    def _shares(self, message: Message) -> list[tuple[int, bytes]]:
        """What the transaction, or whatever else it is, asks of each partition."""
        offset, value = message.offset(), message.value()
        assert offset is not None
        assert value is None or isinstance(value, bytes)
        transaction, fault = None, None
        try:
            writer, body = self._codec.opened(value, TRANSACTION)
            transaction = read_transaction(body, writer)
            self._check_size(value or b"")
        except NOT_OF_THE_TRANSACTION:
            raise
        except VersologError as error:
            logger.warning("poison-record", topic=self._topics.sequence, offset=offset, reason=error.detail)
            transaction, fault = None, error
        hash_ = intent_hash((value or b"")[FRAME_BYTES:])
        shares = self._allotment.shares(offset, hash_, transaction, fault)
        self._next_offset = offset + 1
        return [(number, avro.frame(self._schema_id, share_body(share))) for number, share in shares.items()]

    def _check_size(self, value: bytes) -> None:
        """Refuse what is larger than any builder makes it: a share of it might not fit a record."""
        if (size := len(value) - FRAME_BYTES) > TRANSACTION_BYTES_MAX:
            limit = TRANSACTION_BYTES_MAX
            raise TooLarge(f"the transaction has {size:,} bytes; the limit is {limit:,}", limit=limit)

    def _meet(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise BrokenLog(f"{self._topics.sequence} does not hold the offset to go on from: {error}")
        if error.fatal():
            raise KafkaException(error)

    # The checkpoint: an offset committed under a group of its own, and beside it each partition's last share

    def _save(self, consumer: Consumer) -> None:
        """Note how far all is written, now and then."""
        while self._runs and self._runs[0].written:
            self._done = self._runs.popleft()
            self._under_way -= self._done.shares
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
