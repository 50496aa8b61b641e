"""Records carried into many partitions at once: all of them, in order, whatever becomes of broker and producer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition as AioTopicPartition
from confluent_kafka import KafkaError, TopicPartition

from tests.cluster import Cluster
from tests.conftest import RealBroker
from versolog.broker.ports import free_port
from versolog.streams import carrier as carriers
from versolog.streams.carrier import Carrier
from versolog.streams.readers import reader

PARTITIONS = 4
SOON_S = 60.0


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], broker: RealBroker) -> Cluster:
    return new_cluster(broker, partitions=PARTITIONS)


@asynccontextmanager
async def carrying(cluster: Cluster) -> AsyncIterator[Carrier]:
    carrier = Carrier(cluster.kafka, "test")
    carrier.start()
    try:
        yield carrier
    finally:
        await carrier.close()


class Told:
    """Counts who was told that its records are written."""

    def __init__(self) -> None:
        self.count = self._wanted = 0
        self._there = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._wanted:
            self._there.set()

    async def until(self, count: int) -> None:
        self._wanted, self._there = count, asyncio.Event()
        if self.count < count:
            await asyncio.wait_for(self._there.wait(), SOON_S)
        assert self.count == count


def numbers_in(cluster: Cluster) -> list[list[int]]:
    """By partition of `votes` the numbers that stand there."""
    found: list[list[int]] = [[] for _ in range(PARTITIONS)]
    consumer = reader(cluster.kafka, **{"enable.partition.eof": True})
    try:
        consumer.assign([TopicPartition(cluster.topics.votes, number, 0) for number in range(PARTITIONS)])
        left = PARTITIONS
        while left:
            message = consumer.poll(SOON_S)
            assert message is not None, "the topic is not answered"
            error = message.error()
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                left -= 1
                continue
            number, value = message.partition(), message.value()
            assert number is not None
            assert isinstance(value, bytes)
            found[number].append(int(value.split(b" ")[0]))
    finally:
        consumer.close()
    return found


def without_repeats(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def test_all_is_written_once_and_in_order(cluster: Cluster) -> None:
    async def run() -> None:
        async with carrying(cluster) as carrier:
            told = Told()
            for number in range(2_000):
                value = b"%d" % number
                carrier.carry(cluster.topics.votes, [(place, value) for place in range(PARTITIONS)], told)
                if number % 100 == 0:
                    await asyncio.sleep(0.005)
            await told.until(2_000)

    asyncio.run(run())
    assert numbers_in(cluster) == [list(range(2_000))] * PARTITIONS


def test_what_is_larger_than_a_batch_is_cut(cluster: Cluster) -> None:
    async def run() -> None:
        async with carrying(cluster) as carrier:
            told = Told()
            for number in range(12):
                carrier.carry(cluster.topics.votes, [(1, b"%d " % number + b"x" * 400_000)], told)
            await told.until(12)

    asyncio.run(run())
    assert numbers_in(cluster)[1] == list(range(12))


def test_another_thread_hands_records_on(cluster: Cluster) -> None:
    async def run() -> None:
        async with carrying(cluster) as carrier:
            told = Told()

            def hand_on() -> None:
                for number in range(50):
                    carrier.carry_from_thread(cluster.topics.votes, [(0, b"%d" % number), (3, b"%d" % number)], told)

            await asyncio.to_thread(hand_on)
            await told.until(50)

    asyncio.run(run())
    assert numbers_in(cluster) == [list(range(50)), [], [], list(range(50))]


def test_what_is_on_its_way_while_the_broker_dies_is_written(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker, partitions=PARTITIONS)

    async def run() -> None:
        async with carrying(cluster) as carrier:
            told, number = Told(), 0

            def some() -> None:
                nonlocal number
                for _ in range(100):
                    value = b"%d" % number
                    carrier.carry(cluster.topics.votes, [(place, value) for place in range(PARTITIONS)], told)
                    number += 1

            some()
            await told.until(100)
            some()
            await asyncio.sleep(0)
            own_broker.kill()
            some()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_broker.start)
            some()
            await told.until(400)

    asyncio.run(run())
    assert numbers_in(cluster) == [list(range(400))] * PARTITIONS


def test_a_producer_that_came_to_its_end_is_replaced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "START_AGAIN_S", 0.05)

    async def run() -> None:
        async with carrying(cluster) as carrier:
            told = Told()
            everywhere = range(PARTITIONS)
            carrier.carry(cluster.topics.votes, [(place, b"0") for place in everywhere], told)
            await told.until(1)
            first = carrier._producer
            assert first is not None
            first._txn_manager.increment_sequence_number(AioTopicPartition(cluster.topics.votes, 2), 5)
            for number in range(1, 100):
                carrier.carry(cluster.topics.votes, [(place, b"%d" % number) for place in everywhere], told)
            await told.until(100)
            assert carrier._producer is not first

    asyncio.run(run())
    assert [without_repeats(numbers) for numbers in numbers_in(cluster)] == [list(range(100))] * PARTITIONS


def test_closing_waits_for_no_broker(new_cluster: Callable[..., Cluster], own_broker: RealBroker) -> None:
    cluster = new_cluster(own_broker, partitions=PARTITIONS)

    async def run() -> None:
        carrier = Carrier(cluster.kafka, "test")
        carrier.start()
        told = Told()
        carrier.carry(cluster.topics.votes, [(0, b"0")], told)
        await told.until(1)
        own_broker.kill()
        carrier.carry(cluster.topics.votes, [(0, b"1")], told)
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10):
            await carrier.close()

    asyncio.run(run())


def test_closing_waits_for_no_broker_that_never_answered() -> None:
    async def run() -> None:
        carrier = Carrier({"bootstrap.servers": f"127.0.0.1:{free_port()}"}, "test")
        carrier.start()
        carrier.carry("votes", [(0, b"0"), (1, b"1")], Told())
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10):
            await carrier.close()

    asyncio.run(run())


def test_who_fails_when_told_keeps_nobody_else_waiting(cluster: Cluster) -> None:
    def fail() -> None:
        raise ValueError

    async def run() -> None:
        async with carrying(cluster) as carrier:
            told = Told()
            carrier.carry(cluster.topics.votes, [(0, b"0")], fail)
            carrier.carry(cluster.topics.votes, [(0, b"1")], told)
            await told.until(1)

    asyncio.run(run())
