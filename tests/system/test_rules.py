"""What workers promise each other and their services, with what goes wrong when a promise is not kept."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka.admin import AdminClient

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.history import Commit, LogReader
from tests.proxy import END_TXN, Proxy
from tests.traffic import Traffic, check_all
from versolog.projections import layout
from versolog.projections.rocks import Memory, Rocks
from versolog.schemas import codec as avro
from versolog.schemas.topics import describe, partition_of
from versolog.streams.committer import COMMIT_TIMEOUT_S
from versolog.streams.sent import Sent
from versolog.streams.transaction import Transaction

TAKE_OVER_S = 15.0
SOON_S = 30.0


def group_on(partition: int, partitions: int) -> str:
    """A group of that partition."""
    names = (f"group-{number}" for number in range(10_000))
    return next(name for name in names if partition_of(name, partitions) == partition)


def write(cluster: Cluster, transactions: int, *, prefix: str = "k") -> None:
    """Transactions on several groups, decided when this returns."""
    with cluster.producer() as producer:
        sents = [
            producer.send(Transaction(f"g{number % 7}").put("t", f"{prefix}{number}", {"n": number}))
            for number in range(transactions)
        ]
        assert all(outcome.committed for outcome in producer.outcomes(sents, SOON_S * 4))


def same_digest_everywhere(cluster: Cluster, *names: str) -> None:
    """Stop the workers, and compare their stores with each other and with a replay."""
    cluster.stop()
    digests = {name: cluster.digest(name) for name in names}
    digests["replay"] = cluster.replay(f"replayed-{uuid.uuid4().hex[:6]}").digest
    assert len(set(digests.values())) == 1, digests


# Several workers


def test_a_frozen_owner_commits_nothing_when_it_wakes_up(cluster: Cluster) -> None:
    with cluster.producer() as producer:
        traffic = Traffic(producer, seed=1)
        zombie = cluster.start("zombie")
        cluster.owned()
        first = traffic.send_wave()
        zombie.freeze()
        new = cluster.start("new")
        eventually(lambda: new.owned() == {0, 1}, TAKE_OVER_S, "the other has taken over")
        traffic.acknowledge(producer.outcomes([*first, *traffic.send_wave()], SOON_S))
        zombie.thaw()
        eventually(lambda: len(zombie.owned()) == len(new.owned()) == 1, SOON_S, "the partitions are shared")
        traffic.acknowledge(producer.outcomes(traffic.send_wave(), SOON_S))
        traffic.finish()
    cluster.level(SOON_S)  # each follows what the other owns
    cluster.stop()
    check_all(cluster, traffic, "new")
    assert cluster.digest("zombie") == cluster.digest("new")


def test_after_the_death_of_one_of_two_workers_all_groups_answer_within_15_s(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    cluster = new_cluster(broker, partitions=4)
    groups = [group_on(partition, 4) for partition in range(4)]
    usual_s = 10.0
    dies, stays = (cluster.start(name, session_timeout_s=usual_s) for name in ("dies", "stays"))
    eventually(lambda: len(dies.owned()) == len(stays.owned()) == 2, SOON_S, "the partitions are shared")
    with cluster.client("stays") as client:

        def answers(group: str) -> bool:
            """Written and read, whoever owns it."""
            written = client.put(f"/v1/groups/{group}/tables/t/rows/k", json={"at": time.time()}, params={"wait": 1})
            read = client.get(f"/v1/groups/{group}/tables/t/rows/k")
            return written.status_code == 201 and read.status_code == 200

        assert all(answers(group) for group in groups)
        dies.kill()
        killed_at = time.monotonic()
        for group in groups:
            eventually(lambda group=group: answers(group), TAKE_OVER_S, f"{group} answers again")  # type: ignore[misc]
        assert time.monotonic() - killed_at < TAKE_OVER_S
        assert stays.owned() == {0, 1, 2, 3}
    same_digest_everywhere(cluster, "stays")


@pytest.mark.parametrize(
    "behind", [30_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_worker_far_behind_takes_over_with_the_same_content(cluster: Cluster, behind: int) -> None:
    owner = cluster.start("owner")
    cluster.owned()
    write(cluster, behind)
    late = cluster.start("late")
    assert late.url
    owner.kill()
    cluster.owned(SOON_S + behind / 5_000)
    with cluster.client("late") as client:
        assert client.get(f"/v1/groups/g1/tables/t/rows/k{behind // 7 * 7 - 6}").status_code == 200
    write(cluster, 100, prefix="after")
    cluster.stop()
    assert sum(verified.commits for verified in cluster.verify("late")) == behind + 100
    same_digest_everywhere(cluster, "late")


@pytest.mark.parametrize("verdict", ["cut", pytest.param("lose", marks=pytest.mark.slow)])
def test_when_the_answer_to_a_commit_gets_lost_on_the_way_the_service_gets_its_outcome(
    cluster: Cluster, verdict: str
) -> None:
    """Nothing else is sent meanwhile that would wake the partition up."""
    with Proxy(cluster.bootstrap).running() as network:
        worker = cluster.start(bootstrap=network.bootstrap)
        cluster.owned()
        write(cluster, 10)
        lost_at: list[float] = []

        def lose_some(request: int) -> str:
            """The connection breaks once, or nothing comes through until the worker has given up on its commit."""
            if request != END_TXN or (
                lost_at and (verdict == "cut" or time.monotonic() - lost_at[0] > COMMIT_TIMEOUT_S)
            ):
                return "pass"
            lost_at.append(time.monotonic())
            return verdict

        network.judge = lose_some
        with cluster.client() as client:
            asked = Transaction("g0", id="once").add("t", "n", {"n": 1}).to_json()
            answer = client.post("/v1/transactions", json=asked, params={"wait": 29})
            assert answer.status_code == 201, answer.text
        assert network.lost
        assert ("did not come to a known end" in worker.log()) == (verdict == "lose")
        write(cluster, 10, prefix="after")
        same_digest_everywhere(cluster, "w1")
    LogReader(cluster).history().check()


# A store that is not of this log


def anew(cluster: Cluster) -> Cluster:
    """The cluster's topics, deleted and made again under the same names."""
    topics = cluster.topics
    names = [topics.transactions, topics.commits, topics.outcomes, topics.schemas, topics.sequence, topics.votes]
    admin = AdminClient(cluster.kafka)
    for deleted in admin.delete_topics(names).values():
        deleted.result(SOON_S)
    eventually(lambda: not set(names) & admin.list_topics(timeout=10).topics.keys(), SOON_S, "the topics are gone")
    cluster.make_topics()
    return cluster


def pretend_of(cluster: Cluster, store: Path) -> None:
    """Have the store say that it belongs to the cluster's log, as after the log was restored from a backup."""
    rocks = Rocks(store, Memory(), read_only=False)
    rocks.put(layout.META, layout.IDENTITY_KEY, describe(cluster.kafka, cluster.topics).identity.encode())
    rocks.close()


def test_a_store_of_topics_that_were_deleted_is_made_anew(cluster: Cluster) -> None:
    cluster.start()
    write(cluster, 50)
    cluster.stop()
    worker = anew(cluster).start()
    cluster.owned()
    write(cluster, 20, prefix="other")
    assert worker.log().count("store-rebuilt") == cluster.partitions
    same_digest_everywhere(cluster, "w1")


@pytest.mark.parametrize(("there", "here"), [(100, 10), (10, 100)], ids=["ahead-of-the-log", "another-last-commit"])
def test_a_store_that_the_log_does_not_know_is_made_anew(
    new_cluster: Callable[..., Cluster], broker: RealBroker, there: int, here: int
) -> None:
    """By the owner when it takes over, and by a follower when it begins."""
    other, cluster = new_cluster(broker), new_cluster(broker)
    other.start()
    write(other, there, prefix="other")
    other.stop()
    cluster.start()
    write(cluster, here)
    cluster.stop()
    for name in ("owner", "follower"):
        shutil.copytree(other.data("w1"), cluster.data(name))
        for partition in range(cluster.partitions):
            pretend_of(cluster, cluster.data(name) / f"partition-{partition}")
    owner = cluster.start("owner")
    cluster.owned()
    follower = cluster.start("follower")
    eventually(follower.owned, SOON_S, "the follower has a share")
    cluster.level(SOON_S)
    for worker in (owner, follower):
        rebuilt = [line for line in worker.log().splitlines() if "store-rebuilt" in line]
        assert len(rebuilt) == cluster.partitions
        assert all("another log" in line or "is not in the log" in line for line in rebuilt)
    write(cluster, 20, prefix="after")
    cluster.level(SOON_S)  # each follows the other
    same_digest_everywhere(cluster, "owner", "follower")


# What others write into the topics


def test_what_a_service_aborts_is_never_decided(cluster: Cluster) -> None:
    cluster.start()
    with cluster.producer(transactional_id=f"{cluster.prefix}service") as service:
        committed: list[Sent] = []
        aborted: list[str] = []
        for number in range(20):
            asked = [Transaction(f"g{i}", id=f"{number}-{i}").add("t", "n", {"n": 1}) for i in range(5)]
            try:
                with service.transaction():
                    sents = service.send_many(asked)
                    if number % 2:
                        raise LookupError("the service thinks again")
                committed += sents
            except LookupError:
                aborted += [tx.id for tx in asked]
        assert all(outcome.committed for outcome in service.outcomes(committed, SOON_S))
    cluster.stop()
    history = LogReader(cluster).history()
    history.check()
    assert history.outcomes.keys() == {sent.id for sent in committed}
    assert not history.outcomes.keys() & set(aborted)
    assert {history.rows(f"g{i}")["t", "n"] for i in range(5)} == {'{"n":10}'}


def poison(cluster: Cluster) -> list[bytes | None]:
    """Records that no builder makes."""
    codec = cluster.codec()
    transaction, commit = (avro.schema(name) for name in ("Transaction", "Commit"))
    good = avro.encode(transaction, Transaction("g", id="cut").put("t", "k", {"x": "y" * 50}).record())
    framed = codec.write(transaction, {**Transaction("g").put("t", "k", {}).record(), "parts": []})
    return [
        None,
        b"",
        b"\0",
        b"garbage",
        b"\0\0\0\0\xff" + good,
        avro.frame(codec.id_of(commit), good),
        avro.frame(codec.id_of(transaction), good[:-10]),
        avro.frame(codec.id_of(transaction), good + b"more"),
        avro.frame(codec.id_of(transaction), b"\xff" * 40),
        avro.frame(0xFFFF_FFFF, b""),
        framed,
    ]


def test_poison_is_refused_and_counted_and_the_worker_goes_on(cluster: Cluster) -> None:
    worker = cluster.start()
    cluster.owned()
    values = poison(cluster)
    raw = KafkaProducer(cluster.kafka)
    for value in values:
        raw.produce(cluster.topics.transactions, value, b"g", partition=0)
    wrong = group_on(1, cluster.partitions)
    misplaced = Transaction(wrong, id="misplaced").put("t", "k", {})
    raw.produce(cluster.topics.transactions, cluster.codec().write(avro.schema("Transaction"), misplaced.record()),
                wrong.encode(), partition=0)  # fmt: skip
    raw.flush()
    write(cluster, 20)
    assert worker.metric("versolog_decided_total", outcome="malformed") >= len(values) - 1
    assert worker.metric("versolog_decided_total", outcome="wrong-partition") == 1
    assert worker.log().count("poison-record") == len(values) - 1
    cluster.stop()
    history = LogReader(cluster).history()
    history.check()
    assert len(history.poison) == len(values) - 1
    assert {outcome.code for outcome in history.poison} == {"malformed"}
    assert [outcome.code for outcome in history.outcomes["misplaced"]] == ["wrong-partition"]
    assert [found for verified in cluster.verify() for found in verified.findings] == []
    same_digest_everywhere(cluster, "w1")


def test_a_flood_of_poison_does_not_hold_up_the_others(cluster: Cluster) -> None:
    """Each record names another unknown schema, and the registry is asked for each."""
    cluster.start()
    cluster.owned()
    raw = KafkaProducer(cluster.kafka)
    for number in range(1_000):
        raw.produce(cluster.topics.transactions, avro.frame(0x7000_0000 + number, b"x"), b"g", partition=0)
    raw.flush()
    begun = time.monotonic()
    write(cluster, 20)
    assert time.monotonic() - begun < TAKE_OVER_S


TAMPERINGS = ("garbage", "gap", "wrong-hash", "other-content", "forged")


def tampered(cluster: Cluster, last: Commit, how: str) -> bytes:
    """What the owner would never write after the `last` commit of a group."""
    record: dict[str, Any] = {**last.record, "version": last.record["version"] + 1, "previous_hash": last.hash}
    match how:
        case "garbage":
            return b"garbage"
        case "gap":
            record["version"] += 1
        case "wrong-hash":
            record["previous_hash"] = bytes(32)
        case "other-content":
            record = {**last.record, "author": "mallory"}
        case "forged":
            record |= {"branch_id": 999, "author": "mallory"}
    return cluster.codec().write(avro.schema("Commit"), record)


def test_a_log_that_was_tampered_with_stops_its_partition_and_no_other(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    """Each partition but the last in another way."""
    cluster = new_cluster(broker, partitions=len(TAMPERINGS) + 1)
    groups = [group_on(partition, cluster.partitions) for partition in range(cluster.partitions)]
    owner = cluster.start("owner")
    cluster.owned()
    raw = KafkaProducer(cluster.kafka)
    with cluster.client("owner") as client:

        def put(group: str) -> int:
            return client.put(f"/v1/groups/{group}/tables/t/rows/k", json={}, params={"wait": 1}).status_code

        def get(group: str) -> int:
            return client.get(f"/v1/groups/{group}/tables/t/rows/k").status_code

        assert [put(group) for group in groups for _ in range(3)] == [201] * 3 * len(groups)
        history = LogReader(cluster).history()
        for partition, how in enumerate(TAMPERINGS):
            group = groups[partition]
            raw.produce(cluster.topics.commits, tampered(cluster, history.commits[group][-1], how), group, partition)
        raw.flush()
        # The owner sees it with its next commit, before anybody is told that this one is done.
        *hurt, sound = groups
        assert 201 not in [put(group) for group in hurt]
        wanted = ["stopped"] * len(hurt) + ["owner"]

        def stopped() -> bool:
            return [state["role"] for state in owner.partitions().values()] == wanted

        eventually(stopped, SOON_S, "the broken partitions stop")
        errors = [owner.partitions()[partition]["error"] for partition in range(len(hurt))]
        # A forged commit can be told from a true one only by what comes after it: nothing in the log names it.
        assert all("offset 6" in error or "offset 7" in error for error in errors), errors
        assert client.get("/readyz").status_code == 503
        assert [get(group) for group in hurt] == [503] * len(hurt)
        assert (put(sound), get(sound)) == (201, 200)
    assert "store-rebuilt" not in owner.log(), "the store is of this log: it is the log that is broken"
    cluster.stop()
    verified = cluster.verify("owner")
    assert [bool(one.findings) for one in verified] == [True] * len(hurt) + [False]
    assert all(("log", 6) in [(finding.where, finding.offset) for finding in one.findings] for one in verified[:-1])


def test_a_follower_stops_where_the_log_was_tampered_with(cluster: Cluster) -> None:
    cluster.start("w1")
    cluster.owned()
    write(cluster, 30)
    cluster.start("w2")
    eventually(lambda: all(len(worker.owned()) == 1 for worker in cluster.running()), SOON_S, "both have a share")
    cluster.level(SOON_S)
    hurt = partition_of("g0", cluster.partitions)
    follower = next(worker for worker in cluster.running() if hurt not in worker.owned())
    last = LogReader(cluster).history().commits["g0"][-1]
    raw = KafkaProducer(cluster.kafka)
    raw.produce(cluster.topics.commits, tampered(cluster, last, "gap"), b"g0", hurt)
    raw.flush()
    eventually(lambda: follower.partitions()[hurt]["role"] == "stopped", SOON_S, "the follower stops")
    assert "version" in follower.partitions()[hurt]["error"]
    assert follower.owned() == {1 - hurt}
