"""Reading the log where Kafka is hurt meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.deaf import deaf_first
from tests.owner import owner
from versolog.projections import layout, tail
from versolog.projections.store import Store
from versolog.projections.tail import OUTCOMES, Ends
from versolog.projections.verify import Verifier
from versolog.schemas.codec import frame
from versolog.schemas.errors import BrokenLog, Unavailable
from versolog.schemas.written import outcomes_body
from versolog.streams.transaction import Transaction

SOON_S = 20.0


def test_commits_that_outcomes_tell_of_are_waited_for(
    new_cluster: Callable[..., Cluster], broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka shows the end of a transaction in one topic after the other."""
    cluster = new_cluster(broker, partitions=1)
    kafka, topics = cluster.kafka, cluster.topics

    async def decided() -> None:
        async with owner(cluster) as one:
            await one.decide_all()
            store, ends = one.partition.store, Ends(kafka)
            checkpoint = store.checkpoint
            assert checkpoint is not None
            assert checkpoint["commits_offset"] == store.next_commit_offset == 1
            told = cluster.codec().write(OUTCOMES, {"results": [], "checkpoint": {**checkpoint, "commits_offset": 3}})
            writer.produce(topics.outcomes, told, partition=0)
            writer.flush()
            monkeypatch.setattr(tail, "PATIENCE_S", 0.5)
            with pytest.raises(Unavailable, match="outcomes tell of later ones"):
                tail.catch_up(one.partition._tail, kafka, topics, ends)
            assert store.covered_checkpoint == checkpoint, "what is not all there closes no time"
            monkeypatch.setattr(tail, "PATIENCE_S", SOON_S)
            late = threading.Timer(0.5, commit)
            late.start()
            tail.catch_up(one.partition._tail, kafka, topics, ends)
            late.join()
            assert store.covered_checkpoint is store.checkpoint
            assert [store.version_at(group, 2**60) for group in ("a", "b")] == [1, 1]

    def commit() -> None:
        """The second commit, as Kafka would show it late: behind the first and the marker of its transaction."""
        writer.produce(topics.commits, values[1], partition=0)
        writer.flush()

    writer = Producer(kafka)
    values = made(new_cluster(broker, partitions=1))
    with cluster.producer() as producer:
        producer.send(Transaction("a", id="a").put("t", "k", {}))
    asyncio.run(decided())


def made(cluster: Cluster) -> list[bytes]:
    """The commits of transactions on `a` and on `b`, as records."""
    with cluster.producer() as producer:
        for group in ("a", "b"):
            producer.send(Transaction(group, id=group).put("t", "k", {}))

    async def values() -> list[bytes]:
        async with owner(cluster) as one:
            await one.decide_all()
            entries = [one.partition.store.commit_entry(group, 1) for group in ("a", "b")]
            return [entry.pieces[0].value for entry in entries if entry is not None]

    return asyncio.run(values())


def test_the_ends_of_the_log_are_known_again_soon_after_the_broker_was_killed(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker
) -> None:
    cluster = new_cluster(own_broker)
    ends, places = Ends(cluster.kafka), [(cluster.topics.commits, 0), (cluster.topics.outcomes, 1)]

    def known() -> bool:
        try:
            return ends.stable(places).keys() == set(places)
        except Unavailable:
            return False

    assert known()
    for _ in range(2):
        own_broker.kill()
        assert not known()
        own_broker.start()
        eventually(known, SOON_S, "Kafka says again how far its topics go")


def test_a_broker_that_stands_still_is_no_empty_log(
    new_cluster: Callable[..., Cluster], own_broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who believed that would make its store anew, and verify nothing and find it good."""
    cluster = new_cluster(own_broker, partitions=1)
    places = [(topic, 0) for topic in (cluster.topics.transactions, cluster.topics.commits, cluster.topics.outcomes)]

    async def decided() -> None:
        async with owner(cluster) as one:
            await one.decide_all()
            store, verifiers_ends = one.partition.store, Ends(cluster.kafka)
            verifier = Verifier(0, topics=cluster.topics, codec=cluster.codec(), store=None, group=None)
            questions = [
                Ends(cluster.kafka).stable,
                Ends(cluster.kafka).last,
                partial(Ends(cluster.kafka).at, time_ms=1),
            ]
            for ask in (verifiers_ends.stable, *questions):
                ask(places)  # and know from now on who leads them
            monkeypatch.setattr(tail, "REQUEST_TIMEOUT_S", 0.5)
            with frozen(own_broker):
                for ask in questions:
                    with pytest.raises(Unavailable, match="did not say how far"):
                        ask(places)
                with pytest.raises(Unavailable):
                    verifier.run(cluster.kafka, verifiers_ends)
                with pytest.raises(Unavailable):
                    one.partition.reconcile()
            monkeypatch.setattr(tail, "REQUEST_TIMEOUT_S", SOON_S)
            eventually(lambda: answered(one.partition.reconcile), SOON_S, "Kafka answers again")
            assert one.partition.store is store, "it was not made anew"
            assert store.version_at("a", 2**60) == 1

    with cluster.producer() as producer:
        producer.send(Transaction("a", id="a").put("t", "k", {}))
    asyncio.run(decided())


def answered(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except Unavailable:
        return False
    return True


@contextmanager
def frozen(broker: RealBroker) -> Iterator[None]:
    """Kafka stands still, and its connections stay open, as in a long pause of its Java."""
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def test_a_checkpoint_that_no_owner_wrote_stops_a_partition_and_leaves_the_store(
    new_cluster: Callable[..., Cluster], broker: RealBroker
) -> None:
    """Of the checkpoints that are read together only the last is taken apart."""
    cluster = new_cluster(broker, partitions=1)
    topics = cluster.topics

    async def decided() -> None:
        async with owner(cluster) as one:
            await one.decide_all()
            store = one.partition.store
            before = store.next_outcome_offset, store.checkpoint
            writer = Producer(cluster.kafka)
            writer.produce(
                topics.outcomes, frame(cluster.codec().id_of(OUTCOMES), outcomes_body([], b"\x80")), partition=0
            )
            writer.flush()
            with pytest.raises(BrokenLog, match=rf"{topics.outcomes}\[0\] offset 2 can't be read"):
                tail.catch_up(one.partition._tail, cluster.kafka, topics, Ends(cluster.kafka))
            assert (store.next_outcome_offset, store.checkpoint) == before

    with cluster.producer() as producer:
        producer.send(Transaction("a").put("t", "k", {}))
    asyncio.run(decided())


def test_what_is_read_again_takes_no_checkpoint_back(new_cluster: Callable[..., Cluster], broker: RealBroker) -> None:
    """A follower that lets go of one partition reads the last records of the others again."""
    cluster = new_cluster(broker, partitions=1)

    async def decided() -> None:
        async with owner(cluster) as one:
            for number in range(2):
                with cluster.producer() as producer:
                    producer.send(Transaction("g").add("t", "k", {"n": number}))
                await one.decide_all()

    asyncio.run(decided())
    topic = cluster.topics.outcomes
    with closing(Store.open(cluster.data("copy"), partition=0, codec=cluster.codec())) as store:
        tail_ = tail.Tail(store, cluster.topics, cluster.codec())
        tail.catch_up(tail_, cluster.kafka, cluster.topics, Ends(cluster.kafka))
        newest, body = store.checkpoint, store.stored(layout.META, layout.CHECKPOINT_KEY)
        with closing(tail.reader(cluster.kafka)) as consumer:
            consumer.assign([TopicPartition(topic, 0, 0)])
            first = consumer.poll(SOON_S)
        assert first is not None
        assert first.offset() == 0
        tail_.fold([first])
        assert store.checkpoint == newest
        assert store.stored(layout.META, layout.CHECKPOINT_KEY) == body


def test_catching_up_goes_on_by_another_consumer_where_one_has_stalled(
    new_cluster: Callable[..., Cluster], broker: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster(broker, partitions=1)
    made: list[Consumer] = []
    first = deaf_first(made)

    def reader_to_end(kafka: dict[str, Any]) -> Consumer:
        return first({**kafka, "group.id": "first", "isolation.level": "read_committed", "enable.partition.eof": True})

    async def decided(name: str) -> int:
        async with owner(cluster, name) as one:
            await one.decide_all()
            return one.partition.store.next_commit_offset

    with cluster.producer() as producer:
        producer.send(Transaction("a").put("t", "k", {}))
    assert asyncio.run(decided("owner")) == 1
    monkeypatch.setattr(tail, "SILENCE_S", 2.0)
    monkeypatch.setattr(tail, "reader_to_end", reader_to_end)
    assert asyncio.run(decided("another")) == 1
    assert len(made) > 1
