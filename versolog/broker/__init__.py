"""Apache Kafka, brought along: one node on this machine, for trying out, for tests and for small installations."""

from versolog.broker.background import Running, Stopped, start, status, stop
from versolog.broker.broker import Broker
from versolog.broker.errors import (
    AlreadyRunningError,
    BrokerError,
    DataDirectoryError,
    DiskFullError,
    DownloadError,
    JavaError,
    NotInstalledError,
    PortTakenError,
    StartError,
)
from versolog.broker.jars import KAFKA_VERSION

__all__ = [
    "KAFKA_VERSION",
    "AlreadyRunningError",
    "Broker",
    "BrokerError",
    "DataDirectoryError",
    "DiskFullError",
    "DownloadError",
    "JavaError",
    "NotInstalledError",
    "PortTakenError",
    "Running",
    "StartError",
    "Stopped",
    "start",
    "status",
    "stop",
]
