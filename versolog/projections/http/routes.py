"""Every path with what it takes and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from versolog.projections.http import answer, shapes
from versolog.projections.http.described import READS, SECONDS, TAG, WAITS, WRITES, Described, Handler, Told, header
from versolog.projections.http.differences import ChangesQuery, Comparisons, DiffQuery
from versolog.projections.http.direct import ROW, ROWS, TRANSACTIONS
from versolog.projections.http.groups import GroupQuery, Groups, GroupsQuery, MergeFunctionsRequest, SettingQuery
from versolog.projections.http.health import Health
from versolog.projections.http.history import History, HistoryQuery, KeyQuery, LogQuery
from versolog.projections.http.moments import READ, Moments, ReadRequest, StoreTagRequest
from versolog.projections.http.operations import CommitsRequest, MergeRequest, Operations, RollbackRequest
from versolog.projections.http.proofs import DigestQuery, Proofs
from versolog.projections.http.refs import (
    BranchQuery,
    BranchRequest,
    DeleteBranchQuery,
    OperationQuery,
    Refs,
    TagRequest,
)
from versolog.projections.http.registry import CONTENT as REGISTRY_JSON
from versolog.projections.http.registry import Registry
from versolog.projections.http.request import AtQuery, Query, WaitQuery
from versolog.projections.http.rows import Rows, RowWriteQuery, ScanQuery
from versolog.projections.http.transactions import WAITING, OutcomeQuery, WaitingQuery, WriteQuery, Writes

# fmt: off - one route a paragraph

WRITTEN: dict[int, Any] = {201: shapes.Outcome, 202: shapes.Undecided}
JSON_OBJECT = {"type": "object"}
NAMES = {"type": "array", "items": {"type": "string"}}
VERSIONS = {"type": "array", "items": {"type": "integer"}}
STORE_TAGS = "/v1/tags"
GROUP = "/v1/groups/{group}"
TABLE = GROUP + "/tables/{table}"
ROW_PATH = ROW.replace("{key}", "{key:path}")


@dataclass(frozen=True, slots=True)
class Handlers:
    """Who answers."""

    writes: Writes
    rows: Rows
    history: History
    comparisons: Comparisons
    groups: Groups
    refs: Refs
    moments: Moments
    operations: Operations
    proofs: Proofs
    registry: Registry | None
    health: Health


def describe(described: Described, handlers: Handlers) -> None:
    """Add all routes."""
    _transactions(described, handlers.writes)
    _rows(described, handlers.rows)
    _history(described, handlers.history)
    _comparisons(described, handlers.comparisons)
    _groups(described, handlers.groups)
    _schemas(described, handlers.groups)
    _checks(described, handlers.groups)
    _merge_functions(described, handlers.groups)
    _refs(described, handlers.refs)
    _moments(described, handlers.moments)
    _operations(described, handlers.operations)
    _proofs(described, handlers.proofs)
    if handlers.registry is not None:
        _registry(described, handlers.registry)
    _worker(described, handlers.health)


def _transactions(add: Described, writes: Writes) -> None:
    add(
        "POST",
        TRANSACTIONS,
        writes.one,
        tag="transactions",
        summary="Send a transaction and wait for its outcome",
        description="`If-Match` is the version that the branch's head must have, as `expect_head` in the body.",
        query=WriteQuery,
        headers=(*WRITES, header("If-Match", "The head's version.", TAG)),
        body=shapes.Transaction,
        answers=WRITTEN,
    )
    add(
        "POST",
        TRANSACTIONS + ":batch",
        writes.batch,
        tag="transactions",
        summary="Send many transactions, one a line, and get an outcome a line",
        description="The lines are independent of each other. Their outcomes come in the same order, while lines are "
        "still being sent. A line that can't be read is refused in its place. Lines that touch a common group are "
        "decided in order.",
        query=WriteQuery,
        headers=(header("Versolog-Wait", "As `wait`, for each line.", SECONDS),),
        body={"type": "string"},
        media=answer.NDJSON,
        answers={200: answer.NDJSON},
    )
    add(
        "GET",
        WAITING,
        writes.waiting,
        tag="transactions",
        summary="The transactions that wait: for votes, or for others that do",
        description="Of all partitions. What stands here is decided once those have voted whose votes are awaited, and "
        "never by a time-out. An owner that does not answer is passed over.",
        query=WaitingQuery,
        answers={200: shapes.WaitingTransactions},
    )
    add(
        "GET",
        TRANSACTIONS + "/{id}",
        writes.outcome,
        tag="transactions",
        summary="The outcome of a transaction",
        description="404 while it isn't decided. Without `group` all owners are asked, and `stale` and the token change "
        "nothing.",
        query=OutcomeQuery,
        headers=READS,
        answers={200: shapes.Outcome},
    )


def _rows(add: Described, rows: Rows) -> None:
    add(
        "GET",
        ROW_PATH,
        rows.get,
        tag="rows",
        summary="A row at a version",
        description="`ETag` is the version that last changed the row.",
        query=AtQuery,
        headers=(*READS, header("If-None-Match", "Answers 304 where the row is still that version.")),
        answers={200: shapes.Row, 304: None},
    )
    add(
        "GET",
        ROWS,
        rows.scan,
        tag="rows",
        summary="A table's rows in key order",
        query=ScanQuery,
        headers=READS,
        answers={200: shapes.Rows},
    )
    conditions = (
        *WRITES,
        header("If-Match", "The version that last changed the row.", TAG),
        header("If-None-Match", "`*`: the row must be absent.", {"type": "string", "enum": ["*"]}),
    )
    for method, handler, summary in (
        ("PUT", rows.put, "Write a row whole"),
        ("PATCH", rows.patch, "Change a row by an RFC 7396 merge patch"),
    ):
        add(
            method,
            ROW_PATH,
            handler,
            tag="rows",
            summary=summary,
            query=RowWriteQuery,
            headers=conditions,
            body=JSON_OBJECT,
            answers=WRITTEN,
        )
    add(
        "DELETE",
        ROW_PATH,
        rows.delete,
        tag="rows",
        summary="Delete a row",
        query=RowWriteQuery,
        headers=conditions,
        answers=WRITTEN,
    )


def _history(add: Described, history: History) -> None:
    add(
        "GET",
        TABLE + "/history",
        history.history,
        tag="history",
        summary="What happened to a row, newest first",
        query=HistoryQuery,
        headers=READS,
        answers={200: shapes.History},
    )
    add(
        "GET",
        TABLE + "/blame",
        history.blame,
        tag="history",
        summary="Who set each field of a row to what it is",
        query=KeyQuery,
        headers=READS,
        answers={200: shapes.Blame},
    )
    add(
        "GET",
        GROUP + "/log",
        history.log,
        tag="history",
        summary="The commits that led to a place, newest first",
        query=LogQuery,
        headers=READS,
        answers={200: shapes.Log},
    )


def _comparisons(add: Described, comparisons: Comparisons) -> None:
    add(
        "GET",
        GROUP + "/commits/{version}",
        comparisons.commit,
        tag="history",
        summary="A commit with all it changed",
        query=Query,
        headers=READS,
        answers={200: shapes.Commit},
    )
    add(
        "GET",
        GROUP + "/commits/{version}/changes",
        comparisons.changes,
        tag="history",
        summary="The rows and fields that a commit changed",
        description="Against its first parent; for a fast-forward, what stood on the branch before. `counts` speaks of "
        "all rows that it changed, and comes with the first page.",
        query=ChangesQuery,
        headers=READS,
        answers={200: shapes.CommitChanges},
    )
    add(
        "GET",
        GROUP + "/diff",
        comparisons.diff,
        tag="history",
        summary="The rows and fields that two places differ in",
        description="`counts` speaks of all rows that differ, and comes with the first page.",
        query=DiffQuery,
        headers=READS,
        answers={200: shapes.Diff},
    )


def _groups(add: Described, groups: Groups) -> None:
    add(
        "GET",
        "/v1/groups",
        groups.all,
        tag="groups",
        summary="The groups by name, with all that anybody was told of",
        query=GroupsQuery,
        headers=WAITS,
        answers={200: shapes.Groups},
    )
    add(
        "GET",
        GROUP,
        groups.one,
        tag="groups",
        summary="What a group holds",
        query=GroupQuery,
        headers=READS,
        answers={200: shapes.Group},
    )
    add(
        "DELETE",
        GROUP,
        groups.drop,
        tag="groups",
        summary="Drop a group; its log stays, and can be read by version",
        query=OperationQuery,
        headers=WRITES,
        answers=WRITTEN,
    )


def _schemas(add: Described, groups: Groups) -> None:
    path = TABLE + "/schema"
    add(
        "GET",
        path,
        groups.schema,
        tag="groups",
        summary="The Avro schema that the rows of a table must fit",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.TableSchema},
    )
    add(
        "PUT",
        path,
        groups.put_schema,
        tag="groups",
        summary="Set the Avro schema of a table's rows",
        description="A new version must be able to read every row that the one before allowed.",
        query=SettingQuery,
        headers=WRITES,
        body=JSON_OBJECT,
        answers=WRITTEN,
    )
    add(
        "DELETE",
        path,
        groups.delete_schema,
        tag="groups",
        summary="Take a table's schema away",
        query=SettingQuery,
        headers=WRITES,
        answers=WRITTEN,
    )


def _checks(add: Described, groups: Groups) -> None:
    path = TABLE + "/checks"
    add(
        "GET",
        path,
        groups.checks,
        tag="groups",
        summary="The checks that the rows of a table are held to",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.TableChecks},
    )
    add(
        "PUT",
        path,
        groups.put_checks,
        tag="groups",
        summary="Set the checks of a table's rows",
        description="They take the place of the former ones. The rows that stand are held to them first.",
        query=SettingQuery,
        headers=WRITES,
        body=JSON_OBJECT,
        answers=WRITTEN,
    )
    add(
        "DELETE",
        path,
        groups.delete_checks,
        tag="groups",
        summary="Take a table's checks away",
        query=SettingQuery,
        headers=WRITES,
        answers=WRITTEN,
    )


def _merge_functions(add: Described, groups: Groups) -> None:
    path = TABLE + "/merge"
    add(
        "GET",
        path,
        groups.merge_functions,
        tag="groups",
        summary="How a table's conflicts are settled before anyone is asked",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.MergeFunctions},
    )
    add(
        "PUT",
        path,
        groups.put_merge_functions,
        tag="groups",
        summary="Set a table's merge functions, all of them",
        query=SettingQuery,
        headers=WRITES,
        body=MergeFunctionsRequest,
        answers=WRITTEN,
    )
    add(
        "DELETE",
        path,
        groups.delete_merge_functions,
        tag="groups",
        summary="Take a table's merge functions away",
        query=SettingQuery,
        headers=WRITES,
        answers=WRITTEN,
    )


def _refs(add: Described, refs: Refs) -> None:
    add(
        "GET",
        GROUP + "/branches",
        refs.branches,
        tag="groups",
        summary="The branches, by name",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.Branches},
    )
    add(
        "POST",
        GROUP + "/branches",
        refs.create_branch,
        tag="groups",
        summary="Begin a branch at a version; nothing is copied",
        query=WriteQuery,
        headers=WRITES,
        body=BranchRequest,
        answers=WRITTEN,
    )
    branch = GROUP + "/branches/{name}"
    add(
        "GET",
        branch,
        refs.branch,
        tag="groups",
        summary="A branch, and how it stands to another",
        query=BranchQuery,
        headers=READS,
        answers={200: shapes.BranchApart},
    )
    add(
        "DELETE",
        branch,
        refs.delete_branch,
        tag="groups",
        summary="Delete a branch; its commits stay readable by version",
        query=DeleteBranchQuery,
        headers=WRITES,
        answers=WRITTEN,
    )
    add(
        "GET",
        GROUP + "/tags",
        refs.tags,
        tag="groups",
        summary="The tags, by name",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.Tags},
    )
    tag = GROUP + "/tags/{name}"
    add(
        "GET",
        tag,
        refs.tag,
        tag="groups",
        summary="The version that a tag names",
        query=AtQuery,
        headers=READS,
        answers={200: shapes.Tag},
    )
    add(
        "PUT",
        tag,
        refs.put_tag,
        tag="groups",
        summary="Name a version",
        query=WriteQuery,
        headers=WRITES,
        body=TagRequest,
        answers=WRITTEN,
    )
    add(
        "DELETE",
        tag,
        refs.delete_tag,
        tag="groups",
        summary="Take a name away",
        query=OperationQuery,
        headers=WRITES,
        answers=WRITTEN,
    )

def _moments(add: Described, moments: Moments) -> None:
    add(
        "POST",
        READ,
        moments.read,
        tag="moments",
        summary="Read rows of many groups at one moment",
        description="Every transaction is seen whole or not at all, and the answer names the moment: asked for there, it "
        "is the same for ever. Without `at` it is the newest, with all that was acknowledged, or could be read anywhere, "
        "before this read began.",
        query=WaitQuery,
        body=ReadRequest,
        answers={200: shapes.Moment},
    )
    add(
        "GET", STORE_TAGS, moments.tags, tag="moments", summary="The store-wide tags, by name", query=WaitQuery,
        answers={200: shapes.StoreTags},
    )  # fmt: skip
    tag = STORE_TAGS + "/{name}"
    add(
        "GET", tag, moments.tag, tag="moments", summary="The moment that a store-wide tag names", query=WaitQuery,
        answers={200: shapes.StoreTag},
    )  # fmt: skip
    add(
        "PUT",
        tag,
        moments.put_tag,
        tag="moments",
        summary="Name a moment of the whole store",
        description="Without `at` the moment has all that was acknowledged before, in every group.",
        query=WriteQuery,
        headers=WRITES,
        body=StoreTagRequest,
        answers=WRITTEN,
    )
    add(
        "DELETE", tag, moments.delete_tag, tag="moments", summary="Delete a store-wide tag", query=OperationQuery,
        headers=WRITES, answers=WRITTEN,
    )  # fmt: skip


def _operations(add: Described, operations: Operations) -> None:
    routes: tuple[tuple[str, Handler, str, type[BaseModel]], ...] = (
        ("/merges", operations.merge, "Merge a branch, tag or version into a branch", MergeRequest),
        ("/reverts", operations.revert, "Undo commits by a new one", CommitsRequest),
        ("/cherry-picks", operations.cherry_pick, "Do again on a branch what commits elsewhere did", CommitsRequest),
        (
            "/rollbacks",
            operations.rollback,
            "Make a branch, a table, a row or a key prefix equal a past version, by a new commit",
            RollbackRequest,
        ),
    )
    for path, handler, summary, body in routes:
        add(
            "POST",
            GROUP + path,
            handler,
            tag="operations",
            summary=summary,
            description="With `dry_run` nothing is written, and what would change is answered with 200, or the same "
            "conflicts with 409. With `cursor` the next page of either.",
            query=WriteQuery,
            headers=WRITES,
            body=body,
            answers={200: shapes.Rehearsal, **WRITTEN},
            problems={409: shapes.MergeProblem},
        )


def _proofs(add: Described, proofs: Proofs) -> None:
    add(
        "GET",
        GROUP + "/verify",
        proofs.verify_group,
        tag="proofs",
        query=Query,
        headers=READS,
        summary="Compute a group's hash chain from the log again and compare it with the store",
        answers={200: shapes.VerifiedGroup},
    )
    add(
        "GET",
        "/v1/verify",
        proofs.verify_all,
        tag="proofs",
        query=WaitQuery,
        summary="The same for all partitions that this worker owns",
        answers={200: shapes.Verified},
    )
    add(
        "GET",
        GROUP + "/digest",
        proofs.digest_group,
        tag="proofs",
        query=AtQuery,
        headers=READS,
        summary="A digest of all that a group holds, its history included",
        answers={200: shapes.GroupDigest},
    )
    add(
        "GET",
        "/v1/digest",
        proofs.digest_all,
        tag="proofs",
        query=DigestQuery,
        summary="A digest of the whole store",
        answers={200: shapes.StoreDigest},
    )


def _registry(add: Described, registry: Registry) -> None:
    start = "/registry"
    routes: tuple[tuple[str, Handler, str, Told], ...] = (
        ("/schemas/ids/{id}", registry.schema, "A schema by its id", shapes.RegisteredText),
        ("/subjects", registry.subjects, "All subjects", NAMES),
        ("/subjects/{subject}/versions", registry.versions, "The versions of a subject", VERSIONS),
        (
            "/subjects/{subject}/versions/{version}",
            registry.version,
            "A version of a subject, or `latest`",
            shapes.RegisteredVersion,
        ),
    )
    for path, handler, summary, told in routes:
        add("GET", start + path, handler, tag="registry", summary=summary, answers={200: told}, told_as=REGISTRY_JSON)
    add(
        "POST",
        start + "/subjects/{subject}",
        registry.lookup,
        tag="registry",
        summary="Whether a schema is registered",
        body=shapes.RegisteredText,
        answers={200: shapes.RegisteredVersion},
        told_as=REGISTRY_JSON,
    )


def _worker(add: Described, health: Health) -> None:
    add("GET", "/livez", health.live, tag="worker", summary="Whether it lives", answers={200: shapes.Live})
    add(
        "GET",
        "/readyz",
        health.ready,
        tag="worker",
        summary="Whether it's ready, and how its partitions stand",
        answers={200: shapes.Ready, 503: shapes.Ready},
    )
    add(
        "GET",
        "/metrics",
        health.measured,
        tag="worker",
        summary="What it measures, for Prometheus",
        answers={200: "text/plain"},
    )
