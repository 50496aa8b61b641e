"""One of two workers is killed: how the other goes on with what is not held, and how soon all that waited is decided.

Single transactions are sent at an even pace to groups of the partitions of the worker that stays. Beside them go some
over both workers' partitions; from the kill on they wait, and hold other groups, until the partitions are assigned
again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.measured import MILLISECONDS, PER_SECOND, Latency, Result, Series, Side, WrongResultError
from benchmarks.spanning import PARTITIONS, cluster_of
from tests.cluster import Cluster
from versolog.client import Client
from versolog.schemas.topics import partition_of
from versolog.streams.producer import AsyncProducer
from versolog.streams.transaction import Transaction

SINGLE_PER_S, SPANNING_PER_S = 1_000, 50
BEFORE_S, SETTLE_S = 5.0, 3.0
SESSION_TIMEOUT_S = 10.0
"""As in production: for this long after the kill nothing is assigned."""
OWNED_WITHIN_S = OUTCOME_WITHIN_S = 60.0
RATE_KEPT = 0.9
DECIDED_TARGET_MS = 5_000.0
LOOK_EVERY_S = 0.1
GROUPS = 200


class Sent(NamedTuple):
    """When a transaction was due and when its outcome was there, in seconds of `time.perf_counter`."""

    due_s: float
    done_s: float


class Outage(NamedTuple):
    """All that was sent, and what happened when."""

    single: Sequence[Sent]
    spanning: Sequence[Sent]
    begun_s: float
    killed_s: float
    assigned_s: float

    @property
    def before(self) -> list[Sent]:
        return [one for one in self.single if one.due_s < self.killed_s]

    @property
    def meanwhile(self) -> list[Sent]:
        return [one for one in self.single if self.killed_s <= one.due_s < self.assigned_s]

    def per_s(self, begin_s: float, end_s: float) -> float:
        return sum(begin_s <= one.done_s < end_s for one in self.single) / (end_s - begin_s)

    def decided_ms(self) -> float:
        """From the assignment until the last is decided that was sent before it."""
        last_s = max(one.done_s for one in self.spanning if one.due_s < self.assigned_s)
        return max(0.0, last_s - self.assigned_s) * 1_000


def measure(bench: Bench) -> Iterator[Result]:
    outages = [asyncio.run(_outage(bench, number)) for number in bench.rounds("one of two workers is killed")]
    before = Series.of(one.per_s(one.begun_s, one.killed_s) for one in outages)
    meanwhile = Series.of(one.per_s(one.killed_s, one.assigned_s) for one in outages)
    checked = "every transaction is committed, in each of its groups"
    yield Result(
        "one of two workers is away, the other's single transactions", PER_SECOND, meanwhile, checked,
        (Side("both are there", before),), RATE_KEPT * before.median,
    )  # fmt: skip
    yield Result(
        "one of two workers is away, the other's single transactions: p99", MILLISECONDS,
        Series.of(_latency(one.meanwhile).p99_ms for one in outages), checked,
        (Side("both are there", Series.of(_latency(one.before).p99_ms for one in outages)),), better="less",
    )  # fmt: skip
    yield Result(
        "its partitions are assigned again: until all that waited is decided", MILLISECONDS,
        Series.of(one.decided_ms() for one in outages), checked, target=DECIDED_TARGET_MS, better="less",
    )  # fmt: skip


def _latency(sent: Sequence[Sent]) -> Latency:
    return Latency.of([one.done_s - one.due_s for one in sent])


async def _outage(bench: Bench, number: int) -> Outage:
    with cluster_of(bench, f"outage-{number}") as cluster:
        for name in ("w1", "w2"):
            cluster.start(name, session_timeout_s=SESSION_TIMEOUT_S)
        await _owned(cluster, dict.fromkeys(("w1", "w2"), PARTITIONS // 2))
        await asyncio.to_thread(cluster.level)
        # The sequencer runs beside the owner of partition 0: with it, what goes over both is taken in, and holds.
        stays, goes = ("w1", "w2") if 0 in cluster.workers["w1"].owned() else ("w2", "w1")
        here, away = (min(cluster.workers[name].owned()) for name in (stays, goes))
        free, held = _groups("free", here), list(zip(_groups("held", here), _groups("there", away), strict=True))
        stopped = asyncio.Event()
        async with AsyncProducer(cluster.bootstrap, prefix=cluster.prefix) as producer:
            single = asyncio.create_task(_paced(producer, [[group] for group in free], SINGLE_PER_S, stopped))
            spanning = asyncio.create_task(_paced(producer, held, SPANNING_PER_S, stopped))
            await asyncio.sleep(SETTLE_S)
            begun_s = time.perf_counter()
            await asyncio.sleep(BEFORE_S)
            await asyncio.to_thread(cluster.workers[goes].kill)
            killed_s = time.perf_counter()
            await _owned(cluster, {stays: PARTITIONS})
            assigned_s = time.perf_counter()
            await asyncio.sleep(SETTLE_S)
            stopped.set()
            outage = Outage(await single, await spanning, begun_s, killed_s, assigned_s)
        await asyncio.to_thread(_check, cluster, stays, outage, free, held)
    bench.say(
        f"  {outage.per_s(begun_s, killed_s):,.0f}/s before, {outage.per_s(killed_s, assigned_s):,.0f}/s for the"
        f" {assigned_s - killed_s:.1f} s without; all decided {outage.decided_ms():,.0f} ms after the assignment"
    )
    return outage


def _groups(name: str, partition: int) -> list[str]:
    every = (f"{name}-{number}" for number in count())
    wanted = (group for group in every if partition_of(group, PARTITIONS) == partition)
    return [next(wanted) for _ in range(GROUPS)]


async def _owned(cluster: Cluster, wanted: Mapping[str, int]) -> None:
    """Wait until each of the named workers owns so many partitions."""
    deadline = time.monotonic() + OWNED_WITHIN_S
    while {name: len(await asyncio.to_thread(cluster.workers[name].owned)) for name in wanted} != wanted:
        if time.monotonic() > deadline:
            raise WrongResultError(f"the partitions were not assigned within {OWNED_WITHIN_S:g} s")
        await asyncio.sleep(LOOK_EVERY_S)


async def _paced(
    producer: AsyncProducer, groups: Sequence[Sequence[str]], per_s: float, stopped: asyncio.Event
) -> list[Sent]:
    """Add one to a row of each of the groups in turn, at an even pace whether or not others are still waited for."""
    under_way: list[asyncio.Task[Sent]] = []
    begun_s = time.perf_counter()
    for number in count():
        due_s = begun_s + number / per_s
        await asyncio.sleep(due_s - time.perf_counter())
        if stopped.is_set():
            break
        under_way.append(asyncio.create_task(_sent(producer, groups[number % len(groups)], due_s)))
    return list(await asyncio.gather(*under_way))


async def _sent(producer: AsyncProducer, groups: Sequence[str], due_s: float) -> Sent:
    tx = Transaction(None, author="bench")
    for group in groups:
        tx.group(group).add("t", "counter", {"n": 1})
    (await (await producer.send(tx)).outcome(OUTCOME_WITHIN_S)).raise_for_refusal()
    return Sent(due_s, time.perf_counter())


def _check(cluster: Cluster, name: str, outage: Outage, free: Sequence[str], held: Sequence[tuple[str, str]]) -> None:
    """Hold the counters against how many were sent."""
    with Client(cluster.workers[name].url) as db:
        counted = partial(_counted, db)
        found = counted(free), counted(first for first, _ in held), counted(second for _, second in held)
    expected = len(outage.single), len(outage.spanning), len(outage.spanning)
    if found != expected:
        raise WrongResultError(f"{expected} were sent, and {found} are counted")


def _counted(db: Client, groups: Iterable[str]) -> int:
    return sum(db.row(group, "t", "counter").row["n"] for group in groups)
