"""Apache Kafka in a container, from its official image, where the tests are run with `--broker=docker`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from testcontainers.core.container import DockerContainer

from tests.cluster import eventually
from versolog.broker import KAFKA_VERSION
from versolog.broker.ports import free_port, kafka_answers

START_TIMEOUT_S = 120.0
CLUSTER_ID = "dmVyc29sb2ctdGVzdHMtMQ"


class ContainerBroker:
    """What `versolog.broker.Broker` is to a test, on a Docker engine."""

    def __init__(self) -> None:
        self._port = free_port(None)
        self._container = DockerContainer(f"apache/kafka:{KAFKA_VERSION}").with_bind_ports(9092, self._port)
        for name, value in _settings(self._port).items():
            self._container.with_env(name, value)
        self._container.start()
        self._wait()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Kafka's process, as the engine's machine numbers it: only root may signal it."""
        container = self._container.get_wrapped_container()
        container.reload()
        return int(container.attrs["State"]["Pid"])

    def kill(self) -> None:
        """As a crash would end it; `start` goes on with its data."""
        self._container.get_wrapped_container().kill("SIGKILL")

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        self._wait()

    def remove(self) -> None:
        self._container.stop()

    def _wait(self) -> None:
        eventually(lambda: kafka_answers(self._port, CLUSTER_ID), START_TIMEOUT_S, "Kafka answers in its container")


@contextmanager
def container_broker() -> Iterator[ContainerBroker]:
    """Kafka in a container that is gone at the end. Needs a Docker engine, and fails without one."""
    broker = ContainerBroker()
    try:
        yield broker
    finally:
        broker.remove()


def _settings(port: int) -> dict[str, str]:
    """What the embedded broker is told, as the official image takes it."""
    return {
        "CLUSTER_ID": CLUSTER_ID,
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_LOG_RETENTION_MS": "-1",
        "KAFKA_DEFAULT_REPLICATION_FACTOR": "1",
        "KAFKA_MIN_INSYNC_REPLICAS": "1",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "8",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "8",
        "KAFKA_TRANSACTION_MAX_TIMEOUT_MS": "60000",
        "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_BROKER_SESSION_TIMEOUT_MS": "3000",
        "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
    }
