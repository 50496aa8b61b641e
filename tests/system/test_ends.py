"""Asking Kafka how far the log goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer

from tests.cluster import Cluster
from tests.conftest import RealBroker
from versolog.projections.ends import KafkaEnds
from versolog.schemas.errors import Unavailable

PARTITIONS = 4
AGAIN_WITHIN_S = 5.0


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], own_broker: RealBroker) -> Cluster:
    made = new_cluster(own_broker, partitions=PARTITIONS)
    made.make_topics()
    return made


@pytest.fixture
def ends(cluster: Cluster) -> Iterator[KafkaEnds]:
    asked = KafkaEnds(cluster.kafka, cluster.topics)
    yield asked
    asked.close()


def append(cluster: Cluster, *partitions: int) -> None:
    producer = Producer({**cluster.kafka, "acks": "all"})
    for number in partitions:
        producer.produce(cluster.topics.transactions, b"\0", partition=number)
    assert producer.flush(30) == 0


def test_the_ends_are_those_of_the_moment(cluster: Cluster, ends: KafkaEnds) -> None:
    async def now(*partitions: int) -> list[int]:
        return await asyncio.gather(*(ends.now(number) for number in partitions))

    async def asked() -> None:
        assert await now(*range(PARTITIONS)) == [0, 0, 0, 0]
        await asyncio.to_thread(append, cluster, 1, 1, 3)
        assert await now(*range(PARTITIONS)) == [0, 2, 0, 1]

    asyncio.run(asked())


def test_who_comes_while_one_asks_is_told_what_was_there_when_he_came(cluster: Cluster, ends: KafkaEnds) -> None:
    async def asked() -> None:
        for count in range(1, 20):
            early = [asyncio.create_task(ends.now(0)) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.to_thread(append, cluster, 0)
            assert await ends.now(0) == count
            for one in early:
                assert await one in (count - 1, count)

    asyncio.run(asked())


def test_who_asks_while_kafka_is_away_is_told_and_later_answered(
    cluster: Cluster, ends: KafkaEnds, own_broker: RealBroker
) -> None:
    async def asked() -> None:
        append(cluster, 2)
        assert await ends.now(2) == 1
        own_broker.kill()
        with pytest.raises(Unavailable, match="partition 2"):
            await ends.now(2)
        own_broker.start()
        append(cluster, 2)
        async with asyncio.timeout(AGAIN_WITHIN_S):
            while True:
                with contextlib.suppress(Unavailable):
                    assert await ends.now(2) == 2
                    return

    asyncio.run(asked())
