"""Every path with what it takes and answers."""

from __future__ import annotations

from typing import Any

from versolog.projections.http import answer, shapes
from versolog.projections.http.described import READS, SECONDS, TAG, WRITES, Described, header
from versolog.projections.http.direct import ROW, ROWS, TRANSACTIONS
from versolog.projections.http.health import Health
from versolog.projections.http.registry import CONTENT as REGISTRY_JSON
from versolog.projections.http.registry import Registry
from versolog.projections.http.request import AtQuery
from versolog.projections.http.rows import Rows, RowWriteQuery, ScanQuery
from versolog.projections.http.transactions import OutcomeQuery, WriteQuery, Writes

WRITTEN: dict[int, Any] = {201: shapes.Outcome, 202: shapes.Undecided}
JSON_OBJECT = {"type": "object"}
ROW_PATH = ROW.replace("{key}", "{key:path}")


def describe(described: Described, *, rows: Rows, writes: Writes, registry: Registry, health: Health) -> None:
    """Add all routes."""
    _transactions(described, writes)
    _rows(described, rows)
    _registry(described, registry)
    _worker(described, health)


def _transactions(add: Described, writes: Writes) -> None:
    add(
        "POST", TRANSACTIONS, writes.one, tag="transactions", summary="Send a transaction and wait for its outcome",
        description="`If-Match` is the version that the branch's head must have, as `expect_head` in the body.",
        query=WriteQuery, headers=(*WRITES, header("If-Match", "The head's version.", TAG)),
        body=shapes.Transaction, answers=WRITTEN,
    )  # fmt: skip
    add(
        "POST", TRANSACTIONS + ":batch", writes.batch, tag="transactions",
        summary="Send many transactions, one a line, and get an outcome a line",
        description="The lines are independent of each other. Their outcomes come in the same order, while lines are "
        "still being sent. A line that can't be read is refused in its place. Lines that touch a common group are "
        "decided in order.",
        query=WriteQuery, headers=(header("Versolog-Wait", "As `wait`, for each line.", SECONDS),),
        body={"type": "string"}, media=answer.NDJSON, answers={200: answer.NDJSON},
    )  # fmt: skip
    add(
        "GET", TRANSACTIONS + "/{id}", writes.outcome, tag="transactions", summary="The outcome of a transaction",
        description="404 while it isn't decided.",
        query=OutcomeQuery, headers=READS, answers={200: shapes.Outcome},
    )  # fmt: skip


def _rows(add: Described, rows: Rows) -> None:
    add(
        "GET", ROW_PATH, rows.get, tag="rows", summary="A row at a version",
        description="`ETag` is the version that last changed the row.",
        query=AtQuery, headers=(*READS, header("If-None-Match", "Answers 304 where the row is still that version.")),
        answers={200: shapes.Row, 304: None},
    )  # fmt: skip
    add("GET", ROWS, rows.scan, tag="rows", summary="A table's rows in key order", query=ScanQuery, headers=READS,
        answers={200: shapes.Rows})  # fmt: skip
    conditions = (
        *WRITES,
        header("If-Match", "The version that last changed the row.", TAG),
        header("If-None-Match", "`*`: the row must be absent.", {"type": "string", "enum": ["*"]}),
    )
    for method, handler, summary in (
        ("PUT", rows.put, "Write a row whole"),
        ("PATCH", rows.patch, "Change a row by an RFC 7396 merge patch"),
    ):
        add(method, ROW_PATH, handler, tag="rows", summary=summary, query=RowWriteQuery, headers=conditions,
            body=JSON_OBJECT, answers=WRITTEN)  # fmt: skip
    add("DELETE", ROW_PATH, rows.delete, tag="rows", summary="Delete a row", query=RowWriteQuery, headers=conditions,
        answers=WRITTEN)  # fmt: skip


def _registry(add: Described, registry: Registry) -> None:
    start = "/registry"
    for path, handler, summary in (
        ("/schemas/ids/{id}", registry.schema, "A schema by its id"),
        ("/subjects", registry.subjects, "All subjects"),
        ("/subjects/{subject}/versions", registry.versions, "The versions of a subject"),
        ("/subjects/{subject}/versions/{version}", registry.version, "A version of a subject, or `latest`"),
    ):
        add("GET", start + path, handler, tag="registry", summary=summary, answers={200: REGISTRY_JSON})
    add("POST", start + "/subjects/{subject}", registry.lookup, tag="registry", summary="Whether a schema is registered",
        body=JSON_OBJECT, answers={200: REGISTRY_JSON})  # fmt: skip


def _worker(add: Described, health: Health) -> None:
    add("GET", "/livez", health.live, tag="worker", summary="Whether it lives", answers={200: shapes.Live})
    add("GET", "/readyz", health.ready, tag="worker", summary="Whether it's ready, and how its partitions stand",
        answers={200: shapes.Ready, 503: shapes.Ready})  # fmt: skip
    add("GET", "/metrics", health.measured, tag="worker", summary="What it measures, for Prometheus",
        answers={200: "text/plain"})  # fmt: skip
