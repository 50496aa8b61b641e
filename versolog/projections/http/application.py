"""The HTTP application: every path, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp

from versolog.projections.http import answer, reference
from versolog.projections.http.described import Described
from versolog.projections.http.direct import Direct
from versolog.projections.http.envelope import CLIENT_GONE, Envelope, answer_for
from versolog.projections.http.groups import Groups
from versolog.projections.http.health import Health
from versolog.projections.http.differences import Comparisons
from versolog.projections.http.history import History
from versolog.projections.http.moments import Moments
from versolog.projections.http.operations import Operations
from versolog.projections.http.proofs import Proofs, Source
from versolog.projections.http.refs import Refs
from versolog.projections.http.registry import Registered, Registry
from versolog.projections.http.rehearsals import Rehearsals
from versolog.projections.http.relay import Relay
from versolog.projections.http.routes import Handlers, describe
from versolog.projections.http.rows import Rows
from versolog.projections.http.transactions import Writes
from versolog.projections.metrics import HttpMetrics, PartitionMetrics
from versolog.projections.node import Elsewhere, Node
from versolog.schemas.errors import VersologError

DESCRIPTION = """
An event-sourced, versioned, transactional table store on Apache Kafka.

Every write is a transaction on one or more groups and ends as an outcome: committed with a version, or refused with a
reason. Every read takes `at` and answers with the exact version that it read, as `Versolog-Version`. Every error is an
RFC 9457 problem document whose `code` is for programs.
"""
TAGS = {
    "transactions": "Writing: one transaction, many, or the outcome of one that was sent before.",
    "rows": "Reading rows at any version, and writing one by itself.",
    "history": "What happened: to a row, to a group, between two versions.",
    "moments": "Many groups at one moment, and store-wide tags that name moments.",
    "groups": "What there is, its schemas and merge functions, branches and tags.",
    "operations": "Merging, undoing and doing again: commits on a branch as a whole, with dry runs.",
    "proofs": "The hash chain computed again from the log, and digests of all that is held.",
    "registry": "Confluent's Schema Registry API, its read side, for tools that read the topics.",
    "worker": "This process.",
}


def app(
    node: Node, *, metrics: CollectorRegistry, registry: Registered | None = None, source: Source | None = None
) -> ASGIApp:
    """The application that serves `node`. What it measures goes into `metrics`, which /metrics shows.

    `registry` is what /registry shows, where the schemas are not kept elsewhere; `source` is the log to verify against.
    """
    http_metrics = HttpMetrics(metrics)
    http_metrics.watch(lambda: node.under_way)
    metrics.register(PartitionMetrics(node.states))
    relay = Relay(node)
    writes = Writes(node, relay, http_metrics)
    rows = Rows(node, writes)
    moments = Moments(node, writes, relay)
    described = Described()
    describe(
        described,
        Handlers(
            writes=writes,
            rows=rows,
            history=History(node),
            comparisons=Comparisons(node),
            groups=Groups(node, writes, relay),
            refs=Refs(node, writes),
            moments=moments,
            operations=Operations(node, writes, Rehearsals(node)),
            proofs=Proofs(node, relay, moments, source),
            registry=None if registry is None else Registry(registry),
            health=Health(node, metrics),
        ),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await relay.close()

    documented = _fastapi(described, relay, lifespan)
    direct = Direct(
        documented,
        relay,
        row={"GET": rows.get, "PUT": rows.put, "PATCH": rows.patch, "DELETE": rows.delete},
        rows={"GET": rows.scan},
        transactions={"POST": writes.one},
    )
    return Envelope(direct, http_metrics)


def _fastapi(described: Described, relay: Relay, lifespan: Any) -> FastAPI:
    api = FastAPI(
        title="versolog",
        version=version("versolog"),
        description=DESCRIPTION,
        openapi_tags=[{"name": name, "description": words} for name, words in TAGS.items()],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )

    async def problem(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            error = HTTPException(405, headers={"Allow": ", ".join(_methods_at(described.router.routes, request))})
        return answer_for(error)

    async def pass_on(request: Request, elsewhere: Exception) -> Response:
        assert isinstance(elsewhere, Elsewhere)
        return await relay.pass_on(request, elsewhere)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    api.add_exception_handler(ClientDisconnect, gone)
    for kind in (VersologError, HTTPException, Exception):
        api.add_exception_handler(kind, problem)
    api.add_exception_handler(Elsewhere, pass_on)
    api.include_router(described.router)
    _serve_reference(api, described)
    return api


def _serve_reference(api: FastAPI, described: Described) -> None:
    @cache
    def document() -> dict[str, Any]:
        return described.complete(api.openapi())

    async def openapi(request: Request) -> Response:
        return answer.document(document())

    async def docs(request: Request) -> Response:
        policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(reference.page(document()), headers=policy)

    api.add_route("/openapi.json", openapi, methods=["GET"])
    api.add_route("/docs", docs, methods=["GET"])


def _methods_at(routes: Iterable[BaseRoute], request: Request) -> list[str]:
    """The methods that the path of `request` takes."""
    found: set[str] = set()
    for route in routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)
