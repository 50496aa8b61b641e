"""Commits a second from a full topic: by one worker, beside librdkafka that moves the same bytes, and by two."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import floors, workloads
from benchmarks.bench import Bench, apart
from benchmarks.logs import Log, check
from benchmarks.measured import PER_SECOND, Result, Series, Side, Speed, WrongResultError, compared, speed, told
from benchmarks.workloads import Workload

ONE_CHANGE = 80_000
FIVE_CHANGES = 30_000
FLIGHT_EVENTS = 60_000
BY_WORKERS = 160_000
TARGET_PER_S, FIVE_TARGET_PER_S = 25_000.0, 10_000.0
TWO_WORKERS_TARGET = 1.3
LOOK_EVERY_S = 0.1
DECIDED_WITHIN_S = 300.0


def measure(bench: Bench) -> Iterator[Result]:
    """One change each, five changes each, and real flights; and the first by two workers."""
    sizes = bench.sizes
    yield _measured(bench, workloads.one_change(sizes.of(ONE_CHANGE)), TARGET_PER_S)
    yield _measured(bench, workloads.five_changes(sizes.of(FIVE_CHANGES)), FIVE_TARGET_PER_S)
    yield _measured(bench, workloads.flights(sizes.of(FLIGHT_EVENTS)), None)
    yield from _by_workers(bench, workloads.one_change(sizes.of(BY_WORKERS)))


def committed(bench: Bench, log: Log, workload: Workload, flame: str | None = None) -> Speed:
    """The commits of a fresh worker on `log`; what it made is checked."""
    with bench.worker(log) as worker:
        if flame is None:
            seen = worker.decides(log.records)
        else:
            with bench.profiled(worker.pid, flame):
                seen = worker.decides(log.records)
    check(log, workload)
    return speed(seen[0], seen[-1])


def _measured(bench: Bench, workload: Workload, target: float | None) -> Result:
    ours: list[Speed] = []
    moved: list[Speed] = []
    read: list[Speed] = []
    for _ in bench.rounds(f"commits, {workload.name}"):
        log = bench.filled(workload)
        ours.append(committed(bench, log, workload))
        moved.append(apart(floors.consume_and_commit, log))
        read.append(apart(floors.consume, log, log.topics.transactions))
        bench.say(f"  versolog {told(ours[-1])}, consume + transactional produce {told(moved[-1])}, "
                  f"consume {told(read[-1])}")  # fmt: skip
        bench.forget(log)
    if bench.profiles:
        log = bench.filled(workload)
        committed(bench, log, workload, f"commits-{workload.name.replace(' ', '-')}")
        bench.forget(log)
    checked = (
        f"{len(workload.transactions):,} transactions, each committed once; versions without gaps and an unbroken hash "
        f"chain in {len(workload.by_group)} groups"
    )
    sides = {"librdkafka: consume, and transactional produce of the commits' bytes": moved, "librdkafka: consume": read}
    return compared(f"commits, {workload.name}", ours, checked, sides, target)


def _by_workers(bench: Bench, workload: Workload) -> Iterator[Result]:
    ways = ((1, "none"), (2, "none"), (2, "all"))
    per_s: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for _ in bench.rounds("commits by one worker and by two"):
        for workers, follow in ways:
            log = bench.filled(workload)
            per_s[workers, follow].append(_per_s(bench, log, workers, follow))
            check(log, workload)
            bench.forget(log)
        speeds = ", ".join(
            f"{workers} following {follow} {per_s[workers, follow][-1]:,.0f}/s" for workers, follow in ways
        )
        bench.say(f"  {speeds}")
    checked = f"{len(workload.transactions):,} transactions, each committed once, into unbroken chains"
    alone = Series.of(per_s[1, "none"])
    for follow, target in (("none", TWO_WORKERS_TARGET), ("all", None)):
        name = f"commits, one change each, 2 workers, each following {'nothing' if follow == 'none' else follow}"
        side = Side("by one worker", alone, ratio_target=target)
        yield Result(name, PER_SECOND, Series.of(per_s[2, follow]), checked, (side,))


def _per_s(bench: Bench, log: Log, workers: int, follow: str) -> float:
    """From when the partitions are shared out until all is decided."""
    with ExitStack() as stack:
        running = [stack.enter_context(bench.worker(log, number, follow=follow)) for number in range(1, workers + 1)]
        begun_s, begun_at = 0.0, 0
        deadline = time.monotonic() + DECIDED_WITHIN_S
        while True:
            standing = [worker.look() for worker in running]
            decided = sum(one.decided for one in standing)
            if decided == log.records:
                break
            if time.monotonic() > deadline:
                raise WrongResultError(f"{decided:,} of {log.records:,} were decided in {DECIDED_WITHIN_S:g} s")
            shared_out = all(one.owned for one in standing) and sum(one.owned for one in standing) == log.partitions
            if shared_out and not begun_s:
                begun_s, begun_at = time.perf_counter(), decided
            time.sleep(LOOK_EVERY_S)
        if not begun_s:
            raise WrongResultError("all was decided before the partitions were shared out; measure more")
        return (decided - begun_at) / (time.perf_counter() - begun_s)
