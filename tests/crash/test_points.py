"""kill -9 at every named point: what was acknowledged is there, once, and the log, the store and a replay agree."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.conftest import RealBroker
from tests.traffic import Traffic, check_all, outcomes_over_crashes
from versolog.streams.failpoints import POINTS

WAVES = 8
AT_ONCE = 3
"""Scenarios that run side by side: most of their time is waiting for dead workers' sessions to run out."""
ON_TAKING_OVER = ("owner-fenced", "owner-caught-up")
QUICK = [(point, 1 if point in ON_TAKING_OVER else 2) for point in POINTS]
FULL = [
    (point, hit)
    for point in POINTS
    for hit in ((1, 2) if point in ON_TAKING_OVER else (1, 2, 3, 5, 8))
    if (point, hit) not in QUICK
]

Crash = Callable[[str, int], None]


def crash_at(broker: RealBroker, directory: Path, point: str, hit: int) -> None:
    """Run traffic through a worker that dies at `point`, and check what is left."""
    cluster = Cluster(broker.bootstrap, directory)
    cluster.make_topics()
    try:
        with cluster.producer() as producer:
            traffic = Traffic(producer, seed=hit)
            worker = cluster.start()
            if point in ON_TAKING_OVER:  # something to take over, half of it unread
                outcomes_over_crashes(cluster, traffic, traffic.send_wave(), worker)
                traffic.send_wave()
            else:
                cluster.owned()
            worker.kill()
            worker = first = cluster.start(failpoints=f"{point}:{hit}")
            for _ in range(WAVES):
                worker = outcomes_over_crashes(cluster, traffic, traffic.send_wave(), worker)
            assert worker is not first, f"{point} was not reached {hit} times"
            traffic.finish()
            check_refusals_by_id(cluster, traffic)
        cluster.stop()
        check_all(cluster, traffic)
    finally:
        cluster.kill()


def check_refusals_by_id(cluster: Cluster, traffic: Traffic) -> None:
    """Asked for by id, an outcome is the one that was acknowledged."""
    cluster.owned()
    refused = [outcome for outcome in traffic.acknowledged.values() if not outcome.committed]
    with cluster.client() as client:
        for outcome in refused[:10]:
            told = client.get(f"/v1/transactions/{outcome.transaction_id}").raise_for_status().json()
            assert told == outcome.to_json()


@pytest.fixture(scope="module")
def crashes(
    request: pytest.FixtureRequest, broker: RealBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, int], Future[None]]]:
    """The selected scenarios, all under way from the first test on."""
    wanted = [
        (item.callspec.params["point"], item.callspec.params["hit"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    with ThreadPoolExecutor(AT_ONCE, "crash") as pool:
        started = {}
        for point, hit in wanted:
            directory = tmp_path_factory.mktemp(f"{point}-{hit}-{uuid.uuid4().hex[:4]}")
            started[point, hit] = pool.submit(crash_at, broker, directory, point, hit)
        yield started
        for scenario in started.values():
            scenario.cancel()


@pytest.mark.parametrize(
    ("point", "hit"), [*QUICK, *(pytest.param(*scenario, marks=pytest.mark.slow) for scenario in FULL)]
)
def test_a_worker_killed_at_a_point_loses_and_doubles_nothing(
    crashes: dict[tuple[str, int], Future[None]], point: str, hit: int
) -> None:
    crashes[point, hit].result()
