"""The broker's data directory: whose it is, what made it, who runs on it, and everything that lies in it.

broker.json        versolog's mark: the Kafka version and cluster id that made it, the ports last used
running.json       the process that runs on it; stays behind after a kill -9, and is recognised as stale then
kafka/             Kafka's own log directory
logs/              broker.log (rotated) and console.log of the last start
*.properties       written anew at each start
lock, tmp/         nothing that must be kept
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from versolog.broker.errors import AlreadyRunningError, BrokerError, DataDirectoryError, DiskFullError
from versolog.broker.jars import KAFKA_VERSION
from versolog.broker.process import POLL_S, ProcessIdentity

FREE_BYTES_MIN = 256 * 1024 * 1024
"""A start below this is refused: Kafka halts in the middle of a write when the disk is full."""

_MARK = "broker.json"
_LOCK = "lock"
_NOT_FOREIGN = {_LOCK, "lost+found"}


@dataclass(frozen=True, slots=True)
class Mark:
    """What `broker.json` says. `formatted` turns true once Kafka's log directory stands complete."""

    kafka: str
    cluster_id: str
    formatted: bool = False
    kafka_port: int | None = None
    controller_port: int | None = None


@dataclass(frozen=True, slots=True)
class RunningRecord:
    """What `running.json` says. `owner` is the process that the broker dies with, None if it runs by itself."""

    process: ProcessIdentity
    owner: ProcessIdentity | None
    kafka_port: int
    started_at: str


class DataDirectory:
    """One broker's directory. Its methods raise DataDirectoryError or DiskFullError for what the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.kafka = self.path / "kafka"
        self.tmp = self.path / "tmp"
        self.logs = self.path / "logs"
        self.broker_log = self.logs / "broker.log"
        self.console_log = self.logs / "console.log"
        self._mark = self.path / _MARK
        self._running = self.path / "running.json"

    @contextmanager
    def locked(self, timeout_s: float) -> Iterator[None]:
        """Keep other processes from starting a broker here; creates the directory, unless something else has it."""
        with self._answering_for_the_disk():
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            lock = (self.path / _LOCK).open("w")
        with lock:
            deadline = time.monotonic() + timeout_s
            while not _lock_at_once(lock.fileno()):
                if time.monotonic() > deadline:
                    raise AlreadyRunningError(f"another process still starts a broker in {self.path}")
                time.sleep(POLL_S)
            yield

    def claim(self, cluster_id: str) -> Mark:
        """The directory's mark, made with `cluster_id` if it is new. Refuses what Kafka could not go on with."""
        with self._answering_for_the_disk():
            self._refuse_foreign()
            mark = self.mark()
            if mark is None:
                mark = Mark(KAFKA_VERSION, cluster_id)
            elif _version(mark.kafka) > _version(KAFKA_VERSION):
                raise DataDirectoryError(
                    f"{self.path} was last used by Kafka {mark.kafka}, and this is Kafka {KAFKA_VERSION}, which can't "
                    "read it; install the newer versolog again, or give another directory",
                    found=mark.kafka,
                    expected=KAFKA_VERSION,
                )
            self._refuse_half(mark)
            mark = replace(mark, kafka=KAFKA_VERSION, formatted=self.kafka.exists())
            for folder in (self.logs, self.tmp):
                folder.mkdir(exist_ok=True)
            for left_behind in self.tmp.iterdir():  # native libraries that a killed Java had unpacked
                left_behind.unlink()
            return self.remember(mark)

    def refuse_full_disk(self) -> None:
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < FREE_BYTES_MIN:
            raise DiskFullError(
                f"the disk of {self.path} has {free_bytes / 2**20:.0f} MiB free; Kafka needs {FREE_BYTES_MIN // 2**20}",
                free_bytes=free_bytes,
                expected_bytes=FREE_BYTES_MIN,
            )

    def mark(self) -> Mark | None:
        """The mark; None if no broker ever ran here."""
        found = self._read(self._mark)
        if found is None:
            return None
        try:
            return Mark(**found)
        except TypeError as problem:
            raise DataDirectoryError(f"{self._mark} isn't one that versolog wrote: {problem}") from problem

    def remember(self, mark: Mark) -> Mark:
        self._write(self._mark, asdict(mark))
        return mark

    def put_in_place(self, partial: Path, mark: Mark) -> Mark:
        """Put the freshly formatted `partial` in the place of Kafka's log directory, in one step."""
        with self._answering_for_the_disk():
            partial.rename(self.kafka)
            return self.remember(replace(mark, formatted=True))

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A place to format in, gone afterwards unless it was put in place. One that a crash left is removed."""
        with self._answering_for_the_disk():
            for left_by_a_crash in self.path.glob("kafka.partial-*"):
                shutil.rmtree(left_by_a_crash)
        partial = self.path / f"kafka.partial-{os.getpid()}"
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def record_running(self, record: RunningRecord) -> None:
        with self._answering_for_the_disk():
            self._write(self._running, asdict(record))

    def running_record(self) -> RunningRecord | None:
        """What the last start wrote, be it true still or stale; None after an ordinary stop."""
        found = self._read(self._running)
        if found is None:
            return None
        try:
            owner = found["owner"]
            return RunningRecord(
                process=ProcessIdentity(**found["process"]),
                owner=None if owner is None else ProcessIdentity(**owner),
                kafka_port=found["kafka_port"],
                started_at=found["started_at"],
            )
        except (KeyError, TypeError) as problem:
            raise DataDirectoryError(f"{self._running} isn't one that versolog wrote; delete it") from problem

    def forget_running(self) -> None:
        self._running.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        with self._answering_for_the_disk():
            (self.path / name).write_text(text, "utf-8")

    def _refuse_foreign(self) -> None:
        found = sorted(entry.name for entry in self.path.iterdir() if entry.name not in _NOT_FOREIGN)
        if found and not self._mark.exists():
            raise DataDirectoryError(
                f"{self.path} holds something else ({', '.join(found[:3])}{', …' if len(found) > 3 else ''}) and was "
                "not made by this broker; give an empty or a new directory",
                found=found[:10],
            )

    def _refuse_half(self, mark: Mark) -> None:
        if not self.kafka.exists():
            if mark.formatted:
                raise self._half("its folder kafka is gone")
            return
        try:
            meta = dict(
                line.split("=", 1)
                for line in (self.kafka / "meta.properties").read_text("latin-1").splitlines()
                if "=" in line and not line.startswith("#")
            )
        except FileNotFoundError:
            raise self._half("kafka/meta.properties is missing") from None
        if not any(self.kafka.glob("__cluster_metadata-0/*.checkpoint")):  # Kafka would wait a minute for its quorum
            raise self._half("kafka/__cluster_metadata-0 is missing or empty")
        if meta.get("cluster.id") != mark.cluster_id:
            raise self._half(f"{_MARK} is of cluster {mark.cluster_id}, kafka/ of cluster {meta.get('cluster.id')}")

    def _half(self, why: str) -> DataDirectoryError:
        return DataDirectoryError(
            f"{self.path} is broken: {why}. Bring the directory back from a copy, or delete it to begin with no data"
        )

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise self._refused(problem) from problem
        except ValueError as problem:
            raise DataDirectoryError(f"{path} is damaged: {problem}") from problem
        if not isinstance(found, dict):
            raise DataDirectoryError(f"{path} is damaged: it holds no JSON object")
        return found

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        """Replace `path` in one step, so that a crash leaves the old content or the new."""
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    @contextmanager
    def _answering_for_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise self._refused(problem) from problem

    def _refused(self, problem: OSError) -> BrokerError:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(f"there is no room left for {self.path}")
        return DataDirectoryError(f"can't keep a broker's data in {self.path}: {problem.strerror}")


def _lock_at_once(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split("."))
    except ValueError:
        raise DataDirectoryError(f"{text!r} is no Kafka version; the directory's {_MARK} is damaged") from None
