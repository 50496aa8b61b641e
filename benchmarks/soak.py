"""A worker for twenty minutes at 70% of its speed: whether its memory and the time of a write stay as they are.

Transactions come at an even pace straight into Kafka; beside them single writes go over HTTP, which are timed. At the
end all of it is replayed from the log, and must be what the worker holds. Where the machine gets slower or faster in
these minutes, so do the transactions come, for it is 70% of what it can do then.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple, TypeVar

from benchmarks import workloads
from benchmarks.bench import Bench, Worker, process_apart
from benchmarks.commits import committed
from benchmarks.logs import Paced, pace
from benchmarks.machine import memory_mib, speeds
from benchmarks.measured import MIB, MILLISECONDS, Latency, Result, Series, Side, WrongResultError
from benchmarks.replays import replayed
from benchmarks.writes import paced_writes

SECONDS, SECONDS_FULL = 60.0, 1_200.0
SLICES = 12
"""The whole time is looked at in so many."""
SHARE = 0.7
WRITES_PER_S = 20
PROBED, PROBED_FULL = 60_000, 600_000
"""So many are decided to find the speed; in full so long that RocksDB writes and merges its files meanwhile."""
SETTLED_WITHIN_S = 30.0
FLAT = 1.2
"""How many times as much as in the second quarter it may be in the last: in the first one caches fill."""
LOOK_EVERY_S = 0.5


T = TypeVar("T")


class Slice(NamedTuple):
    """A part of the time."""

    latency: Latency
    memory_mib: float
    """At its end."""


def measure(bench: Bench) -> Iterator[Result]:
    """One run."""
    workload = workloads.one_change(bench.sizes.of(PROBED_FULL if bench.sizes.full else PROBED))
    log = bench.filled(workload)
    with speeds() as of_machine:
        top = committed(bench, log, workload)
    usual_speed = median(of_machine)
    bench.forget(log)
    per_s, seconds = SHARE * top.per_s, SECONDS_FULL if bench.sizes.full else SECONDS
    log = bench.empty(0)
    slices: list[Slice] = []
    for _ in bench.rounds(f"a soak of {seconds / 60:.0f} minutes at {per_s:,.0f}/s", 1):
        with bench.worker(log) as worker, process_apart() as (_, load), process_apart() as (_, writes):
            worker.ready()
            over = bench.directory(log) / "over"
            loading = load.submit(pace, log, per_s, usual_speed, over)
            for number in range(SLICES):
                timed = writes.submit(paced_writes, worker.server, f"timed-{number}", WRITES_PER_S, seconds / SLICES)
                slices.append(Slice(Latency.of(timed.result()), memory_mib(worker.pid, most=False)))
                bench.say(
                    f"  p50 {slices[-1].latency.p50_ms:.1f} p99 {slices[-1].latency.p99_ms:.1f} ms, "
                    f"{slices[-1].memory_mib:,.0f} MiB, {worker.look().decided:,} decided"
                )
            over.touch()
            sent = loading.result()
            decided = _settled(worker, sent.transactions)
            live = worker.digest()
    bench.say(f"  replaying {decided:,} commits")
    into = bench.directory(log) / "replayed"
    found = replayed(replace(log, records=decided), into, os.cpu_count() or 1)
    shutil.rmtree(into)
    if found.digest != live:
        raise WrongResultError(f"the replay has the digest {found.digest}, and the worker {live}")
    bench.forget(log)
    yield from _results(seconds, top.per_s, slices, sent, decided)


def _settled(worker: Worker, sent: int) -> int:
    """How many were decided, once that is more than were sent beside the writes, and no more come."""
    deadline, before = time.monotonic() + SETTLED_WITHIN_S, -1
    while (standing := worker.look()).decided != before or before < sent:
        if time.monotonic() > deadline:
            raise WrongResultError(f"{standing.decided:,} are decided, and {sent:,} were sent beside the writes")
        before = standing.decided
        time.sleep(LOOK_EVERY_S)
    if standing.committed != standing.decided:
        raise WrongResultError(f"{standing.decided - standing.committed:,} were refused")
    return before


def _results(seconds: float, top_per_s: float, slices: Sequence[Slice], sent: Paced, decided: int) -> Iterator[Result]:
    told = ", ".join(f"{median(_quarter(sent.speeds, number)):.2f}" for number in range(4))
    checked = (
        f"none of {decided:,} refused; the digest of a replay is the worker's; in the four quarters the machine had "
        f"{told} of the speed at which 100% was measured"
    )
    early, late = _quarter(slices, 1), _quarter(slices, 3)
    name = f"{seconds / 60:.0f} minutes at {SHARE:.0%} of {top_per_s:,.0f} commits/s, the last quarter"

    def result(what: str, unit: str, values: Callable[[Slice], float]) -> Result:
        before, after = (Series.of(values(one) for one in some) for some in (early, late))
        side = Side("the second quarter", before, ratio_target=FLAT)
        return Result(f"{name}: {what}", unit, after, checked, (side,), None, "less")

    yield result("memory", MIB, lambda one: one.memory_mib)
    yield result(f"one HTTP write, {WRITES_PER_S}/s: p50", MILLISECONDS, lambda one: one.latency.p50_ms)
    yield result(f"one HTTP write, {WRITES_PER_S}/s: p99", MILLISECONDS, lambda one: one.latency.p99_ms)


def _quarter(series: Sequence[T], number: int) -> Sequence[T]:
    """The `number`th of its four quarters, from 0 on."""
    length = len(series) // 4
    return series[length * number : length * (number + 1)]
