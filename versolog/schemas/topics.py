"""The topics: their names, their settings, and which partition a group belongs to."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    DescribeClusterResult,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from versolog.schemas.errors import Misconfigured, Unavailable, VersologError
from versolog.schemas.kafka_errors import MAKE_TOPICS, from_kafka, listed_offset

PREFIX = "versolog."
RECORD_LIMIT_BYTES = 1_048_588
"""Kafka's own default of max.message.bytes. Our records stay below it, so a topic must not allow less."""
REQUEST_TIMEOUT_S = 10.0
VISIBLE_WITHIN_S = 15.0

_KEEP_ALL = {"retention.ms": "-1", "retention.bytes": "-1", "message.timestamp.type": "LogAppendTime"}
_KEPT_LOG = {"cleanup.policy": "delete", **_KEEP_ALL}
_COMPACTED = {"cleanup.policy": "compact", **_KEEP_ALL}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Topics:
    """The full names of the topics. Several stores can share a cluster under different prefixes."""

    prefix: str = PREFIX

    @property
    def transactions(self) -> str:
        return self.prefix + "transactions"

    @property
    def commits(self) -> str:
        return self.prefix + "commits"

    @property
    def outcomes(self) -> str:
        return self.prefix + "outcomes"

    @property
    def sequence(self) -> str:
        return self.prefix + "sequence"

    @property
    def votes(self) -> str:
        return self.prefix + "votes"

    @property
    def schemas(self) -> str:
        return self.prefix + "schemas"


@dataclass(frozen=True, slots=True)
class TopicIds:
    """Which log this is: a topic made anew under an old name has another id, and so has another cluster."""

    partitions: int
    cluster: str
    transactions: str
    commits: str
    outcomes: str

    @property
    def identity(self) -> str:
        """One line that is the same if and only if the log is the same."""
        return "/".join((self.cluster, self.transactions, self.commits, self.outcomes))


def ensure_topics(
    kafka: dict[str, Any], topics: Topics, *, partitions: int, replication: int = 1, fsync: bool = False
) -> TopicIds:
    """Create the topics that are missing, and check those that are there.

    Raises Misconfigured, naming topic and setting, where an existing topic has another number of partitions, forgets
    records or stamps them with the producers' time. `replication` is for topics made now. With `fsync` all topics
    flush every record to the disk before it is acknowledged; without, existing ones are left as they are.
    """
    admin = _admin(kafka)
    wanted = _wanted(topics, partitions)
    present = _describe_present(admin, list(wanted))
    missing = [name for name in wanted if name not in present]
    if missing:
        _create(admin, {name: wanted[name] for name in missing}, replication, fsync)
        present = _wait_for(admin, wanted)
    for name, (count, _) in wanted.items():
        if (found := len(present[name].partitions)) != count:
            raise _misfit(name, "partitions", found, count)
    _check_settings(admin, wanted, fsync)
    return _ids(admin, topics, present)


def describe(kafka: dict[str, Any], topics: Topics) -> TopicIds:
    """The ids and the number of partitions. Raises Misconfigured where a topic is missing or they don't fit together,
    and Unavailable where no broker answers."""
    admin = _admin(kafka)
    names = list(_wanted(topics, 1))
    present = _describe_present(admin, names)
    if missing := [name for name in names if name not in present]:
        raise Misconfigured(
            f"topics are missing: {', '.join(missing)}; {MAKE_TOPICS}",
            missing=missing,
        )
    partitions = len(present[topics.transactions].partitions)
    for name, (count, _) in _wanted(topics, partitions).items():
        if (found := len(present[name].partitions)) != count:
            raise _misfit(name, "partitions", found, count)
    return _ids(admin, topics, present)


@lru_cache(maxsize=1 << 16)
def partition_of(group: str, partitions: int) -> int:
    """The partition that `group` belongs to: where Java's default partitioner, and librdkafka's `murmur2_random`,
    put a record with the group's UTF-8 as its key."""
    return (murmur2(group.encode()) & 0x7FFF_FFFF) % partitions


def murmur2(key: bytes) -> int:
    """MurmurHash2 with the seed of Kafka's clients (Utils.murmur2 of Java's kafka-clients), as 32 unsigned bits."""
    factor, mask = 0x5BD1_E995, 0xFFFF_FFFF
    whole = len(key) & ~3
    hashed = 0x9747_B28C ^ len(key)
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * factor & mask
        hashed = (hashed * factor & mask) ^ ((word ^ word >> 24) * factor & mask)
    if whole < len(key):
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * factor & mask
    hashed = (hashed ^ hashed >> 13) * factor & mask
    return hashed ^ hashed >> 15


def _wanted(topics: Topics, partitions: int) -> dict[str, tuple[int, dict[str, str]]]:
    """For each topic its number of partitions and the settings without which the store would be wrong."""
    return {
        topics.transactions: (partitions, _KEPT_LOG),
        topics.commits: (partitions, _KEPT_LOG),
        topics.outcomes: (partitions, _KEPT_LOG),
        topics.votes: (partitions, _KEPT_LOG),
        topics.sequence: (1, _KEPT_LOG),
        topics.schemas: (1, _COMPACTED),
    }


def _admin(kafka: dict[str, Any]) -> AdminClient:
    # Failures are raised here, with what librdkafka would have logged to the standard error.
    try:
        return AdminClient({**kafka, "log_level": 0})
    except KafkaException as error:
        raise from_kafka(error, "connecting to Kafka") from error


def _create(admin: AdminClient, wanted: dict[str, tuple[int, dict[str, str]]], replication: int, fsync: bool) -> None:
    extra = {"compression.type": "producer", "max.message.bytes": str(RECORD_LIMIT_BYTES)}
    if fsync:
        extra["flush.messages"] = "1"
    if replication > 1:
        extra["min.insync.replicas"] = "2"
    asked = [
        NewTopic(name, num_partitions=count, replication_factor=replication, config={**settings, **extra})
        for name, (count, settings) in wanted.items()
    ]
    for name, created in admin.create_topics(asked, operation_timeout=REQUEST_TIMEOUT_S).items():
        try:
            created.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # made by another process just now
                raise from_kafka(error, f"making topic {name}") from error
        else:
            logger.info("made topic %s", name)


def _wait_for(admin: AdminClient, wanted: dict[str, tuple[int, dict[str, str]]]) -> dict[str, TopicDescription]:
    """Brokers learn of a new topic, and that they lead a partition of it, a moment after it was made."""
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        present = _describe_present(admin, list(wanted))
        waiting = [name for name in wanted if name not in present] or _leaderless(admin, wanted)
        if not waiting:
            return present
        if time.monotonic() > deadline:
            raise Unavailable(f"{', '.join(waiting)}: made, and not to be used after {VISIBLE_WITHIN_S:g} s")
        time.sleep(0.02)


def _leaderless(admin: AdminClient, wanted: dict[str, tuple[int, dict[str, str]]]) -> list[str]:
    """The topics with a partition that answers no question yet."""
    ends = {
        TopicPartition(name, partition): OffsetSpec.latest()  # type: ignore[no-untyped-call]
        for name, (count, _) in wanted.items()
        for partition in range(count)
    }
    asked = admin.list_offsets(ends, request_timeout=REQUEST_TIMEOUT_S)
    return sorted({place.topic for place, answer in asked.items() if not _answers(answer)})


def _answers(asked: Future[ListOffsetsResultInfo]) -> bool:
    try:
        listed_offset(asked)
    except KafkaException:
        return False
    return True


def _describe_present(admin: AdminClient, names: list[str]) -> dict[str, TopicDescription]:
    present: dict[str, TopicDescription] = {}
    for name, described in admin.describe_topics(TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            present[name] = described.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise _unreachable_or(error, f"describing topic {name}") from error
    return present


def _ids(admin: AdminClient, topics: Topics, present: dict[str, TopicDescription]) -> TopicIds:
    try:
        # Not by `describe_cluster`: librdkafka ends the process where a broker that has just started answers it, which
        # knows of no broker yet.
        cluster = admin.list_topics(topics.transactions, timeout=REQUEST_TIMEOUT_S).cluster_id
    except KafkaException as error:
        raise _unreachable_or(error, "asking for the cluster's id") from error
    if not cluster:
        raise Unavailable("the Kafka broker does not know its cluster yet; try again")
    return TopicIds(
        partitions=len(present[topics.transactions].partitions),
        cluster=cluster,
        transactions=str(present[topics.transactions].topic_id),
        commits=str(present[topics.commits].topic_id),
        outcomes=str(present[topics.outcomes].topic_id),
    )


def _unreachable_or(error: KafkaException, doing: str) -> VersologError:
    if error.args[0].code() in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN):
        return Unavailable(f"no Kafka broker answers ({doing}: {error.args[0].name()}); is it running at this address?")
    return from_kafka(error, doing)


def _check_settings(admin: AdminClient, wanted: dict[str, tuple[int, dict[str, str]]], fsync: bool) -> None:
    unflushed: list[str] = []
    for name, found in _settings(admin, list(wanted)).items():
        for setting, value in wanted[name][1].items():
            if found[setting] != value:
                raise _misfit(name, setting, found[setting], value)
        if int(found["max.message.bytes"]) < RECORD_LIMIT_BYTES:
            raise _misfit(name, "max.message.bytes", found["max.message.bytes"], f"{RECORD_LIMIT_BYTES} or more")
        if fsync and found["flush.messages"] != "1":
            unflushed.append(name)
    if unflushed:
        _flush_every_record(admin, unflushed)


def _settings(admin: AdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for resource, described in admin.describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            found[resource.name] = {name: entry.value for name, entry in described.result().items()}
        except KafkaException as error:
            raise _unreachable_or(error, f"reading the settings of topic {resource.name}") from error
    return found


def _flush_every_record(admin: AdminClient, names: list[str]) -> None:
    resources = [
        ConfigResource(
            ResourceType.TOPIC,
            name,
            incremental_configs=[ConfigEntry("flush.messages", "1", incremental_operation=AlterConfigOpType.SET)],
        )
        for name in names
    ]
    for resource, altered in admin.incremental_alter_configs(resources, request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            altered.result()
        except KafkaException as error:
            raise from_kafka(error, f"setting flush.messages=1 on topic {resource.name}") from error


def _misfit(topic: str, setting: str, found: object, wanted: object) -> Misconfigured:
    return Misconfigured(
        f"topic {topic} has {setting} {found}; {wanted} is wanted",
        topic=topic,
        setting=setting,
        found=found,
        wanted=wanted,
    )
