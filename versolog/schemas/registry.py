"""Where schema ids come from: the store's own `schemas` topic, or a Schema Registry that is there already."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from versolog.schemas.codec import NAMESPACE, Schema
from versolog.schemas.errors import Malformed, Misconfigured, Unavailable, VersologError
from versolog.schemas.kafka_errors import PASSING, from_kafka
from versolog.schemas.topics import Topics

if TYPE_CHECKING:
    import httpx

REQUEST_TIMEOUT_S = 10.0
POLL_S = 0.5
RETRY_AFTER_S = 0.05
UNKNOWN_AFTER_S, UNKNOWN_AGAIN_S, UNKNOWN_FOR_S = 3.0, 0.2, 60.0
"""It is believed that nobody registered an id once a registry has said so for so long, asked so often: one of its nodes may
not have heard yet of what another was told. For so long then it is asked once."""
UNKNOWN_MAX = 10_000
"""Ids that this is remembered of."""
_MARKER = orjson.dumps({"versolog": "schema ids begin at 1"})

logger = logging.getLogger(__name__)


def subject_of(schema: Schema, topics: Topics) -> str:
    """The subject that a schema is registered under: by topic name, as stock deserializers look for it."""
    topic = {
        "Transaction": topics.transactions,
        "Commit": topics.commits,
        "Outcomes": topics.outcomes,
    }.get(schema.name)
    if topic is not None:
        return f"{topic}-value"
    home = topics.transactions if schema.name == "Tick" else topics.schemas
    return f"{home}-{NAMESPACE}{schema.name}"


class TopicRegistry:
    """Schema ids from the `schemas` topic: a schema's id is the offset of its first registration.

    Every process reads the same topic from its start, so all agree, whoever registered first. Thread safe. It connects
    when it is first asked, and raises Unavailable, or Misconfigured, where the topic can't be reached.
    """

    def __init__(self, kafka: Mapping[str, Any], topics: Topics, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._kafka = dict(kafka)
        self._topics = topics
        self._partition = TopicPartition(topics.schemas, 0)
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._consumer: Consumer | None = None
        self._next_offset = 0
        self._texts: dict[int, str] = {}
        self._ids: dict[str, int] = {}
        self._subjects: dict[str, list[int]] = {}

    def id_of(self, schema: Schema) -> int:
        """The id of `schema`, registered now if it was not."""
        return self.register(subject_of(schema, self._topics), schema.text)

    def register(self, subject: str, text: str) -> int:
        """The id of the schema `text`, registered under `subject` if it was not."""
        with self._lock:
            found = self._found(subject, text)
            if found is None:
                self.refresh()
                found = self._found(subject, text)
            if found is None:
                self._write(subject, text)
                self.refresh()
                found = self._found(subject, text)
            assert found is not None, "what was written is read"
            return found

    def text_of(self, schema_id: int) -> str:
        """The schema's JSON as registered. Raises Malformed for an id that nobody registered."""
        with self._lock:
            if schema_id not in self._texts and schema_id >= self._next_offset:
                self.refresh()
            text = self._texts.get(schema_id)
        if text is None:
            raise Malformed(f"nobody registered a schema with id {schema_id}", schema_id=schema_id)
        return text

    def subjects(self) -> dict[str, list[int]]:
        """The subjects with the ids of their versions, version 1 first, as far as the topic was read."""
        with self._lock:
            return {subject: list(ids) for subject, ids in self._subjects.items()}

    def refresh(self) -> None:
        """Read the topic up to its end as of now."""
        with self._lock:
            try:
                consumer = self._connected()
                end = self._end(consumer)
                if self._next_offset < end:
                    # Not assigned in between: a fetch that waits for news would hold up the next question for the end.
                    consumer.assign([TopicPartition(self._topics.schemas, 0, self._next_offset)])
                    self._read_to(consumer, end)
                    consumer.unassign()
            except KafkaException as error:
                raise from_kafka(error, f"reading topic {self._topics.schemas}") from error

    def close(self) -> None:
        """Leave the cluster. What was read stays known; a later question connects again."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _found(self, subject: str, text: str) -> int | None:
        schema_id = self._ids.get(text)
        return schema_id if schema_id in self._subjects.get(subject, ()) else None

    def _connected(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                {
                    **self._kafka,
                    "group.id": "versolog-registry",  # librdkafka wants one; nothing is committed under it
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "isolation.level": "read_committed",
                    "auto.offset.reset": "error",
                    "enable.partition.eof": True,
                    "fetch.wait.max.ms": 50,
                    "log_level": 0,
                }
            )
        return self._consumer

    def _end(self, consumer: Consumer) -> int:
        """The topic's end as of now. A leader that moves, or a connection that broke, is waited for."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            left_s = max(deadline - time.monotonic(), 0.1)
            try:
                _, end = consumer.get_watermark_offsets(self._partition, timeout=left_s, cached=False)
                return end
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_AFTER_S)

    def _read_to(self, consumer: Consumer, end: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self._next_offset < end:
            message = consumer.poll(POLL_S)
            if message is not None:
                self._take(message)
            elif time.monotonic() > deadline:
                raise Unavailable(
                    f"topic {self._topics.schemas} was read up to offset {self._next_offset} of {end} "
                    f"in {self._timeout_s:g} s; is the broker still there?"
                )

    def _take(self, message: Message) -> None:
        error, offset = message.error(), message.offset()
        assert offset is not None
        if error is None:
            self._next_offset = offset + 1
            self._learn(offset, message.key(), message.value())
        elif error.code() == KafkaError._PARTITION_EOF:
            self._next_offset = max(self._next_offset, offset)
        else:
            raise KafkaException(error)

    def _learn(self, offset: int, key: bytes | str | None, value: bytes | str | None) -> None:
        try:
            subject = orjson.loads(key or b"")["subject"]
            text = value.decode() if isinstance(value, bytes) else value
        except (ValueError, KeyError, TypeError):
            subject = text = None
        if not isinstance(subject, str) or not text:
            if key != _MARKER:
                logger.warning("offset %d of topic %s is no schema; it is left out", offset, self._topics.schemas)
            return
        self._texts[offset] = text
        schema_id = self._ids.setdefault(text, offset)
        versions = self._subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)

    def _write(self, subject: str, text: str) -> None:
        """Append a registration. Its key is unlike every other, so that compaction never drops the first one."""
        key = {"subject": subject, "fingerprint": sha256(text.encode()).hexdigest(), "nonce": secrets.token_hex(8)}
        producer = Producer(
            {
                **self._kafka,
                "acks": "all",
                "enable.idempotence": False,  # twice is the same as once here, and an idempotent producer starts slowly
                "message.timeout.ms": int(self._timeout_s * 1000),
                "linger.ms": 0,
                "log_level": 0,
            }
        )
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error)

        if self._next_offset == 0:
            producer.produce(self._topics.schemas, partition=0, key=_MARKER, value=b"{}", on_delivery=delivered)
        producer.produce(
            self._topics.schemas, partition=0, key=orjson.dumps(key), value=text.encode(), on_delivery=delivered
        )
        left = producer.flush(self._timeout_s + 1.0)
        if failures:
            raise from_kafka(failures[0], f"registering a schema in topic {self._topics.schemas}")
        if left:
            raise Unavailable(f"topic {self._topics.schemas} took no schema in {self._timeout_s:g} s")


class ConfluentRegistry:
    """Schema ids from a registry that speaks Confluent's HTTP protocol. Thread safe.

    `url` may carry a user and a password. What httpx needs beyond that, such as certificates, goes into a `client`
    of one's own.
    """

    def __init__(self, url: str, topics: Topics, *, client: httpx.Client | None = None) -> None:
        import httpx  # takes a tenth of a second, which only who has such a registry should wait for

        self._topics = topics
        self._url = url.rstrip("/")
        self._failure = httpx.HTTPError
        self._unknown: dict[int, float] = {}
        """By id that nobody registered, until when that is believed."""
        self._client = client or httpx.Client(timeout=REQUEST_TIMEOUT_S)

    def id_of(self, schema: Schema) -> int:
        """The id of `schema`, registered now if it was not."""
        subject = subject_of(schema, self._topics)
        body = {"schema": schema.text, "schemaType": "AVRO"}
        answer = self._ask("POST", f"/subjects/{subject}/versions", body)
        if not isinstance(schema_id := answer.get("id"), int):
            raise Unavailable("the schema registry's answer to a registration has no id")
        return schema_id

    def text_of(self, schema_id: int) -> str:
        """The schema's JSON as registered. Raises Malformed for an id that nobody registered."""
        answer = self._asked_for(schema_id)
        if not isinstance(text := answer.get("schema"), str):
            raise Unavailable(f"the schema registry's answer for id {schema_id} has no schema")
        return text

    def close(self) -> None:
        self._client.close()

    def _asked_for(self, schema_id: int) -> dict[str, Any]:
        begun = time.monotonic()
        patience_s = 0.0 if begun < self._unknown.get(schema_id, 0.0) else UNKNOWN_AFTER_S
        while True:
            try:
                return self._ask("GET", f"/schemas/ids/{schema_id}", None)
            except Malformed:
                if (now := time.monotonic()) >= begun + patience_s:
                    if len(self._unknown) >= UNKNOWN_MAX:
                        self._unknown.clear()
                    if patience_s:
                        self._unknown[schema_id] = now + UNKNOWN_FOR_S
                    raise
                time.sleep(UNKNOWN_AGAIN_S)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
        try:
            response = self._client.request(method, self._url + path, json=body, headers=headers)
        except self._failure as error:
            raise Unavailable(f"the schema registry does not answer: {type(error).__name__}: {error}") from error
        if not response.is_success:
            raise _registry_error(response, path)
        try:
            answer = response.json()
        except ValueError as error:
            raise Unavailable("the schema registry answered something else than JSON") from error
        if not isinstance(answer, dict):
            raise Unavailable("the schema registry answered something else than a JSON object")
        return answer


def registry_of(
    kafka: Mapping[str, Any], topics: Topics, registry_url: str | None
) -> TopicRegistry | ConfluentRegistry:
    """Where schema ids come from: the Schema Registry at a URL, or else the schemas topic."""
    return TopicRegistry(kafka, topics) if registry_url is None else ConfluentRegistry(registry_url, topics)


def _registry_error(response: httpx.Response, path: str) -> VersologError:
    said = f"the schema registry answers {response.status_code} to {path}: {response.text[:300]}"
    if response.status_code == HTTPStatus.NOT_FOUND and path.startswith("/schemas/"):
        return Malformed(f"nobody registered a schema with id {path.rsplit('/', 1)[1]}")
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS or response.is_server_error:
        return Unavailable(said)
    return Misconfigured(said)
