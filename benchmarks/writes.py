"""Writes over HTTP: one at a time at a steady pace, and many in one request, beside what the log alone takes."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

import orjson

from benchmarks import floors
from benchmarks.bare import Server
from benchmarks.bench import Bench, Worker, apart
from benchmarks.load import Connection, get, post
from benchmarks.logs import Log
from benchmarks.machine import cpu_s
from benchmarks.measured import (
    Latency,
    Result,
    Seen,
    Series,
    Side,
    Speed,
    WrongResultError,
    compared,
    speed,
    told,
)
from benchmarks.postgres import COMMITS, EVENTS, Postgres
from benchmarks.workloads import put_item
from versolog.streams.transaction import Transaction

PER_S = 100
PACED_S = 5.0
P50_TARGET_MS, P99_TARGET_MS = 15.0, 50.0
BATCH_TARGET_PER_S = 12_000.0
BATCH_LINES = 20_000
WARM_UP = 50
SOCKET_TIMEOUT_S = 60.0
CREATED = 201


def measure(bench: Bench, worker: Worker, log: Log, beside: Postgres | None) -> Iterator[Result]:
    """Of a worker that is idle otherwise."""
    yield from _paced(bench, worker, log)
    yield _batch(bench, worker, beside)


def _paced(bench: Bench, worker: Worker, log: Log) -> Iterator[Result]:
    ours: list[Latency] = []
    plain: list[Latency] = []
    chained: list[Latency] = []
    value = _transaction("floor", 0).intent()
    for number in bench.rounds(f"HTTP writes, {PER_S}/s"):
        samples = apart(paced_writes, worker.server, f"paced-{number}", PER_S, PACED_S)
        ours.append(Latency.of(samples))
        floor = apart(floors.paced, log, PER_S, PACED_S, value)
        if not len(samples) == len(floor.acknowledged) == len(floor.committed):
            raise WrongResultError(f"{len(floor.committed)} of {len(samples)} records were committed")
        plain.append(Latency.of(floor.acknowledged))
        chained.append(Latency.of(floor.committed))
        bench.say(f"  versolog {_latency(ours[-1])}, produce {_latency(plain[-1])}, "
                  f"produce and transaction {_latency(chained[-1])}")  # fmt: skip
    checked = f"{round(PER_S * PACED_S)} writes a round, each answered 201, versions without gaps"
    for share, target in (("p50", P50_TARGET_MS), ("p99", P99_TARGET_MS)):
        yield Result(
            f"one HTTP write, {PER_S}/s: {share}", "ms", _of(ours, share), checked,
            (Side("raw librdkafka: produce, acks=all, and then a transactional produce", _of(chained, share)),
             Side("raw librdkafka: produce, acks=all, alone", _of(plain, share))),
            target, "less",
        )  # fmt: skip


def _batch(bench: Bench, worker: Worker, beside: Postgres | None) -> Result:
    lines = bench.sizes.of(BATCH_LINES)
    ours: list[Speed] = []
    others: dict[str, list[float]] = {}
    for number in bench.rounds("HTTP batch writes"):
        ours.append(apart(batch_written, worker.server, f"batch-{number}", lines))
        bench.say(f"  {told(ours[-1])}")
        if beside is not None:
            others.setdefault(COMMITS, []).append(beside.per_s("commits"))
            others.setdefault(EVENTS, []).append(beside.per_s("commits", "eventsourcing_clients"))
    if bench.profiles:
        with bench.profiled(worker.pid, "batch"):
            apart(batch_written, worker.server, "batch-profile", 2 * lines)
    checked = f"one request of {lines:,} lines, acknowledged after the commit; every line committed, in order"
    return compared("HTTP batch writes (NDJSON)", ours, checked, {}, BATCH_TARGET_PER_S).beside(others)


def paced_writes(server: Server, run: str, per_s: int, seconds: float, group: str | None = None) -> list[float]:
    """Seconds from when each write should have been sent to its answer: a slow answer doesn't slow the asking down.
    Into fresh groups, or into one that is there."""
    import uvloop

    sent = [_transaction(run, number, group) for number in range(round(per_s * seconds) + WARM_UP)]
    requests = [post("/v1/transactions", server.host, orjson.dumps(tx.to_json())) for tx in sent]
    samples, answers = uvloop.run(_paced_requests(server, requests, per_s, CREATED))
    versions: dict[str, set[int]] = {}
    for outcome in map(orjson.loads, answers):
        versions.setdefault(outcome["group"], set()).add(outcome["version"])
    for name, found in versions.items():
        first = 1 if group is None else min(found)
        if found != set(range(first, first + len(found))):
            raise WrongResultError(f"the versions of {name} have gaps")
    if sum(map(len, versions.values())) != len(requests):
        raise WrongResultError("two writes got one version")
    return samples[WARM_UP:]


def paced_reads(server: Server, paths: Sequence[str], per_s: int, seconds: float) -> list[float]:
    """As `paced_writes`, of GET requests."""
    import uvloop

    following = cycle([get(path, server.host) for path in paths])
    requests = [next(following) for _ in range(round(per_s * seconds) + WARM_UP)]
    samples, _ = uvloop.run(_paced_requests(server, requests, per_s, http.client.OK))
    return samples[WARM_UP:]


async def _paced_requests(
    server: Server, requests: Sequence[bytes], per_s: int, wanted: int
) -> tuple[list[float], list[bytes]]:
    """Seconds that each took, and the bodies. The first `WARM_UP` are sent at the same pace, and not to be counted."""
    free: list[Connection] = []
    samples = [0.0] * len(requests)
    answers = [b""] * len(requests)
    tasks = set()
    begun_s = time.perf_counter()
    for number, request in enumerate(requests):
        due_s = begun_s + number / per_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))

        async def ask(number: int, request: bytes, due_s: float) -> None:
            while free and not free[-1].is_usable:
                free.pop().close()
            connection = free.pop() if free else await Connection.to(server.host, server.port)
            answer = asyncio.get_running_loop().create_future()
            connection.ask(request, lambda status, body: answer.set_result((status, body)))
            status, body = await answer
            samples[number] = time.perf_counter() - due_s
            free.append(connection)
            if status != wanted:
                raise WrongResultError(f"a request was answered with {status}: {body[:300].decode(errors='replace')}")
            answers[number] = body

        tasks.add(asyncio.create_task(ask(number, request, due_s)))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return samples, answers


def batch_written(server: Server, run: str, count: int) -> Speed:
    """So many lines in one request, from its first byte sent to the last outcome told."""
    sent = [_transaction(run, number).to_json() for number in range(count)]
    body = b"".join(orjson.dumps(transaction, option=orjson.OPT_APPEND_NEWLINE) for transaction in sent)
    with socket.create_connection((server.host, server.port), SOCKET_TIMEOUT_S) as connection:
        begun = Seen(time.perf_counter(), cpu_s(server.pid), 0)
        request = post("/v1/transactions:batch", server.host, body)
        sending = threading.Thread(target=connection.sendall, args=(request,), daemon=True)
        sending.start()
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        outcomes = [orjson.loads(line) for line in answer.read().splitlines()]
        ended = Seen(time.perf_counter(), cpu_s(server.pid), count)
        sending.join()
    if [outcome["id"] for outcome in outcomes] != [transaction["id"] for transaction in sent]:
        raise WrongResultError(f"{len(outcomes):,} outcomes were told for {count:,} lines, or in another order")
    if wrong := [outcome for outcome in outcomes if outcome["outcome"] != "committed"]:
        raise WrongResultError(f"{len(wrong):,} lines were not committed; the first: {wrong[0]}")
    return speed(begun, ended)


def _transaction(run: str, number: int, group: str | None = None) -> Transaction:
    """One change; the groups of each run are fresh ones, so that their versions begin at 1, unless one is named."""
    tx = Transaction(group or f"{run}-{number % 16:02}", author="bench", type="ItemMoved")
    return put_item(tx, number, f"item-{number % 1_000:06}")


def _of(latencies: list[Latency], share: str) -> Series:
    return Series.of(getattr(latency, f"{share}_ms") for latency in latencies)


def _latency(latency: Latency) -> str:
    return f"p50 {latency.p50_ms:.1f} p99 {latency.p99_ms:.1f} ms"
