"""What a worker answers over HTTP: reads, then writes, then both beside a bulk load; of one worker with one log."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import busy, reads, workloads, writes
from benchmarks.bench import Bench
from benchmarks.measured import Result
from benchmarks.postgres import postgres

FLIGHT_EVENTS = 30_000


def measure(bench: Bench) -> Iterator[Result]:
    """A worker commits flights and a stock of rows, and is then asked."""
    flights = workloads.flights(bench.sizes.of(FLIGHT_EVENTS))
    workload = workloads.with_stock(flights, reads.SCAN_ROWS)
    bench.say(f"HTTP: a worker commits {len(workload.transactions):,} transactions to be read")
    log = bench.filled(workload)
    with bench.worker(log) as worker:
        worker.decides(log.records)
        worker.ready()
        with postgres(bench) as beside:
            yield from reads.measure(bench, worker, workload, beside)
            yield from writes.measure(bench, worker, log, beside)
        yield from busy.measure(bench, worker, workload)
    bench.forget(log)
