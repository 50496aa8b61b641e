"""A Kafka client that can't go on: it says so once, and then refuses everything without saying that it is final."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from versolog.projections.intake import KafkaIntake
from versolog.schemas.errors import Unavailable, VersologError
from versolog.streams.link import Link, TransactionRecord

SOON_S = 20.0
BREAKS = {"enable.gapless.guarantee": True, "message.max.bytes": 4_000_000}
"""What the broker then refuses, here for its size, leaves a gap: that is fatal to an idempotent producer."""
TOO_LARGE = os.urandom(3_000_000)  # which no compression makes smaller


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], broker: RealBroker) -> Cluster:
    return new_cluster(broker, partitions=1)


class Told:
    """What became of each record, in order."""

    def __init__(self) -> None:
        self.ends: list[object] = []
        self._lock = threading.Lock()

    def __call__(self, error: object, message: Message | None = None) -> None:
        with self._lock:
            self.ends.append(error)


def test_a_node_goes_on_taking_transactions(cluster: Cluster) -> None:
    intake = KafkaIntake(cluster.kafka | BREAKS, cluster.topics)
    told = Told()
    before = intake._producer
    try:
        intake.append(0, None, TOO_LARGE, told)
        eventually(lambda: told.ends, SOON_S, "it is told that it was not taken")
        assert isinstance(told.ends[0], Unavailable)
        deadline = time.monotonic() + SOON_S
        while told.ends[-1] is not None:
            assert time.monotonic() < deadline, told.ends[-3:]
            taken = len(told.ends)
            try:
                intake.append(0, None, b"small", told)
            except VersologError:
                time.sleep(0.01)
                continue
            eventually(lambda: len(told.ends) > taken, SOON_S, "every record has an end")  # noqa: B023
        assert intake._producer is not before
        assert not intake._broken
    finally:
        intake.close(SOON_S)
    assert not intake._thread.is_alive()


def test_a_producer_goes_on_writing(cluster: Cluster) -> None:
    settings: dict[str, Any] = cluster.kafka | BREAKS
    link, told = Link(settings, None), Told()
    before = link._kafka
    try:
        assert link.write(record(cluster, TOO_LARGE), told)
        deadline = time.monotonic() + SOON_S
        while not told.ends or told.ends[-1] is not None:
            assert time.monotonic() < deadline, told.ends[-3:]
            link.serve(0.05)
            if told.ends:
                link.write(record(cluster, b"small"), told)
        assert isinstance(told.ends[0], KafkaError)
        assert link._kafka is not before
    finally:
        link.close()


def record(cluster: Cluster, value: bytes) -> TransactionRecord:
    return TransactionRecord(cluster.topics.transactions, value, b"k", 0, [])
