"""Deleting transactions that are decided once they are old; commits and outcomes are kept for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from versolog.projections.tail import Ends
from versolog.schemas.errors import Unavailable
from versolog.schemas.kafka_errors import answered


def delete_decided(kafka: dict[str, Any], ends: Ends, topic: str, decided: Mapping[int, int], before_ms: int) -> None:
    """Delete from the partitions of `topic` what the log took before `before_ms`, and of each partition only what stands
    below the offset in `decided`. Blocks. Raises Unavailable."""
    if not decided:
        return
    young = ends.at([(topic, number) for number in decided], before_ms)
    upto = [
        TopicPartition(topic, number, offset if (first := young[topic, number]) < 0 else min(offset, first))
        for number, offset in decided.items()
    ]
    try:
        admin = AdminClient(kafka)  # kept in a name until all is answered: see `answered`
        for deleted in admin.delete_records(upto).values():
            answered(deleted)
    except KafkaException as error:
        raise Unavailable(f"Kafka did not delete old records of {topic}: {error}") from error
