"""Commits a second by one worker from a full topic, beside librdkafka that moves the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import floors, workloads
from benchmarks.bench import Bench, apart
from benchmarks.logs import Log, check
from benchmarks.measured import Result, Speed, compared, speed, told
from benchmarks.workloads import Workload

ONE_CHANGE = 80_000
FIVE_CHANGES = 30_000
FLIGHT_EVENTS = 60_000
TARGET_PER_S = 15_000.0


def measure(bench: Bench) -> Iterator[Result]:
    """One change each, five changes each, and real flights."""
    sizes = bench.sizes
    yield _measured(bench, workloads.one_change(sizes.of(ONE_CHANGE)), TARGET_PER_S)
    yield _measured(bench, workloads.five_changes(sizes.of(FIVE_CHANGES)), None)
    yield _measured(bench, workloads.flights(sizes.of(FLIGHT_EVENTS)), None)


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
