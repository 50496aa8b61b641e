"""The owner of one partition in this process: the real committer and store on a real log, fed by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.cluster import Cluster
from versolog.projections.live import LivePartition
from versolog.projections.rocks import Memory
from versolog.projections.tail import Ends
from versolog.schemas import codec as avro
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import describe
from versolog.streams.ballots import Ballots
from versolog.streams.carrier import Carrier
from versolog.streams.committer import Committer
from versolog.streams.decide import OUTCOME, Decision
from versolog.streams.pace import Pace

WAIT_S = 30.0


class Read(NamedTuple):
    """A record of the transactions topic, as a lane hands it on."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Owner:
    """What a worker does for one partition, one step at a time."""

    def __init__(self, cluster: Cluster, name: str, threads: ThreadPoolExecutor, asiders: ThreadPoolExecutor) -> None:
        self._cluster = cluster
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """What the committer said when a commit failed."""
        ends = Ends(cluster.kafka)
        self.partition = LivePartition(
            0, cluster.data(name), kafka=cluster.kafka, topics=cluster.topics, codec=cluster.codec(), ends=ends,
            identity=describe(cluster.kafka, cluster.topics).identity, memory=Memory(),
        )  # fmt: skip
        codec = cluster.codec()
        for schema in ("Transaction", "Tick", "Share", "Votes", "Commit", "Outcomes"):
            codec.id_of(avro.schema(schema))
        topic = cluster.topics.transactions

        def first_kept(number: int) -> int:
            return ends.first([(topic, number)])[topic, number]

        self.carrier = Carrier(cluster.kafka, "owner")
        self.carrier.start()
        self.ballots = Ballots(cluster.kafka, cluster.topics, codec, self.carrier)
        self.ballots.start()
        self.committer = Committer(
            0, partitions=cluster.partitions, replica=self.partition, kafka=cluster.kafka, topics=cluster.topics,
            codec=codec, ballots=self.ballots, pace=Pace(), threads=threads, asiders=asiders, tally=self,
            first_kept=first_kept, failed=self._failed,
        )  # fmt: skip

    async def recover(self) -> int:
        self.failure = asyncio.get_running_loop().create_future()
        return await self.committer.recover()

    async def take(self, start: int) -> None:
        """Decide what the log holds from offset `start` on."""
        await self.committer.take(await asyncio.to_thread(self.read, start))

    async def decide_all(self) -> int:
        """Become the owner, and decide and store all that the log holds. Returns the offset of what comes next."""
        start = await self.recover()
        records = await asyncio.to_thread(self.read, start)
        if records:
            await self.committer.take(records)
            await self.stored(records[-1].offset + 1)
        return records[-1].offset + 1 if records else start

    async def stored(self, next_offset: int) -> None:
        """Wait until everything below `next_offset` is decided and in the store."""

        def there() -> bool:
            checkpoint = self.partition.checkpoint
            return checkpoint is not None and checkpoint["next_offset"] >= next_offset

        assert await self.partition.until(there, WAIT_S)

    async def failed(self) -> BaseException:
        """Wait until a commit fails."""
        return await asyncio.wait_for(asyncio.shield(self.failure), WAIT_S)

    def outcome(self, transaction_id: str) -> Outcome | None:
        body = self.partition.store.outcome(transaction_id)
        return None if body is None else Outcome.from_avro(avro.decode(OUTCOME, body))

    def decided(self, partition: int, decisions: Sequence[Decision]) -> None: ...
    def committed(self, partition: int, transactions: int, commit_s: float) -> None: ...

    def _failed(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_result(error)

    def read(self, start: int) -> list[Read]:
        """The committed records of `transactions` from offset `start` on."""
        settings = {"group.id": "owner", "enable.auto.commit": False, "isolation.level": "read_committed",
                    "auto.offset.reset": "error", "enable.partition.eof": True, "fetch.wait.max.ms": 50}  # fmt: skip
        topic, found = self._cluster.topics.transactions, []
        with closing(Consumer({**self._cluster.kafka, **settings})) as consumer:
            consumer.assign([TopicPartition(topic, 0, start)])
            while (message := consumer.poll(WAIT_S)) is not None:
                if (error := message.error()) is not None:
                    assert error.code() == KafkaError._PARTITION_EOF, error
                    return found
                offset, value = message.offset(), message.value()
                assert offset is not None
                assert value is None or isinstance(value, bytes)
                found.append(Read(topic, 0, offset, message.timestamp()[1], None, value))
        raise AssertionError(f"{topic} was not answered")


@asynccontextmanager
async def owner(cluster: Cluster, name: str = "owner") -> AsyncIterator[Owner]:
    """The owner of partition 0 of `cluster`, let go of at the end."""
    # One thread for each: a commit that waits for a merge would wait for ever.
    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(1) as asiders:
        one = Owner(cluster, name, threads, asiders)
        try:
            yield one
        finally:
            await one.committer.stop()
            await asyncio.to_thread(one.ballots.close)
            await one.carrier.close()
            one.partition.close()
