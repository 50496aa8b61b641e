"""Reads over HTTP: rows at head and in the past, and a scan, beside a server that answers constant bytes."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, urlencode

import orjson

from benchmarks.bare import Headers, Server, bare_server
from benchmarks.bench import Bench, Worker, apart
from benchmarks.load import Load, load
from benchmarks.machine import cpu_s
from benchmarks.measured import Result, Seen, Series, Side, Speed, WrongResultError, compared, speed, told
from benchmarks.postgres import EVENTS_READS, READS, Postgres
from benchmarks.workloads import Expected, Workload

LOAD_S = 3.0
SCAN_S = 2.0
ROWS_ASKED = 4_000
ROWS_CHECKED = 200
SCAN_ROWS = 10_000
TARGET_PER_S = 5_000.0
SCAN_TARGET_PER_S = 150_000.0
OLD_TO_HEAD = 1 / 1.2
OFTEN_WRITTEN = 200
"""Groups with fewer versions have no past worth reading."""

CONSTANT = "uvicorn alone: constant bytes of the same length"
SCAN = f"/v1/groups/stock/tables/items/rows?limit={SCAN_ROWS}"


class Asked(NamedTuple):
    """A read and what it must answer."""

    path: str
    expected: Expected


def measure(bench: Bench, worker: Worker, workload: Workload, beside: Postgres | None) -> Iterator[Result]:
    """Of a worker that holds `workload`, with the stock."""
    head, past = reads_of(workload, past=False), reads_of(workload, past=True)
    for asked in (*head[:ROWS_CHECKED], *past[:ROWS_CHECKED]):
        _check_row(worker, asked)
    yield from _point_reads(bench, worker, head, past, beside)
    yield _scan(bench, worker)


def _point_reads(
    bench: Bench, worker: Worker, head: Sequence[Asked], past: Sequence[Asked], beside: Postgres | None
) -> Iterator[Result]:
    newest: list[Load] = []
    old: list[Load] = []
    bare: list[Load] = []
    others: dict[str, list[float]] = {}
    with bare_server(*answer_of(worker, head[0].path)) as constant:
        for _ in bench.rounds("HTTP point reads"):
            newest.append(load(worker.server, [asked.path for asked in head], LOAD_S))
            old.append(load(worker.server, [asked.path for asked in past], LOAD_S))
            bare.append(load(constant, ["/"], LOAD_S))
            bench.say(f"  at head {told(newest[-1].speed)}, in the past {told(old[-1].speed)}, "
                      f"constant bytes {told(bare[-1].speed)}")  # fmt: skip
            if beside is not None:
                others.setdefault(READS, []).append(beside.per_s("reads"))
                others.setdefault(EVENTS_READS, []).append(beside.per_s("reads", "eventsourcing_clients"))
    if bench.profiles:
        with bench.profiled(worker.pid, "reads"):
            load(worker.server, [asked.path for asked in head], 2 * LOAD_S)
    checked = f"16 connections, every answer a 200; {ROWS_CHECKED} of {ROWS_ASKED:,} rows compared with what was sent"
    constants = {CONSTANT: [each.speed for each in bare]}
    at_head = {"the same at head": [each.speed for each in newest]}
    for name, loads, sides in (
        ("HTTP point reads at head", newest, constants),
        ("HTTP point reads at an old version", old, constants | at_head),
    ):
        speeds = [each.speed for each in loads]
        result = compared(name, speeds, checked, sides, TARGET_PER_S, dict.fromkeys(at_head, OLD_TO_HEAD))
        yield result if loads is newest else result.beside(others)
        for share in ("p50", "p99"):
            ours, floor = (Series.of(getattr(each.latency, f"{share}_ms") for each in side) for side in (loads, bare))
            yield Result(f"{name}: {share}", "ms", ours, checked, (Side(CONSTANT, floor),), better="less")


def _scan(bench: Bench, worker: Worker) -> Result:
    body, headers = answer_of(worker, SCAN)
    found = [row["key"] for row in orjson.loads(body)["rows"]]
    if found != [f"item-{number:06}" for number in range(SCAN_ROWS)]:
        raise WrongResultError(f"the scan found {len(found):,} rows that are not those {SCAN_ROWS:,} that are there")
    ours: list[Speed] = []
    bare: list[Speed] = []
    with bare_server(body, headers) as constant:
        for _ in bench.rounds(f"HTTP scan of {SCAN_ROWS:,} rows"):
            ours.append(apart(rows_scanned, worker.server, SCAN_S))
            bare.append(apart(rows_scanned, constant, SCAN_S))
            bench.say(f"  {told(ours[-1])}, constant bytes {told(bare[-1])}")
    if bench.profiles:
        with bench.profiled(worker.pid, "scan"):
            apart(rows_scanned, worker.server, 2 * SCAN_S)
    checked = "one connection, one answer after the other; every key there and in order"
    return compared(f"HTTP scan of {SCAN_ROWS:,} rows: rows", ours, checked, {CONSTANT: bare}, SCAN_TARGET_PER_S)


def rows_scanned(server: Server, seconds: float) -> Speed:
    """Rows read from the server, one scan after the other."""
    connection = http.client.HTTPConnection(server.host, server.port)
    sizes: set[int] = set()
    begun, count = Seen(time.perf_counter(), cpu_s(server.pid), 0), 0
    while time.perf_counter() - begun.at_s < seconds:
        connection.request("GET", SCAN)
        answer = connection.getresponse()
        sizes.add(len(answer.read()))
        count += 1
        if answer.status != http.client.OK:
            raise WrongResultError(f"GET {SCAN} was answered with {answer.status}")
    connection.close()
    if len(sizes) != 1:
        raise WrongResultError(f"GET {SCAN} was answered with bodies of {sorted(sizes)} bytes")
    return speed(begun, Seen(time.perf_counter(), cpu_s(server.pid), count * SCAN_ROWS))


def answer_of(worker: Worker, path: str) -> tuple[bytes, Headers]:
    """The body and the headers that the worker answers with, but for those that its server sets."""
    connection = http.client.HTTPConnection(worker.server.host, worker.server.port)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    headers = [(name.lower(), value) for name, value in answer.getheaders() if name.lower() not in ("date", "server")]
    return body, [(name.encode(), value.encode()) for name, value in headers]


def reads_of(workload: Workload, *, past: bool) -> list[Asked]:
    """Rows drawn from groups with some history, as they are now or were at half of it."""
    drawn = random.Random(2013)
    found: list[Asked] = []
    for group, transactions in workload.by_group.items():
        if group == "stock" or len(transactions) < OFTEN_WRITTEN:
            continue
        version = len(transactions) // 2 if past else len(transactions)
        query = f"?{urlencode({'at': version})}" if past else ""
        for (table, key), expected in workload.rows_at(group, version).items():
            path = f"/v1/groups/{quote(group, safe='')}/tables/{table}/rows/{quote(key, safe='')}{query}"
            found.append(Asked(path, expected))
    drawn.shuffle(found)
    return found[:ROWS_ASKED]


def _check_row(worker: Worker, asked: Asked) -> None:
    told = orjson.loads(worker.get(asked.path))
    if (told["version"], told["row"]) != asked.expected:
        raise WrongResultError(f"GET {asked.path} told {told}; expected {asked.expected}")
