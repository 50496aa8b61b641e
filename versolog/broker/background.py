"""A broker that outlives the process that starts it, and is looked at and stopped by later ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from versolog.broker.broker import HEAP_MIB, START_TIMEOUT_S, STOP_TIMEOUT_S, Broker
from versolog.broker.directory import DataDirectory
from versolog.broker.errors import StartError
from versolog.broker.jars import Say
from versolog.broker.ports import address, kafka_answers


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that runs on `data`. `answers` is false while it starts up, and when it hangs."""

    data: Path
    pid: int
    bootstrap: str
    started_at: datetime
    answers: bool
    log: Path


@dataclass(frozen=True, slots=True)
class Stopped:
    """No broker runs on `data`; `detail` says why: never started, stopped, or killed."""

    data: Path
    detail: str


def start(
    data: Path,
    kafka_port: int | None = None,
    *,
    fsync: bool = False,
    heap_mib: int = HEAP_MIB,
    cache: Path | None = None,
    maven_url: str | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    say: Say | None = None,
) -> Running:
    """Start a broker in the background and return once it answers. Arguments and errors are those of `Broker`.

    AlreadyRunningError, with the address in its `facts`, if one runs on `data`.
    """
    Broker(
        data,
        kafka_port,
        fsync=fsync,
        heap_mib=heap_mib,
        background=True,
        cache=cache,
        maven_url=maven_url,
        start_timeout_s=start_timeout_s,
        say=say,
    ).start()
    found = status(data)
    if isinstance(found, Stopped):
        raise StartError(f"Kafka answered, and then {found.detail}; its logs are in {DataDirectory(data).logs}")
    return found


def stop(data: Path, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Shut down the broker that runs on `data`, whoever started it; kill it after `timeout_s`. False if none ran."""
    directory = DataDirectory(data)
    record = directory.running_record()
    if record is None:
        return False
    was_alive = record.process.alive
    record.process.end(timeout_s)
    directory.forget_running()
    return was_alive


def status(data: Path) -> Running | Stopped:
    """What runs on `data`. Changes nothing. A record that a kill -9 or a reboot left behind is no running broker."""
    directory = DataDirectory(data)
    mark = directory.mark()
    if mark is None:
        return Stopped(directory.path, "no broker was ever started here")
    record = directory.running_record()
    if record is None:
        return Stopped(directory.path, "the broker was stopped")
    if not record.process.alive:
        return Stopped(directory.path, f"the broker, process {record.process.pid}, died without being stopped")
    return Running(
        data=directory.path,
        pid=record.process.pid,
        bootstrap=address(record.kafka_port),
        started_at=datetime.fromisoformat(record.started_at),
        answers=kafka_answers(record.kafka_port, mark.cluster_id),
        log=directory.broker_log,
    )
