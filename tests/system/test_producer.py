"""The producer on a real Kafka. The worker's part is played by a `Decider`, which commits whatever it is sent."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Producer as KafkaProducer

from tests.conftest import RealBroker
from tests.deaf import deaf_first
from tests.proxy import LIST_OFFSETS, Proxy
from tests.system.decider import REFUSED_TYPE, Decider
from versolog.schemas import codec
from versolog.schemas.errors import (
    Conflict,
    Invalid,
    Misconfigured,
    PreconditionFailed,
    TooLarge,
    TooMany,
    Unavailable,
    Undecided,
)
from versolog.schemas.topics import Topics, ensure_topics, partition_of
from versolog.streams import link, outcome_reader
from versolog.streams.producer import AsyncProducer, Producer
from versolog.streams.stalls import Stalls
from versolog.streams.transaction import Transaction

TRANSACTION = codec.schema("Transaction")
PARTITIONS = 4
WITHIN_S = 20.0
UNHURRIED = {"linger.ms": 60_000, "message.timeout.ms": 120_000}
"""Kafka's client sends nothing by itself for a minute, so that a queue can be seen full."""


@pytest.fixture
def topics(broker: RealBroker) -> Topics:
    return made_topics(broker)


@pytest.fixture
def decider(broker: RealBroker, topics: Topics) -> Iterator[Decider]:
    with Decider({"bootstrap.servers": broker.bootstrap}, topics, PARTITIONS).running() as decider:
        yield decider


def made_topics(broker: RealBroker) -> Topics:
    topics = Topics(f"test-{uuid.uuid4().hex[:12]}.")
    ensure_topics({"bootstrap.servers": broker.bootstrap}, topics, partitions=PARTITIONS)
    return topics


def put(group: str = "UA", **about: Any) -> Transaction:
    return Transaction(group, **about).put("flights", "k1", {"delay": 2})


def group_in(partition: int) -> str:
    """A group that belongs to `partition`."""
    return next(name for name in (f"g{n}" for n in itertools.count()) if partition_of(name, PARTITIONS) == partition)


def eventually(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        time.sleep(0.01)


def read_all(broker: RealBroker, topics: Topics) -> list[Message]:
    """The committed transactions of all partitions."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap, "group.id": "test", "enable.auto.commit": False,
            "isolation.level": "read_committed", "enable.partition.eof": True,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(topics.transactions, partition, 0) for partition in range(PARTITIONS)])
    messages: list[Message] = []
    ended: set[int | None] = set()
    deadline = time.monotonic() + WITHIN_S
    while len(ended) < PARTITIONS:
        assert time.monotonic() < deadline, "the topic could not be read to its end"
        for message in consumer.consume(1_000, 0.2):
            error = message.error()
            if error is None:
                messages.append(message)
            else:
                assert error.code() == KafkaError._PARTITION_EOF
                ended.add(message.partition())
    consumer.close()
    return messages


def record_in(message: Message) -> codec.Record:
    return codec.decode(TRANSACTION, codec.unframe(message.value())[1])


def ids_in(messages: list[Message]) -> list[str]:
    return [record_in(message)["id"] for message in messages]


# What is written


def test_a_transaction_is_a_record_that_any_kafka_client_can_read(broker: RealBroker, topics: Topics) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    tx = put("Zürich", author="ops", type="FlightDeparted", occurred_at=datetime(2013, 6, 1, 12, tzinfo=UTC))
    with Producer(broker.bootstrap, prefix=topics.prefix, source="departures") as p:
        accepted = p.send(tx, traceparent=trace).result()
    (message,) = read_all(broker, topics)
    assert (message.partition(), message.offset()) == accepted
    assert accepted.partition == partition_of("Zürich", PARTITIONS)
    assert message.key() == "Zürich".encode()
    assert record_in(message) == tx.record()
    assert dict(message.headers() or ()) == {
        "ce_specversion": b"1.0", "ce_id": tx.id.encode(), "ce_source": b"departures", "ce_type": b"FlightDeparted",
        "ce_time": b"2013-06-01T12:00:00.000000Z", "traceparent": trace.encode(),
    }  # fmt: skip


def test_librdkafkas_own_partitioner_agrees(broker: RealBroker, topics: Topics) -> None:
    placed: dict[str, int | None] = {}
    kafka = KafkaProducer({"log_level": 0, "bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"})

    def delivered(error: KafkaError | None, message: Message) -> None:
        placed[str(message.key(), "utf-8")] = message.partition()  # type: ignore[arg-type]

    for group in (*(f"group-{n}" for n in range(50)), "Zürich", "a", "日本", "x" * 256):
        kafka.produce(topics.votes, key=group.encode(), on_delivery=delivered)
    kafka.flush(WITHIN_S)
    assert len(placed) == 54
    assert placed == {group: partition_of(group, PARTITIONS) for group in placed}


def test_what_is_sent_for_a_group_stands_in_the_order_it_was_sent(broker: RealBroker, topics: Topics) -> None:
    txs = [put(f"g{n % 7}") for n in range(5_000)]
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        places = [sent.result() for sent in p.send_many(txs)]
    assert len(set(places)) == len(places)
    for group in {tx.home for tx in txs}:
        offsets = [place.offset for tx, place in zip(txs, places, strict=True) if tx.home == group]
        assert offsets == sorted(offsets)


def test_many_threads_may_send_at_once(broker: RealBroker, topics: Topics) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p, ThreadPoolExecutor(8) as threads:
        rounds = threads.map(lambda n: [p.send(put(f"g{n}", id=f"{n}-{m}")) for m in range(200)], range(8))
        sents = [sent for round_ in rounds for sent in round_]
        assert len({sent.result() for sent in sents}) == 1_600
    assert sorted(ids_in(read_all(broker, topics))) == sorted(sent.id for sent in sents)


# Outcomes


def test_a_committed_transaction_has_an_outcome(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        sent = p.send(put())
        outcome = sent.outcome()
        assert (outcome.committed, outcome.transaction_id, outcome.version) == (True, sent.id, 1)
        assert outcome.transaction_offset == sent.result().offset
        assert p.send(put()).outcome().version == 2


def test_a_refusal_is_an_outcome_and_an_error_when_asked(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        outcome = p.send(put(type=REFUSED_TYPE)).outcome()
    assert not outcome.committed
    with pytest.raises(PreconditionFailed) as refused:
        outcome.raise_for_refusal()
    assert (refused.value.facts["expected"], refused.value.facts["found"]) == (3, 4)


def test_one_transaction_sent_a_hundred_times_has_one_outcome(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    tx = put()
    with (
        Producer(broker.bootstrap, prefix=topics.prefix) as one,
        Producer(broker.bootstrap, prefix=topics.prefix) as two,
    ):
        with ThreadPoolExecutor(10) as threads:
            outcomes = list(threads.map(lambda n: (one, two)[n % 2].send(tx).outcome(), range(100)))
        assert len({outcome.token for outcome in outcomes}) == 1
        assert one.send(put()).outcome().version == 2


def test_a_retry_by_a_later_producer_gets_the_first_outcome(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    tx = put()
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        first = p.send(tx).outcome()
        p.send(put()).outcome()
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        assert p.send(Transaction.from_json(tx.to_json())).outcome() == first


def test_the_same_id_with_other_content_has_an_outcome_of_its_own(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        one, other = p.send(put(id="t")), p.send(put(id="t", author="somebody else"))
        assert one.outcome().committed
        with pytest.raises(Conflict):
            other.outcome().raise_for_refusal()


def test_a_transaction_over_groups_of_one_partition_is_sent_there(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    names = [name for name in (f"g{n}" for n in range(100)) if partition_of(name, PARTITIONS) == 2][:3]
    tx = Transaction(None)
    for name in reversed(names):
        tx.group(name).put("t", "k", {})
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        sent = p.send(tx)
        assert sent.partition == 2
        assert [part.group for part in sent.outcome().parts] == sorted(names)


def test_a_transaction_over_partitions_goes_into_the_sequence(broker: RealBroker, topics: Topics) -> None:
    tx = put(group_in(0))
    tx.group(group_in(1)).put("t", "k", {})
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        record = p.record(tx)
        sent = p.send(tx)
        assert (record.topic, record.partition) == (topics.sequence, 0)
        assert sent.result() == (0, 0)
        assert sent.partition == partition_of(tx.home, PARTITIONS)
    assert read_all(broker, topics) == []


def test_what_is_not_decided_in_time_is_undecided_and_can_be_waited_for_again(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    decider.may_decide.clear()
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        sent = p.send(put())
        sent.result()
        with pytest.raises(Undecided, match="is a worker running") as undecided:
            sent.outcome(timeout_s=0.2)
        assert (undecided.value.facts["partition"], undecided.value.facts["offset"]) == sent.result()
        assert sent.done()
        assert not sent.decided()
        decider.may_decide.set()
        assert sent.outcome().committed


def test_who_sent_first_may_ask_last(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    """The later one is read for from the topic's later end; the earlier outcome stands before that."""
    group = group_in(3)
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        early = p.send(put(group))
        early.result()
        eventually(lambda: _end(broker, topics.outcomes, 3) > 0, "the early one is decided")
        p._reader.refresh_floors_soon()
        eventually(lambda: p._reader.floors[3] > 0, "the floor is raised")
        assert p.send(put(group)).outcome().version == 2
        assert not early.decided()
        assert early.outcome().version == 1


def test_outcomes_are_read_by_another_consumer_where_one_has_stalled(
    broker: RealBroker, topics: Topics, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Consumer] = []
    monkeypatch.setattr(outcome_reader, "Consumer", deaf_first(made))
    monkeypatch.setattr(outcome_reader, "Stalls", partial(Stalls, 0.2))
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        assert p.send(put()).outcome(timeout_s=WITHIN_S).committed
    assert len(made) > 1


def test_outcomes_come_in_the_order_asked(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        sents = p.send_many(put(f"g{n % 7}") for n in range(2_000))
        outcomes = p.outcomes(reversed(sents), timeout_s=WITHIN_S)
    assert [outcome.transaction_id for outcome in outcomes] == [sent.id for sent in reversed(sents)]


def test_outcomes_that_nobody_waits_for_are_forgotten(
    broker: RealBroker, topics: Topics, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome_reader, "DEAD_MAX", 100)
    monkeypatch.setattr(outcome_reader, "IDLE_S", 0.05)
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        held = p.send(put())
        for _ in range(30):
            for _ in range(100):
                p.send(put())
            p.flush()
        assert len(p._reader._expected) <= 300
        assert held.outcome(timeout_s=WITHIN_S).version == 1
        eventually(lambda: not p._reader._followed, "nothing is read while nobody waits")
        assert p.send(put()).outcome(timeout_s=WITHIN_S).committed


# Back-pressure and failure


def test_a_full_queue_blocks_for_a_time_and_is_too_many_then(broker: RealBroker, topics: Topics) -> None:
    settings = {**UNHURRIED, "queue.buffering.max.messages": 10}
    with Producer(broker.bootstrap, prefix=topics.prefix, settings=settings, send_timeout_s=0.3) as p:
        sents = [p.send(put()) for _ in range(10)]
        began = time.monotonic()
        with pytest.raises(TooMany) as refused:
            p.send(put())
        assert 0.3 <= time.monotonic() - began < 5
        assert refused.value.facts["waiting"] == 10
        p.flush()
        assert [sent.done() for sent in sents] == [True] * 10
        assert p.send(put()).partition == sents[0].partition


def test_a_full_queue_lets_the_sender_go_on_once_there_is_room(broker: RealBroker, topics: Topics) -> None:
    settings = {**UNHURRIED, "queue.buffering.max.messages": 10}
    with Producer(broker.bootstrap, prefix=topics.prefix, settings=settings) as p:
        for _ in range(10):
            p.send(put())
        with ThreadPoolExecutor(1) as other:
            eleventh = other.submit(p.send, put())
            p.flush()
            sent = eleventh.result(WITHIN_S)
        p.flush()
        assert sent.done()


def test_a_broker_that_restarts_loses_and_doubles_nothing(own_broker: RealBroker) -> None:
    topics = made_topics(own_broker)
    with Producer(own_broker.bootstrap, prefix=topics.prefix) as p:
        sents = p.send_many(put(f"g{n % 7}", id=f"a{n}") for n in range(2_000))
        sents[0].result()
        own_broker.kill()
        sents += p.send_many(put(f"g{n % 7}", id=f"b{n}") for n in range(2_000))
        own_broker.start()
        places = [sent.result(60) for sent in sents]
    assert len(set(places)) == 4_000
    assert sorted(ids_in(read_all(own_broker, topics))) == sorted(sent.id for sent in sents)


def test_a_delivery_that_fails_is_told_once_and_can_be_repeated(
    own_broker: RealBroker, caplog: pytest.LogCaptureFixture
) -> None:
    topics = made_topics(own_broker)
    settings = {"message.timeout.ms": 3_000}
    p = Producer(own_broker.bootstrap, prefix=topics.prefix, settings=settings)
    undecided = p.send(put())
    undecided.result()
    own_broker.kill()
    with pytest.raises(Undecided):
        undecided.outcome(2)
    complaints = [record for record in caplog.records if "reading topic" in record.getMessage()]
    assert [record.levelname for record in complaints] == ["WARNING"], "one, and not one for each try to connect"
    asked, unasked, other = (p.send(put(id=name)) for name in ("asked", "unasked", "other"))
    for wait in (asked.result, asked.outcome):
        with pytest.raises(Unavailable, match="sending the same again is safe"):
            wait()
    eventually(lambda: unasked.done() and other.done(), "they fail too")
    with pytest.raises(Unavailable, match="2 transactions were not accepted") as failed:
        p.flush()
    assert failed.value.facts["ids"] == ["unasked", "other"]
    p.flush()
    own_broker.start()
    with Decider({"bootstrap.servers": own_broker.bootstrap}, topics, PARTITIONS).running():
        again = [p.send(put(id=name)) for name in ("asked", "unasked", "other")]
        assert len({outcome.version for outcome in p.outcomes(again, timeout_s=WITHIN_S)}) == 3
        assert other.outcome().version == again[2].outcome().version, "a decision counts more than a failed delivery"
    p.close()


def test_a_producer_can_be_let_go_of_while_kafka_owes_it_an_answer(broker: RealBroker, topics: Topics) -> None:
    """If who takes the answer were the last to hold Kafka's client, it would end on its own thread: that aborts."""
    with Proxy(broker.bootstrap).running() as proxy:
        p = Producer(proxy.bootstrap, prefix=topics.prefix)
        proxy.judge = lambda request: "lose" if request == LIST_OFFSETS else "pass"
        p._reader.refresh_floors_soon()
        p.close()
        reader = weakref.ref(p._reader)
        del p
        gc.collect()
        assert reader() is None


def test_what_could_not_be_sent_by_the_end_is_an_error_and_does_not_hide_another(own_broker: RealBroker) -> None:
    topics = made_topics(own_broker)
    p = Producer(own_broker.bootstrap, prefix=topics.prefix)
    own_broker.kill()
    sent = p.send(put())
    with pytest.raises(Unavailable, match="1 transactions were not accepted by Kafka"):
        p.close(timeout_s=0.2)
    assert isinstance(sent.error, Unavailable)
    own_broker.start()
    with pytest.raises(ZeroDivisionError), Producer(own_broker.bootstrap, prefix=topics.prefix) as p:
        raise ZeroDivisionError


def test_a_broken_client_is_replaced(
    broker: RealBroker, topics: Topics, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BreaksOnce(KafkaProducer):
        broken = False

        def produce(self, *args: Any, **kwargs: Any) -> None:
            if not BreaksOnce.broken:
                BreaksOnce.broken = True
                raise KafkaException(KafkaError(KafkaError._FATAL, "sequence numbers lost", fatal=True))
            super().produce(*args, **kwargs)

    monkeypatch.setattr(link, "Producer", BreaksOnce)
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        before = p._link._kafka
        assert p.send(put()).outcome().committed
        assert p._link._kafka is not before


def test_a_closed_producer_takes_nothing(broker: RealBroker, topics: Topics) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        sent = p.send(put())
    p.close()
    assert sent.done()
    with pytest.raises(Unavailable, match="closed"):
        p.send(put())
    with pytest.raises(Unavailable, match="closed"):
        sent.outcome()


def test_missing_topics_are_named_with_what_to_do(broker: RealBroker) -> None:
    with pytest.raises(Misconfigured, match=r"nowhere\.transactions.*versolog up.*versolog topics create"):
        Producer(broker.bootstrap, prefix="nowhere.")


def test_a_broker_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("versolog.schemas.topics.REQUEST_TIMEOUT_S", 1.0)
    with pytest.raises(Unavailable, match="no Kafka broker answers"):
        Producer("127.0.0.1:1")


@pytest.mark.parametrize("settings", [{"acks": 1}, {"acks": "0"}, {"enable.idempotence": False}])
def test_settings_that_could_lose_transactions_are_refused(
    broker: RealBroker, topics: Topics, settings: dict[str, Any]
) -> None:
    with pytest.raises(Misconfigured, match="would lose acknowledged transactions"):
        Producer(broker.bootstrap, prefix=topics.prefix, settings=settings)


def test_a_setting_that_kafka_does_not_know_is_named(broker: RealBroker, topics: Topics) -> None:
    with pytest.raises(Misconfigured, match="linger"):
        Producer(broker.bootstrap, prefix=topics.prefix, settings={"linger.mss": 1})


def test_mistakes_are_refused_before_anything_is_sent(broker: RealBroker, topics: Topics) -> None:
    big = Transaction("UA")
    for n in range(3):
        big.put("t", str(n), {"a": "x" * 400_000})
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        with pytest.raises(TooLarge):
            p.send(big)
        with pytest.raises(Invalid, match="traceparent"):
            p.send(put(), traceparent="nonsense")
        with pytest.raises(Invalid):
            p.send(Transaction("UA"))
    assert read_all(broker, topics) == []


def test_the_largest_transaction_fits(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    tx = Transaction("g" * 256, id="i" * 128, type="t" * 256).put("t", "k1", {"a": "x" * 500_000})
    filled = 1_000_000 - len(tx.intent()) - 40
    tx.put("t", "k2", {"a": uuid.uuid4().hex * (filled // 32)})
    assert 999_900 < len(tx.intent()) <= 1_000_000
    with Producer(broker.bootstrap, prefix=topics.prefix, settings={"compression.type": "none"}) as p:
        assert p.send(tx).outcome().committed


# Kafka transactions


def test_a_kafka_transaction_is_seen_whole_or_not_at_all(broker: RealBroker, topics: Topics) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=uuid.uuid4().hex) as p:
        with p.transaction():
            sents = [p.send(put(f"g{n}", id=f"whole-{n}")) for n in range(10)]
            p._link.flush(WITHIN_S)
            assert not any(sent.done() for sent in sents), "nobody can read it yet"
        assert len({sent.result() for sent in sents}) == 10
        with suppress(ZeroDivisionError), p.transaction():
            lost = p.send(put(id="lost"))
            raise ZeroDivisionError
        with pytest.raises(Conflict, match="aborted"):
            lost.result()
        with p.transaction():
            p.send(put(id="after"))
    assert sorted(ids_in(read_all(broker, topics))) == sorted([*(f"whole-{n}" for n in range(10)), "after"])


def test_outcomes_come_after_the_kafka_transaction(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=uuid.uuid4().hex) as p:
        with p.transaction():
            sent = p.send(put())
            with pytest.raises(Unavailable):
                sent.outcome(timeout_s=0.1)
        assert sent.outcome().committed


def test_one_kafka_transaction_at_a_time(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    """A second one would abort the first, whose sender would hear that it was accepted."""
    with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=uuid.uuid4().hex) as p:
        with p.transaction():
            sent = p.send(put())
            for _ in range(2):
                with pytest.raises(Misconfigured, match="open already"), p.transaction():
                    pass
        assert sent.outcome().committed
        with p.transaction():
            again = p.send(put())
        assert again.outcome().committed


def test_a_start_that_was_given_up_leaves_nothing_behind(broker: RealBroker, topics: Topics) -> None:
    made: list[Producer] = []

    def slowly() -> Producer:
        time.sleep(0.5)
        made.append(Producer(broker.bootstrap, prefix=topics.prefix))
        return made[-1]

    async def run() -> None:
        one = AsyncProducer(broker.bootstrap, prefix=topics.prefix)
        one._make = slowly  # type: ignore[assignment]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.start(), 0.1)
        while not made:  # noqa: ASYNC110 - a thread has nothing that could be awaited
            await asyncio.sleep(0.05)
        await asyncio.to_thread(eventually, made[0]._closed.is_set, "what was made for nobody is closed")
        await asyncio.gather(one.start(), one.start())
        assert len(made) == 2, "started twice at once, it is one"
        await asyncio.to_thread(made[1].close)

    asyncio.run(run())


def test_with_a_transactional_id_all_is_sent_inside_and_without_nothing(broker: RealBroker, topics: Topics) -> None:
    name = uuid.uuid4().hex
    with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=name) as p, pytest.raises(Misconfigured):
        p.send(put())
    with Producer(broker.bootstrap, prefix=topics.prefix) as p, pytest.raises(Misconfigured), p.transaction():
        raise AssertionError("a Kafka transaction was begun")


def test_a_producer_that_was_fenced_says_so_and_does_not_fence_back(broker: RealBroker, topics: Topics) -> None:
    name = uuid.uuid4().hex
    with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=name) as one:
        with one.transaction():
            one.send(put(id="one"))
        with Producer(broker.bootstrap, prefix=topics.prefix, transactional_id=name) as two:
            with pytest.raises(Misconfigured, match="same transactional_id"), one.transaction():
                one.send(put(id="fenced"))
            with two.transaction():
                two.send(put(id="two"))
    assert ids_in(read_all(broker, topics)) == ["one", "two"]


def test_a_service_may_write_inside_a_kafka_transaction_of_its_own(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    tx = put()
    kafka = KafkaProducer({"log_level": 0, "bootstrap.servers": broker.bootstrap, "transactional.id": uuid.uuid4().hex})
    kafka.init_transactions(WITHIN_S)
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        kafka.begin_transaction()
        kafka.produce(**p.record(tx)._asdict())
        kafka.commit_transaction(WITHIN_S)
        assert p.send(tx).outcome().version == 1
        assert p.send(put()).outcome().version == 2


# asyncio


def test_asyncio_gets_the_same(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    async def run() -> None:
        async with AsyncProducer(broker.bootstrap, prefix=topics.prefix) as p:
            sent = await p.send(put())
            assert (await sent.outcome()).version == 1
            assert (await sent.result()).offset == 0
            assert (sent.done(), sent.decided()) == (True, True)
            sents = await p.send_many(put(f"g{n % 5}") for n in range(500))
            outcomes = await asyncio.gather(*(one.outcome(WITHIN_S) for one in sents))
            assert [outcome.transaction_id for outcome in outcomes] == [one.id for one in sents]
            refused = await (await p.send(put(type=REFUSED_TYPE))).outcome()
            assert not refused.committed
            await p.flush()

    asyncio.run(run())


def test_asyncio_is_undecided_in_time_and_can_be_cancelled(
    broker: RealBroker, topics: Topics, decider: Decider
) -> None:
    async def run() -> None:
        decider.may_decide.clear()
        async with AsyncProducer(broker.bootstrap, prefix=topics.prefix) as p:
            sent = await p.send(put())
            await sent.result()
            with pytest.raises(Undecided):
                await sent.outcome(timeout_s=0.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sent.outcome(), 0.1)
            waiting = asyncio.create_task(sent.outcome(WITHIN_S))
            decider.may_decide.set()
            assert (await waiting).committed
            assert not sent._sent._decision._calls

    asyncio.run(run())


def test_asyncio_goes_on_while_a_sender_waits_for_room(broker: RealBroker, topics: Topics) -> None:
    settings = {**UNHURRIED, "queue.buffering.max.messages": 10}

    async def run() -> None:
        async with AsyncProducer(broker.bootstrap, prefix=topics.prefix, settings=settings, send_timeout_s=0.3) as p:
            await p.send_many(put() for _ in range(10))
            turns = 0
            eleventh = asyncio.create_task(p.send(put()))
            while not eleventh.done():
                turns += 1
                await asyncio.sleep(0)
            with pytest.raises(TooMany):
                await eleventh
            assert turns > 100
            await p.flush()

    asyncio.run(run())


def test_asyncio_goes_on_while_a_coroutine_sends_many(broker: RealBroker, topics: Topics) -> None:
    async def run() -> None:
        async with AsyncProducer(broker.bootstrap, prefix=topics.prefix) as p:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(p.send_many(put() for _ in range(5_000)))
                turns = 0
                while not sending.done():
                    turns += 1
                    await asyncio.sleep(0)
            assert len(sending.result()) == 5_000
            assert turns > 50

    asyncio.run(run())


def test_an_async_producer_is_started_before_it_sends(broker: RealBroker, topics: Topics) -> None:
    async def run() -> None:
        p = AsyncProducer(broker.bootstrap, prefix=topics.prefix)
        with pytest.raises(Misconfigured, match="async with"):
            await p.send(put())
        await p.close()
        await p.start()
        assert (await (await p.send(put())).result()).offset == 0
        await p.close()

    asyncio.run(run())


def test_no_thread_is_left_behind(broker: RealBroker, topics: Topics, decider: Decider) -> None:
    before = set(threading.enumerate())
    with Producer(broker.bootstrap, prefix=topics.prefix) as p:
        p.send(put()).outcome()
        assert set(threading.enumerate()) > before
    assert set(threading.enumerate()) == before


def _end(broker: RealBroker, topic: str, partition: int) -> int:
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap, "group.id": "test", "isolation.level": "read_committed"}
    )
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=WITHIN_S)
    finally:
        consumer.close()
    return end
