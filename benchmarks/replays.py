"""Commits replayed from offset 0 into an empty store, beside librdkafka and the least that a store could do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import floors, machine, workloads
from benchmarks.bench import Bench, apart, at_once, process_apart
from benchmarks.logs import Log, check
from benchmarks.measured import Result, Seen, Series, Side, Speed, WrongResultError, compared, speed, told
from versolog.projections.refold import Log as ReplayedLog
from versolog.projections.replay import replay
from versolog.schemas.registry import TopicRegistry
from versolog.schemas.topics import describe

FLIGHT_EVENTS = 100_000
TARGET_PER_S = 45_000.0
FLOOR = "consume, fastavro decode, RocksDB put of the same commits"
RATIO_TARGETS = {FLOOR: 0.6}
PROCESSES_TARGET = 1.6


class Replayed(NamedTuple):
    """One replay."""

    digest: str
    commits: int
    folding: Speed
    """From the call to the last record folded."""
    whole: Speed
    """To the end, the digest of all that was rebuilt included."""


def measure(bench: Bench) -> Iterator[Result]:
    """By one process and by all cores, of one log of real flights."""
    workload = workloads.flights(bench.sizes.of(FLIGHT_EVENTS))
    bench.say(f"replay: a worker commits {len(workload.transactions):,} flight events to be replayed")
    log = bench.filled(workload)
    with bench.worker(log) as worker:
        worker.decides(log.records)
        live = worker.digest()
    check(log, workload)
    one: list[Replayed] = []
    cores: list[Replayed] = []
    read: list[Speed] = []
    least: list[Speed] = []
    hashed: list[float] = []
    hashed_at_once: list[float] = []
    for _ in bench.rounds("replay"):
        one.append(_checked(_apart(bench, log, 1), log, live))
        cores.append(_checked(_apart(bench, log, os.cpu_count() or 1), log, live))
        read.append(apart(floors.consume, log, log.topics.commits))
        least.append(_least(bench, log))
        hashed += at_once(1, machine.hash_records)
        hashed_at_once.append(sum(at_once(os.cpu_count() or 1, machine.hash_records)))
        bench.say(f"  versolog {told(one[-1].folding)}, with the digest {told(one[-1].whole)}, all cores "
                  f"{cores[-1].folding.per_s:,.0f}/s, consume + decode + put {told(least[-1])}, "
                  f"consume {told(read[-1])}, hashing by all cores {hashed_at_once[-1] / hashed[-1]:.2f} times as fast "
                  "as by one")  # fmt: skip
    if bench.profiles:
        _checked(_apart(bench, log, 1, "replay"), log, live)
    bench.forget(log)
    checked = f"{log.records:,} commits of flight events; the digest is the live store's"
    floor = {FLOOR: least}
    sides = floor | {"librdkafka: consume": read}
    yield compared("replay, one process", [each.folding for each in one], checked, sides, TARGET_PER_S, RATIO_TARGETS)
    yield compared("replay and digest, one process", [each.whole for each in one], checked, floor)
    parallel = Series.of(each.folding.per_s for each in cores)
    alone = Series.of(each.folding.per_s for each in one)
    single = Side("the same by one process", alone, ratio_target=PROCESSES_TARGET)
    yield Result(f"replay, {os.cpu_count()} processes", "/s", parallel, checked, (single,))
    yield Result(
        f"SHA-256 by {os.cpu_count()} Python processes at once, which share nothing", "/s", Series.of(hashed_at_once),
        "what two cores of this machine do more than one of them", (Side("by one of them alone", Series.of(hashed)),),
    )  # fmt: skip


def replayed(log: Log, into: Path, processes: int) -> Replayed:
    """Replay all of `log` into the fresh directory `into`."""
    begun = folded = _now(0)

    def progress(done: int, about: int) -> None:
        nonlocal folded
        folded = _now(log.records)

    registry = partial(TopicRegistry, log.kafka, log.topics)
    source = ReplayedLog(log.kafka, log.topics, describe(log.kafka, log.topics), registry)
    manifest = replay(source, into, at=None, group=None, processes=processes, progress=progress)
    return Replayed(manifest.digest, manifest.commits, speed(begun, folded), speed(begun, _now(log.records)))


def _now(count: int) -> Seen:
    return Seen(time.perf_counter(), time.process_time(), count)


def _apart(bench: Bench, log: Log, processes: int, flame: str | None = None) -> Replayed:
    into = bench.directory(log) / "replayed"
    try:
        with process_apart() as (pid, pool):
            if flame is None:
                return pool.submit(replayed, log, into, processes).result()
            pool.submit(_now, 0).result()  # imports all this
            with bench.profiled(pid, flame, waits=True):  # one thread: waiting for RocksDB is its time too
                return pool.submit(replayed, log, into, processes).result()
    finally:
        shutil.rmtree(into, ignore_errors=True)


def _least(bench: Bench, log: Log) -> Speed:
    directory = bench.directory(log) / "least"
    try:
        return apart(floors.consume_decode_and_put, log, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _checked(done: Replayed, log: Log, live: str) -> Replayed:
    if (done.commits, done.digest) != (log.records, live):
        raise WrongResultError(
            f"replayed {done.commits:,} of {log.records:,} commits to {done.digest}; the live store: {live}"
        )
    return done
