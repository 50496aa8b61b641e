"""Transactions over several partitions, on real workers: whole or not at all, in one order, whoever dies."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from random import Random
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer as KafkaProducer

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from versolog import Client
from versolog.client import Read
from versolog.schemas import codec as avro
from versolog.schemas.errors import Conflict, NotFound, PreconditionFailed, Undecided, refusal
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import partition_of
from versolog.streams.producer import Producer
from versolog.streams.shares import REFUSE, Vote
from versolog.streams.transaction import Transaction

PARTITIONS = 4
WITHIN_S = 30.0


@pytest.fixture(scope="module")
def running(broker: RealBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that share four partitions, for tests that hurt nobody."""
    cluster = Cluster(broker.bootstrap, tmp_path_factory.mktemp("spanning"), partitions=PARTITIONS)
    cluster.make_topics()
    try:
        cluster.start("w1")
        cluster.owned()
        cluster.start("w2")
        eventually(lambda: len(cluster.workers["w2"].owned()) == PARTITIONS // 2, WITHIN_S, "w2 has its share")
        cluster.owned()
        yield cluster
    finally:
        cluster.kill()


def group_in(partition: int, name: str = "") -> str:
    """A new group of that partition."""
    stem = name or uuid.uuid4().hex[:8]
    return next(
        group for number in itertools.count() if partition_of(group := f"{stem}-{number}", PARTITIONS) == partition
    )


def groups() -> list[str]:
    """One of each partition."""
    return [group_in(partition) for partition in range(PARTITIONS)]


def over(some: list[str], **about: str) -> Transaction:
    """A transaction that writes a row in each group."""
    tx = Transaction(None, **about)
    for group in some:
        tx.group(group).put("t", "k", {"by": tx.id})
    return tx


def row(cluster: Cluster, group: str) -> dict[str, Any] | None:
    """The row that `over` writes; asked for again while the group's partition is being taken over."""

    def answered() -> httpx.Response | None:
        with cluster.client() as client:
            answer = client.get(f"/v1/groups/{group}/tables/t/rows/k")
        return None if answer.status_code == 503 else answer

    answer = eventually(answered, WITHIN_S, f"{group} can be read")
    assert answer is not None
    if answer.status_code == 404:
        return None
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def test_it_is_committed_in_every_group_at_one_moment(running: Cluster) -> None:
    some = groups()
    with running.producer() as producer:
        outcome = producer.send(over(some)).outcome(WITHIN_S)
    assert outcome.committed
    assert [part.group for part in outcome.parts] == sorted(some, key=str.encode)
    assert not outcome.missing
    with running.client() as client:
        for part in outcome.parts:
            commit = client.get(f"/v1/groups/{part.group}/commits/{part.version}").raise_for_status().json()
            assert (commit["hash"], commit["transaction_id"]) == (part.hash.hex(), outcome.transaction_id)
            assert {other["group"] for other in commit["others"]} == set(some) - {part.group}
            found = row(running, part.group)
            assert found is not None
            assert (
                found["committed_at"]
                == client.get(f"/v1/transactions/{outcome.transaction_id}", params={"group": part.group}).json()[
                    "committed_at"
                ]
            )


def test_poison_in_sequence_is_refused_and_the_others_go_on(running: Cluster) -> None:
    """Records that no builder makes: what came of them would not fit a record, or has no name to be known by."""
    some, transaction = groups(), avro.schema("Transaction")
    whole = over(some).record()

    def written(**changed: Any) -> bytes:
        return running.codec().write(transaction, {**whole, **changed})

    def named(names: Iterable[str]) -> list[dict[str, Any]]:
        return [{**whole["parts"][0], "group": name, "changes": [], "expect_head": 0} for name in names]

    row_text = '{"x":"' + "y" * 340_000 + '"}'
    large = [{"op": "put", "table": "t", "key": str(number), "row": row_text} for number in range(3)]
    raw = KafkaProducer({**running.kafka, "message.max.bytes": 1_048_588})
    for value in (
        b"garbage",
        written(id=""),
        written(id="x" * 1_000_000),
        written(id="many", parts=named(f"{number:x}" for number in range(50_000))),
        written(id="long", parts=named("x" * 240_000 + str(number) for number in range(4))),
        written(id="large", parts=[{**whole["parts"][0], "changes": large}, whole["parts"][1]]),
    ):
        raw.produce(running.topics.sequence, value)
    assert raw.flush(WITHIN_S) == 0
    with running.producer() as producer:
        assert producer.send(over(some)).outcome(WITHIN_S).committed


def test_poison_in_votes_is_passed_over(running: Cluster) -> None:
    raw, codec = KafkaProducer(running.kafka), running.codec()
    vote = {**Vote(0, 1, REFUSE, 1, error=refusal("invalid", "no")).record(), "facts": "[]"}
    votes = codec.write(avro.schema("Votes"), {"partition": 1, "votes": [vote]})
    for partition in range(PARTITIONS):
        for value in (b"garbage", None, codec.write(avro.schema("Tick"), {}), votes):
            raw.produce(running.topics.votes, value, partition=partition)
    assert raw.flush(WITHIN_S) == 0
    with running.producer() as producer:
        for _ in range(3):
            assert producer.send(over(groups())).outcome(WITHIN_S).committed
    assert all("poison-vote" in worker.log() for worker in running.workers.values())


def test_one_precondition_that_fails_refuses_all_of_it_everywhere(running: Cluster) -> None:
    some = groups()
    tx = over(some)
    tx.group(some[2]).expect("t", "k", 7)
    with running.producer() as producer:
        outcome = producer.send(tx).outcome(WITHIN_S)
        assert (outcome.committed, outcome.code, outcome.facts["group"]) == (False, "version-mismatch", some[2])
        assert [row(running, group) for group in some] == [None] * PARTITIONS
        assert producer.send(over(some)).outcome(WITHIN_S).committed, "nothing is held any more"
    with running.client() as client:
        told = [
            client.get(f"/v1/transactions/{tx.id}", params={"group": group}).raise_for_status().json() for group in some
        ]
    assert all(one == told[0] for one in told), told


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_any_node_takes_it_and_tells_the_whole_outcome(running: Cluster, name: str) -> None:
    some = groups()
    tx = over(some)
    with running.client(name) as client:
        answer = client.post("/v1/transactions", json=tx.to_json())
        assert answer.status_code == 201, answer.text
        told = answer.json()
        assert all(len(part["hash"]) == 64 and part["version"] == 1 for part in told["parts"])
        again = client.post("/v1/transactions", json=tx.to_json())
        assert (again.status_code, again.json()) == (201, told)
    with running.client("w1" if name == "w2" else "w2") as other:
        assert other.get(f"/v1/transactions/{tx.id}").json() == told


def test_an_id_is_decided_once_whoever_sends_it_again(running: Cluster) -> None:
    some = groups()
    tx = over(some)
    with running.producer() as producer, running.producer() as other:
        sents = [sender.send(tx) for sender in (producer, other) for _ in range(20)]
        outcomes = {repr(sent.outcome(WITHIN_S)) for sent in sents}
        assert len(outcomes) == 1
        with running.client() as client:
            posted = client.post("/v1/transactions", json=tx.to_json()).json()
        assert posted == sents[0].outcome().to_json()
        different = over(some[:2], id=tx.id, message="something else")
        refused = producer.send(different).outcome(WITHIN_S)
        assert refused.code == "id-reused"
        with pytest.raises(Conflict):
            refused.raise_for_refusal()
    for group in some:
        found = row(running, group)
        assert found is not None
        assert found["version"] == 1


def test_transactions_on_the_same_groups_are_decided_in_one_order_everywhere(running: Cluster) -> None:
    """Each expects what the one before has left, so exactly one of each round can be committed."""
    one, other = group_in(0), group_in(1)
    with running.producer() as producer:
        for version in range(5):
            round_ = []
            for _ in range(4):
                tx = over([one, other])
                tx.group(one).expect("t", "k", version)
                tx.group(other).expect("t", "k", version)
                round_.append(producer.send(tx))
            assert sorted(sent.outcome(WITHIN_S).committed for sent in round_) == [False, False, False, True]
    left, right = row(running, one), row(running, other)
    assert left is not None
    assert right is not None
    assert left["row"] == right["row"]


def test_preconditions_alone_take_part_in_the_decision(running: Cluster) -> None:
    written, watched = group_in(0), group_in(3)
    with running.producer() as producer:
        tx = Transaction(None)
        tx.group(written).put("t", "k", {"n": 1})
        tx.group(watched).expect("t", "k", 0)
        outcome = producer.send(tx).outcome(WITHIN_S)
        assert {part.group: part.version for part in outcome.parts} == {written: 1, watched: 0}
        producer.send(Transaction(watched).put("t", "k", {})).outcome(WITHIN_S)
        tx = Transaction(None)
        tx.group(written).put("t", "k", {"n": 2})
        tx.group(watched).expect("t", "k", 0)
        with pytest.raises(PreconditionFailed):
            producer.send(tx).outcome(WITHIN_S).raise_for_refusal()


def test_operations_of_several_groups_are_one_step(running: Cluster) -> None:
    some = groups()
    with running.producer() as producer:
        producer.send(over(some)).outcome(WITHIN_S).raise_for_refusal()
        tx = Transaction(None)
        for group in some:
            tx.group(group).operation("create-branch", **{"name": "plan", "from": "main"})
        producer.send(tx).outcome(WITHIN_S).raise_for_refusal()
        tx = Transaction(None)
        tx.group(some[0]).operation("create-branch", name="plan")
        tx.group(some[1]).operation("create-branch", name="other")
        assert producer.send(tx).outcome(WITHIN_S).code == "ref-exists"
    with running.client() as client:
        for group in some:
            named = client.get(f"/v1/groups/{group}/branches").json()["branches"]
            assert [branch["name"] for branch in named] == ["main", "plan"]


def test_while_a_participant_is_away_only_what_it_holds_waits(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    cluster = new_cluster(broker, partitions=2)
    cluster.start("w1", session_timeout_s=60)
    cluster.owned()
    cluster.start("w2", session_timeout_s=60)
    eventually(lambda: len(cluster.workers["w2"].owned()) == 1, WITHIN_S, "w2 has one")
    cluster.owned()
    away = 1  # not 0, beside whose owner the sequencer runs
    frozen, here = ("w1", "w2") if away in cluster.workers["w1"].owned() else ("w2", "w1")
    held = next(g for n in itertools.count() if partition_of(g := f"held-{n}", 2) == 1 - away)
    free = next(g for n in itertools.count() if partition_of(g := f"free-{n}", 2) == 1 - away)
    there = next(g for n in itertools.count() if partition_of(g := f"there-{n}", 2) == away)
    with cluster.producer() as producer:
        producer.send(over([held, there])).outcome(WITHIN_S)
        cluster.workers[frozen].freeze()
        waiting = producer.send(over([held, there]))
        with cluster.client(here) as client:
            listed = partial(client.get, "/v1/transactions:waiting")
            eventually(lambda: listed().json()["transactions"], WITHIN_S, "it is taken in, and holds its groups")
        behind = producer.send(Transaction(held).put("t", "k", {"last": True}))
        for _ in range(20):
            producer.send(Transaction(free).put("t", "k", {})).outcome(WITHIN_S).raise_for_refusal()
        for one in (waiting, behind):
            with pytest.raises(Undecided):
                one.outcome(0.1)
        _named_as_away(cluster, here, away, over([held, there]), held)
        cluster.workers[frozen].thaw()
        assert waiting.outcome(WITHIN_S).committed
        assert behind.outcome(WITHIN_S).version == 3
        cluster.workers[here].freeze()  # the sequencer
        with Client(cluster.workers[frozen].url, retry_for_s=0.01) as db:
            db._http.headers["versolog-wait"] = "0.3"
            with pytest.raises(Undecided, match="which the worker that owns partition 0 gives out"):
                db.send(over([held, there]))
        cluster.workers[here].thaw()


def _named_as_away(cluster: Cluster, here: str, away: int, tx: Transaction, held: str) -> None:
    """Who is waited for is told to whoever waits, in what is listed, in the metrics and by readiness."""
    url = cluster.workers[here].url
    with Client(url, retry_for_s=0.01) as db:
        db._http.headers["versolog-wait"] = "0.3"
        with pytest.raises(Undecided, match="waits for transactions before it") as late:
            db.send(tx)
    assert late.value.facts["awaited"] == []
    with Client(url) as db:
        first, *behind = [one for one in db.waiting() if one.groups == [held]]
    assert (first.awaited, {tuple(one.awaited) for one in behind}) == ([away], {()})
    assert cluster.workers[here].metric("versolog_partition_votes_awaited", participant=str(away)) == 1
    assert cluster.workers[here].metric("versolog_partition_waiting") == 1 + len(behind)

    def told() -> bool:
        return [one["partition"] for one in httpx.get(f"{url}/readyz").json()["away"]] == [away]

    eventually(told, WITHIN_S, "readiness names who is away")


def test_every_moment_shows_each_transaction_whole(running: Cluster) -> None:
    """Money goes round between four partitions, over both workers, while others add it up through either of them."""
    some = groups()
    urls = [worker.url for worker in running.workers.values()]
    with Client(urls[0]) as db:
        tx = db.transaction(None)
        for group in some:
            tx.group(group).put("t", "k", {"n": 100})
        tx.send()
    over_ = threading.Event()

    def send(url: str, seed: int) -> int:
        chance, sent = Random(seed), 0
        with Client(url) as db:
            while not over_.is_set():
                some_, amount = chance.sample(some, chance.randint(2, 4)), chance.randint(1, 9)
                tx = db.transaction(None)
                for group in some_[1:]:
                    tx.group(group).add("t", "k", {"n": amount})
                tx.group(some_[0]).add("t", "k", {"n": -amount * (len(some_) - 1)})
                tx.send()
                sent += 1
        return sent

    def add_up(url: str) -> dict[datetime, list[int]]:
        found: dict[datetime, list[int]] = {}
        with Client(url) as db:
            for _ in range(25):
                told = db.read(*(Read(group, "t", "k") for group in some))
                found[told.at] = [0 if row is None else row.row["n"] for row in map(told.row, range(len(some)))]
        return found

    with ThreadPoolExecutor(6) as threads:
        senders = [threads.submit(send, urls[number % 2], number) for number in range(4)]
        try:
            moments = [threads.submit(add_up, url).result() for url in urls]
        finally:
            over_.set()
        assert all(sender.result() for sender in senders)
    for told in moments:
        assert {sum(amounts) for amounts in told.values()} == {400}
        assert len({tuple(amounts) for amounts in told.values()}) > 1, "and it did go round"
    with Client(urls[0]) as db, Client(urls[1]) as other:
        for at, amounts in (moments[0] | moments[1]).items():
            for one in (db, other):
                again = one.read(*(Read(group, "t", "k") for group in some), at=at)
                assert [0 if row is None else row.row["n"] for row in map(again.row, range(len(some)))] == amounts


def test_a_moment_has_all_that_was_acknowledged_before(running: Cluster) -> None:
    some = groups()
    with Client(running.workers["w1"].url) as db, Client(running.workers["w2"].url) as other:
        for number in range(10):
            tx = db.transaction(None)
            for group in some:
                tx.group(group).put("t", "k", {"n": number})
            tx.send()
            for group in some:
                found = other.read(Read(group, "t", "k")).row(0)
                assert found is not None
                assert found.row == {"n": number}


def test_a_store_wide_tag_can_be_replayed(running: Cluster) -> None:
    some = groups()
    with Client(running.workers["w1"].url) as db, Client(running.workers["w2"].url) as other:
        tx = db.transaction(None)
        for group in some:
            tx.group(group).put("t", "k", {"n": 1})
        tx.send()
        other.tag_store("before-it-broke")
        for group in some:
            db.put(group, "t", "k", {"n": 2})
        assert [other.read(Read(group, "t", "k"), at="before-it-broke").row(0) for group in some] == [
            db.row(group, "t", "k", at=1) for group in some
        ]
        live = db.digest(at="before-it-broke")
    assert running.replay(at="before-it-broke").digest == live
    with pytest.raises(NotFound, match="no tag of the whole store"):
        running.replay("never", at="never")


def test_a_killed_participant_goes_on_with_what_was_undecided(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    """Kill both workers again and again while transactions over all partitions are on their way."""
    cluster = new_cluster(broker, partitions=PARTITIONS)
    cluster.start("w1")
    cluster.start("w2")
    cluster.owned()
    some = [[group_in(partition, f"{name}{partition}") for partition in range(PARTITIONS)] for name in "abc"]
    with cluster.producer() as producer:
        acknowledged = list(_through_kills(cluster, producer, some))
        assert all(outcome.committed for outcome in acknowledged)
    cluster.owned()
    counts = {group: sum(group in {p.group for p in o.parts} for o in acknowledged) for g in some for group in g}
    for group, count in counts.items():
        found = row(cluster, group)
        assert found is not None
        assert found["row"] == {"n": count}
    cluster.level()
    cluster.stop()
    assert all(verified.ok for verified in cluster.verify())
    assert cluster.digest("w1") == cluster.replay().digest


def _through_kills(cluster: Cluster, producer: Producer, some: list[list[str]]) -> Iterator[Outcome]:
    for turn in range(4):
        sents = []
        for number in range(60):
            tx = Transaction(None)
            for group in some[number % 3]:
                tx.group(group).add("t", "k", {"n": 1})
            sents.append(producer.send(tx))
            if number == 30:
                producer.flush()
                name = ("w1", "w2")[turn % 2]
                cluster.workers[name].kill()
                cluster.start(name)
        yield from producer.outcomes(sents, WITHIN_S * 2)
