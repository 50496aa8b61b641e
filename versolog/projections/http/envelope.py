"""Around every request: the path as it was sent, one kind of error, one line of log, one measurement."""

from __future__ import annotations

import time
import uuid
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from versolog.projections.http import answer
from versolog.projections.metrics import HttpMetrics
from versolog.schemas.errors import Malformed, NotFound, VersologError

log = structlog.get_logger("versolog.http")

CLIENT_GONE = 499
"""The status of what nobody hears any more, for logs and metrics; nginx has made it known."""
SAID_BYTES_MAX = 500
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
ROUTE = "versolog.route"
"""Where in the scope a handler's path stands, for the metrics; FastAPI says it as `route`."""


class Envelope:
    """Answers every request, whatever happens inside, and says in log and metrics how it went.

    Inside of it `scope["path"]` is the path as it was sent, still percent-encoded, so that `%2F` in a key does not part
    the path; handlers decode each segment once. HEAD is GET whose body stays here.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        told = _Told(send, silent=scope["method"] == "HEAD")
        inner = dict(scope)
        if told.silent:
            inner["method"] = "GET"
        failure: Exception | None = None
        try:
            inner["path"] = _raw_path(scope)
            _refuse_other_sites(scope)
            await self._app(inner, receive, told)
        except ClientDisconnect:
            told.status = told.status or CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets an answer and the log the reason
            failure = error
            if told.status == 0:
                await answer_for(error)(inner, receive, told)
        took_s = time.perf_counter() - started
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.answered(_route_of(inner), method, told.status, took_s)
        _write_log(scope, told, took_s, failure)


class _Told:
    """The way out, watched: the status and the size of what was said."""

    __slots__ = ("_send", "body_bytes", "said", "silent", "status")

    def __init__(self, send: Send, *, silent: bool) -> None:
        self._send = send
        self.silent = silent
        self.status = 0
        self.body_bytes = 0
        self.said = b""
        """Of an answer that says what went wrong here or elsewhere, the beginning."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.body_bytes += len(message.get("body", b""))
            if self.status >= 500 and not self.said:
                self.said = message.get("body", b"")[:SAID_BYTES_MAX]
            if self.silent:
                message = {**message, "body": b""}
        await self._send(message)


def answer_for(error: Exception) -> Response:
    """The problem document that `error` is to the caller."""
    if isinstance(error, VersologError):
        return answer.problem(error)
    if isinstance(error, HTTPException):
        return _routing_problem(error)
    incident = uuid.uuid4().hex
    error.add_note(f"incident {incident}")
    hidden = VersologError(
        "something went wrong here; the log has the reason under this incident", code="internal", incident=incident
    )
    return answer.problem(hidden)


def _routing_problem(error: HTTPException) -> Response:
    if error.status_code == 404:
        return answer.problem(NotFound("there is nothing at this path; /docs lists what there is", code="unknown-path"))
    allowed = (error.headers or {}).get("Allow", "")
    wrong = VersologError(
        f"this path takes {allowed or 'other methods'}", code=_code_of(error.status_code), status=error.status_code
    )
    return answer.problem(wrong, headers=error.headers)


def _code_of(status: int) -> str:
    return {405: "method-not-allowed", 400: "malformed"}.get(status, "error")


def _raw_path(scope: Scope) -> str:
    try:
        path: str = scope["raw_path"].decode("ascii")
    except UnicodeDecodeError as error:
        raise Malformed("the path has bytes that are not ASCII; percent-encode them as UTF-8") from error
    return path


def _refuse_other_sites(scope: Scope) -> None:
    """A page from elsewhere in the user's browser must not write here: some requests go out without asking first."""
    if scope["method"] in ("GET", "HEAD"):
        return
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"//")[2] != headers.get(b"host"):
        raise VersologError("pages of other sites can't write here", code="foreign-origin", status=403)


def _route_of(scope: Scope) -> str:
    route = scope.get(ROUTE) or getattr(scope.get("route"), "path_format", None)
    return route or "unmatched"


def _write_log(scope: Scope, told: _Told, took_s: float, failure: Exception | None) -> None:
    if told.status < 400 and failure is None:
        write = log.debug
    elif told.status < 500 and (failure is None or isinstance(failure, VersologError)):
        write = log.info
    else:
        write = log.error if told.status != 503 else log.warning
    about: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"],
        "status": told.status,
        "took_ms": round(took_s * 1000, 2),
        "body_bytes": told.body_bytes,
        "client": scope["client"][0] if scope.get("client") else None,
    }
    if failure is not None and not isinstance(failure, VersologError):
        write("request failed", **about, exc_info=failure)
    elif told.status >= 500:
        write("request", **about, said=told.said.decode(errors="replace"))
    else:
        write("request", **about)
