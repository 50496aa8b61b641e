"""A versolog of its own on a shared Kafka: worker processes with stores in a directory, as a supervisor starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from versolog.config import Settings
from versolog.projections.copy import Manifest
from versolog.projections.digest import group_digest, standing, store_digest
from versolog.projections.refold import Log
from versolog.projections.replay import replay
from versolog.projections.store import Store
from versolog.projections.tail import Ends
from versolog.projections.verify import Verified, Verifier
from versolog.schemas.codec import Codec
from versolog.schemas.topics import Topics, describe, ensure_topics
from versolog.streams.producer import Producer

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 12.0
SESSION_TIMEOUT_S = 3.0
"""Shorter than in production, so that a killed worker's partitions come free sooner."""

Answer = TypeVar("Answer")


def eventually(condition: Callable[[], Answer], within_s: float, what: str) -> Answer:
    """The first true answer of `condition`, asked again and again for at most `within_s`."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return answer


class WorkerProcess:
    """One `versolog worker`, and the hands to hurt it with."""

    def __init__(self, name: str, directory: Path, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.directory = name, directory
        self.log_path = directory / "worker.log"
        self._address = directory / "address"
        self._address.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--address-file", str(self._address)],
                env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def url(self) -> str:
        """Its address, waited for."""

        def told() -> str | None:
            assert self.running, f"{self.name} ended with {self.process.returncode}:\n{self.last_words()}"
            return self._address.read_text() if self._address.exists() else None

        address = eventually(told, READY_WITHIN_S, f"{self.name} says where it listens")
        assert address is not None
        return address

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def last_words(self) -> str:
        return "\n".join(self.log().splitlines()[-30:])

    def partitions(self) -> dict[int, dict[str, Any]]:
        """What /readyz says of each partition; empty while it doesn't answer."""
        try:
            told = httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).json()["partitions"]
        except httpx.HTTPError:
            return {}
        return {state["partition"]: state for state in told}

    def owned(self) -> set[int]:
        return {number for number, state in self.partitions().items() if state["role"] == "owner"}

    def level(self, since_s: float, partitions: int) -> bool:
        """Whether it has all of them as they were at `since_s` (`time.monotonic()`). How far the log goes is asked
        once a second, so a lag of 0 alone may be that of a log without the last commits."""
        asked_at_s = time.monotonic()
        lags = [state["lag_s"] for state in self.partitions().values()]
        return len(lags) == partitions and all(lag_s is not None and lag_s < asked_at_s - since_s for lag_s in lags)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        text = httpx.get(f"{self.url}/metrics", timeout=5, trust_env=False).text
        lines = (line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name)
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self, within_s: float = STOP_WITHIN_S) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def died(self, within_s: float) -> None:
        """Wait for it to be killed by itself at a failpoint."""
        assert self.process.wait(within_s) == -signal.SIGKILL, self.last_words()


@dataclass
class Cluster:
    """Topics under a prefix of their own, and the workers on them."""

    bootstrap: str
    directory: Path
    partitions: int = 2
    prefix: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:10]}.")
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    """By name, the newest process of each."""

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def kafka(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.bootstrap}

    @property
    def settings(self) -> Settings:
        """As a worker would have them."""
        return Settings(bootstrap=self.bootstrap, prefix=self.prefix, partitions=self.partitions)

    def make_topics(self) -> None:
        ensure_topics(self.kafka, self.topics, partitions=self.partitions)

    def start(
        self, name: str = "w1", *, failpoints: str = "", bootstrap: str | None = None,
        session_timeout_s: float = SESSION_TIMEOUT_S, **environment: str,
    ) -> WorkerProcess:  # fmt: skip
        """A worker that goes on with the stores of the last one of that name."""
        directory = self.data(name)
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "versolog", "worker", "--bootstrap", bootstrap or self.bootstrap,
                   "--data", str(directory), "--http-port", "0", "--partitions", str(self.partitions),
                   "--prefix", self.prefix, "--end-with-parent", str(os.getpid())]  # fmt: skip
        worker = self.workers[name] = WorkerProcess(
            name, directory, command,
            {"VERSOLOG_FAILPOINTS": failpoints, "VERSOLOG_SESSION_TIMEOUT_S": str(session_timeout_s), **environment},
        )  # fmt: skip
        return worker

    def data(self, name: str) -> Path:
        return self.directory / name

    def running(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers.values() if worker.running]

    def owned(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until every partition has its one owner."""
        wanted = list(range(self.partitions))

        def all_owned() -> bool:
            return sorted(number for worker in self.running() for number in worker.owned()) == wanted

        self._eventually(all_owned, within_s, "every partition is owned")

    def level(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until every worker has all that is in the log now, of every partition."""
        now_s = time.monotonic()

        def is_level() -> bool:
            return all(worker.level(now_s, self.partitions) for worker in self.running())

        self._eventually(is_level, within_s, "all workers have all")

    def _eventually(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        """As `eventually`; how the partitions stand is told where it does not come."""
        try:
            eventually(condition, within_s, what)
        except AssertionError as late:
            states = {worker.name: worker.partitions() for worker in self.running()}
            raise AssertionError(f"{late}: {states}") from None

    def stop(self) -> None:
        """Stop all workers in order; none may need to be killed for it."""
        running = self.running()
        for worker in running:
            worker.process.send_signal(signal.SIGTERM)
        statuses = {worker.name: worker.process.wait(STOP_WITHIN_S) for worker in running}
        assert set(statuses.values()) <= {0}, {name: self.workers[name].last_words() for name in statuses}

    def kill(self) -> None:
        for worker in self.running():
            worker.thaw()
            worker.kill()

    def client(self, name: str | None = None, **options: Any) -> httpx.Client:
        """HTTP to one worker; to any that runs, without a name."""
        worker = self.workers[name] if name is not None else self.running()[0]
        return httpx.Client(base_url=worker.url, trust_env=False, timeout=30, **options)

    def producer(self, **options: Any) -> Producer:
        return Producer(self.bootstrap, prefix=self.prefix, **options)

    # What is left when all is over

    @property
    def log(self) -> Log:
        return Log(self.kafka, self.topics, describe(self.kafka, self.topics), self.settings.registry)

    def codec(self) -> Codec:
        return Codec(self.settings.registry())

    @contextmanager
    def stores(self, name: str = "w1") -> Iterator[list[Store]]:
        """The stores of a worker that has ended."""
        with contextlib.ExitStack() as stack:
            paths = [self.data(name) / f"partition-{number}" for number in range(self.partitions)]
            yield [stack.enter_context(contextlib.closing(Store.open(path, read_only=True))) for path in paths]

    def digest(self, name: str = "w1") -> str:
        """The digest of the stores of a worker that has ended."""
        with self.stores(name) as stores:
            return store_digest(stores).hex()

    def groups(self, name: str = "w1") -> dict[str, tuple[int, str]]:
        """By group, the version at which such stores have it, and its digest."""
        with self.stores(name) as stores:
            return {
                group: (version, group_digest(store, group, version).hex())
                for store in stores
                for group, version in standing(store, None)
            }

    def verify(self, name: str = "w1") -> list[Verified]:
        """Each partition from the log against the stores of a worker that has ended."""
        ends, codec = Ends(self.kafka), self.codec()
        with self.stores(name) as stores:
            verifiers = [
                Verifier(store.partition, topics=self.topics, codec=codec, store=store, group=None) for store in stores
            ]
            return [verifier.run(self.kafka, ends) for verifier in verifiers]

    def replay(self, into: str = "replayed", **wanted: Any) -> Manifest:
        return replay(self.log, self.directory / into, **{"at": None, "group": None, "processes": 1, **wanted})
