"""The embedded broker as a user meets it: a real Kafka, stopped, killed, started twice, and kept from starting."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, IsolationLevel, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from versolog import broker
from versolog.broker.broker import Broker
from versolog.broker.errors import (
    AlreadyRunningError,
    DataDirectoryError,
    JavaError,
    PortTakenError,
)
from versolog.broker.jars import KAFKA_VERSION, cache_default, kafka_jars
from versolog.broker.ports import free_port
from versolog.broker.process import ProcessIdentity
from versolog.testing import embedded_broker

TOPIC = "kept"
WAIT_S = 30.0
AFTER_KILL_S = 15.0


def make_topic(bootstrap: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    config = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
    admin.create_topics([NewTopic(TOPIC, 1, replication_factor=1, config=config)])[TOPIC].result(WAIT_S)


def write(bootstrap: str, values: list[bytes]) -> None:
    """Write in one Kafka transaction, and wait until readers may have it: its answer may come before its marker."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "transactional.id": "test",
            "transaction.timeout.ms": 10_000,
        }
    )
    producer.init_transactions(WAIT_S)
    producer.begin_transaction()
    for value in values:
        producer.produce(TOPIC, value)
    producer.commit_transaction(WAIT_S)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    ends = time.monotonic() + WAIT_S
    while _end(admin, IsolationLevel.READ_COMMITTED) < _end(admin, IsolationLevel.READ_UNCOMMITTED):
        assert time.monotonic() < ends, "the transaction stays open"
        time.sleep(0.02)


def _end(admin: AdminClient, isolation: IsolationLevel) -> int:
    latest = {TopicPartition(TOPIC, 0): OffsetSpec.latest()}
    (found,) = admin.list_offsets(latest, isolation_level=isolation).values()
    return int(found.result(WAIT_S).offset)


def read(bootstrap: str) -> list[bytes]:
    """Everything in the topic up to its last stable offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "unused",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    values: list[bytes] = []
    try:
        while (message := consumer.poll(WAIT_S)) is not None:
            if message.error():
                return values  # the end of the partition
            value = message.value()
            assert value is not None
            values.append(value)
    finally:
        consumer.close()
    pytest.fail(f"no end of the partition within {WAIT_S} s")


def running(data: Path) -> broker.Running:
    found = broker.status(data)
    assert isinstance(found, broker.Running)
    return found


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "data") as one:
        yield one


def test_a_started_broker_takes_transactions_and_says_where_it_is(started: Broker) -> None:
    pid = started.pid
    assert pid is not None
    make_topic(started.bootstrap)
    write(started.bootstrap, [b"1", b"2"])
    assert read(started.bootstrap) == [b"1", b"2"]
    assert started.start() is started
    assert started.pid == pid
    found = running(started.data)
    assert (found.pid, found.bootstrap, found.answers) == (pid, started.bootstrap, True)


def test_only_loopback_is_listened_on(started: Broker) -> None:
    assert started.bootstrap.startswith("127.0.0.1:")
    listening = {line.split()[1] for line in Path(f"/proc/{started.pid}/net/tcp").read_text().splitlines()[1:]}
    port = int(started.bootstrap.split(":")[1])
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


def test_data_and_address_survive_a_stop_and_a_kill(started: Broker) -> None:
    make_topic(started.bootstrap)
    address = started.bootstrap
    write(address, [b"before the stop"])
    started.stop()
    assert not started.running
    assert broker.status(started.data) == broker.Stopped(started.data, "the broker was stopped")
    started.start()
    write(address, [b"before the kill"])
    started.kill()
    assert isinstance(broker.status(started.data), broker.Stopped)
    began = time.monotonic()
    started.start()
    assert time.monotonic() - began < AFTER_KILL_S
    assert started.bootstrap == address
    write(address, [b"after"])
    assert read(address) == [b"before the stop", b"before the kill", b"after"]


def test_another_program_may_have_taken_the_port_meanwhile(started: Broker) -> None:
    make_topic(started.bootstrap)
    address = started.bootstrap
    port = int(address.split(":")[1])
    started.stop()
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(PortTakenError, match=str(port)):
            Broker(started.data, port).start()
        started.start()
    assert started.bootstrap != address
    write(started.bootstrap, [b"elsewhere"])
    assert read(started.bootstrap) == [b"elsewhere"]


def test_a_port_that_is_taken_at_the_last_moment_is_left_for_another(
    started: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.stop()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        offers = iter([taken])
        monkeypatch.setattr(
            "versolog.broker.broker.free_port",
            lambda wished=None, but_not=None: next(offers, None) or free_port(wished, but_not),
        )
        started.start()
    assert started.running
    assert not started.bootstrap.endswith(f":{taken}")


def test_a_broker_in_the_background_is_stopped_by_a_later_process(tmp_path: Path) -> None:
    data = tmp_path / "data"
    script = f"from pathlib import Path; from versolog import broker; print(broker.start(Path({str(data)!r})).pid)"
    bare = {"PATH": "/nonexistent", "HOME": str(Path.home())}
    result = subprocess.run([sys.executable, "-c", script], env=bare, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pid = int(result.stdout)
    try:
        found = running(data)
        assert (found.pid, found.answers) == (pid, True)
        assert os.getsid(pid) == pid  # so the terminal's Ctrl-C and its hang-up don't reach it
        with pytest.raises(AlreadyRunningError, match=f"runs on {data} already, process {pid} at {found.bootstrap}"):
            broker.start(data)
        with pytest.raises(AlreadyRunningError):
            Broker(data).start()
    finally:
        assert broker.stop(data)
    assert broker.status(data) == broker.Stopped(data, "the broker was stopped")
    assert not broker.stop(data)


def test_a_killed_broker_in_the_background_is_not_taken_for_a_live_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    killed = ProcessIdentity.of(broker.start(data).pid)
    assert killed is not None
    killed.kill()
    found = broker.status(data)
    assert isinstance(found, broker.Stopped)
    assert found.detail == f"the broker, process {killed.pid}, died without being stopped"
    with Broker(data) as again:
        assert again.running


OWNER = """
import signal, sys
from pathlib import Path
from versolog.broker import Broker
broker = Broker(Path(sys.argv[1])).start()
print(broker.pid, flush=True)
signal.pause()
"""


def test_a_broker_goes_with_its_killed_owner_and_the_next_start_waits_for_that(tmp_path: Path) -> None:
    data = tmp_path / "data"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(data)], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        orphan = ProcessIdentity.of(int(owner.stdout.readline()))
        assert orphan is not None
        assert running(data).pid == orphan.pid
        owner.kill()
    with Broker(data) as next_one:
        assert not orphan.alive
        assert next_one.pid != orphan.pid


def test_a_directory_that_kafka_itself_refuses_is_told_with_its_last_words(started: Broker) -> None:
    started.stop()
    (started.data / "kafka" / "photos").mkdir()
    with pytest.raises(DataDirectoryError, match="'photos' is not in the form of topic-partition"):
        started.start()
    assert not started.running
    assert isinstance(broker.status(started.data), broker.Stopped)
    (started.data / "kafka" / "photos").rmdir()
    assert started.start().running


def test_a_kafka_that_was_started_by_other_means_is_told_as_running(started: Broker) -> None:
    started.stop()
    with (started.data / "kafka" / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # as Java's FileLock does
        with pytest.raises(AlreadyRunningError, match=r"Failed to acquire lock on file \.lock"):
            started.start()


def test_a_java_that_does_not_start_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(JavaError, match="Too small maximum heap"):
        Broker(tmp_path / "data", heap_mib=1).start()
    with Broker(tmp_path / "data") as afterwards:  # nothing half-formatted was left
        assert afterwards.running


@pytest.mark.parametrize("fsync", [False, True])
def test_settings_reach_kafka(tmp_path: Path, fsync: bool) -> None:
    with Broker(tmp_path / "data", fsync=fsync) as one:
        admin = AdminClient({"bootstrap.servers": one.bootstrap})
        resource = ConfigResource(ResourceType.BROKER, "1")
        settings = admin.describe_configs([resource])[resource].result(WAIT_S)
    assert settings["auto.create.topics.enable"].value == "false"
    assert settings["transaction.max.timeout.ms"].value == "60000"
    assert settings["log.retention.ms"].value == "-1"
    assert (settings["log.flush.interval.messages"].value == "1") == fsync


def test_a_broker_for_tests_leaves_nothing_behind() -> None:
    with embedded_broker() as one:
        data, pid = one.data, one.pid
        assert pid is not None
        assert data.is_dir()
    assert not data.exists()
    assert ProcessIdentity.of(pid) is None


def test_a_broker_for_tests_keeps_a_directory_that_was_given(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "data") as one:
        make_topic(one.bootstrap)
        write(one.bootstrap, [b"kept"])
    with embedded_broker(tmp_path / "data") as again:
        assert read(again.bootstrap) == [b"kept"]


@pytest.mark.slow
def test_the_list_of_jars_is_what_maven_resolves(tmp_path: Path) -> None:
    from jgo.maven import MavenContext, PythonResolver

    resolver = PythonResolver()
    context = MavenContext(resolver=resolver, repo_cache=tmp_path)
    kafka = context.create_dependency(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")
    inputs, transitive = resolver.resolve([kafka])
    resolved = {f"{one.groupId}:{one.artifactId}:{one.version}" for one in [*inputs, *transitive]}
    log4j = next(one for one in resolved if ":log4j-core:" in one).rsplit(":", 1)[1]
    assert {jar.coordinate for jar in kafka_jars()} == resolved | {f"org.apache.logging.log4j:log4j-slf4j-impl:{log4j}"}


def test_the_jars_are_in_the_users_cache(started: Broker) -> None:
    command = Path(f"/proc/{started.pid}/cmdline").read_text().split("\0")
    class_path = command[command.index("-cp") + 1].split(":")
    assert len(class_path) == len(kafka_jars())
    assert all(Path(jar).is_relative_to(cache_default()) for jar in class_path)
