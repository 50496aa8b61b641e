"""The producer for application services: transactions straight into Kafka, and their outcomes back from it."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from versolog.schemas import codec, times
from versolog.schemas.codec import Codec, frame
from versolog.schemas.errors import Conflict, Invalid, Misconfigured, TooMany, Unavailable, VersologError
from versolog.schemas.outcome import Outcome
from versolog.schemas.registry import registry_of
from versolog.schemas.topics import PREFIX, Topics, describe, partition_of
from versolog.streams.chain import intent_hash
from versolog.streams.link import Link, TransactionRecord
from versolog.streams.outcome_reader import OutcomeReader
from versolog.streams.sent import OUTCOME_TIMEOUT_S, AsyncSent, Despatch, Sent
from versolog.streams.transaction import Transaction

BOOTSTRAP = "127.0.0.1:9092"
FLUSH_TIMEOUT_S = 30.0
SEND_TIMEOUT_S = 30.0
POLL_S = 0.1
SERVED_EVERY = 64
"""A sender serves the delivery reports so far with every 64th transaction."""
BUSY_S = 0.005
ROOM_POLL_S = 0.01
FLOORS_EVERY_S = 1.0

_TRANSACTION = codec.schema("Transaction")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

logger = logging.getLogger(__name__)


class Producer:
    """Sends transactions to Kafka and waits for their outcomes. Thread safe, but for `transaction`.

    What `send` was given is in the log, or its Sent says why not, even if the broker restarts in between. Sending the
    same transaction again with the same id is always safe: it is decided once, and every Sent gets that outcome.
    Leaving the `with` block flushes.
    """

    def __init__(
        self,
        bootstrap: str = BOOTSTRAP,
        *,
        prefix: str = PREFIX,
        settings: Mapping[str, Any] | None = None,
        registry_url: str | None = None,
        source: str = "versolog",
        transactional_id: str | None = None,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        """Connect. Raises Unavailable where no broker answers, Misconfigured where topics are missing.

        `settings` are librdkafka's (security, `linger.ms` …). `source` goes into the CloudEvents header `ce_source`.
        `send_timeout_s` bounds how long `send` blocks on a full queue. With a `transactional_id` all is sent inside
        `transaction()`.
        """
        kafka = {**(settings or {}), "bootstrap.servers": bootstrap}
        self._send_timeout_s = send_timeout_s
        self._base_headers: list[tuple[str, str | bytes | None]] = [
            ("ce_specversion", b"1.0"),
            ("ce_source", source.encode()),
        ]
        self.topics = Topics(prefix)
        self.partitions = describe(kafka, self.topics).partitions
        self._ids = registry_of(kafka, self.topics, registry_url)
        records = Codec(self._ids)
        self._frame = frame(records.id_of(_TRANSACTION), b"")
        self._reader = OutcomeReader(kafka, self.topics.outcomes, self.partitions, records)
        self._link = Link(kafka, transactional_id)
        self._despatch = Despatch(self._link, self._reader)
        self._open: list[Sent] | None = None
        self._transacting = threading.Lock()
        self._sends = 0
        self._writing, self._closing = threading.RLock(), False
        self._closed = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="versolog-producer", daemon=True)
        self._poller.start()

    def send(self, tx: Transaction, *, traceparent: str | None = None) -> Sent:
        """Hand the transaction to Kafka's client and return at once; the Sent tells what becomes of it.

        `traceparent` (W3C) goes into a header. Raises Invalid and TooLarge for a transaction that can't be, and TooMany
        where the queue stayed full for `send_timeout_s`.
        """
        record, sent = self._prepared(tx, traceparent)
        deadline = None
        while not self._write(record, sent):
            deadline = deadline or time.monotonic() + self._send_timeout_s
            self._check_room(deadline)
            self._link.serve(ROOM_POLL_S)
        return sent

    def send_many(self, txs: Iterable[Transaction]) -> list[Sent]:
        """Send one after the other. The order is kept within a group."""
        return [self.send(tx) for tx in txs]

    def outcomes(self, sents: Iterable[Sent], timeout_s: float = OUTCOME_TIMEOUT_S) -> list[Outcome]:
        """The outcomes of all of `sents`, in their order, within one time limit. Raises as `Sent.outcome`."""
        deadline = time.monotonic() + timeout_s
        return [sent.outcome_by(deadline, timeout_s) for sent in sents]

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Return once Kafka has accepted all that was sent.

        Raises Unavailable where that takes longer, and the error of the first transaction that failed since the last
        flush without anybody having asked for its result.
        """
        left = self._link.flush(timeout_s)
        self._despatch.raise_failed()
        if left:
            raise Unavailable(
                f"{left} transactions were not accepted by Kafka in {timeout_s:g} s{self._despatch.trouble()}; they "
                "are still being tried. Flush again, or send the same ids again later: both are safe",
                left=left,
            )

    def close(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Flush, and leave the cluster. Raises as `flush`; it is closed all the same."""
        if self._closed.is_set():
            return
        with self._writing:
            self._closing = True
        try:
            self.flush(timeout_s)
        finally:
            self._link.close()
            self._closed.set()
            self._poller.join()
            self._reader.close()
            self._ids.close()

    def record(self, tx: Transaction, *, traceparent: str | None = None) -> TransactionRecord:
        """The transaction as a Kafka record, for a service that writes it inside a Kafka transaction of its own:
        `kafka.produce(**producer.record(tx)._asdict())`. Raises as `send`."""
        groups = tx.groups
        return self._record(tx, groups[0], self._deciding(groups), traceparent)

    def _record(
        self, tx: Transaction, home: str, partitions: Sequence[int], traceparent: str | None
    ) -> TransactionRecord:
        headers = [*self._base_headers, ("ce_id", tx.id.encode())]
        headers.append(("ce_type", tx.type.encode() if tx.type else b"versolog.Transaction"))
        if tx.occurred_at is not None:
            headers.append(("ce_time", times.micros_to_text(tx.occurred_at).encode()))
        if traceparent is not None:
            if not _TRACEPARENT.fullmatch(traceparent):
                raise Invalid(f"{traceparent[:64]!r} is not a W3C traceparent", field="traceparent")
            headers.append(("traceparent", traceparent.encode()))
        value = self._frame + tx.intent()
        if len(partitions) > 1:
            return TransactionRecord(self.topics.sequence, value, home.encode(), 0, headers)
        return TransactionRecord(self.topics.transactions, value, home.encode(), partitions[0], headers)

    @contextmanager
    def transaction(self, timeout_s: float = FLUSH_TIMEOUT_S) -> Iterator[Self]:
        """A Kafka transaction: what is sent inside is in the log whole or not at all; an exception aborts it.

        Each of the transactions sent is still decided by itself. They count as accepted once this is left, and can't
        be decided before. One at a time, from one thread.
        """
        if self._link.transactional_id is None:
            raise Misconfigured("the producer has no transactional_id; give it one to use Kafka transactions")
        if not self._transacting.acquire(blocking=False):
            raise Misconfigured("a Kafka transaction of this producer is open already: one at a time, from one thread")
        try:
            self._link.begin()
            held = self._open = []
            try:
                yield self
                self._link.commit(timeout_s)
            except BaseException as cause:
                self._abort(held, cause, timeout_s)
                raise
            finally:
                self._open = None
        finally:
            self._transacting.release()
        for sent in held:
            sent.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except VersologError as unsent:
            if error is None:
                raise
            logger.error("while leaving with %s: %s", type(error).__name__, unsent)

    def _deciding(self, groups: Sequence[str]) -> list[int]:
        """The partitions that decide a transaction of these groups, that of its home group first."""
        return list(dict.fromkeys(partition_of(group, self.partitions) for group in groups))

    def _prepared(self, tx: Transaction, traceparent: str | None) -> tuple[TransactionRecord, Sent]:
        if self._link.transactional_id is not None and self._open is None:
            raise Misconfigured("a producer with a transactional_id sends inside `with producer.transaction():`")
        if self._closing:
            raise Unavailable("the producer is closed")
        groups = tx.groups
        partitions = self._deciding(groups)
        record = self._record(tx, groups[0], partitions, traceparent)
        decision = self._reader.expect(intent_hash(record.value[len(self._frame) :]), partitions[0])
        floors = [(partition, self._reader.floors[partition]) for partition in partitions]
        return record, Sent(tx.id, decision, floors, self._despatch, held=self._open is not None)

    def _write(self, record: TransactionRecord, sent: Sent) -> bool:
        """Hand the record to Kafka's client. False where its queue is full."""
        if self._sends % SERVED_EVERY == 0:
            self._link.serve(0)
        with self._writing:
            if self._closing:  # meanwhile, by another thread: after its flush nobody would hear of this one
                raise Unavailable("the producer is closed")
            if not self._link.write(record, sent.delivered):
                return False
        self._sends += 1
        if self._open is not None:
            self._open.append(sent)
        return True

    def _check_room(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise TooMany(
                f"Kafka's client has had no room for {self._send_timeout_s:g} s{self._despatch.trouble()}; "
                f"{self._link.waiting:,} transactions wait. Slow down, and send this one again",
                waiting=self._link.waiting,
            )

    def _poll(self) -> None:
        """Serve delivery reports while no busy sender does, and keep the floors fresh while something is sent.

        Two threads that serve them would hand the interpreter lock to and fro with every report.
        """
        served, asked_at, asked = 0, time.monotonic(), 0
        while not self._closed.is_set():
            busy, served = self._sends - served >= SERVED_EVERY, self._sends
            if busy:
                self._closed.wait(BUSY_S)
            else:
                self._link.serve(POLL_S)
            if self._sends != asked and time.monotonic() - asked_at > FLOORS_EVERY_S:
                asked_at, asked = time.monotonic(), self._sends
                self._reader.refresh_floors_soon()

    def _abort(self, held: Sequence[Sent], cause: BaseException, timeout_s: float) -> None:
        """Leave nothing of the Kafka transaction in the log, and tell those who sent in it."""
        failure: VersologError = Conflict(f"the Kafka transaction was aborted: {cause!r}", code="aborted")
        try:
            self._link.abort(timeout_s)
        except VersologError as unknown:
            failure = unknown
        for sent in held:
            sent.fail(failure)
            self._despatch.told(sent)  # whoever sent it gets `cause`


class AsyncProducer:
    """The Producer for asyncio: the same promises, and nothing blocks the event loop."""

    def __init__(
        self,
        bootstrap: str = BOOTSTRAP,
        *,
        prefix: str = PREFIX,
        settings: Mapping[str, Any] | None = None,
        registry_url: str | None = None,
        source: str = "versolog",
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        """As `Producer`; `start`, or `async with`, connects."""
        self._make = partial(
            Producer,
            bootstrap,
            prefix=prefix,
            settings=settings,
            registry_url=registry_url,
            source=source,
            send_timeout_s=send_timeout_s,
        )
        self._started: Producer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> Self:
        """Connect. Raises as `Producer`."""
        async with self._starting:
            if self._started is None:
                making = asyncio.create_task(asyncio.to_thread(self._make))
                try:
                    self._started = await asyncio.shield(making)
                except asyncio.CancelledError:
                    making.add_done_callback(_let_go)  # its thread goes on, and nobody would close what it makes
                    raise
        return self

    async def send(self, tx: Transaction, *, traceparent: str | None = None) -> AsyncSent:
        """As `Producer.send`; awaits room where the queue is full."""
        producer = self._producer
        record, sent = producer._prepared(tx, traceparent)
        deadline = None
        while not producer._write(record, sent):
            deadline = deadline or time.monotonic() + producer._send_timeout_s
            producer._check_room(deadline)
            await asyncio.sleep(ROOM_POLL_S)
        if producer._sends % SERVED_EVERY == 0:
            await asyncio.sleep(0)  # or a coroutine that sends many would keep all others waiting
        return AsyncSent(sent)

    async def send_many(self, txs: Iterable[Transaction] | AsyncIterable[Transaction]) -> list[AsyncSent]:
        """As `Producer.send_many`."""
        if isinstance(txs, AsyncIterable):
            return [await self.send(tx) async for tx in txs]
        return [await self.send(tx) for tx in txs]

    async def outcomes(self, sents: Iterable[AsyncSent], timeout_s: float = OUTCOME_TIMEOUT_S) -> list[Outcome]:
        """As `Producer.outcomes`."""
        deadline = time.monotonic() + timeout_s
        return [await sent.outcome_by(deadline, timeout_s) for sent in sents]

    async def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """As `Producer.flush`."""
        await asyncio.to_thread(self._producer.flush, timeout_s)

    async def close(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """As `Producer.close`."""
        if self._started is not None:
            await asyncio.to_thread(self._started.close, timeout_s)

    def record(self, tx: Transaction, *, traceparent: str | None = None) -> TransactionRecord:
        """As `Producer.record`."""
        return self._producer.record(tx, traceparent=traceparent)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            await asyncio.to_thread(self._started.__exit__, kind, error, trace)

    @property
    def _producer(self) -> Producer:
        if self._started is None:
            raise Misconfigured(
                "the producer is not connected yet; use `async with AsyncProducer(…)`, or await start()"
            )
        return self._started


def _let_go(made: asyncio.Task[Producer]) -> None:
    """Close what was made for nobody, in a thread: that may take a while."""
    if not made.cancelled() and made.exception() is None:
        threading.Thread(target=made.result().close, name="versolog-let-go", daemon=True).start()
