"""What changes the rows of a branch as a whole: merges, reverts, cherry-picks and rollbacks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http.refs import About, operation_of
from versolog.projections.http.rehearsals import Rehearsals
from versolog.projections.http.request import LIMIT_MAX, Reference, fields_in, read_body, read_query, segment
from versolog.projections.http.transactions import WriteQuery, Writes
from versolog.projections.node import Node
from versolog.streams.state import MAIN

Version = Annotated[int, Field(ge=1)]


class OperationRequest(About):
    """What every such operation may be asked with."""

    expect_head: int | None = Field(None, ge=0, description="The version that the branch's head must have.")
    dry_run: bool = Field(False, description="Only answer what would change, or the conflicts there are.")
    limit: int | None = Field(
        None, ge=1, le=LIMIT_MAX, description="The most to list in one answer of a dry run, or in a page. "
        "Default: 1,000 rows, 100 conflicts.",
    )  # fmt: skip
    cursor: str | None = Field(
        None, description="The `cursor` of the answer before, to list on there: sent so, it changes nothing."
    )


class SettlingRequest(OperationRequest):
    """How conflicts shall end."""

    policy: Literal["fail", "ours", "theirs"] = Field(
        "fail", description="What becomes of conflicts without a resolution: refuse all of it, or take one side."
    )
    resolutions: list[dict[str, Any]] = Field(
        [],
        description="Each a conflict as it was told, with `take`: `ours`, `theirs`, `{value: …}` or `{delete: true}`.",
    )


class MergeRequest(SettlingRequest):
    """What shall be brought where."""

    source: Reference = Field(description="The branch, tag, version, `name~n` or time to merge.")
    target: str = Field(MAIN, description="The branch to merge into.")
    no_ff: bool = Field(False, description="Make a merge where the branch could just move on.")


class CommitsRequest(SettlingRequest):
    """Which commits to undo, or to do again: `versions`, or those that led `from` one place `to` another."""

    versions: list[Version] | None = Field(None, description="The commits' versions.")
    from_: Reference | None = Field(None, alias="from", description="The place before the first of them.")
    to: Reference | None = Field(None, description="The last of them. Default: the head of `branch`.")
    branch: str = Field(MAIN, description="The branch to change.")
    parent: int | None = Field(None, ge=1, description="The parent that a merge is undone towards, or done from.")


class RollbackRequest(OperationRequest):
    """What shall be as it was."""

    to: Reference = Field(description="The version, tag, `name~n` or time to go back to.")
    branch: str = Field(MAIN, description="The branch to change.")
    table: str | None = Field(None, description="Only rows of this table.")
    key: str | None = Field(None, description="Only the row with this key.")
    prefix: str | None = Field(None, description="Only rows whose key begins so.")


class Operations:
    """The handlers. Each answers with an outcome, with what would change, or with a page of either's listing."""

    def __init__(self, node: Node, writes: Writes, rehearsals: Rehearsals) -> None:
        self._node, self._writes, self._rehearsals = node, writes, rehearsals

    async def merge(self, request: Request) -> Response:
        """POST /v1/groups/{group}/merges"""
        query, body = read_query(request, WriteQuery), await read_body(request)
        asked = fields_in(body, MergeRequest)
        arguments = {"source": asked.source, "no_ff": asked.no_ff or None}
        return await self._do(request, query, body, asked, asked.target, "merge", arguments | _settling(asked), asked.source)

    async def revert(self, request: Request) -> Response:
        """POST /v1/groups/{group}/reverts"""
        return await self._commits(request, "revert")

    async def cherry_pick(self, request: Request) -> Response:
        """POST /v1/groups/{group}/cherry-picks"""
        return await self._commits(request, "cherry-pick")

    async def rollback(self, request: Request) -> Response:
        """POST /v1/groups/{group}/rollbacks"""
        query, body = read_query(request, WriteQuery), await read_body(request)
        asked = fields_in(body, RollbackRequest)
        arguments = {"to": asked.to, "table": asked.table, "key": asked.key, "prefix": asked.prefix}
        return await self._do(request, query, body, asked, asked.branch, "rollback", arguments, asked.to)

    async def _commits(self, request: Request, kind: str) -> Response:
        query, body = read_query(request, WriteQuery), await read_body(request)
        asked = fields_in(body, CommitsRequest)
        arguments = {"versions": asked.versions, "from": asked.from_, "to": asked.to, "parent": asked.parent}
        named = (asked.from_, asked.to)
        return await self._do(request, query, body, asked, asked.branch, kind, arguments | _settling(asked), *named)

    async def _do(
        self, request: Request, query: WriteQuery, body: bytes, asked: OperationRequest, branch: str, kind: str,
        arguments: dict[str, Any], *references: str | None,
    ) -> Response:  # fmt: skip
        for reference in references:
            self._node.refuse_time_to_come(reference)
        tx = operation_of(request, segment(request, "group"), asked, branch)
        if asked.expect_head is not None:
            tx.expect_head(asked.expect_head)
        tx.operation(kind, **{name: value for name, value in arguments.items() if value is not None})
        if not asked.dry_run and asked.cursor is None:
            return await self._writes.answer(request, tx, query.wait)
        named = [reference for reference in references if reference is not None]
        return await self._rehearsals.answer(
            request, tx, body, query.wait, limit=asked.limit, page=asked.cursor, references=named
        )


def _settling(asked: SettlingRequest) -> dict[str, Any]:
    return {"policy": None if asked.policy == "fail" else asked.policy, "resolutions": asked.resolutions or None}
