"""The Faust runtime on a real broker: workers that start, stop, die, are frozen and lose the broker."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from versolog.broker import Broker
from versolog.streams.ownership import owners
from versolog.testing import embedded_broker

RECORDER = Path(__file__).with_name("recorder.py")
TAKE_OVER_S = 15.0
SHORT_SESSION = {"session_timeout_s": 6.0}
"""The shortest that a broker allows, where the test is not about the usual one."""
ENDLESS_SESSION = {"session_timeout_s": 300.0}
"""Longer than anyone here waits for anything."""


def eventually(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """The first true answer of `condition`, asked again and again for at most `within_s`."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return answer


@dataclass
class Worker:
    name: str
    directory: Path
    process: subprocess.Popen[bytes]

    def events(self, what: str, since: float = 0.0) -> list[int]:
        """The partitions that `what` happened to, in order."""
        path = self.directory / f"{self.name}.events"
        lines = path.read_text().splitlines() if path.exists() else []
        events = [json.loads(line) for line in lines]
        return [event["partition"] for event in events if event["what"] == what and event["at"] >= since]

    @property
    def url(self) -> str:
        return (self.directory / f"{self.name}.url").read_text()

    def status(self) -> dict[str, Any]:
        try:
            status: dict[str, Any] = httpx.get(self.url, timeout=2).json()
        except (httpx.HTTPError, FileNotFoundError):
            return {"states": {}, "errors": {}, "outage": "no answer"}
        return status

    def running(self) -> set[int]:
        return {int(p) for p, state in self.status()["states"].items() if state == "Running"}

    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()

    def stop(self, within_s: float = 10.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


@dataclass
class Lab:
    """One topic, one group, and workers that write ledgers."""

    broker: Broker
    directory: Path
    partitions: int
    topic: str = field(default_factory=lambda: f"transactions-{uuid.uuid4().hex[:8]}")
    workers: list[Worker] = field(default_factory=list)
    sent: dict[int, list[str]] = field(default_factory=dict)

    @property
    def app_id(self) -> str:
        return f"group-of-{self.topic}"

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.broker.bootstrap})

    def create_topic(self) -> None:
        self.admin.create_topics([NewTopic(self.topic, self.partitions, 1)])[self.topic].result(30)

    def start(self, name: str, **membership: float) -> Worker:
        settings = {
            "name": name,
            "directory": str(self.directory),
            "app_id": self.app_id,
            "bootstrap": self.broker.bootstrap,
            "topic": self.topic,
            "membership": membership,
        }
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, str(RECORDER), json.dumps(settings)], stderr=log)
        self.workers.append(Worker(name, self.directory, process))
        return self.workers[-1]

    def order(self, **orders: dict[int, Any]) -> None:
        path = self.directory / "orders.new"
        path.write_text(json.dumps(orders))
        path.rename(self.directory / "orders.json")

    def producer(self, **settings: Any) -> Producer:
        return Producer(
            {"bootstrap.servers": self.broker.bootstrap, "enable.idempotence": True, "linger.ms": 5, **settings}
        )

    def send(self, count: int) -> None:
        """`count` records to each partition, acknowledged when this returns."""
        producer = self.producer()
        for _ in range(count):
            for partition in range(self.partitions):
                values = self.sent.setdefault(partition, [])
                values.append(str(len(values)))
                producer.produce(self.topic, partition=partition, value=values[-1])
        assert producer.flush(30) == 0

    def taken(self, partition: int) -> list[str]:
        ledger = self.directory / f"{partition}.ledger"
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [value for line in lines for _, value in json.loads(line)["records"]]

    def all_taken(self) -> bool:
        return all(len(self.taken(p)) >= len(self.sent[p]) for p in range(self.partitions))

    def check_taken(self, within_s: float = TAKE_OVER_S) -> None:
        """Every record that was sent is in the ledgers, once and in order."""
        eventually(self.all_taken, within_s, "all that was sent is taken in")
        assert {p: self.taken(p) for p in range(self.partitions)} == self.sent

    def check_running(self, *workers: Worker, within_s: float = TAKE_OVER_S) -> None:
        """The workers have all partitions between them, and each has at least one."""

        def shared_out() -> bool:
            running = [worker.running() for worker in workers]
            return all(running) and sorted(p for own in running for p in own) == list(range(self.partitions))

        eventually(shared_out, within_s, f"{[worker.name for worker in workers]} run all partitions")

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGCONT)
                worker.process.kill()
                worker.process.wait()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with embedded_broker() as running:
        yield running


@contextmanager
def laboratory(broker: Broker, directory: Path, partitions: int) -> Iterator[Lab]:
    lab = Lab(broker, directory, partitions)
    lab.create_topic()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def lab(broker: Broker, tmp_path: Path) -> Iterator[Lab]:
    with laboratory(broker, tmp_path, 4) as four_partitions:
        yield four_partitions


def test_a_second_worker_takes_half_and_the_rest_goes_on_untouched(lab: Lab) -> None:
    lab.send(100)
    first = lab.start("first")
    lab.check_running(first)
    began = time.time()
    second = lab.start("second")
    eventually(lambda: len(second.running()) == 2, TAKE_OVER_S, "the second worker runs two partitions")
    lab.send(100)
    lab.check_taken()
    moved = set(second.events("assigned"))
    assert set(first.events("revoked")) == moved
    assert (set(first.status()["kept"]), set(second.status()["kept"])) == ({0, 1, 2, 3} - moved, moved)
    assert first.events("assigned", since=began) == []
    assert asyncio.run(owners({"bootstrap.servers": lab.broker.bootstrap}, lab.app_id, lab.topic)) == {
        partition: (second if partition in moved else first).url for partition in range(4)
    }


def test_a_worker_that_stops_leaves_at_once_and_the_other_takes_over(lab: Lab) -> None:
    first, second = lab.start("first"), lab.start("second")
    lab.check_running(first, second)
    lab.send(100)
    owned, asked = second.running(), time.time()
    began = time.monotonic()
    assert second.stop() == 0
    assert time.monotonic() - began < 3
    assert set(second.events("revoked", since=asked)) == owned
    lab.send(100)
    lab.check_running(first, within_s=4)
    lab.check_taken()


def test_a_worker_that_is_killed_is_replaced_within_15_s(lab: Lab) -> None:
    first, second = lab.start("first"), lab.start("second")
    lab.check_running(first, second)
    lab.send(100)
    kept, began = first.running(), time.time()
    second.process.kill()
    lab.send(100)
    lab.check_taken(within_s=TAKE_OVER_S)
    lab.check_running(first)
    assert set(first.events("assigned", since=began)) == {0, 1, 2, 3} - kept, "what stays is not started again"


@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside another"])
def test_who_starts_where_a_worker_was_killed_does_not_wait_for_the_end_of_its_session(lab: Lab, beside: int) -> None:
    others = [lab.start("other", **ENDLESS_SESSION) for _ in range(beside)]
    killed = lab.start("killed", **ENDLESS_SESSION)
    for _ in range(3):
        lab.check_running(killed, *others)
        killed.process.kill()
        killed.process.wait()
        lab.send(10)
        killed = lab.start("killed", **ENDLESS_SESSION)
    lab.check_running(killed, *others)
    lab.check_taken()


def test_a_frozen_worker_comes_back_without_taking_anything_twice(lab: Lab) -> None:
    first, second = lab.start("first", **SHORT_SESSION), lab.start("second", **SHORT_SESSION)
    lab.check_running(first, second)
    lab.send(50)
    lab.check_taken()
    second.process.send_signal(signal.SIGSTOP)
    lab.send(50)
    lab.check_taken()
    second.process.send_signal(signal.SIGCONT)
    lab.check_running(first, second)
    lab.send(50)
    lab.check_taken()


def test_only_committed_records_arrive_and_each_once_while_workers_come_and_go(lab: Lab) -> None:
    lab.sent = {partition: [] for partition in range(4)}
    producer = lab.producer(**{"transactional.id": lab.topic})
    producer.init_transactions(30)
    workers = [lab.start("w0")]
    lab.check_running(workers[0])
    for transaction in range(120):
        producer.begin_transaction()
        values = {partition: f"{transaction}-{partition}" for partition in range(4)}
        for partition, value in values.items():
            producer.produce(lab.topic, partition=partition, value=value)
        producer.flush(30)
        if transaction % 3 == 0:
            producer.abort_transaction(30)
            continue
        producer.commit_transaction(30)
        for partition, value in values.items():
            lab.sent[partition].append(value)
        if transaction % 40 == 1:
            workers.append(lab.start(f"w{len(workers)}"))
            lab.check_running(*workers)
    for worker in workers[:-1]:
        assert worker.stop() == 0
    lab.check_taken()
    lab.check_running(workers[-1])


def test_a_slow_partition_holds_only_itself_back(lab: Lab) -> None:
    lab.order(slow={2: 0.2})
    worker = lab.start("worker")
    lab.check_running(worker)
    for _ in range(10):
        lab.send(500)
    eventually(
        lambda: all(len(lab.taken(p)) == 5_000 for p in (0, 1, 3)), 5, "the quick partitions have taken everything"
    )
    assert len(lab.taken(2)) < 5_000
    lab.order()
    lab.check_taken()


def test_a_partition_that_fails_starts_again_where_it_was_and_leaves_the_others_alone(lab: Lab) -> None:
    worker = lab.start("worker")
    lab.check_running(worker)
    lab.send(50)
    lab.check_taken()
    lab.order(fail={1: True})
    lab.send(50)
    eventually(lambda: worker.status()["states"].get("1") == "Stopped", 5, "the partition is stopped")
    assert "ordered to fail" in worker.status()["errors"]["1"]
    eventually(lambda: all(len(lab.taken(p)) == 100 for p in (0, 2, 3)), 5, "the others have taken everything")
    lab.order()
    lab.check_taken()
    assert worker.events("assigned").count(1) >= 2
    assert all(worker.events("assigned").count(p) == 1 for p in (0, 2, 3))


def test_a_long_recovery_keeps_no_other_partition_and_no_heartbeat_waiting(lab: Lab) -> None:
    lab.order(hang_assigned={0: True})
    first = lab.start("first", **SHORT_SESSION)
    eventually(lambda: first.running() == {1, 2, 3}, TAKE_OVER_S, "three partitions run")
    assert first.status()["states"]["0"] == "Recovering"
    lab.send(50)
    eventually(lambda: all(len(lab.taken(p)) == 50 for p in (1, 2, 3)), 5, "the others have taken everything")
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 7, 8, "longer than a session time-out")
    assert first.status()["outage"] is None
    assert set(asyncio.run(owners({"bootstrap.servers": lab.broker.bootstrap}, lab.app_id, lab.topic))) == {0, 1, 2, 3}
    lab.order()
    lab.check_taken(within_s=5)
    assert first.events("assigned").count(0) == 1


def test_a_worker_whose_event_loop_blocks_leaves_the_group_and_comes_back(lab: Lab) -> None:
    first = lab.start("first", poll_interval_max_s=4)
    lab.check_running(first)
    lab.order(block_first={0: 10})
    lab.send(10)
    second = lab.start("second", poll_interval_max_s=4)
    lab.check_running(second)
    lab.order()
    lab.check_taken()
    lab.check_running(first, second)
    lab.send(10)
    lab.check_taken()


def test_a_partition_whose_next_record_was_deleted_stops_and_says_so(lab: Lab) -> None:
    worker = lab.start("worker")
    lab.check_running(worker)
    lab.order(slow={0: 1.0})
    lab.send(10)
    assert worker.stop() == 0
    lab.order()
    lab.send(50)
    lab.admin.delete_records([TopicPartition(lab.topic, 0, 30)])[TopicPartition(lab.topic, 0)].result(30)
    worker = lab.start("again")
    eventually(lambda: "BrokenLog" in (worker.status()["errors"].get("0") or ""), TAKE_OVER_S, "partition 0 stops")
    lab.send(10)
    eventually(lambda: all(len(lab.taken(p)) == 70 for p in (1, 2, 3)), 5, "the others have taken everything")


def test_the_groups_offsets_follow_what_was_taken_in(lab: Lab) -> None:
    worker = lab.start("worker")
    lab.check_running(worker)
    lab.send(25)
    lab.check_taken()
    everything = {(lab.topic, partition): 25 for partition in range(4)}

    def committed() -> dict[tuple[str, int], int]:
        asked = ConsumerGroupTopicPartitions(lab.app_id)
        answer = lab.admin.list_consumer_group_offsets([asked])[lab.app_id].result(10)
        return {(offset.topic, offset.partition): offset.offset for offset in answer.topic_partitions}

    eventually(lambda: committed() == everything, 10, "the offsets of all partitions are committed")


def test_http_answers_before_the_log_is_there_and_shows_nothing_of_fausts(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "kafka").start()
    lab = Lab(broker, tmp_path, partitions=2)
    broker.stop()
    try:
        worker = lab.start("worker")
        eventually(lambda: "KafkaConnectionError" in (worker.status()["outage"] or ""), 15, "the outage is shown")
        for path in ("/", "/stats/", "/tables/", "/router/"):
            assert set(httpx.get(worker.url + path, timeout=2).json()) == {"outage", "states", "errors", "kept"}
        broker.start()
        eventually(lambda: worker.status()["outage"] is None, 30, "the worker joins when the broker is there")
        lab.create_topic()
        lab.check_running(worker, within_s=20)
        lab.send(10)
        lab.check_taken()
        assert worker.stop() == 0
    finally:
        lab.close()
        broker.stop()


def test_the_work_goes_on_by_itself_after_a_broker_outage_longer_than_the_session(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "kafka") as broker, laboratory(broker, tmp_path, 4) as lab:
        first, second = lab.start("first"), lab.start("second")
        lab.check_running(first, second)
        lab.send(100)
        lab.check_taken()
        broker.kill()
        down = time.monotonic()
        eventually(lambda: first.status()["outage"] == "no broker answers", 5, "the outage is noticed")
        eventually(lambda: time.monotonic() - down > 20, 21, "20 s without a broker")
        assert first.log().count("Unable connect to node") < 10, "the log stays readable"
        broker.start()
        lab.send(100)
        lab.check_taken(within_s=30)
        lab.check_running(first, second)
        assert first.status()["outage"] is second.status()["outage"] is None
        assert first.stop() == 0
        assert second.stop() == 0


def test_a_worker_stops_in_time_without_a_broker(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "kafka") as broker, laboratory(broker, tmp_path, 4) as lab:
        worker = lab.start("worker")
        lab.check_running(worker)
        lab.send(10)
        broker.kill()
        assert worker.stop(within_s=10) == 0


def test_a_stop_in_the_midst_of_a_rebalance_leaves_at_once(lab: Lab) -> None:
    first, second = lab.start("first", **SHORT_SESSION), lab.start("second", **SHORT_SESSION)
    lab.check_running(first, second)
    joins = first.log().count("(Re-)joining")
    second.process.send_signal(signal.SIGSTOP)
    third = lab.start("third", **SHORT_SESSION)
    eventually(lambda: first.log().count("(Re-)joining") > joins, 5, "a rebalance waits for the frozen worker")
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began < 4
    lab.send(10)
    lab.check_running(third)
    lab.check_taken()


@pytest.mark.parametrize("order", ["hang_revoked", "hang_assigned"])
def test_a_call_that_hangs_does_not_hang_the_stop(lab: Lab, order: str) -> None:
    worker = lab.start("worker")
    lab.order(**{order: {0: True}})
    eventually(lambda: len(worker.running()) >= 3, TAKE_OVER_S, "three partitions run")
    assert worker.stop(within_s=10) == 0
    assert set(worker.events("revoked")) == {0, 1, 2, 3}


def test_a_blocked_event_loop_is_ended_by_force_and_says_where(lab: Lab) -> None:
    lab.order(block_revoked={0: 3600})
    worker = lab.start("worker")
    lab.check_running(worker)
    assert worker.stop(within_s=10) == 70
    assert "did not stop in" in worker.log()
    assert "in revoked" in worker.log()


def test_the_last_stable_offset_is_not_overtaken(lab: Lab) -> None:
    worker = lab.start("worker")
    lab.check_running(worker)
    producer = lab.producer(**{"transactional.id": lab.topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(lab.topic, partition=0, value="open")
    producer.flush(30)
    lab.send(5)
    lab.sent[0].insert(0, "open")
    eventually(lambda: all(len(lab.taken(p)) == 5 for p in (1, 2, 3)), 5, "the others have taken everything")
    assert lab.taken(0) == []
    producer.commit_transaction(30)
    lab.check_taken(within_s=5)


def test_a_worker_knows_what_was_taken_from_it_before_it_has_let_go(lab: Lab) -> None:
    first = lab.start("first")
    lab.check_running(first)
    lab.order(hang_revoked=dict.fromkeys(range(4), True))
    second = lab.start("second")
    eventually(lambda: len(second.running()) == 2, TAKE_OVER_S, "the second worker runs two partitions")
    moved = set(second.events("assigned"))
    assert set(first.status()["kept"]) == {0, 1, 2, 3} - moved
    lab.order()
