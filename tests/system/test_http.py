"""The HTTP API on real workers and a real log."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.history import LogReader
from versolog import Client, Transaction
from versolog.schemas import codec as avro
from versolog.schemas.errors import Conflict, MergeConflict, PreconditionFailed
from versolog.schemas.topics import partition_of

GROUPS = [f"guild/{number} ü" for number in range(8)]


@pytest.fixture
def two(cluster: Cluster) -> Iterator[tuple[Client, Client]]:
    """Clients of two workers that share the partitions."""
    for name in ("w1", "w2"):
        cluster.start(name)
    eventually(lambda: all(worker.owned() for worker in cluster.running()), 60, "both workers own a partition")
    cluster.owned()
    with Client(cluster.workers["w1"].url) as one, Client(cluster.workers["w2"].url) as other:
        yield one, other


@pytest.fixture
def db(cluster: Cluster) -> Iterator[Client]:
    worker = cluster.start()
    cluster.owned()
    with Client(worker.url) as client:
        yield client


def test_the_largest_transactions_fit_the_log(db: Client, cluster: Cluster) -> None:
    """Each of these, and what it becomes, is near what Kafka's clients take by default; on one partition and on two."""
    group = "g" * 256
    other = next(
        name for name in GROUPS if partition_of(name, cluster.partitions) != partition_of(group, cluster.partitions)
    )

    def filled(size: int, *, two: bool) -> Transaction:
        tx = Transaction(group, id=f"{two}-{spare:03}").put("t", "a", {"x": "x" * 500_000})
        (tx.group(other) if two else tx).put("t", "b", {"x": "x" * size})
        return tx

    for two in (False, True):
        for spare in range(0, 180, 20):
            tx = filled(400_000 + 1_000_000 - spare - len(filled(400_000, two=two).intent()), two=two)
            assert len(tx.intent()) == 1_000_000 - spare
            assert db.send(tx).committed
    assert db.put(group, "t", "after", {}).committed
    assert db.put(other, "t", "after", {}).committed


def test_a_commit_that_just_fits_a_record_does_not_stop_its_partition(db: Client, cluster: Cluster) -> None:
    def filled(size: int) -> Transaction:
        return Transaction("g", id="wedge").put("t", "a", {"x": "x" * 500_000}).put("t", "b", {"x": "x" * size})

    db.put("h", "t", "k", {})
    assert db.send(filled(400_000)).committed
    commit = LogReader(cluster).history().commits["g"][0].record
    size = len(avro.encode(avro.schema("Commit"), commit))
    tx = filled(400_000 + 999_990 - size)
    tx.id = "other"
    assert db.send(tx).committed
    last = LogReader(cluster).history().commits["g"][1].record
    assert 999_964 < len(avro.encode(avro.schema("Commit"), last)) <= 1_000_000
    assert db.put("g", "t", "after", {}).committed


def test_any_worker_writes_and_reads_any_group(cluster: Cluster, two: tuple[Client, Client]) -> None:
    one, other = two
    for group in GROUPS:
        outcome = one.put(group, "t", "a/b", {"n": 1})
        read = other.row(group, "t", "a/b", at=outcome.version)
        assert read.row == {"n": 1}
        assert other.row(group, "t", "a/b", at=read.committed_at).version == 1
        with pytest.raises(PreconditionFailed):
            other.transaction(group).put("t", "a/b", {}).expect_absent("t", "a/b").send()
        assert one.outcome(outcome.transaction_id) == other.outcome(outcome.transaction_id, group)
        assert other.verify(group).ok
    assert [head.group for head in one.groups()] == [head.group for head in other.groups()] == sorted(GROUPS)
    assert one.digest() == other.digest()


def test_a_write_is_seen_by_the_next_read_whatever_worker_answers(two: tuple[Client, Client]) -> None:
    one, other = two
    group = GROUPS[0]
    for number in range(100):
        token = one.put(group, "t", "k", {"n": number}).token
        for client in (one, other):
            read = client._http.get(
                "/v1/groups/guild%2F0%20%C3%BC/tables/t/rows/k",
                headers={"versolog-token": token, "versolog-staleness": "9"},
            )
            assert read.json()["row"] == {"n": number}


def test_a_plan_is_tried_on_a_branch_merged_its_conflict_resolved_and_reverted(
    cluster: Cluster, two: tuple[Client, Client]
) -> None:
    """Each worker asked about groups of its own and of the other, while live events go on."""
    one, other = two
    for group in GROUPS:
        for number in range(150):
            one.put(group, "flights", f"k{number:03}", {"gate": "A1", "delay": 0})
        other.branch(group, "plan", message="try new gates")
        plan = one.transaction(group, branch="plan", author="ops")
        live = other.transaction(group, type="GatesClosed")
        for number in range(150):
            plan.patch("flights", f"k{number:03}", {"gate": "C3"})
            live.patch("flights", f"k{number:03}", {"gate": "B2", "delay": 5})
        plan.put("flights", "new", {"gate": "Z9"}).send()
        live.send()
        with pytest.raises(MergeConflict) as refused:
            one.merge(group, "plan")
        with pytest.raises(MergeConflict) as rehearsed:
            other.rehearse_merge(group, "plan")
        own = {"id", "outcome", "committed_at"}
        told = {name: fact for name, fact in refused.value.facts.items() if name not in own}
        assert told == rehearsed.value.facts, "the same conflicts, whatever worker is asked"
        first = {"table": "flights", "key": "k000", "path": ["gate"], "code": "both-changed"}
        assert told["conflicts"][0] == first | {"base": "A1", "ours": "B2", "theirs": "C3"}
        other.patch(group, "flights", "k000", {"gate": "B7"})
        ends = [conflict.take_theirs() for conflict in other.conflicts(refused.value)]
        assert len(ends) == 150
        with pytest.raises(MergeConflict) as stale:
            one.merge(group, "plan", resolutions=ends)
        (conflict,) = stale.value.conflicts
        assert (conflict.key, conflict.stale, conflict.ours) == ("k000", True, "B7")
        merged = other.merge(group, "plan", resolutions=[*ends[1:], conflict.take_value("D4")])
        assert one.compare(group, "plan").ahead == 0
        assert one.row(group, "flights", "k000", at=merged.version).row == {"gate": "D4", "delay": 5}
        undone = one.revert(group, merged.version, parent=1, message="the old gates")
        assert one.row(group, "flights", "k001", at=undone.version).row == {"gate": "B2", "delay": 5}
        assert one.diff(group, f"{merged.version}^1", undone.version).counts.rows == 0
        assert other.verify(group).ok
    with cluster.producer() as producer:
        sent = producer.send(Transaction(GROUPS[0]).operation("cherry-pick", versions=[152]))
        with pytest.raises(MergeConflict) as straight:
            sent.outcome(timeout_s=30).raise_for_refusal()
        assert (straight.value.total, straight.value.conflicts[0].key) == (150, "k000")


def test_a_time_is_read_from_an_idle_partition_and_stays_as_it_is(db: Client) -> None:
    first = db.put("g", "t", "k", {"n": 1})
    at = db.row("g", "t", "k").committed_at + timedelta(milliseconds=1)

    def passed() -> bool:
        answer = db._http.get("/v1/groups/g/tables/t/rows/k", params={"at": at.isoformat()})
        return answer.status_code == 200

    eventually(passed, 10, "the moment is closed")
    assert db.row("g", "t", "k", at=at).version == first.version
    db.put("g", "t", "k", {"n": 2})
    assert db.row("g", "t", "k", at=at).row == {"n": 1}


def test_the_same_id_a_hundred_times_over_http_and_kafka_is_one_commit(cluster: Cluster, db: Client) -> None:
    def tx() -> Transaction:
        return Transaction("g", id="once").add("t", "sum", {"n": 1})

    with cluster.producer() as producer, ThreadPoolExecutor(50) as threads:
        asked = [threads.submit(db.send, tx()) for _ in range(50)]
        asked += [threads.submit(lambda: producer.send(tx()).outcome(timeout_s=30)) for _ in range(50)]
        outcomes = [future.result() for future in asked]
    assert len({(outcome.version, outcome.hash, outcome.committed_at) for outcome in outcomes}) == 1
    assert db.row("g", "t", "sum").row == {"n": 1}
    with pytest.raises(Conflict):
        db.put("g", "t", "sum", {"n": 7}, id="once")


def test_racing_writers_that_expect_what_they_read_lose_no_update(db: Client) -> None:
    keys = [f"k{number}" for number in range(5)]
    for key in keys:
        db.put("g", "t", key, {"n": 0})
    refused: Counter[str] = Counter()
    overtaken: list[bool] = []
    lock = threading.Lock()

    def race(writer: int) -> None:
        with Client(str(db._http.base_url)) as own:
            for turn in range(100):
                key = keys[(turn + writer) % len(keys)]
                row = own.row("g", "t", key)
                tx = own.transaction("g", author=f"writer {writer}").put("t", key, {"n": row.row["n"] + 1})
                try:
                    tx.expect("t", key, row.version).send()
                except PreconditionFailed as error:
                    with lock:
                        refused[key] += 1
                    overtaken.append(error.facts["found"] > row.version)

    writers = [threading.Thread(target=race, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = {row.key: row.row["n"] for row in db.rows("g", "t")}
    assert all(overtaken)
    assert sum(rows.values()) + refused.total() == 400
    for key in keys:
        counts = [past.row["n"] for past in db.history("g", "t", key) if past.row is not None]
        assert counts == list(range(rows[key], -1, -1))


def test_a_connection_is_kept_for_longer_than_clients_keep_theirs(db: Client) -> None:
    """httpx gives one up after 5 s: if the server did too, one would now and then be closed just as it is used."""
    url = db._http.base_url
    with closing(HTTPConnection(url.host, url.port or 80, timeout=10)) as connection:
        for pause_s in (0, 6):
            time.sleep(pause_s)
            connection.request("GET", "/v1/groups")
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()


def test_a_body_of_50_mb_is_refused_and_the_worker_goes_on(db: Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 1_000_000

    for content in (b" " * 50_000_000, endless()):
        answer = db._http.post("/v1/transactions", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert db.put("g", "t", "k", {}).version == 1


def test_a_batch_over_all_groups_keeps_its_order(two: tuple[Client, Client]) -> None:
    one, other = two
    asked = [Transaction(GROUPS[n % len(GROUPS)], id=f"t-{n}").put("t", f"k{n:05}", {"n": n}) for n in range(4_000)]
    outcomes = list(one.send_many(asked))
    assert [outcome.transaction_id for outcome in outcomes] == [tx.id for tx in asked]
    assert all(outcome.committed for outcome in outcomes)
    for group in GROUPS:
        of_group = [outcome.version for outcome in outcomes if outcome.parts[0].group == group]
        assert of_group == list(range(1, len(of_group) + 1))
    assert list(other.send_many(asked)) == outcomes


def test_confluents_deserializer_reads_each_commit_once_in_order(
    cluster: Cluster, db: Client, broker: RealBroker
) -> None:
    asked = [Transaction(f"g{n % 3}", id=f"t-{n}").put("t", "k", {"n": n}) for n in range(500)]
    assert all(outcome.committed for outcome in db.send_many(asked))
    url = f"{str(db._http.base_url).rstrip('/')}/registry"
    settings = {
        "bootstrap.servers": broker.bootstrap,
        "group.id": cluster.prefix,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    }
    topic = cluster.topics.commits
    found: list[dict[str, Any]] = []
    with SchemaRegistryClient({"url": url}) as registry, closing(Consumer(settings)) as consumer:
        decode: Callable[..., Any] = AvroDeserializer(registry)
        consumer.assign([TopicPartition(topic, number, 0) for number in range(cluster.partitions)])

        def read() -> bool:
            for message in consumer.consume(500, 0.2):
                assert message.error() is None
                found.append(decode(message.value(), SerializationContext(topic, MessageField.VALUE)))
            return len(found) >= 500

        eventually(read, 30, "all commits are read")
    assert sorted(commit["transaction_id"] for commit in found) == sorted(tx.id for tx in asked)
    for group in ("g0", "g1", "g2"):
        versions = [commit["version"] for commit in found if commit["group"] == group]
        assert versions == list(range(1, len(versions) + 1))
    assert orjson.loads(found[0]["changes"][0]["row"]).keys() == {"n"}


def test_unreadable_things_are_typed_errors_and_the_worker_goes_on(db: Client) -> None:
    http = db._http
    for method, path, content, status in (
        ("POST", "/v1/transactions", b"{", 400),
        ("POST", "/v1/transactions", b'{"group": "g", "colour": 1}', 422),
        ("GET", "/v1/groups/nobody", None, 404),
        ("GET", "/v1/groups?cursor=AAAA", None, 400),
        ("GET", "/v1/groups/%FF", None, 400),
        ("PATCH", "/v1/groups", None, 405),
    ):
        answer = http.request(method, path, content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert http.get("/livez").json() == {"status": "live"}
