"""A consumer that has stalled, as librdkafka's can after the broker crashed: nothing comes any more, and no error."""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, Message


def deaf_first(made: list[Consumer]) -> type[Consumer]:
    """A Consumer of which the first that is made is deaf. They are added to `made`."""

    class First(Consumer):
        def __init__(self, settings: dict[str, Any]) -> None:
            super().__init__(settings)
            made.append(self)

        def poll(self, timeout: float = -1) -> Message | None:
            return None if self is made[0] else super().poll(timeout)

    return First
