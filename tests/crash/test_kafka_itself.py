"""What versolog is built on, asked of Kafka alone: a transaction that it has committed stays so, whatever kills it.

Kafka 4.3.0 to 4.4.0 fail here (KAFKA-20734). A coordinator that starts again while partitions have no leader yet takes
them for deleted, and ends transactions that were committed a moment before without their markers. Their records are
never shown, nor is what comes behind them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from versolog.projections.tail import Ends
from versolog.streams.readers import reader

PRODUCERS = 16
KILLS = 3
TRAFFIC_S = 1.0
TURN_S, COMMITTED_WITHIN_S, SHOWN_WITHIN_S = 0.5, 30.0, 20.0


class Committing:
    """Kafka transactions of one record in each of two topics, one after the other."""

    def __init__(self, kafka: dict[str, Any], topics: tuple[str, str], partition: int) -> None:
        self._kafka, self._topics, self._partition = kafka, topics, partition
        self._producer = self._fenced()
        self.acknowledged: set[bytes] = set()
        self._sent = 0

    def _fenced(self) -> Producer:
        producer = Producer({**self._kafka, "transactional.id": f"{self._topics[0]}-{self._partition}"})
        _patiently(producer.init_transactions)
        return producer

    def go_on(self, over: threading.Event) -> None:
        while not over.is_set():
            value = b"%d" % self._sent
            self._sent += 1
            try:
                self._producer.begin_transaction()
                for topic in self._topics:
                    self._producer.produce(topic, value, partition=self._partition)
                _patiently(self._producer.commit_transaction)
            except KafkaException:
                return  # it is not known whether it was committed
            self.acknowledged.add(value)

    def begin_again(self) -> None:
        self._producer = self._fenced()


def _patiently(ask: Callable[[float], object]) -> None:
    deadline = time.monotonic() + COMMITTED_WITHIN_S
    while True:
        try:
            ask(TURN_S)
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > deadline:
                raise


def shown(kafka: dict[str, Any], topic: str, partition: int, end: int) -> set[bytes]:
    """The values that a reader of committed records gets."""
    found = set[bytes]()
    with closing(reader(kafka, **{"enable.partition.eof": True})) as consumer:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while end:
            for message in consumer.consume(1_000, 0.2):
                error, value = message.error(), message.value()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return found
                assert error is None, error
                assert isinstance(value, bytes)
                found.add(value)
    return found


def test_what_kafka_has_committed_is_shown_after_its_death(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker, partitions=PRODUCERS)
    topics = cluster.topics.commits, cluster.topics.outcomes
    places = [(topic, partition) for topic in topics for partition in range(PRODUCERS)]
    working = [Committing(cluster.kafka, topics, partition) for partition in range(PRODUCERS)]
    for _ in range(KILLS):
        over = threading.Event()
        with ThreadPoolExecutor(PRODUCERS) as threads:
            done = [threads.submit(one.go_on, over) for one in working]
            time.sleep(TRAFFIC_S)
            own_broker.kill()
            over.set()
            own_broker.start()
            for one in done:
                one.result()
        for committing in working:
            committing.begin_again()  # fences the former, so that none has a transaction open
        ends = Ends(cluster.kafka)
        eventually(
            lambda ends=ends: ends.stable(places) == ends.last(places),  # type: ignore[misc]
            SHOWN_WITHIN_S,
            "no transaction is left open",
        )
    for topic, partition in places:
        acknowledged = working[partition].acknowledged
        assert acknowledged <= shown(
            cluster.kafka, topic, partition, Ends(cluster.kafka).stable([(topic, partition)])[topic, partition]
        )
    assert all(len(committing.acknowledged) > KILLS for committing in working)
