"""The image and the compose file, as far as they can be held to without an engine: what they set exists, and agrees
with the rest of versolog, and the commands in them work here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from versolog.broker import KAFKA_VERSION
from versolog.broker.properties import server_properties
from versolog.config import Settings
from versolog.up import WORKER_STOP_S

DOCKER = Path(__file__).parents[2] / "docker"
ONLY_ON_ONE_MACHINE = {
    "group.min.session.timeout.ms",
    "broker.session.timeout.ms",
    "broker.heartbeat.interval.ms",
    "log.cleaner.dedupe.buffer.size",
    "metric.reporters",
    "num.recovery.threads.per.data.dir",
    "share.coordinator.state.topic.num.partitions",
    "controller.quorum.bootstrap.servers",
}
"""What the embedded broker sets for tests and for a small heap, and a Kafka in a container does without."""
OTHERWISE_IN_A_CONTAINER = {
    "listeners",
    "advertised.listeners",
    "inter.broker.listener.name",
    "log.dirs",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The Dockerfile as instructions and their arguments, comments and line breaks taken out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


class Answer(BaseHTTPRequestHandler):
    """200 at /livez, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Refusing(Answer):
    """503 everywhere."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()


def test_the_workers_wait_for_a_healthy_kafka_and_keep_their_stores_apart(compose: dict[str, Any]) -> None:
    workers = _workers(compose)
    assert len(workers) == 2
    for name, worker in workers.items():
        assert worker["depends_on"] == {"kafka": {"condition": "service_healthy"}}
        assert worker["volumes"] == [f"{name}:/var/lib/versolog"]
        assert worker["environment"]["VERSOLOG_ADVERTISED_URL"] == f"http://{name}:8080"
    assert set(compose["volumes"]) == {"kafka", *workers}
    assert [worker["ports"] for worker in workers.values()] == [["127.0.0.1:8080:8080"], ["127.0.0.1:8081:8080"]]


def test_what_the_workers_are_set_to_are_settings(compose: dict[str, Any], steps: list[tuple[str, str]]) -> None:
    image = dict(re.findall(r"(VERSOLOG_\w+)=(\S+)", " ".join(rest for name, rest in steps if name == "ENV")))
    assert image
    for worker in _workers(compose).values():
        given = {**image, **worker["environment"]}
        fields = {name.removeprefix("VERSOLOG_").lower(): str(value) for name, value in given.items()}
        assert set(fields) <= set(Settings.model_fields)
        settings = Settings.model_validate(fields)
        assert settings.http_host == "0.0.0.0"
        assert settings.http_port == 8080
        assert settings.bootstrap == "kafka:19092"
        assert str(settings.data) == "/var/lib/versolog"


def test_kafka_is_of_the_same_version_and_told_the_same_as_the_embedded_one(compose: dict[str, Any]) -> None:
    kafka = compose["services"]["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA_VERSION}"
    told = _properties(kafka["environment"])
    ours = dict(
        line.split("=", 1) for line in server_properties(Path("kafka-logs"), 9092, 9093, fsync=False).splitlines()
    )
    for name in ONLY_ON_ONE_MACHINE:
        del ours[name]
    for name in OTHERWISE_IN_A_CONTAINER:
        assert name in told, name
        del ours[name]
    assert {name: told.get(name) for name in ours} == ours


def test_every_listener_of_kafka_has_a_protocol_and_an_address_that_others_can_reach(compose: dict[str, Any]) -> None:
    told = _properties(compose["services"]["kafka"]["environment"])
    listeners = dict(entry.split("://") for entry in told["listeners"].split(","))
    protocols = dict(entry.split(":") for entry in told["listener.security.protocol.map"].split(","))
    advertised = dict(entry.split("://") for entry in told["advertised.listeners"].split(","))
    assert set(protocols) == set(listeners)
    assert set(advertised) == set(listeners) - {told["controller.listener.names"]}
    assert told["inter.broker.listener.name"] in advertised
    for name, address in advertised.items():
        assert address.endswith(listeners[name])
    assert advertised["INTERNAL"] == _workers(compose)["worker-1"]["environment"]["VERSOLOG_BOOTSTRAP"]
    assert compose["services"]["kafka"]["ports"] == ["127.0.0.1:9092:9092"]


def test_a_worker_is_given_longer_to_stop_than_it_takes(compose: dict[str, Any]) -> None:
    for worker in _workers(compose).values():
        assert float(worker["stop_grace_period"].removesuffix("s")) > WORKER_STOP_S


def test_the_image_runs_a_worker_as_nobody_in_particular(steps: list[tuple[str, str]]) -> None:
    last = dict(steps)
    assert [name for name, _ in steps].count("FROM") == 2
    assert json.loads(last["ENTRYPOINT"]) == ["versolog"]
    assert json.loads(last["CMD"]) == ["worker"]
    uid, gid = map(int, last["USER"].split(":"))
    assert min(uid, gid) >= 10_000
    assert json.loads(last["VOLUME"]) == ["/var/lib/versolog"]
    assert last["STOPSIGNAL"] == "SIGTERM"


def test_the_engine_is_sent_what_the_image_copies_and_it_exists(steps: list[tuple[str, str]]) -> None:
    copied = [rest.split()[:-1] for name, rest in steps if name == "COPY" and not rest.startswith("--from")]
    sources = {source.removeprefix("./") for group in copied for source in group}
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == sources
    for source in sources:
        assert (DOCKER.parent / source).exists()


@pytest.mark.parametrize(("answer", "healthy"), [(Answer, True), (Refusing, False)])
def test_the_health_check_is_what_livez_answers(
    steps: list[tuple[str, str]], answer: type[Answer], healthy: bool
) -> None:
    with HTTPServer(("127.0.0.1", 0), answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            assert (_health_check(steps, server.server_port) == 0) is healthy
        finally:
            server.shutdown()
            thread.join()


def test_the_health_check_fails_where_nobody_answers(steps: list[tuple[str, str]]) -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as closed:
        port = closed.server_port
    assert _health_check(steps, port) != 0


def _health_check(steps: list[tuple[str, str]], port: int) -> int:
    text = dict(steps)["HEALTHCHECK"]
    command = json.loads(text[text.index("CMD") + 3 :])
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]], env={"VERSOLOG_HTTP_PORT": str(port)}, capture_output=True, timeout=30,
        check=False,
    )  # fmt: skip
    return done.returncode


def _workers(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name.startswith("worker")}


def _properties(environment: dict[str, Any]) -> dict[str, str]:
    """As the image makes them of its variables: KAFKA_LOG_DIRS is log.dirs."""
    return {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): str(value)
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }
