"""A whole versolog on this machine: Kafka, its topics and some workers, kept running until they are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from versolog.broker import Broker, BrokerError
from versolog.schemas.errors import Misconfigured, Unavailable, VersologError

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.05
WORKER_STOP_S = 9.0
"""A worker ends itself within 8 s; what is left then is killed."""
RESTART_AFTER_S = 0.5
RESTART_AFTER_MAX_S = 10.0
STEADY_AFTER_S = 30.0
WATCH_EVERY_S = 0.1
TOLD_EVERY_S = 5.0
SUPERVISOR_END_S = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` starts."""

    data: Path
    http_port: int = 8080
    """Of the first worker; the others take the next ones. 0 takes free ones."""
    kafka_port: int | None = None
    partitions: int = 8
    workers: int = 1
    fsync: bool = False
    options: tuple[str, ...] = ()
    """More options for every `versolog worker`."""
    environment: dict[str, str] = field(default_factory=dict)
    """More of the environment for every worker."""


class WorkerProcess:
    """A `versolog worker` of its own process, started again when it dies."""

    def __init__(self, number: int, plan: Plan, bootstrap: str, say: Say) -> None:
        self.number = number
        self._plan, self._bootstrap, self._say = plan, bootstrap, say
        self._directory = plan.data / f"worker-{number}"
        self._directory.mkdir(parents=True, exist_ok=True)
        self.log = self._directory / "worker.log"
        self._address = self._directory / "address"
        self._died = 0
        self._died_at = 0.0
        self._start()

    @property
    def url(self) -> str | None:
        """Where it answers; None until it has said so."""
        with contextlib.suppress(FileNotFoundError):
            return self._address.read_text() or None
        return None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def keep(self) -> None:
        """Start it again if it died, after a pause that grows while it keeps dying."""
        if self.running:
            if self._died and time.monotonic() - self._started_at > STEADY_AFTER_S:
                self._died = 0
            return
        if not self._died_at:
            self._died_at = time.monotonic()
            self._died += 1
            status = self._process.returncode
            self._say(f"worker {self.number} ended with status {status}; it is started again. See {self.log}")
        if time.monotonic() - self._died_at >= min(RESTART_AFTER_MAX_S, RESTART_AFTER_S * 2 ** (self._died - 1)):
            self._start()

    def stop(self) -> None:
        """Ask it to end; `ended` waits for that."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)

    def ended(self, timeout_s: float) -> None:
        """Wait for its end, and kill it after `timeout_s`."""
        try:
            self._process.wait(max(timeout_s, 0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        return ""

    def _start(self) -> None:
        plan = self._plan
        port = plan.http_port + self.number - 1 if plan.http_port else 0
        self._address.unlink(missing_ok=True)
        command = [sys.executable, "-m", "versolog", "worker", "--bootstrap", self._bootstrap,
                   "--data", str(self._directory), "--http-port", str(port), "--partitions", str(plan.partitions),
                   "--address-file", str(self._address), "--end-with-parent", str(os.getpid()),
                   *plan.options]  # fmt: skip
        if plan.fsync:
            command.append("--fsync")
        with self.log.open("ab") as log:
            # A session of its own: the terminal's Ctrl-C is for `up`, which stops things in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **plan.environment},
            )  # fmt: skip
        self._started_at, self._died_at = time.monotonic(), 0.0


class Standing(NamedTuple):
    """How all workers together stand."""

    ready: bool
    """Whether every one says so and every partition has its owner."""
    behind: int | None
    """Records of the log that they have not taken into their stores yet; None where none of them says so."""


class Running:
    """What is up."""

    def __init__(self, broker: Broker, workers: list[WorkerProcess], partitions: int, say: Say) -> None:
        self.broker = broker
        self.workers = workers
        self._partitions, self._say = partitions, say
        self._broker_failed_at = 0.0

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def http_urls(self) -> list[str]:
        """The addresses of the workers that answer by now."""
        return [url for worker in self.workers if (url := worker.url) is not None]

    @property
    def http_url(self) -> str:
        """The address of the first worker."""
        url = self.workers[0].url
        if url is None:
            raise Unavailable("the first worker has no address yet")
        return url

    @property
    def ready(self) -> bool:
        """Whether every worker says so and every partition has its owner."""
        return self.standing().ready

    def standing(self) -> Standing:
        """Ask every worker how it stands."""
        owned: set[int] = set()
        lags: list[int] = []
        all_ready = True
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            for worker in self.workers:
                worker_ready, states = _states(client, worker.url)
                all_ready = all_ready and worker_ready
                owned |= {state["partition"] for state in states if state["role"] == "owner"}
                lags += [state["lag_offsets"] for state in states if state["lag_offsets"] is not None]
        return Standing(all_ready and len(owned) == self._partitions, sum(lags) if lags else None)

    def keep(self) -> None:
        """Start again what died. Call it now and then."""
        if not self.broker.running and time.monotonic() - self._broker_failed_at > RESTART_AFTER_MAX_S:
            self._say("Kafka ended; it is started again")
            try:
                self.broker.start()
            except BrokerError as error:
                self._broker_failed_at = time.monotonic()
                self._say(f"Kafka does not start: {error.detail}")
        for worker in self.workers:
            worker.keep()


@contextmanager
def running(plan: Plan, say: Say = lambda line: None) -> Iterator[Running]:
    """Start everything, wait until it is ready, and stop all of it at the end, within ten seconds or so.

    Whatever dies meanwhile is started again. Goes on with the data that is there. Raises a typed error that says what
    hinders it, with the last words of what did not start.
    """
    try:
        plan.data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"no data can be kept in {plan.data}: {error.strerror}; name another directory") from error
    say("starting Apache Kafka")
    with Broker(plan.data / "kafka", plan.kafka_port, fsync=plan.fsync, say=say) as broker:
        say(f"starting {plan.workers} worker{'s' if plan.workers > 1 else ''}")
        started: list[WorkerProcess] = []
        try:
            started += (WorkerProcess(number, plan, broker.bootstrap, say) for number in range(1, plan.workers + 1))
            up = Running(broker, started, plan.partitions, say)
            _wait_until_ready(up, say)
            with _kept(up, say):
                yield up
        finally:
            say("stopping")
            for worker in started:
                worker.stop()
            deadline = time.monotonic() + WORKER_STOP_S
            for worker in started:
                worker.ended(deadline - time.monotonic())


@contextmanager
def _kept(up: Running, say: Say) -> Iterator[None]:
    """Start again what dies, from a thread."""
    over = threading.Event()

    def watch() -> None:
        told = ""
        while not over.wait(WATCH_EVERY_S):
            try:
                up.keep()
            except (VersologError, OSError) as error:  # a port that is taken, a full disk, no memory: it is tried again
                reason = error.detail if isinstance(error, VersologError) else str(error)
                if reason != told:
                    say(f"not started again yet: {reason}")
                told = reason

    thread = threading.Thread(target=watch, name="supervisor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SUPERVISOR_END_S)  # Kafka, if it is just being started again, ends with this process


def until_interrupted() -> None:
    """Wait for a KeyboardInterrupt. Not by `signal.pause` alone: a signal that comes just before it, or that another
    thread takes, would not end it."""
    while True:
        time.sleep(1.0)


def _wait_until_ready(up: Running, say: Say) -> None:
    """Wait for as long as the workers come nearer: stores that are made anew fold the whole log."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    told_s, nearest = time.monotonic(), None
    while not (standing := up.standing()).ready:
        behind = standing.behind
        if behind is not None and (nearest is None or behind < nearest):
            nearest, deadline = behind, time.monotonic() + READY_TIMEOUT_S
            if behind and time.monotonic() - told_s > TOLD_EVERY_S:
                say(f"catching up with the log: {behind:,} records to go")
                told_s = time.monotonic()
        for worker in up.workers:
            if not worker.running:
                raise Misconfigured(f"worker {worker.number} did not start:\n{worker.last_words()}")
        if time.monotonic() > deadline:
            logs = ", ".join(str(worker.log) for worker in up.workers)
            raise Unavailable(f"not ready after {READY_TIMEOUT_S:g} s; see {logs}")
        time.sleep(READY_POLL_S)


def _states(client: httpx.Client, url: str | None) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the worker at `url` is ready, and how its partitions stand: none while it does not answer."""
    if url is None:
        return False, []
    try:
        answer = client.get(f"{url}/readyz")
    except httpx.TransportError:
        return False, []
    if answer.status_code not in (httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE):
        return False, []
    return answer.status_code == httpx.codes.OK, list(answer.json()["partitions"])
