"""The way into the log for a node: transactions and ticks appended to `transactions`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from versolog.schemas.errors import TooMany, Unavailable, VersologError
from versolog.schemas.kafka_errors import is_fatal
from versolog.schemas.topics import RECORD_LIMIT_BYTES, Topics

log = structlog.get_logger("versolog.intake")

Appended = Callable[[VersologError | None], None]
"""Called once, in any thread: with None when the record is in the log, with the error when it isn't known to be."""

DELIVERY_TIMEOUT_MS = 30_000
QUEUE_RECORDS_MAX = 50_000
_POLL_S = 0.1
_END_TIMEOUT_S = 1.0


class Intake(Protocol):
    """Takes records for the log."""

    def append(self, partition: int | None, key: bytes | None, value: bytes, appended: Appended) -> None:
        """Append to `transactions[partition]`, or to `sequence` where there is none, soon and in the order of the calls.
        Raises TooMany and Unavailable."""

    def close(self, timeout_s: float) -> None:
        """Wait for what was appended, no longer than that, and take nothing more."""


class KafkaIntake:
    """An idempotent producer with a thread of its own that hands out delivery reports."""

    def __init__(self, kafka: Mapping[str, Any], topics: Topics) -> None:
        self._kafka = dict(kafka)
        self._topics = topics
        self._closing = False
        self._replacing = threading.Lock()
        self._producer = self._connect()
        self._broken: list[Producer] = []
        """Those that were replaced, until their last reports are handed out."""
        self._thread = threading.Thread(target=self._poll, name="versolog-intake", daemon=True)
        self._thread.start()

    def append(self, partition: int | None, key: bytes | None, value: bytes, appended: Appended) -> None:
        """As `Intake.append`."""
        if self._closing:
            raise Unavailable("this node is stopping; send the same id to another one, or again")

        producer = self._producer

        def report(error: KafkaError | None, _: Message) -> None:
            appended(None if error is None else self._failed(producer, error))

        try:
            topic, number = (self._topics.sequence, 0) if partition is None else (self._topics.transactions, partition)
            producer.produce(topic, value=value, key=key, partition=number, on_delivery=report)
        except BufferError as error:
            raise TooMany(f"{QUEUE_RECORDS_MAX:,} transactions wait for the log already; send it again") from error
        except KafkaException as error:
            raise self._failed(producer, error.args[0]) from error

    def close(self, timeout_s: float) -> None:
        """As `Intake.close`."""
        self._closing = True
        _flush(self._producer, timeout_s)
        self._thread.join(timeout_s)

    def _connect(self) -> Producer:
        return Producer(
            {
                "message.max.bytes": RECORD_LIMIT_BYTES,
                **self._kafka,
                "client.id": "versolog-intake",
                "enable.idempotence": True,  # a retry inside librdkafka neither doubles nor reorders
                "acks": "all",
                "linger.ms": 1,
                "compression.type": "lz4",
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                "queue.buffering.max.messages": QUEUE_RECORDS_MAX,
            }
        )

    def _failed(self, producer: Producer, error: KafkaError) -> Unavailable:
        if is_fatal(error):
            self._replace(producer, error)
        return Unavailable(
            f"the log did not take the transaction ({error.str()}); it may still be decided: send the same id again"
        )

    def _replace(self, producer: Producer, error: KafkaError) -> None:
        with self._replacing:
            if self._producer is producer and not self._closing:
                log.error("the producer can't go on and is replaced", error=str(error))
                self._producer = self._connect()
                self._broken.append(producer)

    def _poll(self) -> None:
        while not self._closing or len(self._producer):
            producer = self._producer
            try:
                producer.poll(_POLL_S)
            except KafkaException as error:  # a fatal error is raised to whoever happens to poll
                self._failed(producer, error.args[0])
            while self._broken:
                _end(self._broken.pop())


def _end(producer: Producer) -> None:
    """Report what the producer still holds as failed."""
    producer.purge()
    _flush(producer, _END_TIMEOUT_S)


def _flush(producer: Producer, timeout_s: float) -> None:
    """Wait until all has its report. A fatal error is raised to whoever happens to wait, before the reports that follow."""
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        with suppress(KafkaException):
            producer.flush(left_s)
            return
