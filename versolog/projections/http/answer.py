"""What goes back: rows spliced from the bytes they are stored as, outcomes, and every error as one kind of document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
import structlog
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from versolog.schemas.errors import VersologError
from versolog.schemas.times import millis_to_text
from versolog.streams.runtime import ABORT
from versolog.streams.state import Row
from versolog.streams.versions import At

JSON = "application/json"
PROBLEM = "application/problem+json"
NDJSON = "application/x-ndjson"
RETRY_AFTER_S = 1
TAKEN_WITHIN_S = 30.0

VERSION = "versolog-version"
TOKEN = "versolog-token"
FOR_EVER = "public, max-age=31536000, immutable"
"""An answer at an exact version is the same bytes for ever."""
ASK_AGAIN = "no-cache"

log = structlog.get_logger("versolog.http")


class RowText:
    """Writes the rows of one table: `{"group", "table", "key", "version", "committed_at", "row"}`.

    A row's own text is put in as it is stored: it is JSON already, and reading it only to write it again is what a scan
    would spend most of its time on.
    """

    def __init__(self, group: str, table: str) -> None:
        self._start = b'{"group":%b,"table":%b,"key":' % (orjson.dumps(group), orjson.dumps(table))

    def __call__(self, key: str, row: Row) -> bytes:
        return b'%b%b,"version":%d,"committed_at":"%b","row":%b}' % (
            self._start,
            orjson.dumps(key),
            row.version,
            millis_to_text(row.committed_at).encode(),
            row.text or b"null",
        )


def row_text(row: Row) -> orjson.Fragment | None:
    """The row's JSON as it's stored, to stand in a document; None where it was deleted."""
    return None if row.text is None else orjson.Fragment(row.text)


class Talk(StreamingResponse):
    """An answer that goes out while the request's body is still coming in.

    Starlette's own would read the body away meanwhile, to see whether the client is still there. A client that takes
    nothing for TAKEN_WITHIN_S is cut off: one that first sends all, and is sent answers until both are full, would wait for ever.
    """

    def __init__(self, told: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(told, media_type=media_type)
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_if_taken(message: Message) -> None:
            try:
                async with asyncio.timeout(TAKEN_WITHIN_S):
                    await send(message)
            except TimeoutError:
                raise _NotTaken from None

        try:
            await self.stream_response(send_if_taken)
        except _NotTaken:
            log.warning("answer-not-taken", path=scope["path"], within_s=TAKEN_WITHIN_S)
            if (ending := scope.get("extensions", {}).get(ABORT)) is not None:
                ending["abort"]()
                await asyncio.sleep(0)  # in which the server hears of it
        finally:
            await self._told.aclose()


class _NotTaken(Exception):
    """The client has not read what it was sent."""


def place(at: At, committed_at: int) -> dict[str, Any]:
    """The exact place that an answer was read at."""
    return {"group": at.group, "branch": at.branch, "version": at.version, "committed_at": millis_to_text(committed_at)}


def text(value: Any) -> bytes:
    """`value` as JSON."""
    return orjson.dumps(value)


def document(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer of `value`, or of the JSON text that it is already."""
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    return Response(body, status, headers, JSON)


def problem(error: VersologError, *, headers: Mapping[str, str] | None = None) -> Response:
    """`error` as RFC 9457 has it."""
    return problem_document(error.problem(), headers=headers, retriable=error.retriable)


def problem_document(
    body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None, retriable: bool = False
) -> Response:
    """The answer whose body is the problem object `body`."""
    status: int = body["status"]
    sent = {"cache-control": "no-store", **(headers or {})}
    if retriable or status in (429, 503):
        sent.setdefault("retry-after", str(RETRY_AFTER_S))
    return Response(orjson.dumps(body), status, sent, PROBLEM)
