"""kill -9 at every named point: what was acknowledged is there, once, and the log, the store and a replay agree.

A merge of several pieces is there whole, or not at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.conftest import RealBroker
from tests.history import LogReader
from tests.traffic import GIVE_UP_S, Traffic, check_all, outcomes_over_crashes
from versolog.schemas.documents import from_text
from versolog.streams.failpoints import POINTS
from versolog.streams.state import MAIN
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, rows_at

WAVES = 8
AT_ONCE = 3
"""Scenarios that run side by side: most of their time is waiting for dead workers' sessions to run out."""
ON_TAKING_OVER = ("owner-fenced", "owner-caught-up")
OVER_PARTITIONS = ("shares-produced", "votes-cast", "votes-heard")
"""Passed by transactions over several partitions alone."""
QUICK = [(point, 1 if point in ON_TAKING_OVER else 2) for point in POINTS]
FULL = [
    (point, hit)
    for point in POINTS
    for hit in ((1, 2) if point in ON_TAKING_OVER else (1, 2, 3, 5, 8))
    if (point, hit) not in QUICK
]

Scenario = tuple[str, str, int]
"""What is done, the point at which the worker dies, and at which time of reaching it."""

FLEET, SHIPS = "fleet", [f"ship-{number}" for number in range(8)]
ROW_BYTES = 300_000
IN_LOG = ("kafka-committed", "store-written", *ON_TAKING_OVER)
"""The points at which a merge is committed."""
IN_STORE = ("store-written", "owner-caught-up")


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


def merge_at(broker: RealBroker, directory: Path, point: str, hit: int) -> None:
    """Have a worker die at `point` of a merge of several pieces, and look for the merge at once and in the end.

    At a point of taking over, another worker died before, when the merge was in the log and not in its store.
    """
    cluster = Cluster(broker.bootstrap, directory, partitions=1)
    cluster.make_topics()
    try:
        with cluster.producer() as producer:
            worker = cluster.start()
            planned = producer.outcomes([producer.send(tx) for tx in plan()], GIVE_UP_S)[-1]
            worker.kill()
            merge = producer.send(Transaction(FLEET, id="merge").operation("merge", source="plan"))
            for failpoint in ("kafka-committed", point) if point in ON_TAKING_OVER else (point,):
                cluster.start(failpoints=f"{failpoint}:{hit}").died(GIVE_UP_S)
            before, after = planned.version, planned.version + 1
            check_whole(
                cluster, in_log=after if point in IN_LOG else before, in_store=after if point in IN_STORE else before
            )
            cluster.start()
            merged = merge.outcome(GIVE_UP_S)
            assert merged.version == after
        cluster.owned()
        cluster.stop()
        check_whole(cluster, in_log=after, in_store=after)
        LogReader(cluster).history().check([merged])
        assert [finding for verified in cluster.verify() for finding in verified.findings] == []
        assert cluster.digest() == cluster.replay().digest
    finally:
        cluster.kill()


def plan() -> Iterator[Transaction]:
    """Large rows on main, and a branch on which each is changed."""
    for ship in SHIPS:
        yield Transaction(FLEET).put("ships", ship, {"plan": "old", "note": "." * ROW_BYTES})
    yield Transaction(FLEET).operation("create-branch", name="plan")
    yield Transaction(FLEET).put("ports", "harbour", {"open": True})  # so that the branch can't just move on
    for ship in SHIPS:
        yield Transaction(FLEET, branch="plan").patch("ships", ship, {"plan": "new"})


def check_whole(cluster: Cluster, *, in_log: int, in_store: int) -> None:
    """The log and the store of a worker that has ended hold all of the group's commits up to these versions."""
    commits = LogReader(cluster).history().commits[FLEET]  # fails where pieces are missing
    assert commits[-1].record["version"] == in_log
    merges = [commit.record["pieces"] for commit in commits if commit.record["operation"] == "merge"]
    assert all(pieces > 1 for pieces in merges)
    with cluster.stores() as (store,):
        head = store.head(FLEET)
        assert head is not None
        assert head.version == in_store
        at = resolve(store, FLEET, MAIN)
        rows = rows_at(store, FLEET, levels_at(store, at), [("ships", ship) for ship in SHIPS])
    merged = commits[in_store - 1].record["operation"] == "merge"
    assert {from_text(row.text)["plan"] for row in rows if row is not None} == {"new" if merged else "old"}


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
) -> Iterator[dict[Scenario, Future[None]]]:
    """The selected scenarios, all under way from the first test on."""
    wanted = [
        (str(item.callspec.params["what"]), str(item.callspec.params["point"]), int(item.callspec.params["hit"]))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    acts = {"traffic": crash_at, "merge": merge_at}
    with ThreadPoolExecutor(AT_ONCE, "crash") as pool:
        started = {}
        for what, point, hit in wanted:
            directory = tmp_path_factory.mktemp(f"{what}-{point}-{hit}-{uuid.uuid4().hex[:4]}")
            started[what, point, hit] = pool.submit(acts[what], broker, directory, point, hit)
        yield started
        for scenario in started.values():
            scenario.cancel()


@pytest.mark.parametrize("what", ["traffic"])
@pytest.mark.parametrize(
    ("point", "hit"), [*QUICK, *(pytest.param(*scenario, marks=pytest.mark.slow) for scenario in FULL)]
)
def test_a_worker_killed_at_a_point_loses_and_doubles_nothing(
    crashes: dict[Scenario, Future[None]], what: str, point: str, hit: int
) -> None:
    crashes[what, point, hit].result()


@pytest.mark.parametrize("what", ["merge"])
@pytest.mark.parametrize(("point", "hit"), [(point, 1) for point in POINTS if point not in OVER_PARTITIONS])
def test_a_merge_of_several_pieces_is_whole_or_absent_wherever_its_worker_is_killed(
    crashes: dict[Scenario, Future[None]], what: str, point: str, hit: int
) -> None:
    crashes[what, point, hit].result()
