"""How far the log goes at this moment, asked of the broker by who must know that nothing was there before."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from confluent_kafka import OFFSET_END, KafkaException, TopicPartition

from versolog.schemas.errors import Unavailable
from versolog.schemas.topics import Topics
from versolog.streams.readers import reader

REQUEST_TIMEOUT_S = 5.0


class LogEnds(Protocol):
    """Where the partitions of `transactions` end."""

    async def now(self, partition: int) -> int:
        """The first offset behind all that was in the log before the call. Raises Unavailable."""

    def close(self) -> None:
        """Ask no more."""


class KafkaEnds:
    """Asks for several partitions in one request; who comes while one is on its way shares the next."""

    def __init__(self, kafka: dict[str, Any], topics: Topics) -> None:
        self._topic = topics.transactions
        self._consumer = reader(kafka, **{"client.id": "versolog-ends"})
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="versolog-ends")
        self._wanted: set[int] = set()
        self._next: asyncio.Task[dict[int, int]] | None = None
        self._last: asyncio.Task[dict[int, int]] | None = None

    async def now(self, partition: int) -> int:
        """As `LogEnds.now`."""
        self._wanted.add(partition)
        if self._next is None:
            self._next = asyncio.create_task(self._take_turn(self._last))
        found = await asyncio.shield(self._next)
        if partition not in found:
            raise Unavailable(f"Kafka did not say how far partition {partition} goes; ask again", partition=partition)
        return found[partition]

    def close(self) -> None:
        """As `LogEnds.close`."""
        self._thread.shutdown()
        self._consumer.close()

    async def _take_turn(self, before: asyncio.Task[dict[int, int]] | None) -> dict[int, int]:
        if before is not None:
            await asyncio.wait({before})
        wanted, self._wanted = self._wanted, set()
        self._last, self._next = self._next, None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, wanted)

    def _ask(self, numbers: set[int]) -> dict[int, int]:
        """What is known, without those that Kafka does not answer for."""
        places = [TopicPartition(self._topic, number, OFFSET_END) for number in sorted(numbers)]
        try:
            found = self._consumer.offsets_for_times(places, timeout=REQUEST_TIMEOUT_S)
        except KafkaException:
            return {}
        return {place.partition: place.offset for place in found if place.error is None and place.offset >= 0}
