"""What a bulk load leaves to others: single writes and reads over HTTP while NDJSON batches come without a pause."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.bare import Server
from benchmarks.bench import Bench, Worker, process_apart
from benchmarks.measured import MILLISECONDS, Latency, Result, Series, Side
from benchmarks.reads import reads_of
from benchmarks.workloads import Workload
from benchmarks.writes import batch_written, paced_reads, paced_writes

WRITES_PER_S, READS_PER_S = 100, 200
LOAD_S = 8.0
LINES = 5_000
"""In each batch of the load."""
P99_TARGET_MS = 150.0


def measure(bench: Bench, worker: Worker, workload: Workload) -> Iterator[Result]:
    """Of a worker that holds `workload` and is idle otherwise."""
    paths = [asked.path for asked in reads_of(workload, past=False)]
    took: dict[str, list[Latency]] = {"write": [], "read": []}
    loads: list[float] = []
    for number in bench.rounds("HTTP beside a bulk load"):
        with ExitStack() as stack:
            loading, writing, reading = (stack.enter_context(process_apart())[1] for _ in range(3))
            load = loading.submit(bulk_load, worker.server, f"bulk-{number}", LOAD_S + 2)
            time.sleep(1)
            writes = writing.submit(paced_writes, worker.server, f"beside-{number}", WRITES_PER_S, LOAD_S)
            reads = reading.submit(paced_reads, worker.server, paths, READS_PER_S, LOAD_S)
            took["write"].append(Latency.of(writes.result()))
            took["read"].append(Latency.of(reads.result()))
            loads.append(load.result())
        told = ", ".join(f"{what} p50 {of[-1].p50_ms:.1f} p99 {of[-1].p99_ms:.1f} ms" for what, of in took.items())
        bench.say(f"  {told}; beside {loads[-1]:,.0f} lines/s")
    checked = "every line of the load is committed, every write answered 201, every read 200"
    for what, name in (
        ("write", f"one HTTP write, {WRITES_PER_S}/s, while a bulk load runs"),
        ("read", f"one HTTP read at head, {READS_PER_S}/s, while a bulk load runs"),
    ):
        p50, p99 = (Series.of(getattr(one, f"{share}_ms") for one in took[what]) for share in ("p50", "p99"))
        yield Result(f"{name}: p99", MILLISECONDS, p99, checked, (Side("p50 of them", p50),), P99_TARGET_MS, "less")


def bulk_load(server: Server, run: str, seconds: float) -> float:
    """Batches one after the other: committed lines a second."""
    begun, count = time.perf_counter(), 0
    while (took_s := time.perf_counter() - begun) < seconds:
        batch_written(server, f"{run}-{count}", LINES)
        count += LINES
    return count / took_s
