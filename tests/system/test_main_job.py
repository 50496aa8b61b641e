"""The main job at a size: races, retries, crashes and reads of the past, each against a straight computation."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, KafkaError
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.history import LogReader
from versolog.schemas.errors import Unavailable, Undecided
from versolog.schemas.outcome import Outcome
from versolog.schemas.times import millis_to_text
from versolog.streams.producer import Producer
from versolog.streams.sent import Sent
from versolog.streams.transaction import Transaction

SOON_S = 60.0
KEYS = [f"key-{number}" for number in range(10)]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    """HTTP to the one worker of the cluster."""
    cluster.start()
    cluster.owned()
    with cluster.client() as client:
        yield client


# A race


def race(cluster: Cluster, name: str, transactions: int) -> list[tuple[Transaction, Outcome]]:
    """Read all keys, send five transactions on each that expect what was read, and so on."""
    ended = []
    with cluster.client() as client, cluster.producer() as producer:
        while len(ended) < transactions:
            rows = client.get("/v1/groups/race/tables/t/rows").raise_for_status().json()["rows"]
            asked = [
                Transaction("race", author=name)
                .put("t", row["key"], {"by": name, "n": row["row"]["n"] + 1})
                .expect("t", row["key"], row["version"])
                for row in rows * 5
            ]
            ended += zip(asked, producer.outcomes(producer.send_many(asked), SOON_S), strict=True)
    return ended


def test_two_producers_race_and_no_update_is_lost(cluster: Cluster, client: httpx.Client) -> None:
    first = Transaction("race", id="first")
    for key in KEYS:
        first.put("t", key, {"by": "", "n": 0})
    client.post("/v1/transactions", json=first.to_json()).raise_for_status()
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(race, cluster, name, 5_000) for name in ("ada", "bob")]
        ended = [end for one in running for end in one.result()]
    assert len(ended) == 10_000
    cluster.stop()
    history = LogReader(cluster).history()
    history.check(outcome for _, outcome in ended)
    lines: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for commit in history.commits["race"]:
        for change in commit.changes:
            lines[change["key"]].append((commit.record["version"], json.loads(change["row"])))
    assert all([row["n"] for _, row in line] == list(range(len(line))) for line in lines.values())
    assert lines.keys() == set(KEYS)
    versions = {key: [version for version, _ in line] for key, line in lines.items()}
    for tx, outcome in ended:
        expected = tx.to_json()["expect"][0]
        line = versions[expected["key"]]
        if outcome.committed:
            assert line[line.index(outcome.version) - 1] == expected["version"], "it followed on what it had read"
        else:
            assert outcome.code == "version-mismatch"
            assert outcome.facts["expected"] == expected["version"]
            assert outcome.facts["found"] in line[line.index(expected["version"]) + 1 :]
    winners = Counter(tx.to_json()["author"] for tx, outcome in ended if outcome.committed)
    assert sum(winners.values()) == len(history.commits["race"]) - 1
    assert len(winners) == 2, "both got through"


# One id, many times


def test_an_id_sent_a_hundred_times_at_once_is_decided_once(cluster: Cluster, client: httpx.Client) -> None:
    tx = Transaction("g", id="again").add("t", "n", {"n": 1})
    asked = tx.to_json()

    def over_http(_: int) -> dict[str, Any]:
        answer = client.post("/v1/transactions", json=asked)
        assert answer.status_code == 201
        told: dict[str, Any] = answer.json()
        return told

    with cluster.producer() as producer, ThreadPoolExecutor(25) as threads:
        sents = producer.send_many([tx] * 50)
        told = list(threads.map(over_http, range(50)))
        told += [outcome.to_json() for outcome in producer.outcomes(sents, SOON_S)]
        assert len(told) == 100
        assert all(one == told[0] for one in told)
        assert (told[0]["outcome"], told[0]["version"]) == ("committed", 1)
        other = Transaction("g", id="again").add("t", "n", {"n": 2})
        refused = client.post("/v1/transactions", json=other.to_json())
        assert (refused.status_code, refused.json()["code"]) == (409, "id-reused")
        assert producer.send(other).outcome().code == "id-reused"
    assert client.get("/v1/groups/g/tables/t/rows/n").json()["row"] == {"n": 1}
    cluster.stop()
    history = LogReader(cluster).history()
    history.check()
    assert len(history.commits["g"]) == 1


# Reads of the past


def test_reads_at_versions_tags_and_times_equal_a_straight_computation(cluster: Cluster, client: httpx.Client) -> None:
    random_ = random.Random(7)
    states: list[dict[str, Any]] = [{}]
    outcomes: list[Outcome] = []
    tags: dict[str, int] = {}
    with cluster.producer() as producer:
        for round_ in range(20):
            sents = []
            for _ in range(50):
                key, row = random_.choice(KEYS), {"round": round_, "x": random_.random()}
                after = dict(states[-1])
                if random_.random() < 0.2 and key in after:
                    tx = Transaction("g").delete("t", key)
                    del after[key]
                else:
                    tx = Transaction("g").put("t", key, row)
                    after[key] = row
                sents.append(producer.send(tx))
                states.append(after)
            version = len(states) - 1
            tags[f"round-{round_}"] = version
            sents.append(producer.send(Transaction("g").operation("tag", name=f"round-{round_}", at=str(version))))
            states.append(states[-1])
            outcomes += producer.outcomes(sents, SOON_S)
    assert [outcome.version for outcome in outcomes] == list(range(1, len(states)))

    def rows(**query: Any) -> dict[str, Any]:
        answer = client.get("/v1/groups/g/tables/t/rows", params=query).raise_for_status().json()
        return {row["key"]: row["row"] for row in answer["rows"]}

    for version in random_.sample(range(1, len(states)), 20):
        assert rows(at=version) == states[version]
        key = random_.choice(KEYS)
        row = client.get(f"/v1/groups/g/tables/t/rows/{key}", params={"at": version})
        assert (row.json()["row"] if row.status_code == 200 else None) == states[version].get(key)
    for tag, version in tags.items():
        assert rows(at=tag) == states[version]
    times = [outcome.committed_at for outcome in outcomes]
    for time_ms in random_.sample(range(times[0], times[-1] + 1), 20):
        version = sum(committed_at <= time_ms for committed_at in times)
        assert rows(at=millis_to_text(time_ms)) == states[version]
    assert rows() == states[-1]


# Consumers of others


def test_a_stock_avro_consumer_sees_each_commit_once_and_in_order(cluster: Cluster, client: httpx.Client) -> None:
    with cluster.producer() as producer:
        sents = [producer.send(Transaction(f"g{n % 5}").put("t", str(n), {"n": n})) for n in range(500)]
        sents += [producer.send(Transaction("g0").put("t", "k", {}).expect_head(10**6))] * 3
        committed = [outcome for outcome in producer.outcomes(sents, SOON_S) if outcome.committed]
    settings = {"group.id": f"{cluster.prefix}stock", "isolation.level": "read_committed", "enable.partition.eof": True,
                "auto.offset.reset": "earliest", "enable.auto.commit": False}  # fmt: skip
    seen, ended = [], set()
    place = SerializationContext(cluster.topics.commits, MessageField.VALUE)
    with (
        SchemaRegistryClient({"url": f"{client.base_url}/registry"}) as registry,
        closing(Consumer({**cluster.kafka, **settings})) as consumer,
    ):
        deserialize = AvroDeserializer(registry)
        consumer.subscribe([cluster.topics.commits])
        while len(ended) < cluster.partitions:
            message = consumer.poll(SOON_S)
            assert message is not None
            if (error := message.error()) is None:
                seen.append(deserialize(message.value(), place))
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                ended.add(message.partition())
    assert len(seen) == len(committed) == 500
    versions = defaultdict(list)
    for commit in seen:
        versions[commit["group"]].append(commit["version"])
    assert versions == {f"g{n}": list(range(1, 101)) for n in range(5)}
    assert {commit["transaction_id"] for commit in seen} == {outcome.transaction_id for outcome in committed}


# Crashes in the middle


def outcomes_of(producer: Producer, sents: list[Sent], within_s: float) -> list[Outcome]:
    """The outcomes, however long the worker or the broker is away in between."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return producer.outcomes(sents, 2.0)
        except (Undecided, Unavailable):
            assert time.monotonic() < deadline, f"not decided within {within_s:g} s"


@pytest.mark.parametrize(
    ("transactions", "kills"),
    [(10_000, 2), pytest.param(50_000, 5, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_killed_in_the_middle_of_many_transactions_nothing_is_lost_or_done_twice(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker, transactions: int, kills: int
) -> None:
    cluster = new_cluster(own_broker, partitions=4)
    worker = cluster.start()
    cluster.owned()
    steps = kills + 1
    with cluster.producer() as producer:
        sents: list[Sent] = []
        for step in range(steps):
            for n in range(transactions * step // steps, transactions * (step + 1) // steps):
                tx = (
                    Transaction(f"g{n % 50}", id=f"tx-{n}").add("t", "count", {"n": 1}).put("t", f"k{n % 97}", {"n": n})
                )
                sents.append(producer.send(tx))
            decided = sents[: len(sents) - transactions // steps // 2]
            outcomes_of(producer, decided, SOON_S)  # half of this step's are decided, the others under way
            if step == kills:
                own_broker.kill()
                own_broker.start()
            else:
                worker.kill()
                worker = cluster.start()
        outcomes = outcomes_of(producer, sents, SOON_S * 2)
        assert all(outcome.committed for outcome in outcomes)
        eventually(lambda: len(worker.owned()) == 4, SOON_S, "the worker is back")
        with cluster.client() as client:
            counted = [client.get(f"/v1/groups/g{n}/tables/t/rows/count").json()["row"]["n"] for n in range(50)]
        assert counted == [transactions // 50] * 50
    cluster.stop()
    history = LogReader(cluster).history()
    history.check(outcomes)
    assert history.outcomes.keys() == {f"tx-{n}" for n in range(transactions)}
    assert sum(len(commits) for commits in history.commits.values()) == transactions
    assert [found for verified in cluster.verify() for found in verified.findings] == []
    assert cluster.digest() == cluster.replay().digest
