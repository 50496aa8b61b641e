"""Transactions over several partitions: how many a second, beside single ones in the same run, and how long one takes.

Each log is filled first and decided by fresh workers, so that no client is the limit. A share of the transactions moves
an amount between two groups of two partitions; the others add to one group.
"""

from __future__ import annotations

import random
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate

from benchmarks.bench import Bench
from benchmarks.logs import Log
from benchmarks.measured import MILLISECONDS, PER_SECOND, Result, Series, Side, WrongResultError, percentile
from benchmarks.postgres import TRANSFERS, postgres
from tests.cluster import Cluster
from versolog.client import Client, Read
from versolog.schemas.errors import Unavailable, Undecided
from versolog.schemas.topics import partition_of
from versolog.streams.sent import Sent
from versolog.streams.transaction import Transaction

PARTITIONS = 4
GROUPS = 4_000
COUNT = 12_000
SHARES = (0.0, 0.1, 0.5, 1.0)
ZIPF = 0.99
TARGET_PER_S = 3_000.0
P50_TARGET_MS, P99_TARGET_MS = 50.0, 150.0
PACED_S, WARM_S = 6.0, 2.0
WITHIN_S = 300.0
TURN_S = 0.005
LOOK_EVERY_S, LOOK_RARELY_EVERY_S = 0.1, 0.5
NEAR_THE_END = 0.8


def measure(bench: Bench) -> Iterator[Result]:
    """One and two workers, uniform and skewed keys; then the time that one takes at half of the speed."""
    per_s: dict[tuple[int, bool, float], list[float]] = {}
    transfers: list[float] = []
    count = bench.sizes.of(COUNT)
    with postgres(bench) as beside:
        for number in bench.rounds("transactions over two partitions"):
            for workers in (1, 2):
                for skewed in (False, True):
                    for share in SHARES:
                        speed = _decided_per_s(bench, _transactions(count, share, skewed, number), workers)
                        per_s.setdefault((workers, skewed, share), []).append(speed)
                        bench.say(f"  {_named(workers, skewed, share)}: {speed:,.0f}/s")
            if beside is not None:
                transfers.append(beside.per_s("transfers"))
                bench.say(f"  {TRANSFERS}: {transfers[-1]:,.0f}/s")
    for workers in (1, 2):
        for skewed in (False, True):
            sides = tuple(
                Side(f"{share:.0%} over two partitions", Series.of(per_s[workers, skewed, share]))
                for share in SHARES[:-1]
            )
            target = None
            if workers == 2 and not skewed:
                target = TARGET_PER_S
                if transfers:
                    sides += (Side(TRANSFERS, Series.of(transfers), ratio_target=1.0),)
            every = Series.of(per_s[workers, skewed, 1.0])
            checked = "every transaction is committed, none refused; what was moved adds up to nothing"
            yield Result(_named(workers, skewed, 1.0), PER_SECOND, every, checked, sides, target)
    half = min(per_s[2, False, 1.0]) / 2
    yield from _latencies(bench, half)


def _named(workers: int, skewed: bool, share: float) -> str:
    keys = f"Zipf {ZIPF}" if skewed else "uniform"
    return f"{share:.0%} over two partitions, {workers} worker{'s' * (workers > 1)}, {keys} keys"


def _transactions(count: int, share: float, skewed: bool, seed: int) -> list[Transaction]:
    chance = random.Random(f"{share}/{skewed}/{seed}")
    weights = list(accumulate(1 / rank**ZIPF if skewed else 1.0 for rank in range(1, GROUPS + 1)))
    names = [f"account-{number}" for number in range(GROUPS)]

    def drawn() -> str:
        return names[bisect(weights, chance.random() * weights[-1])]

    made = []
    for _ in range(count):
        tx = Transaction(None, author="bench")
        source = drawn()
        if chance.random() < share:
            target = drawn()
            while partition_of(target, PARTITIONS) == partition_of(source, PARTITIONS):
                target = drawn()
            amount = chance.randint(1, 9)
            tx.group(source).add("t", "balance", {"n": -amount})
            tx.group(target).add("t", "balance", {"n": amount})
        else:
            tx.group(source).add("t", "balance", {"n": 0})
        made.append(tx)
    return made


@contextmanager
def cluster_of(bench: Bench, name: str) -> Iterator[Cluster]:
    directory = bench.scratch / name
    directory.mkdir()
    cluster = Cluster(bench.bootstrap, directory, partitions=PARTITIONS, prefix=f"{name}.")
    cluster.make_topics()
    try:
        yield cluster
    finally:
        cluster.kill()
        Log(bench.bootstrap, cluster.topics, PARTITIONS, 0).forget()


def _decided_per_s(bench: Bench, transactions: Sequence[Transaction], workers: int) -> float:
    """From when all partitions are owned until all is decided."""
    with cluster_of(bench, f"spanning-{time.monotonic_ns()}") as cluster:
        with cluster.producer() as producer:
            for tx in transactions:
                producer.send(tx)
            producer.flush(WITHIN_S)
        parts = sum(len({partition_of(group, PARTITIONS) for group in tx.groups}) for tx in transactions)
        running = [cluster.start(f"w{number}", VERSOLOG_FOLLOW="none") for number in range(1, workers + 1)]
        decided, begun_s, deadline = 0, None, time.monotonic() + WITHIN_S
        while decided < parts:
            if time.monotonic() > deadline:
                raise WrongResultError(f"{decided:,} of {parts:,} were decided within {WITHIN_S:g} s")
            decided = int(sum(worker.metric("versolog_decided_total") for worker in running))
            if decided and begun_s is None:
                begun_s, before = time.perf_counter(), decided
            is_between = begun_s is not None and decided < parts * NEAR_THE_END
            time.sleep(LOOK_RARELY_EVERY_S if is_between else LOOK_EVERY_S)
        assert begun_s is not None
        took_s = time.perf_counter() - begun_s
        committed = int(sum(worker.metric("versolog_decided_total", outcome="committed") for worker in running))
        if committed != parts:
            raise WrongResultError(f"{parts - committed:,} of {parts:,} were refused")
        _check(cluster, transactions)
        return len(transactions) * (parts - before) / parts / took_s


def _check(cluster: Cluster, transactions: Sequence[Transaction]) -> None:
    """Hold some balances, read at one moment, against what was sent."""
    expected: Counter[str] = Counter()
    for tx in transactions:
        for part in tx.record()["parts"]:
            expected[part["group"]] += int(part["changes"][0]["row"].partition(":")[2].rstrip("}"))
    names = sorted(expected)[:500]
    cluster.owned()
    with Client(cluster.running()[0].url) as db:
        told = db.read(*(Read(name, "t", "balance") for name in names))
    for place, name in enumerate(names):
        row = told.row(place)
        if row is None or row.row["n"] != expected[name]:
            raise WrongResultError(f"{name} holds {row}, and {expected[name]} was sent")


def _latencies(bench: Bench, per_s: float) -> Iterator[Result]:
    p50: list[float] = []
    p99: list[float] = []
    for number in bench.rounds(f"one transaction over two partitions, at {per_s:,.0f}/s"):
        with cluster_of(bench, f"paced-{number}") as cluster:
            for name in ("w1", "w2"):
                cluster.start(name, VERSOLOG_FOLLOW="none")
            cluster.owned()
            transactions = _transactions(int(per_s * (WARM_S + PACED_S)), 1.0, False, number)
            took_ms = _paced(cluster, transactions, per_s)[int(per_s * WARM_S) :]
        p50.append(percentile(took_ms, 0.5))
        p99.append(percentile(took_ms, 0.99))
    name, checked = "two partitions, 2 workers, at half of that speed", "every transaction is committed"
    yield Result(f"{name}: p50", MILLISECONDS, Series.of(p50), checked, target=P50_TARGET_MS, better="less")
    yield Result(f"{name}: p99", MILLISECONDS, Series.of(p99), checked, target=P99_TARGET_MS, better="less")


def _paced(cluster: Cluster, transactions: Sequence[Transaction], per_s: float) -> list[float]:
    """How long each took, sent at an even pace whether or not others are still waited for; from when it was due, in
    milliseconds. What is due is sent, and what is decided is seen, every few milliseconds: a coroutine for each
    transaction takes half a processor at 2,000 a second, from the workers."""
    with cluster.producer() as producer:
        producer.send(Transaction("warm").put("t", "k", {})).outcome(WITHIN_S)
        begun_s = time.perf_counter() + 0.5
        due_s = [begun_s + number / per_s for number in range(len(transactions))]
        sents: list[Sent] = []
        with ThreadPoolExecutor(1) as aside:
            took = aside.submit(_seen, sents, due_s)
            for tx, at_s in zip(transactions, due_s, strict=True):
                while time.perf_counter() < at_s:
                    time.sleep(TURN_S)
                sents.append(producer.send(tx))
            return took.result()


def _seen(sents: Sequence[Sent], due_s: Sequence[float]) -> list[float]:
    """See each of `sents`, which grow meanwhile, decided; how long that took from when it was due, in milliseconds."""
    took_ms: dict[int, float] = {}
    waiting: list[int] = []
    while len(took_ms) < len(due_s):
        waiting += range(len(took_ms) + len(waiting), len(sents))
        now_s = time.perf_counter()
        decided = [number for number in waiting if sents[number].decided()]
        for number in decided:
            sents[number].outcome(WITHIN_S).raise_for_refusal()
            took_ms[number] = (now_s - due_s[number]) * 1_000
        waiting = [number for number in waiting if number not in took_ms]
        if waiting:
            with suppress(Undecided, Unavailable):
                sents[waiting[0]].outcome(TURN_S)  # outcomes are looked for while one is waited for
        else:
            time.sleep(TURN_S)
    return [took_ms[number] for number in range(len(due_s))]
