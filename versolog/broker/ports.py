"""Ports of this machine's loopback: which are free, and who answers on them."""

from __future__ import annotations

import random
import socket

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from versolog.broker.errors import PortTakenError

HOST = "127.0.0.1"

# Below the range from which Linux takes the ports of outgoing connections: there, a client that tries again and again
# to reach a broker that is down can be given the broker's own port, connect to itself, and keep the broker out.
FREE_PORTS = range(20_000, 32_000)

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 2.0


def address(port: int) -> str:
    return f"{HOST}:{port}"


def free_port(wished: int | None = None, but_not: int | None = None) -> int:
    """`wished` if it is free, else another that is. It may be taken again by the time that it is used."""
    if wished is not None and wished != but_not and is_free(wished):
        return wished
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if port != but_not and is_free(port):
            return port
    raise PortTakenError(f"no port of {HOST} from {FREE_PORTS.start} to {FREE_PORTS.stop - 1} is free")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: connections that close don't count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def kafka_answers(port: int, cluster_id: str) -> bool:
    """Whether the broker of `cluster_id`, and no other program, answers a metadata request at `port`."""
    try:
        # librdkafka alone would wait its time-out for a port where nobody listens.
        socket.create_connection((HOST, port), timeout=CONNECT_TIMEOUT_S).close()
        admin = AdminClient({"bootstrap.servers": address(port), "log_level": 0})
        found = admin.list_topics(timeout=ANSWER_TIMEOUT_S)
    except (OSError, KafkaException):
        return False
    return bool(found.cluster_id == cluster_id and found.brokers)
