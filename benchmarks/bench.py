"""Where everything is measured: one broker, and on it a fresh log and a worker for whoever asks."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

import orjson

from benchmarks import flames
from benchmarks.bare import Server
from benchmarks.logs import Log, fill, make
from benchmarks.machine import Load, cpu_s, load_now
from benchmarks.measured import Seen, WrongResultError
from benchmarks.workloads import Workload
from versolog.schemas.topics import Topics
from versolog.up import Plan, WorkerProcess

LOOK_EVERY_S = 0.05
LOOK_RARELY_EVERY_S = 0.25
"""While nothing begins or ends: an answer of /metrics takes some milliseconds of the worker's."""
NEAR_THE_END = 0.85
START_TIMEOUT_S = 60.0
STALL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
DECIDED = b"versolog_decided_total{"
COMMITTED = b'outcome="committed"'
OWNED = b"versolog_partition_role{"
OWNER = b'role="owner"'

Say = Callable[[str], None]
P = ParamSpec("P")
T = TypeVar("T")


class Sizes(NamedTuple):
    """How much is measured."""

    rounds: int = 3
    scale: float = 1.0
    partitions: int = 8
    fsync: bool = False
    full: bool = False
    """Whether what takes half an hour is measured at its whole size."""

    def of(self, count: int) -> int:
        """`count`, scaled; never so few that they are over before they were seen."""
        return max(5_000, round(count * self.scale))


class Round(NamedTuple):
    """What the machine was doing before a round."""

    benchmark: str
    number: int
    load: Load


class Standing(NamedTuple):
    """How a worker stands."""

    owned: int
    """Partitions."""
    decided: int
    """Transactions, since it started."""
    committed: int


class Bench:
    """The broker, a directory for what is measured, and what was seen of the machine meanwhile."""

    def __init__(self, bootstrap: str, scratch: Path, sizes: Sizes, say: Say, flames_in: Path | None = None) -> None:
        """With `flames_in`, what is measured is done once more under py-spy, and flame graphs go there."""
        self.bootstrap, self.scratch, self.sizes, self.say = bootstrap, scratch, sizes, say
        self.loads: list[Round] = []
        self._flames_in = flames_in
        self._made = 0

    def rounds(self, benchmark: str, count: int | None = None) -> Iterator[int]:
        """The numbers of the rounds, all or `count`; before each, what else the machine does is looked at and told."""
        last = self.sizes.rounds if count is None else count
        for number in range(1, last + 1):
            load = load_now()
            self.loads.append(Round(benchmark, number, load))
            self.say(f"{benchmark}: round {number} of {last} ({load})")
            yield number

    def filled(self, workload: Workload) -> Log:
        """A fresh log with the workload's transactions in it, none of them decided."""
        log = self.empty(len(workload.transactions))
        fill(log, workload.transactions)
        return log

    def empty(self, records: int) -> Log:
        """A fresh log for so many transactions."""
        self._made += 1
        log = Log(self.bootstrap, Topics(f"bench-{self._made}."), self.sizes.partitions, records)
        make(log, fsync=self.sizes.fsync)
        return log

    def fresh_directory(self, name: str) -> Path:
        """For what is made beside."""
        self._made += 1
        directory = self.scratch / f"{name}-{self._made}"
        directory.mkdir()
        return directory

    def forget(self, log: Log) -> None:
        """Free what the log and its stores take."""
        log.forget()
        shutil.rmtree(self.directory(log), ignore_errors=True)

    def directory(self, log: Log) -> Path:
        """For what is made of `log`."""
        return self.scratch / log.topics.prefix.rstrip(".")

    @contextmanager
    def worker(self, log: Log, number: int = 1, *, follow: str = "all") -> Iterator[Worker]:
        """A `versolog worker` process on `log`, from when it answers HTTP; it need not be ready then. A number's stores
        are there again the next time."""
        plan = Plan(
            self.directory(log),
            http_port=0,
            partitions=log.partitions,
            fsync=self.sizes.fsync,
            options=("--prefix", log.topics.prefix, "--follow", follow),
        )
        process = WorkerProcess(number, plan, log.bootstrap, self.say)
        try:
            with closing(Worker(process)) as worker:
                yield worker
        finally:
            process.stop()
            process.ended(STOP_TIMEOUT_S)

    @contextmanager
    def profiled(self, pid: int, name: str, *, waits: bool = False) -> Iterator[None]:
        """Where that process spends its time meanwhile, if profiles are wanted (`flames.recorded`)."""
        if self._flames_in is None:
            yield
            return
        with flames.recorded(pid, self._flames_in / name, waits=waits) as flame:
            yield
        self.say(f"  {flame}")

    @property
    def profiles(self) -> bool:
        """Whether profiles are wanted."""
        return self._flames_in is not None


class Worker:
    """A worker process, as seen over HTTP."""

    def __init__(self, process: WorkerProcess) -> None:
        """Returns once it has an address."""
        self._process = process
        address = urlsplit(self._wait_for("an address", lambda: process.url))
        assert address.hostname is not None
        assert address.port is not None
        self.server = Server(process.pid, address.hostname, address.port)
        self._http = http.client.HTTPConnection(self.server.host, self.server.port, timeout=STALL_TIMEOUT_S)

    @property
    def pid(self) -> int:
        return self.server.pid

    def get(self, path: str) -> bytes:
        """The body of a 200 answer."""
        status, body = self.asked(path)
        if status != http.client.OK:
            raise WrongResultError(f"GET {path} was answered with {status}: {body[:500].decode(errors='replace')}")
        return body

    def asked(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        try:
            return self._asked(path)
        except ConnectionError:  # it was idle for so long that the worker has closed it
            self._http.close()
            return self._asked(path)

    def _asked(self, path: str) -> tuple[int, bytes]:
        self._http.request("GET", path)
        answer = self._http.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def digest(self) -> str:
        """Of all that the store holds."""
        return str(orjson.loads(self.get("/v1/digest"))["digest"])

    def ready(self) -> None:
        """Wait until it owns its partitions."""
        self._wait_for("to be ready", lambda: self.asked("/readyz")[0] == http.client.OK or None)

    def decides(self, count: int) -> list[Seen]:
        """Watch until it has decided `count` transactions: what was seen, from the last time that it owned nothing.

        Starting later, say with the first that are decided, would count transactions that were on their way by then.
        Raises WrongResultError where any of them was refused, and where nothing is decided any more.
        """
        seen: list[Seen] = []
        moved_s = time.monotonic()
        while not seen or seen[-1].counted < count:
            owned, decided, committed = self.look()
            now = Seen(time.perf_counter(), cpu_s(self.pid), decided)
            if decided != committed:
                raise WrongResultError(f"{decided - committed:,} transactions were refused")
            if not owned:
                seen = [now]
            elif not seen or decided > seen[-1].counted:
                moved_s = time.monotonic()
                seen.append(now)
            if time.monotonic() - moved_s > STALL_TIMEOUT_S:
                raise WrongResultError(
                    f"{decided:,} of {count:,} were decided, and no more\n{self._process.last_words()}"
                )
            between = 0 < decided < count * NEAR_THE_END
            time.sleep(LOOK_RARELY_EVERY_S if between else LOOK_EVERY_S)
        return seen

    def look(self) -> Standing:
        """How it stands at the moment."""
        lines = self.get("/metrics").splitlines()
        decided = [line for line in lines if line.startswith(DECIDED)]
        owned = sum(line.startswith(OWNED) and line.endswith(b" 1.0") and OWNER in line for line in lines)
        return Standing(owned, _summed(decided), _summed(line for line in decided if COMMITTED in line))

    def _wait_for(self, what: str, found: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (answer := found()) is None:
            if not self._process.running or time.monotonic() > deadline:
                raise WrongResultError(f"the worker did not come {what}:\n{self._process.last_words()}")
            time.sleep(LOOK_EVERY_S)
        return answer


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` answers in a fresh process, so that neither side of a comparison has the other's memory."""
    with process_apart() as (_, pool):
        return pool.submit(function, *args, **kwargs).result()


def at_once(count: int, function: Callable[[], T]) -> list[T]:
    """What `function` answers in each of `count` fresh processes, which begin together."""
    with ExitStack() as stack:
        pools = [stack.enter_context(process_apart())[1] for _ in range(count)]
        return [answer.result() for answer in [pool.submit(function) for pool in pools]]


@contextmanager
def process_apart() -> Iterator[tuple[int, ProcessPoolExecutor]]:
    """A fresh process that takes functions, and its id. It is not waited for where the measurement failed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        try:
            yield pid, pool
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise


def _summed(lines: Iterable[bytes]) -> int:
    return sum(int(float(line.rsplit(b" ", 1)[1])) for line in lines)
