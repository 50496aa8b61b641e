"""A whole node in one process without Kafka: real stores, real deciding, a list for a log."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import orjson
from prometheus_client import CollectorRegistry

from versolog.projections.http import app
from versolog.projections.intake import Appended
from versolog.projections.lag import Lag
from versolog.projections.live import LivePartition
from versolog.projections.node import Node
from versolog.projections.rocks import Memory
from versolog.projections.tail import Ends
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Schema
from versolog.schemas.errors import Malformed, VersologError
from versolog.schemas.topics import Topics
from versolog.schemas.written import checkpoint_body
from versolog.streams.chain import intent_hash
from versolog.streams.committer import Written
from versolog.streams.decide import COMMIT, Asked, Decision, asked_by_share
from versolog.streams.overlay import Overlay
from versolog.streams.participant import Participant
from versolog.streams.runtime import HttpServer
from versolog.streams.shares import Allotment

PARTITIONS = 2
NO_KAFKA = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
SCHEMAS = [avro.schema(name) for name in ("Transaction", "Tick", "Commit", "Outcomes")]


class ListedSchemas:
    """Schema ids by place in a list; also what the registry endpoints read."""

    def id_of(self, schema: Schema) -> int:
        return SCHEMAS.index(schema) + 1

    def text_of(self, schema_id: int) -> str:
        if not 1 <= schema_id <= len(SCHEMAS):
            raise Malformed(f"nobody registered a schema with id {schema_id}")
        return SCHEMAS[schema_id - 1].text

    def subjects(self) -> dict[str, list[int]]:
        return {f"versolog.{schema.name.lower()}s-value": [number] for number, schema in enumerate(SCHEMAS, 1)}

    def refresh(self) -> None:
        pass


class ListedLog:
    """An intake whose log is decided in the loop's next turn, as a committer would, one transaction a batch."""

    def __init__(self, partitions: Mapping[int, LivePartition], codec: Codec, clock_ms: Callable[[], int]) -> None:
        self._partitions, self._codec, self._clock_ms = partitions, codec, clock_ms
        self._overlays = {number: Overlay(partition.store) for number, partition in partitions.items()}
        self._participants = {
            number: Participant(overlay, number, PARTITIONS, None) for number, overlay in self._overlays.items()
        }
        for number, participant in self._participants.items():
            partitions[number].known_settled = participant.settled
        self._allotment = Allotment(PARTITIONS)
        self._sequence_offset = 0
        self.held = False
        """While true nothing is decided, as if the owner was away."""
        self.failure: VersologError | None = None
        """What appending ends with, as if the log was away."""
        self.taken = 0
        self._ends: Counter[int] = Counter()
        self._waiting: list[Callable[[], None]] = []

    def append(self, partition: int | None, key: bytes | None, value: bytes, appended: Appended) -> None:
        self.taken += 1
        if self.failure is not None:
            appended(self.failure)
            return
        if partition is not None:
            self._ends[partition] += 1
        appended(None)
        self._waiting.append(lambda: self._sequence(value) if partition is None else self._decide(partition, value))
        asyncio.get_running_loop().call_soon(self._go_on)

    async def now(self, partition: int) -> int:
        if self.failure is not None:
            raise self.failure
        return self._ends[partition]

    def close(self, timeout_s: float = 0.0) -> None:
        pass

    def release(self) -> None:
        """Decide what was held, in order."""
        self.held = False
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and not self.held:
            self._waiting.pop(0)()

    def _sequence(self, value: bytes) -> None:
        offset, self._sequence_offset = self._sequence_offset, self._sequence_offset + 1
        _, record = self._codec.read(value, SCHEMAS[0])
        shares = self._allotment.shares(offset, intent_hash(avro.unframe(value)[1]), record)
        for number, share in shares.items():
            participant = self._participants[number]
            self._ends[number] += 1
            clock = participant.place(participant.next_offset, self._clock_ms())
            assert clock is not None
            participant.take(asked_by_share(participant.next_offset - 1, clock, share, 0))
        self._settle()

    def _decide(self, number: int, value: bytes) -> None:
        participant = self._participants[number]
        clock = participant.place(participant.next_offset, self._clock_ms())
        assert clock is not None
        schema, record = self._codec.read(value, SCHEMAS[0], SCHEMAS[1])
        if schema is SCHEMAS[0]:
            hash_ = intent_hash(avro.unframe(value)[1])
            participant.take(Asked(participant.next_offset - 1, clock, hash_, record))
            self._settle()
        else:
            self._write(number, [])

    def _settle(self) -> None:
        """Carry votes to and fro until there are none, and write what is decided."""
        votes = True
        while votes:
            votes = False
            for number, participant in self._participants.items():
                decisions, ballots, _ = participant.turn()
                votes |= bool(ballots)
                for ballot in ballots:
                    for to in ballot.to:
                        self._participants[to].hear(ballot.vote, 0)
                    participant.cast(ballot.vote.sequence_offset)
                if decisions:
                    self._write(number, decisions)

    def _write(self, number: int, decisions: list[Decision]) -> None:
        partition, overlay = self._partitions[number], self._overlays[number]
        schema_id = self._codec.id_of(COMMIT)
        values = [
            avro.frame(schema_id, piece.body)
            for decision in decisions for sealed in decision.commits for piece in sealed.pieces
        ]  # fmt: skip
        layer, store = overlay.push(), partition.store
        checkpoint = {
            **self._participants[number].checkpoint(),
            "commits_offset": store.next_commit_offset + len(values),
        }
        body = checkpoint_body(checkpoint)
        stand = store.next_commit_offset, store.next_outcome_offset
        partition.apply(Written(decisions, checkpoint, body, values, *stand))
        overlay.drop(layer)
        partition.applied(decisions)


class House:
    """A node with its HTTP application, and the hands on what is around it."""

    def __init__(self, directory: Path, *, roles: Mapping[int, str] | None = None, url: str = "http://self") -> None:
        self.schemas = ListedSchemas()
        self.codec = Codec(self.schemas)
        ends, memory = Ends(dict(NO_KAFKA)), Memory()
        self.partitions = {
            number: LivePartition(
                number,
                directory,
                kafka=dict(NO_KAFKA),
                topics=Topics(),
                codec=self.codec,
                identity="in-process",
                ends=ends,
                memory=memory,
            )
            for number in range(PARTITIONS)
        }
        for number, partition in self.partitions.items():
            partition.role = (roles or {}).get(number, "owner")  # type: ignore[assignment]
        self.now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
        self.log = ListedLog(self.partitions, self.codec, lambda: self.now_ms())
        self.owners: dict[int, str] = {}
        self.metrics = CollectorRegistry()
        self.lag = Lag(self.partitions)
        self.kept = set(range(PARTITIONS))
        """What the group still gives this node."""
        self.node = Node(
            self.partitions,
            count=PARTITIONS,
            codec=self.codec,
            intake=self.log,
            ends=self.log,
            owners=self._owners,
            own_url=url,
            lag=self.lag,
            keeps=lambda partition: partition in self.kept,
        )
        self.app = app(self.node, registry=self.schemas, metrics=self.metrics)

    async def _owners(self, *, refresh: bool = False) -> Mapping[int, str]:
        return self.owners

    def close(self) -> None:
        for partition in self.partitions.values():
            partition.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """An HTTP client whose server is the application itself; every answer is held against the documentation."""
        held = Held()
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        hooks: dict[str, list[Callable[..., Any]]] = {"response": [held]}
        async with httpx.AsyncClient(transport=transport, base_url="http://node", event_hooks=hooks) as client:
            if not _documented:
                _documented.update((await client.get("/openapi.json")).json())
            held.learn(_documented)
            yield client


_documented: dict[str, Any] = {}
"""The OpenAPI document, which is the same for every house."""


class Held:
    """Holds every answer against the OpenAPI document: its status, its content type and its body."""

    def __init__(self) -> None:
        self._document: dict[str, Any] = {}

    async def __call__(self, response: httpx.Response) -> None:
        path = response.request.url.raw_path.decode().partition("?")[0]
        if path in ("/openapi.json", "/docs"):
            return
        body = await response.aread()
        operation = self._operation(response.request.method, path)
        if operation is None:
            assert response.status_code in (404, 405), response.status_code
            told = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        else:
            responses = operation["responses"]
            told = responses.get(str(response.status_code), responses.get("default"))
        self._check(told, response, body)

    def learn(self, document: dict[str, Any]) -> None:
        self._document = document

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for template, item in self._document["paths"].items():
            pattern = re.sub(r"\\{key\\}", ".+", re.escape(template))
            if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", pattern), path) and method.lower() in item:
                found: dict[str, Any] = item[method.lower()]
                return found
        return None

    def _check(self, told: dict[str, Any] | None, response: httpx.Response, body: bytes) -> None:
        about = f"{response.request.method} {response.request.url}: {response.status_code} {body[:500]!r}"
        assert told is not None, f"not documented: {about}"
        content = told.get("content", {})
        if not content:
            assert body == b"", about
            return
        media = response.headers["content-type"].partition(";")[0]
        assert media in content, f"{media} is not documented: {about}"
        schema = content[media]["schema"]
        if "$ref" in schema:
            whole = {**schema, "components": self._document["components"]}
            validator = jsonschema_rs.validator_for(whole, validate_formats=True)
            mistakes = [error.message for error in validator.iter_errors(orjson.loads(body))]
            assert not mistakes, f"{mistakes}: {about}"


@asynccontextmanager
async def house(directory: Path, **options: Any) -> AsyncIterator[tuple[House, httpx.AsyncClient]]:
    """A house and a client of it, cleaned up at the end."""
    built = House(directory, **options)
    try:
        async with built.client() as client:
            yield built, client
    finally:
        built.close()


class Served:
    """A house behind a real port, on a loop of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(20)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.house = House(self._directory)
        self._server = HttpServer(self.house.app, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.port}"
        serving = asyncio.create_task(self._server.serve())
        self._ready.set()
        await serving
        self.house.close()
