"""Carries records to any partitions, with few requests: what comes while one is on its way to a broker goes into the
next one, for all of its partitions together.

For records that are functions of the log, votes and shares: they may be written twice, and never have to be taken
back. In a partition they keep the order in which they were given. aiokafka's producer is used and not librdkafka's,
which makes a request for each partition: there a small request is what costs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

from versolog.streams.security import security

BATCH_BYTES_MAX = 1_000_000
REQUEST_TIMEOUT_S = 10.0
START_AGAIN_S = 0.5
CLOSE_TIMEOUT_S = 1.0

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Parcel:
    """Records that were given together."""

    left: int
    """Not acknowledged yet."""
    written: Callable[[], None]

    def tell(self) -> None:
        try:
            self.written()
        except Exception:  # the records of others go on
            logger.exception("not-told-that-it-is-written")


@dataclass(slots=True)
class _Way:
    """What waits to be written into one partition, in order."""

    waiting: list[tuple[bytes, _Parcel]] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)


class Carrier:
    """A producer of records without keys. To be used on one event loop, where `start` is called."""

    def __init__(self, kafka: Mapping[str, Any], client_id: str) -> None:
        """`kafka` are librdkafka's settings, of which the brokers and what has to do with security are used."""
        self._settings = {
            "bootstrap_servers": kafka["bootstrap.servers"].split(","), "client_id": client_id, **security(kafka),
        }  # fmt: skip
        self._ways: dict[tuple[str, int], _Way] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._producer: AIOKafkaProducer | None = None

    def start(self) -> None:
        """Begin; on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """End, in bounded time. What waits is not written."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        self._ways.clear()
        if (producer := self._producer) is not None:
            self._producer = None
            await _ended(producer)

    def carry(self, topic: str, records: Sequence[tuple[int, bytes]], written: Callable[[], None]) -> None:
        """Write each of `records`, a partition and a value. `written` is called on the loop once all of them are in the
        log, which is tried until `close`."""
        parcel = _Parcel(len(records), written)
        for partition, value in records:
            way = self._ways.get((topic, partition)) or self._way(topic, partition)
            way.waiting.append((value, parcel))
            way.more.set()

    def carry_from_thread(self, topic: str, records: Sequence[tuple[int, bytes]], written: Callable[[], None]) -> None:
        """As `carry`, from any other thread."""
        self._loop.call_soon_threadsafe(self.carry, topic, records, written)

    def _way(self, topic: str, partition: int) -> _Way:
        way = self._ways[topic, partition] = _Way()
        self._tasks.append(
            asyncio.create_task(self._serve(topic, partition, way), name=f"carrier-{topic}-{partition}")
        )
        return way

    async def _serve(self, topic: str, partition: int, way: _Way) -> None:
        """Write what waits, one batch after the other. As an answer from a broker comes for all partitions of a request
        at once, the next batches of all of them are there when the next request is made up."""
        while True:
            await way.more.wait()
            way.more.clear()
            while way.waiting:
                waiting, way.waiting = way.waiting, []
                await self._write(topic, partition, [value for value, _ in waiting])
                for _, parcel in waiting:
                    parcel.left -= 1
                    if not parcel.left:
                        parcel.tell()

    async def _write(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        begun = 0
        while begun < len(values):
            producer = self._producer or await self._connected()
            batch, end = producer.create_batch(), begun
            while end < len(values) and batch.append(key=None, value=values[end], timestamp=None) is not None:
                end += 1
            try:
                await (await producer.send_batch(batch, topic, partition=partition))
                begun = end
            except Exception as error:
                # A producer tries again by itself what can be tried again; whatever it was, this is the end of this one.
                logger.warning("records-are-sent-again", topic=topic, partition=partition, reason=repr(error))
                if self._producer is producer:
                    self._producer = None
                    await _ended(producer)
                await asyncio.sleep(START_AGAIN_S)

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            while self._producer is None:
                producer = AIOKafkaProducer(
                    **self._settings,
                    enable_idempotence=True,  # in order, and without a gap, for each partition
                    compression_type="lz4",
                    max_batch_size=BATCH_BYTES_MAX,
                    request_timeout_ms=int(REQUEST_TIMEOUT_S * 1_000),
                )
                try:
                    await producer.start()
                    self._producer = producer
                except (KafkaError, OSError) as error:
                    logger.warning("records-wait-for-kafka", reason=repr(error))
                finally:
                    if self._producer is None:
                        await _ended(producer)
                if self._producer is None:
                    await asyncio.sleep(START_AGAIN_S)
            return self._producer


async def _ended(producer: AIOKafkaProducer) -> None:
    """Let go of it, in bounded time: it would wait for ever for what no broker takes. Who waits for it is told."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.stop()
            return
    if (sender := producer._sender.sender_task) is not None:
        sender.cancel()
    producer._message_accumulator.fail_all(ProducerClosed())
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await producer.client.close()
