"""The least that an HTTP server in this process model can do: one answer, always the same, by the server that versolog
is served by."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from versolog.streams.runtime import HttpServer, run_worker

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0

Headers = list[tuple[bytes, bytes]]


class Server(NamedTuple):
    """Who answers, and where."""

    pid: int
    host: str
    port: int


@contextmanager
def bare_server(body: bytes, headers: Headers) -> Iterator[Server]:
    """A process that answers everything with `body` and `headers`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(body, headers, there), daemon=True)
    process.start()
    try:
        if not here.poll(START_TIMEOUT_S):
            raise TimeoutError("the bare server did not start")
        assert process.pid is not None
        yield Server(process.pid, HOST, here.recv())
    finally:
        process.terminate()
        process.join(STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()


def _serve(body: bytes, headers: Headers, told: Connection) -> None:
    run_worker(_answer_always(body, headers, told))


async def _answer_always(body: bytes, headers: Headers, told: Connection) -> None:
    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    server = HttpServer(app, HOST, 0)
    told.send(server.port)
    await server.serve()
