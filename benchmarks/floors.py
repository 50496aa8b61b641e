"""What raw librdkafka does with the same records on the same broker: as little as the job can cost in this language.

Reading is timed from the first records that arrive, so that connecting is not counted. Each runs in a process of its
own (`bench.apart`).
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from fastavro import schemaless_reader
from rocksdict import Options, Rdict, WriteBatch

from benchmarks.logs import READ_AT_ONCE, READ_TIMEOUT_S, REQUEST_TIMEOUT_S, Log, read_all, reading
from benchmarks.measured import Seen, Speed, WrongResultError, speed
from versolog.schemas import codec as avro

BATCH_RECORDS = 1_000
COMMIT_TIMEOUT_S = 30.0
COMMIT = avro.schema("Commit")

TRANSACTIONAL: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 20,
    "batch.size": 1_000_000,
    "compression.type": "lz4",
    "queue.buffering.max.messages": 500_000,
}
"""What versolog's own committer sets."""


def consume(log: Log, topic: str) -> Speed:
    """Records read. The first batch is not counted."""
    begun, records = None, 0
    at_once = min(READ_AT_ONCE, log.records // 10)
    with reading(log, topic) as consumer:
        for messages in _batches(consumer, log.records, at_once):
            records += len(messages)
            begun = begun or _now(records)
    assert begun is not None
    return speed(begun, _now(records))


def consume_and_commit(log: Log) -> Speed:
    """Transactions read, and for each the bytes of a commit written, a thousand at once in one Kafka transaction. The
    commits are those that a worker made of this log."""
    commits = list(read_all(log, log.topics.commits))
    if len(commits) != log.records:
        raise WrongResultError(f"{len(commits):,} commits were made of {log.records:,} transactions")
    topic = _copy_topic(log)
    producer = Producer({**log.kafka, **TRANSACTIONAL, "transactional.id": topic})
    producer.init_transactions(COMMIT_TIMEOUT_S)
    begun, done = None, 0
    with reading(log, log.topics.transactions) as consumer:
        for messages in _batches(consumer, log.records, BATCH_RECORDS):
            begun = begun or _now(0)
            producer.begin_transaction()
            for record in commits[done : done + len(messages)]:
                producer.produce(topic, record.value, record.key, record.partition)
            producer.commit_transaction(COMMIT_TIMEOUT_S)
            done += len(messages)
    assert begun is not None
    return speed(begun, _now(done))


def consume_decode_and_put(log: Log, directory: Path) -> Speed:
    """Commits read, decoded, and their rows and the commits themselves put into RocksDB. Nothing else."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    families = {"rows": Options(raw_mode=True), "commits": Options(raw_mode=True)}
    store = Rdict(str(directory), options, column_families=families)
    rows, commits = store.get_column_family_handle("rows"), store.get_column_family_handle("commits")
    begun, done = None, 0
    with reading(log, log.topics.commits) as consumer:
        for messages in _batches(consumer, log.records, READ_AT_ONCE):
            begun = begun or _now(0)
            batch = WriteBatch(raw_mode=True)
            for message in messages:
                value = cast(bytes, message.value())
                commit = cast(avro.Record, schemaless_reader(io.BytesIO(value[5:]), COMMIT.parsed, None))
                group, version = commit["group"].encode() + b"\0", commit["version"].to_bytes(8, "big")
                for change in commit["changes"]:
                    place = f"{change['table']}\0{change['key']}\0".encode()
                    batch.put(group + place + version, (change["row"] or "").encode(), rows)
                batch.put(group + version, value, commits)
            store.write(batch)
            done += len(messages)
    assert begun is not None
    return speed(begun, _now(done))


class Paced(NamedTuple):
    """Seconds from when each record should have been sent."""

    acknowledged: list[float]
    """To Kafka's acknowledgement."""
    committed: list[float]
    """To the end of the Kafka transaction with the record that answers it."""


def paced(log: Log, per_s: int, seconds: float, value: bytes) -> Paced:
    """What the log takes of the time of a write: one record acknowledged, then another one in a Kafka transaction, as
    many a second as asked. Those that wait while a transaction goes on share the next one."""
    answering = _Answering(log, value)
    plain = Producer({**log.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    times = Paced([], [])
    plain.produce(answering.topic, value, partition=0)
    plain.flush(COMMIT_TIMEOUT_S)
    thread = threading.Thread(target=answering.run, args=(times.committed,), daemon=True)
    thread.start()
    answering.ready.wait(COMMIT_TIMEOUT_S)

    def acknowledged(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        due_s = float(cast(bytes, message.key()))
        times.acknowledged.append(time.perf_counter() - due_s)
        answering.take(due_s)

    begun_s = time.perf_counter()
    for number in range(round(per_s * seconds)):
        due_s = begun_s + number / per_s
        while (left_s := due_s - time.perf_counter()) > 0:
            plain.poll(left_s)
        partition = number % log.partitions
        plain.produce(answering.topic, value, repr(due_s).encode(), partition, on_delivery=acknowledged)
    plain.flush(COMMIT_TIMEOUT_S)
    answering.take(None)
    thread.join(COMMIT_TIMEOUT_S)
    return times


class _Answering:
    """A thread that writes an answer for each record it was told of, in Kafka transactions, one after the other."""

    def __init__(self, log: Log, value: bytes) -> None:
        self.topic = _copy_topic(log)
        self.ready = threading.Event()
        self._value, self._partitions = value, log.partitions
        self._due: deque[float | None] = deque()
        self._more = threading.Event()
        self._producer = Producer({**log.kafka, **TRANSACTIONAL, "transactional.id": self.topic})

    def take(self, due_s: float | None) -> None:
        """Answer what was due then; None ends the thread."""
        self._due.append(due_s)
        self._more.set()

    def run(self, committed: list[float]) -> None:
        self._producer.init_transactions(COMMIT_TIMEOUT_S)
        self._answer(1)
        self.ready.set()
        going_on = True
        while going_on:
            self._more.wait()
            self._more.clear()
            taken = [self._due.popleft() for _ in range(len(self._due))]
            going_on = None not in taken
            due = [due_s for due_s in taken if due_s is not None]
            if due:
                self._answer(len(due))
                now_s = time.perf_counter()
                committed.extend(now_s - due_s for due_s in due)

    def _answer(self, count: int) -> None:
        self._producer.begin_transaction()
        for number in range(count):
            self._producer.produce(self.topic, self._value, partition=number % self._partitions)
        self._producer.commit_transaction(COMMIT_TIMEOUT_S)


def _now(count: int) -> Seen:
    return Seen(time.perf_counter(), time.process_time(), count)


def _batches(consumer: Consumer, records: int, at_once: int) -> Iterator[list[Message]]:
    """Messages as they come, until there were `records`."""
    left = records
    while left:
        messages = consumer.consume(min(at_once, left), READ_TIMEOUT_S)
        if not messages:
            raise WrongResultError("the log was not read in time")
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        left -= len(messages)
        yield messages


def _copy_topic(log: Log) -> str:
    """A fresh topic like `commits`."""
    topic = f"{log.topics.prefix}copy-{time.time_ns()}"
    admin = AdminClient(log.kafka)
    for made in admin.create_topics([NewTopic(topic, log.partitions, 1)], operation_timeout=REQUEST_TIMEOUT_S).values():
        made.result()
    return topic
