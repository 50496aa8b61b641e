"""Schema ids from the `schemas` topic and from a registry over HTTP, and stock deserializers that read our topics."""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.conftest import RealBroker
from tests.system.decider import Decider
from versolog.schemas import codec
from versolog.schemas import registry as registries
from versolog.schemas.codec import Codec, Record, schema
from versolog.schemas.errors import Malformed, Misconfigured, Unavailable
from versolog.schemas.registry import ConfluentRegistry, TopicRegistry, subject_of
from versolog.schemas.topics import Topics, ensure_topics
from versolog.streams.producer import Producer as TransactionProducer
from versolog.streams.transaction import Transaction

TRANSACTION, COMMIT, OUTCOMES, TICK = (schema(name) for name in ("Transaction", "Commit", "Outcomes", "Tick"))
PARTITIONS = 2
WITHIN_S = 20.0
HASH = bytes(range(32))


@pytest.fixture
def kafka(broker: RealBroker) -> dict[str, Any]:
    return {"bootstrap.servers": broker.bootstrap}


@pytest.fixture
def topics(kafka: dict[str, Any]) -> Topics:
    topics = Topics(f"test-{uuid.uuid4().hex[:12]}.")
    ensure_topics(kafka, topics, partitions=PARTITIONS)
    return topics


@pytest.fixture
def registry(kafka: dict[str, Any], topics: Topics) -> Iterator[TopicRegistry]:
    with TopicRegistry(kafka, topics) as registry:
        yield registry


# The schemas topic


def test_ids_begin_at_one_and_are_the_same_for_all(
    kafka: dict[str, Any], topics: Topics, registry: TopicRegistry
) -> None:
    ids = [registry.id_of(each) for each in (TRANSACTION, COMMIT, OUTCOMES, TICK)]
    assert ids == [1, 2, 3, 4]
    with TopicRegistry(kafka, topics) as other:
        assert [other.id_of(each) for each in (TICK, OUTCOMES, COMMIT, TRANSACTION)] == [4, 3, 2, 1]
        assert other.text_of(2) == COMMIT.text


def test_subjects_are_named_as_stock_clients_look_for_them(topics: Topics, registry: TopicRegistry) -> None:
    for each in (TRANSACTION, COMMIT, OUTCOMES, TICK):
        registry.id_of(each)
    assert registry.subjects() == {
        f"{topics.prefix}transactions-value": [1],
        f"{topics.prefix}commits-value": [2],
        f"{topics.prefix}outcomes-value": [3],
        f"{topics.prefix}transactions-versolog.Tick": [4],
    }


def test_a_new_version_of_a_subject_comes_after_the_old_one(topics: Topics, registry: TopicRegistry) -> None:
    subject = subject_of(COMMIT, topics)
    assert registry.register(subject, COMMIT.text) == 1
    assert registry.register(subject, COMMIT.text.replace("What happened", "What came to pass")) == 2
    assert registry.register(subject, COMMIT.text) == 1
    assert registry.register("another-value", COMMIT.text) == 1, "one text has one id under all subjects"
    assert registry.subjects() == {subject: [1, 2], "another-value": [1]}


def test_all_who_register_at_once_get_the_first_ones_id(kafka: dict[str, Any], topics: Topics) -> None:
    start = threading.Barrier(6)

    def register(number: int) -> list[int]:
        with TopicRegistry(kafka, topics) as registry:
            registry.refresh()
            start.wait(WITHIN_S)
            return [registry.id_of(each) for each in (TRANSACTION, COMMIT, OUTCOMES)]

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(register, range(6)))
    assert len({tuple(ids) for ids in answers}) == 1
    assert 0 not in answers[0]
    with TopicRegistry(kafka, topics) as later:
        assert [later.id_of(each) for each in (TRANSACTION, COMMIT, OUTCOMES)] == answers[0]


def test_one_registry_serves_many_threads(registry: TopicRegistry) -> None:
    def ask(number: int) -> tuple[int, str]:
        return registry.id_of(TRANSACTION), registry.text_of(registry.id_of(COMMIT))

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(64)))) == 1


def test_what_was_registered_elsewhere_since_is_found(
    kafka: dict[str, Any], topics: Topics, registry: TopicRegistry
) -> None:
    registry.refresh()
    with TopicRegistry(kafka, topics) as other:
        schema_id = other.id_of(COMMIT)
    assert registry.text_of(schema_id) == COMMIT.text


@pytest.mark.parametrize("schema_id", [0, 7, 2**32 - 1])
def test_an_id_that_nobody_registered_is_malformed(registry: TopicRegistry, schema_id: int) -> None:
    registry.id_of(COMMIT)
    with pytest.raises(Malformed, match=f"id {schema_id}"):
        registry.text_of(schema_id)


def test_garbage_in_the_topic_is_left_out(kafka: dict[str, Any], topics: Topics, registry: TopicRegistry) -> None:
    producer = Producer({**kafka, "log_level": 0})
    for key, value in (
        (b"{", b"x"),
        (b"[]", b"x"),
        (b'{"subject":7}', b"x"),
        (b'{"subject":"s"}', b"\xff"),
    ):
        producer.produce(topics.schemas, key=key, value=value)
    producer.produce(topics.schemas, key=b'{"subject":"s"}', value=None)
    producer.flush(WITHIN_S)
    assert registry.id_of(COMMIT) == 5
    with pytest.raises(Malformed):
        registry.text_of(3)


def test_compaction_can_t_drop_a_registration(kafka: dict[str, Any], topics: Topics, registry: TopicRegistry) -> None:
    """No two records have the same key, also those of the same schema."""
    for name in ("a-value", "b-value"):
        registry.register(name, COMMIT.text)
    with TopicRegistry(kafka, topics) as other:
        other.refresh()
        other._write("a-value", COMMIT.text)
    keys = [message.key() for message in read_all(kafka, topics.schemas)]
    assert len(keys) == len(set(keys)) == 4


def test_a_closed_registry_still_knows_and_connects_again(registry: TopicRegistry) -> None:
    registry.id_of(COMMIT)
    registry.close()
    registry.close()
    assert registry.text_of(1) == COMMIT.text
    assert registry.id_of(OUTCOMES) == 2


def test_a_missing_topic_is_misconfigured(kafka: dict[str, Any]) -> None:
    with TopicRegistry(kafka, Topics("nowhere.")) as registry, pytest.raises(Misconfigured, match="versolog up"):
        registry.text_of(1)


def test_a_broker_that_is_away_is_unavailable() -> None:
    registry = TopicRegistry({"bootstrap.servers": "127.0.0.1:1"}, Topics(), timeout_s=0.5)
    with registry, pytest.raises(Unavailable):
        registry.id_of(COMMIT)


# Over HTTP


Answer = tuple[int, Any]
Answerer = Callable[[str, str, Any], Answer]


@contextmanager
def http_server(answer: Answerer) -> Iterator[str]:
    """A server that answers `answer(method, path, body)`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer("GET", None)

        def do_POST(self) -> None:
            self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, method: str, body: Any) -> None:
            status, answered = answer(method, self.path.partition("?")[0], body)
            text = answered if isinstance(answered, bytes) else json.dumps(answered).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def registry_over_http(registry: TopicRegistry) -> Answerer:
    """The part of Confluent's protocol that clients need, from the `schemas` topic."""

    def answer(method: str, path: str, body: Any) -> Answer:
        match path.strip("/").split("/"):
            case ["schemas", "ids", schema_id]:
                try:
                    return 200, {"schema": registry.text_of(int(schema_id))}
                except Malformed as error:
                    return 404, {"error_code": 40403, "message": error.detail}
            case ["subjects", subject, "versions"] if method == "POST":
                return 200, {"id": registry.register(subject, respelled(body["schema"]))}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    return answer


def respelled(text: str) -> str:
    """As a registry does that parses and prints what it is given, with the order of Java's Avro library."""
    return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))


def read_all(kafka: dict[str, Any], topic: str) -> list[Any]:
    """The committed messages of all partitions."""
    consumer = Consumer({**kafka, "group.id": "test", "enable.auto.commit": False, "isolation.level": "read_committed"})
    messages: list[Any] = []
    try:
        for partition in consumer.list_topics(topic, WITHIN_S).topics[topic].partitions:
            place = TopicPartition(topic, partition, 0)
            _, end = consumer.get_watermark_offsets(place, WITHIN_S)
            consumer.assign([place])
            while (at := max(consumer.position([place])[0].offset, 0)) < end:
                read = consumer.consume(100, 1.0)
                assert read, f"nothing came at offset {at} of {end}"
                messages += read
    finally:
        consumer.close()
    return messages


def commit() -> Record:
    return {
        "group": "UA", "version": 1, "branch": "main", "branch_id": 1, "parents": [], "previous_hash": bytes(32),
        "transaction_id": "t", "intent_hash": HASH, "transaction_offset": 0, "committed_at": 1_370_088_000_000,
        "changes": [{"table": "flights", "key": "k1", "row": '{"delay":2}'}],
    }  # fmt: skip


def test_confluents_own_deserializer_reads_our_topics(
    kafka: dict[str, Any], topics: Topics, registry: TopicRegistry
) -> None:
    tx = Transaction("UA", id="t", author="ops").put("flights", "k1", {"delay": 2})
    with (
        Decider(kafka, topics, PARTITIONS).running(),
        TransactionProducer(kafka["bootstrap.servers"], prefix=topics.prefix) as p,
    ):
        p.send(tx).outcome()
    producer = Producer({**kafka, "log_level": 0})
    producer.produce(topics.commits, Codec(registry).write(COMMIT, commit()), partition=0)
    producer.flush(WITHIN_S)
    with http_server(registry_over_http(registry)) as url, SchemaRegistryClient({"url": url}) as client:
        deserialize = AvroDeserializer(client)

        def read(topic: str) -> Any:
            (message,) = read_all(kafka, topic)
            return deserialize(message.value(), SerializationContext(topic, MessageField.VALUE))

        assert read(topics.transactions)["parts"] == tx.record()["parts"]
        assert read(topics.outcomes)["results"][0]["transaction_id"] == "t"
        committed = read(topics.commits)
    assert committed["changes"] == commit()["changes"]
    assert committed["committed_at"].isoformat() == "2013-06-01T12:00:00+00:00", "others see the logical type"


def test_a_registry_that_spells_schemas_its_own_way_gives_back_our_text(
    topics: Topics, registry: TopicRegistry
) -> None:
    """The hashes of commits are made of the text as registered."""
    with http_server(registry_over_http(registry)) as url, closing(ConfluentRegistry(url, topics)) as ids:
        for each in (TRANSACTION, COMMIT, OUTCOMES, TICK):
            assert ids.text_of(ids.id_of(each)) == each.text


def test_a_producer_takes_ids_from_a_registry_over_http(
    kafka: dict[str, Any], topics: Topics, registry: TopicRegistry
) -> None:
    bootstrap = kafka["bootstrap.servers"]
    registry.register("somebody-else", '"string"')
    with (
        http_server(registry_over_http(registry)) as url,
        Decider(kafka, topics, PARTITIONS).running(),
        TransactionProducer(bootstrap, prefix=topics.prefix, registry_url=url) as p,
    ):
        assert p.send(Transaction("UA").put("t", "k", {})).outcome().committed
    assert registry.subjects()[f"{topics.prefix}transactions-value"] == [registry.id_of(TRANSACTION)]


@pytest.mark.parametrize(
    ("answered", "error", "said"),
    [
        ((404, {"error_code": 40403, "message": "Schema not found"}), Malformed, "id 7"),
        ((409, {"error_code": 409, "message": "incompatible"}), Misconfigured, "409"),
        ((401, {"error_code": 401, "message": "who are you"}), Misconfigured, "401"),
        ((500, b"oops"), Unavailable, "500"),
        ((429, {}), Unavailable, "429"),
        ((200, b"<html>"), Unavailable, "JSON"),
        ((200, ["schema"]), Unavailable, "JSON object"),
        ((200, {"schema": None}), Unavailable, "no schema"),
    ],
)
def test_what_a_registry_answers_is_typed(answered: Answer, error: type[Exception], said: str) -> None:
    with (
        http_server(lambda method, path, body: answered) as url,
        closing(ConfluentRegistry(url, Topics())) as ids,
        pytest.raises(error, match=said),
    ):
        ids.text_of(7)


def test_a_refused_registration_is_typed() -> None:
    with (
        http_server(lambda method, path, body: (409, {"message": "incompatible"})) as url,
        closing(ConfluentRegistry(url, Topics())) as ids,
        pytest.raises(Misconfigured, match="incompatible"),
    ):
        ids.id_of(COMMIT)


def test_a_registry_that_is_away_is_unavailable() -> None:
    with (
        closing(ConfluentRegistry("http://127.0.0.1:1", Topics())) as ids,
        pytest.raises(Unavailable, match="does not answer"),
    ):
        ids.id_of(COMMIT)


def test_a_reader_with_nothing_of_ours_reads_a_commit() -> None:
    """fastavro and the text as registered are enough."""
    body = codec.encode(COMMIT, commit())
    read = fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(json.loads(COMMIT.text)), None)
    assert isinstance(read, dict)
    assert read["changes"] == commit()["changes"]


class Clock:
    """A time that passes while somebody sleeps, and never else."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_an_id_that_one_of_the_registrys_nodes_has_not_heard_of_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(registries, "time", clock)
    asked: list[str] = []

    def answer(method: str, path: str, body: Any) -> Answer:
        asked.append(path)
        if path.endswith("/7") and len(asked) > 2:
            return 200, {"schema": COMMIT.text}
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def times_asked_for(schema_id: int) -> int:
        asked.clear()
        with pytest.raises(Malformed):
            ids.text_of(schema_id)
        return len(asked)

    with http_server(answer) as url, closing(ConfluentRegistry(url, Topics())) as ids:
        assert ids.text_of(7) == COMMIT.text
        assert len(asked) == 3
        believed_after = times_asked_for(8)
        assert believed_after >= registries.UNKNOWN_AFTER_S / registries.UNKNOWN_AGAIN_S
        assert [times_asked_for(8), times_asked_for(8)] == [1, 1]
        clock.sleep(registries.UNKNOWN_FOR_S)
        assert times_asked_for(8) == believed_after
