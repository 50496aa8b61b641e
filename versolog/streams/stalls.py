"""Consumers that no longer fetch a partition, though there is more in it: noticed, so that they are made anew.

librdkafka checks a partition's leader epoch after a broker has crashed. Where that meets a broker that has only just come
back, a partition can be left waiting for an answer for good: no message and no error comes of it any more
(confluentinc/librdkafka#4492).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from versolog.schemas.errors import Unavailable

LOOK_EVERY_S = 5.0
ASK_TIMEOUT_S = 2.0

Place = tuple[str, int]
"""A topic, and the number of one of its partitions."""


class Stalls:
    """Looks after consumers that follow each other on the same partitions."""

    def __init__(self, every_s: float = LOOK_EVERY_S) -> None:
        self._every_s = every_s
        self._looked_at_s = time.monotonic()
        self._behind: dict[Place, int] = {}
        """Where more was to come at the last look, by the offset that was to come next."""
        self._tried: dict[Place, tuple[int, int]] = {}
        """The offset to come next, and the end, for which a new consumer was asked for before: nothing but markers of
        transactions, and aborted records, stands between them."""

    def look(self, consumer: Consumer, next_offsets: Callable[[], Mapping[Place, int]]) -> None:
        """Look now and then. Raises Unavailable where nothing has come of a partition since the last look though there
        is more in it: the consumer is to be made anew. Blocks for some milliseconds."""
        if time.monotonic() - self._looked_at_s < self._every_s:
            return
        behind: dict[Place, int] = {}
        for place, offset in next_offsets().items():
            end = _end(consumer, place)
            if end is None:
                break  # nobody answers: who waited for each of them would wait for long
            if end <= offset + 1 or self._tried.get(place) == (offset, end):
                continue  # the last offset before the end can be that of a marker
            if self._behind.get(place) == offset:
                self._behind, self._looked_at_s = {}, time.monotonic()
                self._tried[place] = (offset, end)
                raise Unavailable(f"nothing comes from {place[0]}[{place[1]}] after {offset}, and it ends at {end}")
            behind[place] = offset
        self._behind, self._looked_at_s = behind, time.monotonic()


def _end(consumer: Consumer, place: Place) -> int | None:
    """The last stable offset; None while nobody tells."""
    try:
        found = consumer.get_watermark_offsets(TopicPartition(*place), ASK_TIMEOUT_S)
    except KafkaException:
        return None
    return None if found is None else int(found[1])
