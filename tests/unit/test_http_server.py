"""The worker's HTTP server: its port, its start and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from versolog.schemas.errors import Misconfigured
from versolog.streams.runtime import ASGIApp, HttpServer


def application(*, starts: bool = True, answers_after: asyncio.Event | None = None) -> ASGIApp:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete" if starts else "lifespan.startup.failed", "message": "no"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        if answers_after is not None:
            await answers_after.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    return serve


@contextlib.asynccontextmanager
async def served(server: HttpServer) -> AsyncIterator[asyncio.Task[None]]:
    serving = asyncio.create_task(server.serve())
    try:
        yield serving
    finally:
        server.stop()
        async with asyncio.timeout(5):
            await serving


def test_the_port_is_known_and_taken_before_anything_is_served() -> None:
    async def main() -> None:
        server = HttpServer(application(), "127.0.0.1", 0)
        with pytest.raises(Misconfigured, match=f"127.0.0.1:{server.port}.*in use"):
            HttpServer(application(), "127.0.0.1", server.port)
        async with served(server), httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "hello"
        again = HttpServer(application(), "127.0.0.1", server.port)
        async with served(again):
            pass

    asyncio.run(main())


def test_an_application_that_fails_to_start_is_an_error_and_not_an_exit() -> None:
    async def main() -> None:
        with pytest.raises(Misconfigured, match="did not start"):
            await HttpServer(application(starts=False), "127.0.0.1", 0).serve()

    asyncio.run(main())


def test_a_request_under_way_is_answered_before_the_server_ends() -> None:
    async def main() -> None:
        answer = asyncio.Event()
        server = HttpServer(application(answers_after=answer), "127.0.0.1", 0)
        async with httpx.AsyncClient() as client, served(server) as serving:
            asked = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/"))
            async with asyncio.timeout(5):
                while not server.requests_under_way:  # noqa: ASYNC110, uvicorn counts without telling
                    await asyncio.sleep(0.01)
            server.stop()
            answer.set()
            assert (await asked).text == "hello"
            await serving

    asyncio.run(main())
