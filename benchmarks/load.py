"""Asking a server as fast as it answers: with wrk where that is installed, else with processes of raw sockets."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, cast

import orjson

from benchmarks.bare import Server
from benchmarks.machine import cpu_s
from benchmarks.measured import Latency, Speed, WrongResultError

CONNECTIONS = 16
PROCESSES = 2
IDLE_MAX_S = 20.0
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "

Answered = Callable[[int, bytes], None]
"""Told the status and the body."""


class Answers(NamedTuple):
    """What came back."""

    answered: int
    seconds: float
    latency: Latency


class Load(NamedTuple):
    """What a server did under load."""

    speed: Speed
    latency: Latency


def load(server: Server, paths: Sequence[str], seconds: float) -> Load:
    """GET `paths` over and over on 16 connections that are kept. Raises WrongResultError where not all are 2xx."""
    ask = built_in if shutil.which("wrk") is None else _wrk
    cpu_before_s = cpu_s(server.pid)
    answers = ask(server.host, server.port, paths, seconds)
    cpu_us = (cpu_s(server.pid) - cpu_before_s) / answers.answered * 1e6
    return Load(Speed(answers.answered / answers.seconds, cpu_us), answers.latency)


def _wrk(host: str, port: int, paths: Sequence[str], seconds: float) -> Answers:
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as listed:
        listed.write("\n".join(paths))
        listed.flush()
        script = Path(__file__).with_name("wrk.lua")
        command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{round(seconds)}s",
                   "--script", str(script), f"http://{host}:{port}", "--", listed.name]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = orjson.loads(told.splitlines()[-1])
    if found["failed"] or not found["answers"]:
        raise WrongResultError(f"{found['failed']:,} of {found['answers']:,} requests failed")
    return Answers(found["answers"], found["seconds"], Latency(found["p50_ms"], found["p99_ms"]))


def built_in(host: str, port: int, paths: Sequence[str], seconds: float) -> Answers:
    """GET `paths` without wrk."""
    share, context = CONNECTIONS // PROCESSES, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        asked = [pool.submit(_ask_apart, host, port, paths, seconds, share) for _ in range(PROCESSES)]
        samples = [sample for each in asked for sample in each.result()]
    if not samples:
        raise WrongResultError("nothing was answered")
    return Answers(len(samples), seconds, Latency.of(samples))


def get(path: str, host: str) -> bytes:
    """A request whose connection stays open."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def post(path: str, host: str, body: bytes) -> bytes:
    """As `get`, with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One connection that is kept, with one request under way at most. Answers must say their length."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._answered: Answered | None = None
        self._is_open = False
        self._used_s = time.monotonic()

    @classmethod
    async def to(cls, host: str, port: int) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    @property
    def is_usable(self) -> bool:
        """Whether it is open and will be for a while: a server closes what is idle for long, maybe just now."""
        return self._is_open and time.monotonic() - self._used_s < IDLE_MAX_S

    def ask(self, request: bytes, answered: Answered) -> None:
        """Send the request; `answered` is called with what comes back."""
        assert self._answered is None, "one request at a time"
        self._answered = answered
        self._used_s = time.monotonic()
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        self._held += data
        answer = whole_answer(self._held)
        if answer is not None and (answered := self._answered) is not None:
            self._held.clear()
            self._answered = None
            answered(*answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._is_open = False
        if (answered := self._answered) is not None:
            self._answered = None
            answered(0, b"the connection was lost")


def whole_answer(held: bytes | bytearray) -> tuple[int, bytes] | None:
    """Status and body of the answer in `held`; None while some of it is missing."""
    end = held.find(HEAD_END)
    if end < 0:
        return None
    head = bytes(held[:end]).lower()
    at = head.find(LENGTH)
    if at < 0:
        raise WrongResultError(f"the answer does not say its length: {head.decode(errors='replace')}")
    length = int(head[at + len(LENGTH) :].partition(b"\r\n")[0])
    body = bytes(held[end + len(HEAD_END) :])
    return (int(head[9:12]), body) if len(body) >= length else None


def _ask_apart(host: str, port: int, paths: Sequence[str], seconds: float, connections: int) -> list[float]:
    import uvloop

    requests = cycle([get(path, host) for path in paths])
    return uvloop.run(_ask_for(host, port, lambda: next(requests), seconds, connections))


async def _ask_for(
    host: str, port: int, following: Callable[[], bytes], seconds: float, connections: int
) -> list[float]:
    """Seconds that each answer took."""
    samples: list[float] = []
    wrong: list[str] = []
    end = time.perf_counter() + seconds

    def ask(connection: Connection) -> None:
        begun = time.perf_counter()

        def answered(status: int, body: bytes) -> None:
            now = time.perf_counter()
            samples.append(now - begun)
            if not 200 <= status < 300:
                wrong.append(f"status {status}: {body[:300].decode(errors='replace')}")
            elif now < end:
                ask(connection)

        connection.ask(following(), answered)

    opened = [await Connection.to(host, port) for _ in range(connections)]
    for connection in opened:
        ask(connection)
    await asyncio.sleep(seconds)
    for connection in opened:
        connection.close()
    if wrong:
        raise WrongResultError(f"{len(wrong)} requests failed; the first with {wrong[0]}")
    return samples
