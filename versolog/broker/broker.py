"""Apache Kafka on this machine, one node: made ready, started until it answers, stopped."""

from __future__ import annotations

import base64
import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from versolog.broker.directory import DataDirectory, Mark, RunningRecord
from versolog.broker.errors import AlreadyRunningError, BrokerError, JavaError, PortTakenError, StartError, diagnose
from versolog.broker.jars import Say, cache_default, class_path, kafka_jars
from versolog.broker.java import java_command, java_installed
from versolog.broker.ports import HOST, address, free_port, is_free, kafka_answers
from versolog.broker.process import ENVIRONMENT, Child, ProcessIdentity
from versolog.broker.properties import LOG4J_PROPERTIES, server_properties

HEAP_MIB = 512
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
FORMAT_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.02
PORT_ATTEMPTS_MAX = 3


class Broker:
    """A Kafka broker with its data in `data`, which survives restarts and kill -9, listening on 127.0.0.1 alone.

    It is out of reach of the terminal's Ctrl-C, so that its owner orders the shutdown. If the owner is killed, the
    broker shuts down by itself; with `background` it goes on instead, and `versolog.broker.stop` ends it.

    Without `kafka_port` it takes the port of its last run if that is free, else another. With `fsync` every record is
    on the disk before it is acknowledged, and a power cut loses nothing; without, a kill -9 loses nothing. Kafka is
    fetched on the first start on a machine, from `maven_url` (Maven Central if None) into `cache`
    (`~/.cache/versolog` if None), and `say` is given lines for the person who waits.
    """

    def __init__(
        self,
        data: Path,
        kafka_port: int | None = None,
        *,
        fsync: bool = False,
        heap_mib: int = HEAP_MIB,
        background: bool = False,
        cache: Path | None = None,
        maven_url: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        say: Say | None = None,
    ) -> None:
        self.data = data
        self._directory = DataDirectory(data)
        self._given_port = kafka_port
        self._fsync = fsync
        self._heap_mib = heap_mib
        self._background = background
        self._cache = cache
        self._maven_url = maven_url
        self._start_timeout_s = start_timeout_s
        self._say: Say = say or (lambda line: None)
        self._child: Child | None = None
        self._port: int | None = None

    def start(self) -> Self:
        """Return once the broker answers. Does nothing if it runs; starts it again if it died or was stopped.

        Raises a BrokerError that says what to do: AlreadyRunningError, PortTakenError, DataDirectoryError,
        DiskFullError, DownloadError, NotInstalledError, JavaError, or StartError with the last lines of Kafka's log.
        """
        if self.running:
            return self
        java = java_installed()
        jars = class_path(kafka_jars(), self._cache or cache_default(), self._maven_url, self._say)
        command = java_command(java, jars, self._heap_mib, self._directory.tmp)
        with self._directory.locked(self._start_timeout_s):
            self._refuse_second()
            mark = self._directory.claim(_new_cluster_id())
            self._directory.refuse_full_disk()
            self._directory.write_text("log4j2.properties", LOG4J_PROPERTIES)
            for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
                mark = self._directory.remember(_with_ports(mark, self._given_port))
                if not mark.formatted:
                    mark = _format(self._directory, mark, command)
                try:
                    self._run(command, mark)
                    break
                except PortTakenError:
                    # Another program was quicker to take a port that had just been free.
                    if attempt == PORT_ATTEMPTS_MAX:
                        raise
        return self

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut the broker down in order, and kill it if that takes longer than `timeout_s`. It is gone on return."""
        if self._child is not None:
            self._child.end(timeout_s)
            self._child = None
            self._directory.forget_running()

    def kill(self) -> None:
        """End the broker with SIGKILL, as a crash would; `start` goes on with what is on the disk."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    @property
    def bootstrap(self) -> str:
        """The address for clients, `127.0.0.1:port`. It stays after a stop; BrokerError before the first start."""
        if self._port is None:
            raise BrokerError("the broker has no address before its first start")
        return address(self._port)

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int | None:
        """The process id of Kafka's Java; None when it doesn't run."""
        return self._child.pid if self._child is not None and self._child.running else None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _refuse_second(self) -> None:
        record = self._directory.running_record()
        if record is None or not record.process.alive:
            return
        if record.owner is not None and not record.owner.alive:
            self._say("waiting for the broker of a program that was killed to shut down")
            record.process.end(STOP_TIMEOUT_S)
            return
        bootstrap = address(record.kafka_port)
        raise AlreadyRunningError(
            f"a broker runs on {self._directory.path} already, process {record.process.pid} at {bootstrap}",
            pid=record.process.pid,
            bootstrap=bootstrap,
        )

    def _run(self, command: Sequence[str], mark: Mark) -> None:
        assert mark.kafka_port is not None
        assert mark.controller_port is not None
        directory = self._directory
        properties = server_properties(directory.kafka, mark.kafka_port, mark.controller_port, fsync=self._fsync)
        directory.write_text("kafka.properties", properties)
        log_bytes_before = _size(directory.broker_log)
        arguments = [*command, "kafka.Kafka", "kafka.properties"]
        try:
            child = Child(arguments, directory.path, directory.console_log, die_with_parent=not self._background)
        except OSError as problem:
            raise JavaError(f"Java can't be run: {problem}") from problem
        try:
            owner = None if self._background else ProcessIdentity.of(os.getpid())
            started_at = datetime.now(UTC).isoformat(timespec="seconds")
            directory.record_running(RunningRecord(child.identity, owner, mark.kafka_port, started_at))
            self._wait_until_it_answers(child, mark, log_bytes_before)
        except BaseException:
            child.kill()
            directory.forget_running()
            raise
        self._child = child
        self._port = mark.kafka_port

    def _wait_until_it_answers(self, child: Child, mark: Mark, log_bytes_before: int) -> None:
        assert mark.kafka_port is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not kafka_answers(mark.kafka_port, mark.cluster_id):
            if child.ended_within(LOOK_EVERY_S):
                output = self._directory.console_log.read_text("utf-8", "replace")
                output += _tail(self._directory.broker_log, log_bytes_before)
                raise diagnose(f"Kafka ended while it was started in {self._directory.path}", output)
            if time.monotonic() > deadline:
                raise StartError(
                    f"Kafka didn't answer at {address(mark.kafka_port)} within {self._start_timeout_s:.0f} s; "
                    f"its log is {self._directory.broker_log}"
                )


def _format(directory: DataDirectory, mark: Mark, command: Sequence[str]) -> Mark:
    """Make Kafka's log directory: whole, or not at all."""
    with directory.partial() as partial:
        # The ports that the quorum's first state names are replaced at the first start; any will do.
        directory.write_text("format.properties", server_properties(partial, 9092, 9093, fsync=False))
        tool = [*command, "kafka.tools.StorageTool", "format", "--standalone"]
        try:
            result = subprocess.run(
                [*tool, "--cluster-id", mark.cluster_id, "--config", "format.properties"],
                cwd=directory.path,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=FORMAT_TIMEOUT_S,
                check=False,
            )
        except OSError as problem:
            raise JavaError(f"Java can't be run: {problem}") from problem
        except subprocess.TimeoutExpired as problem:
            raise StartError(f"Kafka didn't format {directory.path} within {FORMAT_TIMEOUT_S:.0f} s") from problem
        if result.returncode != 0:
            raise diagnose(f"Kafka can't format {directory.path}", result.stdout.decode("utf-8", "replace"))
        return directory.put_in_place(partial, mark)


def _new_cluster_id() -> str:
    """A random UUID as Kafka writes it. None that begins with a dash: StorageTool would read it as an option."""
    while (cluster_id := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return cluster_id


def _with_ports(mark: Mark, given_port: int | None) -> Mark:
    """The mark with two ports that are free now: the given one, else those of the last run, else any."""
    if given_port is not None and not is_free(given_port):
        raise PortTakenError(
            f"port {given_port} of {HOST} is taken by another program; give another, or none to have one found",
            port=given_port,
        )
    kafka_port = given_port or free_port(mark.kafka_port)
    return replace(mark, kafka_port=kafka_port, controller_port=free_port(mark.controller_port, but_not=kafka_port))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, from_byte: int) -> str:
    """What was appended to `path` since it had `from_byte` bytes; all of it if it was rotated in between."""
    if not path.exists():
        return ""
    content = path.read_bytes()
    return content[from_byte if from_byte <= len(content) else 0 :].decode("utf-8", "replace")
