"""kill -9 of Kafka, of the worker and of both under traffic: nothing acknowledged is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.traffic import Traffic, check_all

SOON_S = 60.0


@pytest.mark.parametrize(
    ("victims", "crashes"),
    [
        ("broker", 1),
        ("broker and two workers", 1),
        pytest.param("broker", 5, marks=pytest.mark.slow),
        pytest.param("broker and worker", 5, marks=pytest.mark.slow),
        pytest.param("broker and two workers", 5, marks=pytest.mark.slow),
    ],
)
def test_a_crash_loses_and_doubles_nothing(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker, victims: str, crashes: int
) -> None:
    cluster = new_cluster(own_broker)
    names = ["w1", "w2"] if "two" in victims else ["w1"]
    for name in names:
        cluster.start(name)
    cluster.owned()
    with cluster.producer() as producer:
        traffic = Traffic(producer)
        traffic.acknowledge(producer.outcomes(traffic.send_wave(), SOON_S))
        for _ in range(crashes):
            under_way = traffic.send_wave()
            if "worker" in victims:
                cluster.kill()
            own_broker.kill()
            own_broker.start()
            if "worker" in victims:
                for name in names:
                    cluster.start(name)
            traffic.acknowledge(producer.outcomes([*under_way, *traffic.send_wave()], SOON_S))
        traffic.finish()
    cluster.owned()
    cluster.level()  # a store that follows may be anywhere behind, and is compared with the whole log
    cluster.stop()
    check_all(cluster, traffic)


def test_a_worker_that_starts_before_kafka_waits_for_it(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker)
    own_broker.kill()
    try:
        worker, impatient = cluster.start(), cluster.start("w2", VERSOLOG_KAFKA_WAIT_S="0")
        assert impatient.process.wait(SOON_S) == 1
        assert "no Kafka broker answers" in impatient.last_words()
        eventually(lambda: "waits-for-kafka" in worker.log(), SOON_S, "it says that it waits")
        assert worker.running
    finally:
        own_broker.start()
    cluster.owned()
