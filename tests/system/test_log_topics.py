"""The topics as they are made and as they must be found, on a real Kafka."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tests.conftest import RealBroker
from versolog.schemas.errors import Misconfigured, Unavailable
from versolog.schemas.topics import Topics, describe, ensure_topics

EVERY = ("transactions", "commits", "outcomes", "sequence", "votes", "schemas")


@pytest.fixture
def kafka(broker: RealBroker) -> dict[str, Any]:
    return {"bootstrap.servers": broker.bootstrap}


@pytest.fixture
def admin(kafka: dict[str, Any]) -> AdminClient:
    return AdminClient({**kafka, "log_level": 0})


@pytest.fixture
def topics() -> Topics:
    return Topics(f"test-{uuid.uuid4().hex[:12]}.")


def settings_of(admin: AdminClient, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    (described,) = admin.describe_configs([resource]).values()
    return {name: entry.value for name, entry in described.result(10).items()}


def alter(admin: AdminClient, topic: str, setting: str, value: str) -> None:
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    (altered,) = admin.incremental_alter_configs([resource]).values()
    altered.result(10)


def test_topics_are_made_once_and_known_again(kafka: dict[str, Any], topics: Topics) -> None:
    made = ensure_topics(kafka, topics, partitions=3)
    assert made.partitions == 3
    assert ensure_topics(kafka, topics, partitions=3) == made
    assert describe(kafka, topics) == made
    assert len({made.cluster, made.transactions, made.commits, made.outcomes}) == 4


def test_several_may_make_them_at_once(kafka: dict[str, Any], topics: Topics) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ensure_topics(kafka, topics, partitions=2), range(4)))
    assert len({ids.identity for ids in answers}) == 1


@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_forgotten_and_brokers_stamp_the_time(
    kafka: dict[str, Any], admin: AdminClient, topics: Topics, name: str
) -> None:
    ensure_topics(kafka, topics, partitions=2)
    found = settings_of(admin, topics.prefix + name)
    assert (found["retention.ms"], found["retention.bytes"]) == ("-1", "-1")
    assert found["message.timestamp.type"] == "LogAppendTime"
    assert found["cleanup.policy"] == ("compact" if name == "schemas" else "delete")
    assert found["compression.type"] == "producer"
    assert found["flush.messages"] != "1"


def test_fsync_can_be_asked_for_when_they_are_made_or_later(
    kafka: dict[str, Any], admin: AdminClient, topics: Topics
) -> None:
    ensure_topics(kafka, topics, partitions=1, fsync=True)
    assert {settings_of(admin, topics.prefix + name)["flush.messages"] for name in EVERY} == {"1"}
    later = Topics(topics.prefix + "later.")
    ensure_topics(kafka, later, partitions=1)
    ensure_topics(kafka, later, partitions=1, fsync=True)
    assert {settings_of(admin, later.prefix + name)["flush.messages"] for name in EVERY} == {"1"}


def test_another_number_of_partitions_is_refused(kafka: dict[str, Any], topics: Topics) -> None:
    ensure_topics(kafka, topics, partitions=2)
    with pytest.raises(Misconfigured, match="has partitions 2; 3 is wanted") as refused:
        ensure_topics(kafka, topics, partitions=3)
    assert refused.value.facts == {
        "topic": topics.transactions, "setting": "partitions", "found": 2, "wanted": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("topic", "setting", "value"),
    [
        ("commits", "retention.ms", "604800000"),
        ("outcomes", "retention.bytes", "1000000"),
        ("commits", "cleanup.policy", "compact"),
        ("schemas", "cleanup.policy", "delete"),
        ("transactions", "message.timestamp.type", "CreateTime"),
        ("votes", "max.message.bytes", "1000"),
    ],
)
def test_a_setting_that_would_lose_facts_is_named(
    kafka: dict[str, Any], admin: AdminClient, topics: Topics, topic: str, setting: str, value: str
) -> None:
    ensure_topics(kafka, topics, partitions=1)
    alter(admin, topics.prefix + topic, setting, value)
    with pytest.raises(Misconfigured) as refused:
        ensure_topics(kafka, topics, partitions=1)
    facts = refused.value.facts
    assert (facts["topic"], facts["setting"], facts["found"]) == (topics.prefix + topic, setting, value)


def test_missing_topics_are_named_and_only_they_are_made(
    kafka: dict[str, Any], admin: AdminClient, topics: Topics
) -> None:
    first = ensure_topics(kafka, topics, partitions=1)
    (deleted,) = admin.delete_topics([topics.votes], operation_timeout=10).values()
    deleted.result(10)
    with pytest.raises(Misconfigured) as refused:
        describe(kafka, topics)
    assert refused.value.facts["missing"] == [topics.votes]
    assert ensure_topics(kafka, topics, partitions=1) == first


def test_a_topic_made_anew_is_another_log(kafka: dict[str, Any], admin: AdminClient, topics: Topics) -> None:
    before = ensure_topics(kafka, topics, partitions=1)
    (deleted,) = admin.delete_topics([topics.commits], operation_timeout=10).values()
    deleted.result(10)
    after = ensure_topics(kafka, topics, partitions=1)
    assert after.identity != before.identity
    assert after.transactions == before.transactions


def test_topics_that_do_not_fit_together_are_refused(kafka: dict[str, Any], admin: AdminClient, topics: Topics) -> None:
    (made,) = admin.create_topics([NewTopic(topics.commits, 3, 1)]).values()
    made.result(10)
    with pytest.raises(Misconfigured, match="has partitions 3; 2 is wanted"):
        ensure_topics(kafka, topics, partitions=2)
    with pytest.raises(Misconfigured, match="has partitions 3; 2 is wanted"):
        describe(kafka, topics)


def test_more_replicas_than_brokers_is_misconfigured(kafka: dict[str, Any], topics: Topics) -> None:
    with pytest.raises(Misconfigured, match="too few brokers"):
        ensure_topics(kafka, topics, partitions=1, replication=3)


def test_a_broker_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("versolog.schemas.topics.REQUEST_TIMEOUT_S", 0.5)
    with pytest.raises(Unavailable, match="is it running at this address"):
        describe({"bootstrap.servers": "127.0.0.1:1"}, Topics())
