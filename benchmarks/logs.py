"""The log of one round: its topics, filled with transactions; read back and checked once they are committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Producer as KafkaProducer
from confluent_kafka.admin import AdminClient

from benchmarks.machine import SPEED_EVERY_S, speed_now
from benchmarks.measured import WrongResultError
from benchmarks.workloads import Workload, item_moved
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.registry import TopicRegistry
from versolog.schemas.topics import Topics, ensure_topics
from versolog.streams.chain import commit_hash
from versolog.streams.link import TransactionRecord
from versolog.streams.producer import Producer
from versolog.streams.state import NO_HASH
from versolog.streams.transaction import Transaction, new_id

COMMIT = avro.schema("Commit")

REQUEST_TIMEOUT_S = 10.0
FLUSH_TIMEOUT_S = 60.0
READ_TIMEOUT_S = 30.0
READ_AT_ONCE = 5_000
PACE_S = 0.01
SPEEDS_LATEST = 20
"""The pace follows the median of so many: five seconds' worth."""
MADE = 20_000
"""Transactions that `pace` makes before it begins, and sends again and again under fresh ids."""


class LogRecord(NamedTuple):
    """A committed record of a topic."""

    partition: int
    key: bytes | None
    value: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """Topics under a prefix of their own."""

    bootstrap: str
    topics: Topics
    partitions: int
    records: int
    """Transactions in it."""

    @property
    def kafka(self) -> dict[str, Any]:
        """librdkafka settings that every client starts from."""
        return {"bootstrap.servers": self.bootstrap, "log_level": 3}  # of retries in a starting broker nothing is told

    @property
    def names(self) -> list[str]:
        """All topics."""
        topics = self.topics
        return [topics.transactions, topics.commits, topics.outcomes, topics.sequence, topics.votes, topics.schemas]

    def forget(self) -> None:
        """Delete the topics."""
        admin = AdminClient(self.kafka)
        for deleted in admin.delete_topics(self.names, operation_timeout=REQUEST_TIMEOUT_S).values():
            deleted.result()


def make(log: Log, *, fsync: bool) -> None:
    """Make the topics."""
    ensure_topics(log.kafka, log.topics, partitions=log.partitions, fsync=fsync)


def fill(log: Log, transactions: Iterable[Transaction]) -> None:
    """Write the transactions, as a service's producer does."""
    with _written(log) as (producer, write):
        for tx in transactions:
            write(producer.record(tx))


class Paced(NamedTuple):
    """What `pace` has sent."""

    transactions: int
    speeds: list[float]
    """The machine's, one after the other, in shares of the usual."""


def pace(log: Log, per_s: float, usual_speed: float, over: Path) -> Paced:
    """Write transactions of one change, evenly, until there is a file `over`: `per_s` of them where the machine is as
    fast as usual (`speed_now`), and fewer or more as it gets slower or faster.

    They are made before and get fresh ids as they are sent, for this shares the processors with what is measured.
    """
    with _written(log) as (producer, write):
        made = [(tx.id.encode(), producer.record(tx)) for tx in map(item_moved, range(MADE))]
        speeds: list[float] = []
        due = 0.0
        before_s = time.perf_counter()
        looked_s = before_s - SPEED_EVERY_S
        while not over.exists():
            now_s = time.perf_counter()
            if now_s - looked_s >= SPEED_EVERY_S:
                speeds.append(speed_now() / usual_speed)
                per_s_now = per_s * median(speeds[-SPEEDS_LATEST:])
                looked_s = now_s
            sent, due = int(due), due + (now_s - before_s) * per_s_now
            before_s = now_s
            for number in range(sent, int(due)):
                write(_renewed(*made[number % MADE]))
            time.sleep(PACE_S)
    return Paced(int(due), speeds)


def _renewed(made_as: bytes, record: TransactionRecord) -> TransactionRecord:
    id_ = new_id().encode()
    headers = [(name, id_ if value == made_as else value) for name, value in record.headers]
    return record._replace(value=record.value.replace(made_as, id_, 1), headers=headers)


@contextmanager
def _written(log: Log) -> Iterator[tuple[Producer, Callable[[TransactionRecord], None]]]:
    """Who makes records of transactions, and a call that writes one; at the end all of them are in the log."""
    kafka = KafkaProducer(
        {
            **log.kafka,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    with Producer(log.bootstrap, prefix=log.topics.prefix) as producer:

        def write(record: TransactionRecord) -> None:
            while True:
                try:
                    kafka.produce(record.topic, record.value, record.key, record.partition, headers=record.headers)
                    break
                except BufferError:
                    kafka.poll(PACE_S)

        yield producer, write
        if kafka.flush(FLUSH_TIMEOUT_S):
            raise WrongResultError("Kafka did not take all transactions")


def check(log: Log, workload: Workload) -> None:
    """Raise WrongResultError unless each transaction was committed exactly once, in order, into an unbroken chain."""
    codec = Codec(TopicRegistry(log.kafka, log.topics))
    check_chain(_commits(codec, read_all(log, log.topics.commits)), workload)


def check_chain(commits: Iterable[tuple[Record, bytes]], workload: Workload) -> None:
    """As `check`, of commits in the order of their partition, each with its hash."""
    heads: dict[str, tuple[int, bytes]] = {}
    by_group = workload.by_group
    for commit, hash_ in commits:
        group = commit["group"]
        version, previous = heads.get(group, (0, NO_HASH))
        if (commit["version"], commit["previous_hash"]) != (version + 1, previous) or version >= len(by_group[group]):
            raise WrongResultError(f"version {commit['version']} of {group} does not follow on version {version}")
        if (found := commit["transaction_id"]) != (sent := by_group[group][version].id):
            raise WrongResultError(f"version {version + 1} of {group} is transaction {found}, and {sent} was sent")
        heads[group] = version + 1, hash_
    for group, transactions in by_group.items():
        if (count := heads.get(group, (0, NO_HASH))[0]) != len(transactions):
            raise WrongResultError(f"{count:,} transactions of {group} were committed, and {len(transactions):,} sent")


def _commits(codec: Codec, records: Iterable[LogRecord]) -> Iterator[tuple[Record, bytes]]:
    for record in records:
        schema_id, body = avro.unframe(record.value)
        schema = codec.schema_of(schema_id)
        yield avro.decode(COMMIT, body, writer=schema), commit_hash(schema.fingerprint, body)


@contextmanager
def reading(log: Log, topic: str, **settings: Any) -> Iterator[Consumer]:
    """A plain consumer of the whole topic from its beginning, read_committed."""
    consumer = Consumer(
        {
            **log.kafka,
            "group.id": "bench",  # wanted by the client; nothing is ever committed under it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 10,
            "queued.max.messages.kbytes": 64 * 1024,
            **settings,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(log.partitions)])
        yield consumer
    finally:
        consumer.close()


def read_all(log: Log, topic: str) -> Iterator[LogRecord]:
    """The committed records of the topic, in the order of each partition."""
    with reading(log, topic, **{"enable.partition.eof": True}) as consumer:
        open_ = set(range(log.partitions))
        while open_:
            first = consumer.poll(READ_TIMEOUT_S)
            if first is None:
                raise WrongResultError(f"{topic} was not answered in time")
            for message in [first, *consumer.consume(READ_AT_ONCE, 0)]:
                error, key, value, number = message.error(), message.key(), message.value(), message.partition()
                assert number is not None
                if error is None:
                    assert isinstance(value, bytes)
                    assert key is None or isinstance(key, bytes)
                    yield LogRecord(number, key, value)
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_.discard(number)
                else:
                    raise KafkaException(error)
