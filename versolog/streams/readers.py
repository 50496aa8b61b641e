"""Consumers that read the log by place: of no group's members, and of what is committed alone."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer


def reader(kafka: dict[str, Any], **settings: Any) -> Consumer:
    """A consumer to be assigned partitions; nothing is fetched beyond the last stable offset. `settings` come last."""
    return Consumer(
        {
            **kafka,
            "group.id": "versolog-reader",  # wanted by the client; nothing is committed under it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
            **settings,
        }
    )
