"""Kafka's client for writing, replaced where it breaks: idempotent, or transactional with an id of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from versolog.schemas.errors import Misconfigured, Unavailable
from versolog.schemas.kafka_errors import from_kafka, is_fatal
from versolog.schemas.topics import RECORD_LIMIT_BYTES

START_TIMEOUT_S = 30.0
PURGE_TIMEOUT_S = 1.0
TRANSACTION_TIMEOUT_MS = 60_000
"""A Kafka transaction that is left open holds up the readers of its partitions for so long, and no longer."""
TROUBLE_RECENT_S = 30.0

# What makes an acknowledgement worth its name. A setting of the caller's that contradicts is refused.
_GUARANTEES: dict[str, Any] = {"acks": "all", "enable.idempotence": True}
_TUNING: dict[str, Any] = {
    "linger.ms": 1,
    "compression.type": "lz4",
    "message.timeout.ms": 120_000,
    "message.max.bytes": RECORD_LIMIT_BYTES,
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 131_072,
}
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}

logger = logging.getLogger(__name__)

Delivered = Callable[[KafkaError | None, Message], None]


class TransactionRecord(NamedTuple):
    """A transaction as a Kafka record, under the names of `confluent_kafka.Producer.produce`'s arguments."""

    topic: str
    value: bytes
    key: bytes
    partition: int
    headers: list[tuple[str, str | bytes | None]]


class Link:
    """Writes records and reports their delivery. Thread safe, but for Kafka transactions.

    After a fatal error librdkafka's producer refuses everything; a new one takes its place, and what the old one held
    is reported as failed. A transactional one that was fenced stays down: to fence back would go on for ever.
    """

    def __init__(self, settings: Mapping[str, Any], transactional_id: str | None) -> None:
        """Raises Misconfigured for settings that could lose what was acknowledged, and Unavailable."""
        _refuse_weaker(settings)
        self._settings = dict(settings)
        self.transactional_id = transactional_id
        self._renewing = threading.Lock()
        self._trouble: tuple[str, float] | None = None
        self._fenced: KafkaException | None = None
        self._kafka = self._connected()

    def write(self, record: TransactionRecord, delivered: Delivered) -> bool:
        """Hand the record over. False where there is no room; serve delivery reports, and try again."""
        kafka = self._kafka
        try:
            kafka.produce(record.topic, record.value, record.key, record.partition, delivered, headers=record.headers)
        except BufferError:
            return False
        except KafkaException as error:
            self._note(error)
            if not is_fatal(error.args[0]) or self.transactional_id is not None:
                raise from_kafka(error, f"writing to {record.topic}") from error
            self._renew(kafka, error)
            return False
        return True

    def serve(self, timeout_s: float) -> None:
        """Have the delivery reports called that are there, or come within `timeout_s`."""
        try:
            self._kafka.poll(timeout_s)
        except KafkaException as error:  # a fatal error is raised to whoever happens to poll
            self._note(error)

    def flush(self, timeout_s: float) -> int:
        """Wait for the delivery of what was written; how many records are still under way after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._kafka.flush(max(deadline - time.monotonic(), 0.0))
            except KafkaException as error:
                self._note(error)

    @property
    def waiting(self) -> int:
        """How many records are under way."""
        return len(self._kafka)

    def trouble(self) -> str:
        """What Kafka's client complained of lately, for a message; empty if nothing."""
        if self._trouble is None or time.monotonic() - self._trouble[1] > TROUBLE_RECENT_S:
            return ""
        return f" ({self._trouble[0]})"

    def begin(self) -> None:
        """Begin a Kafka transaction. Raises Misconfigured where another producer took over."""
        if self._fenced is not None:
            raise from_kafka(self._fenced, "beginning a Kafka transaction") from self._fenced
        try:
            self._kafka.begin_transaction()
        except KafkaException as error:
            self._note(error)
            self._renew(self._kafka, error)
            self._kafka.begin_transaction()

    def commit(self, timeout_s: float) -> None:
        """Commit the Kafka transaction. After an error `abort` has to follow."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._kafka.commit_transaction(max(deadline - time.monotonic(), 0.1))
            except KafkaException as error:
                self._note(error)
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise from_kafka(error, "committing a Kafka transaction") from error

    def abort(self, timeout_s: float) -> None:
        """Abort the Kafka transaction. Raises Unavailable where nobody can know how it ended; it has ended, though."""
        broken = self._kafka
        try:
            broken.abort_transaction(timeout_s)
        except KafkaException as error:
            self._note(error)
            self._renew(broken, error)  # whose `init_transactions` ends what the old one left open
            raise Unavailable(
                f"nobody knows whether the Kafka transaction was committed ({error.args[0].str()}); send the ids again"
            ) from error

    def close(self) -> None:
        """Let go of what is still under way: it is reported as failed."""
        self._purge(self._kafka)

    def _connected(self) -> Producer:
        transactional: dict[str, Any] = {}
        if self.transactional_id is not None:
            transactional = {
                "transactional.id": self.transactional_id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "message.timeout.ms": TRANSACTION_TIMEOUT_MS,
            }
        reports = {"error_cb": self._complain, "logger": logger, "log_level": 0}
        try:
            kafka = Producer({**_TUNING, **transactional, **self._settings, **_GUARANTEES, **reports})
            if self.transactional_id is not None:
                kafka.init_transactions(START_TIMEOUT_S)
        except KafkaException as error:
            raise from_kafka(error, "starting a Kafka producer") from error
        return kafka

    def _renew(self, broken: Producer, error: KafkaException) -> None:
        if self._fenced is not None:
            raise from_kafka(self._fenced, "writing to Kafka") from self._fenced
        with self._renewing:
            if self._kafka is broken:
                logger.warning("the Kafka producer broke and is made anew: %s", error.args[0])
                self._kafka = self._connected()
                self._purge(broken)

    def _purge(self, kafka: Producer) -> None:
        kafka.purge()
        try:
            kafka.flush(PURGE_TIMEOUT_S)
        except KafkaException as error:
            self._note(error)

    def _note(self, error: KafkaException) -> None:
        cause = error.args[0]
        self._trouble = (cause.str(), time.monotonic())
        if self.transactional_id is not None and cause.code() in _FENCED:
            self._fenced = error

    def _complain(self, error: KafkaError) -> None:
        self._trouble = (error.str(), time.monotonic())
        logger.info("Kafka producer: %s", error)


def _refuse_weaker(settings: Mapping[str, Any]) -> None:
    for setting, value in _GUARANTEES.items():
        asked = str(settings.get(setting, value)).lower()
        if asked != str(value).lower() and (setting, asked) != ("acks", "-1"):
            raise Misconfigured(
                f"{setting}={asked} would lose acknowledged transactions; versolog needs {value}", setting=setting
            )
