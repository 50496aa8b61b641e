"""A store of millions of rows: what it takes of memory and disk, how soon it is there again, and what history costs.

One group has by far more commits than another with the same rows; both are asked the same, in turn.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

import orjson

from benchmarks.bench import Bench, Worker, apart, process_apart
from benchmarks.load import load
from benchmarks.logs import Log, fill, read_all
from benchmarks.machine import cpu_s, memory_mib
from benchmarks.measured import (
    MIB,
    MILLISECONDS,
    PER_SECOND,
    SECONDS,
    TIMES,
    Better,
    Latency,
    Result,
    Series,
    Side,
    WrongResultError,
    speed,
)
from benchmarks.workloads import put_item
from benchmarks.writes import PER_S, batch_written, paced_writes
from versolog.streams.transaction import Transaction

ROWS, ROWS_FULL = 100_000, 5_000_000
LONG, LONG_FULL = 50_000, 1_000_000
SHORT = 1_000
"""Commits of the two groups that are compared."""
KEYS = 500
"""Rows of both."""
GROUPS = 62
ADDED = 20_000
TAIL = 2_000
"""Commits that are made right before the kill."""
LOAD_S, PACED_S = 3.0, 5.0
ROWS_CHECKED = 100
REST_LOOK_S, REST_MAX_S, REST_SHARE = 5.0, 180.0, 0.1
"""It rests where for so long, of at most so long, it used no more than this share of a processor."""
RESTART_TARGET_S, MEMORY_TARGET_MIB, DISK_TARGET, GROWTH_TARGET = 5.0, 600.0, 1.5, 1.3


class Spec(NamedTuple):
    """How much is in it."""

    rows: int
    long: int

    @property
    def groups(self) -> dict[str, int]:
        """The compared ones, and how many commits each has."""
        return {"long": self.long, "short": SHORT}

    @property
    def transactions(self) -> int:
        return self.rows + self.long + SHORT


def measure(bench: Bench) -> Iterator[Result]:
    """All of it, of one log and its store."""
    sizes = bench.sizes
    spec = Spec(ROWS_FULL, LONG_FULL) if sizes.full else Spec(sizes.of(ROWS), sizes.of(LONG))
    log = bench.empty(spec.transactions)
    bench.say(
        f"a large store: {spec.rows:,} rows in {GROUPS} groups, and groups of {spec.long:,} and {SHORT:,} commits"
    )
    with bench.worker(log) as worker, process_apart() as (_, pool):
        filling = pool.submit(fill_with, log, spec)
        seen = worker.decides(spec.transactions)
        filling.result()
        bench.say(f"  filled, {speed(seen[0], seen[-1]).per_s:,.0f} commits/s")
        worker.ready()
        _check(worker, spec)
        bench.say(f"  at rest after {_rested_s(worker):.0f} s")
        yield from _reads(bench, worker, spec)
        yield from _writes(bench, worker, spec)
        resident = memory_mib(worker.pid)
    count = f"{spec.rows:,} rows"
    checked = f"there are {spec.transactions:,} commits, and rows of all groups are as they were sent"
    yield Result(f"memory of a worker with {count}, {sizes.partitions} partitions: the most that was resident", MIB,
                 Series.of([resident]), checked, (), MEMORY_TARGET_MIB, "less")  # fmt: skip
    yield _disk(bench, log, spec, checked)
    yield from _restarts(bench, log, spec, checked)
    yield _commits(bench, log, spec)
    bench.forget(log)


def fill_with(log: Log, spec: Spec) -> None:
    """Write all transactions. In a process of its own."""
    fill(log, _transactions(spec))


def _transactions(spec: Spec) -> Iterator[Transaction]:
    """Evenly mixed, so that no partition is done long before the others."""
    every = spec.rows // spec.long
    for number in range(spec.rows):
        yield _put(f"group-{number % GROUPS:02}", number)
        if number % every == 0 and number // every < spec.long:
            yield _put("long", number // every, KEYS)
    yield from (_put("long", number, KEYS) for number in range(-(-spec.rows // every), spec.long))
    yield from (_put("short", number, KEYS) for number in range(SHORT))


def _put(group: str, number: int, keys: int | None = None) -> Transaction:
    key = f"item-{number if keys is None else number % keys:08}"
    return put_item(Transaction(group, author="bench", type="ItemMoved"), number, key)


def _rested_s(worker: Worker) -> float:
    """Wait until RocksDB has merged the files of the filling: what is asked first would pay for it. Returns how long it
    took, in seconds. Raises WrongResultError where it does not end."""
    begun_s, used_s = time.perf_counter(), cpu_s(worker.pid)
    while (waited_s := time.perf_counter() - begun_s) < REST_MAX_S:
        time.sleep(REST_LOOK_S)
        before_s, used_s = used_s, cpu_s(worker.pid)
        if used_s - before_s < REST_SHARE * REST_LOOK_S:
            return waited_s
    raise WrongResultError(f"the worker has something to do for {REST_MAX_S:.0f} s, though nothing is asked of it")


def _path(group: str, number: int, version: int | None = None) -> str:
    query = "" if version is None else f"?{urlencode({'at': version})}"
    return f"/v1/groups/{group}/tables/items/rows/item-{number:08}{query}"


def _check(worker: Worker, spec: Spec) -> None:
    step = max(1, spec.rows // ROWS_CHECKED)
    asked = [(f"group-{number % GROUPS:02}", number, number) for number in range(0, spec.rows, step)]
    for group, commits in spec.groups.items():
        asked += [(group, key, key + KEYS * ((commits - 1 - key) // KEYS)) for key in range(0, KEYS, 50)]
    for group, key, moves in asked:
        if (found := orjson.loads(worker.get(_path(group, key)))["row"]["moves"]) != moves:
            raise WrongResultError(f"row {key} of {group} holds {found}, and {moves} was sent")


# What history costs


def _reads(bench: Bench, worker: Worker, spec: Spec) -> Iterator[Result]:
    questions: dict[str, dict[str, int | None]] = {
        "HTTP point reads at head": dict.fromkeys(spec.groups),
        "HTTP point reads at an old version": {group: commits * 3 // 4 for group, commits in spec.groups.items()},
    }
    per_s: dict[tuple[str, str], list[float]] = {}
    for _ in bench.rounds("HTTP point reads of long and short histories"):
        for question, versions in questions.items():
            for group, version in versions.items():
                paths = [_path(group, key, version) for key in range(KEYS)]
                per_s.setdefault((question, group), []).append(load(worker.server, paths, LOAD_S).speed.per_s)
    for question in questions:
        yield _grown(
            question, PER_SECOND, spec, per_s[question, "long"], per_s[question, "short"], "every answer a 200"
        )


def _writes(bench: Bench, worker: Worker, spec: Spec) -> Iterator[Result]:
    took: dict[str, list[Latency]] = {group: [] for group in spec.groups}
    for number in bench.rounds("HTTP writes into long and short histories"):
        for group in spec.groups:
            samples = apart(paced_writes, worker.server, f"{group}-{number}", PER_S, PACED_S, group)
            took[group].append(Latency.of(samples))
    long, short = ([one.p50_ms for one in took[group]] for group in spec.groups)
    checked = "each answered 201, versions without gaps"
    yield _grown(f"one HTTP write, {PER_S}/s: p50", MILLISECONDS, spec, long, short, checked, "less")


def _commits(bench: Bench, log: Log, spec: Spec) -> Result:
    per_s: dict[str, list[float]] = {group: [] for group in spec.groups}
    for _ in bench.rounds("commits into long and short histories"):
        for group in spec.groups:
            fill(log, (_put(group, number, KEYS) for number in range(ADDED)))
            with bench.worker(log) as worker:
                seen = worker.decides(ADDED)
            per_s[group].append(speed(seen[0], seen[-1]).per_s)
    checked = "every one is committed"
    return _grown("commits, one change each", PER_SECOND, spec, per_s["long"], per_s["short"], checked)


def _grown(
    name: str, unit: str, spec: Spec, long: Sequence[float], short: Sequence[float], checked: str,
    better: Better = "more",
) -> Result:  # fmt: skip
    target = GROWTH_TARGET if better == "less" else 1 / GROWTH_TARGET
    side = Side(f"the same with {SHORT:,}", Series.of(short), ratio_target=target)
    return Result(
        f"{name}, in a group with {spec.long:,} commits", unit, Series.of(long), checked, (side,), None, better
    )


# Disk, and starting again


def _disk(bench: Bench, log: Log, spec: Spec, checked: str) -> Result:
    stores = bench.directory(log)
    bench.say("  reading all commits, for their bytes")
    written = sum(len(record.value) + len(record.key or b"") for record in read_all(log, log.topics.commits))
    taken = sum(path.stat().st_size for path in stores.rglob("*") if path.is_file() and path.suffix != ".log")
    bench.say(f"  {taken / 2**20:,.0f} MiB on the disk, of {written / 2**20:,.0f} MiB of commits")
    name = f"disk of a store with {spec.transactions:,} commits, to the uncompressed bytes of `commits`"
    return Result(name, TIMES, Series.of([taken / written]), checked, (), DISK_TARGET, "less")


@contextmanager
def _started(bench: Bench, log: Log, took_s: list[float]) -> Iterator[Worker]:
    """A worker on the store, once it is ready; how long that took goes into `took_s`."""
    begun_s = time.perf_counter()
    with bench.worker(log) as worker:
        worker.ready()
        took_s.append(time.perf_counter() - begun_s)
        yield worker


def _restarts(bench: Bench, log: Log, spec: Spec, checked: str) -> Iterator[Result]:
    clean: list[float] = []
    killed: list[float] = []
    for number in bench.rounds("starting again"):
        with _started(bench, log, clean) as worker:
            apart(batch_written, worker.server, f"tail-{number}", TAIL)
            os.kill(worker.pid, signal.SIGKILL)
        with _started(bench, log, killed):
            pass
        bench.say(f"  ready after a clean stop in {clean[-1]:.1f} s, after kill -9 in {killed[-1]:.1f} s")
    for how, took in (("a clean stop", clean), ("kill -9", killed)):
        name = f"ready again with {spec.transactions:,} commits after {how}"
        yield Result(name, SECONDS, Series.of(took), checked, (), RESTART_TARGET_S, "less")
