"""Branches and tags, and the operations that move a branch back."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, commits
from versolog.projections.http.reads import FORWARDED, Place, open_newest
from versolog.projections.http.request import (
    STALENESS_MAX_S,
    Asked,
    AtQuery,
    Reference,
    fields_in,
    read_body,
    read_query,
    seconds,
    segment,
)
from versolog.projections.http.transactions import WriteQuery, Writes, idempotency_key
from versolog.projections.node import Elsewhere, Node
from versolog.projections.partition import Partition
from versolog.schemas.errors import Invalid, refusal
from versolog.schemas.times import millis_to_text
from versolog.streams.decide import plan
from versolog.streams.state import MAIN, Row
from versolog.streams.transaction import Transaction
from versolog.streams.versions import Difference, row_at

ROWS_SHOWN_MAX = 1_000


class About(Asked):
    """What every operation's body may say about itself."""

    id: str | None = Field(None, description="The transaction's id. Also as the header `Idempotency-Key`.")
    author: str = Field("", description="Who does it.")
    message: str = Field("", description="Why.")
    type: str = Field("", description="The service's own name for the event.")


class TagRequest(About):
    """What a tag shall name."""

    at: Reference | None = Field(
        None, description="A version, a branch, a tag, `name~n` or a time. Default: main's head."
    )
    branch: str = Field(MAIN, description="The branch that a time means, and the default of `at`.")
    move: bool = Field(False, description="Whether a tag that exists shall name another version.")


class RollbackRequest(About):
    """What shall be as it was."""

    to: Reference = Field(description="The version, tag, `name~n` or time to go back to.")
    branch: str = Field(MAIN, description="The branch to change.")
    table: str | None = Field(None, description="Only rows of this table.")
    key: str | None = Field(None, description="Only the row with this key.")
    prefix: str | None = Field(None, description="Only rows whose key begins so.")
    expect_head: int | None = Field(None, ge=0, description="The version that the branch's head must have.")
    dry_run: bool = Field(False, description="Only answer what would change.")


class OperationQuery(WriteQuery):
    """What to tell about an operation that has no body."""

    author: str = Field("", description="Who does it.")
    message: str = Field("", description="Why.")
    type: str = Field("", description="The service's own name for the event.")


class Refs:
    """The handlers of branches, tags and rollbacks."""

    def __init__(self, node: Node, writes: Writes) -> None:
        self._node, self._writes = node, writes

    async def branches(self, request: Request) -> Response:
        """GET /v1/groups/{group}/branches"""
        place = await self._place(request)
        return self._listed(place, "branches", [_branch(place, name, head) for name, head in branches_at(place)])

    async def tags(self, request: Request) -> Response:
        """GET /v1/groups/{group}/tags"""
        place = await self._place(request)
        return self._listed(place, "tags", [_tag(place, name, version) for name, version in tags_at(place)])

    async def tag(self, request: Request) -> Response:
        """GET /v1/groups/{group}/tags/{name}"""
        place, name = await self._place(request), segment(request, "name")
        version = dict(tags_at(place)).get(name)
        if version is None:
            group = place.at.group
            raise refusal("unknown-ref", f"group {group!r} has no tag {name!r} then", group=group, ref=name)
        return answer.document(_tag(place, name, version), headers=place.headers)

    async def put_tag(self, request: Request) -> Response:
        """PUT /v1/groups/{group}/tags/{name}"""
        query = read_query(request, WriteQuery)
        group, name = segment(request, "group"), segment(request, "name")
        asked = fields_in(await read_body(request), TagRequest)
        self._node.refuse_time_to_come(asked.at)
        tx = operation_of(request, group, asked, asked.branch)
        tx.operation("tag", name=name, at=asked.at, move=asked.move)
        return await self._writes.answer(request, tx, query.wait)

    async def delete_tag(self, request: Request) -> Response:
        """DELETE /v1/groups/{group}/tags/{name}"""
        query = read_query(request, OperationQuery)
        tx = operation_of(request, segment(request, "group"), query)
        tx.operation("delete-tag", name=segment(request, "name"))
        return await self._writes.answer(request, tx, query.wait)

    async def rollback(self, request: Request) -> Response:
        """POST /v1/groups/{group}/rollbacks"""
        query = read_query(request, WriteQuery)
        group = segment(request, "group")
        body = await read_body(request)
        asked = fields_in(body, RollbackRequest)
        self._node.refuse_time_to_come(asked.to)
        tx = operation_of(request, group, asked, asked.branch)
        if asked.expect_head is not None:
            tx.expect_head(asked.expect_head)
        tx.operation("rollback", to=asked.to, table=asked.table, key=asked.key, prefix=asked.prefix)
        if asked.dry_run:
            return await self._rehearse(request, group, tx, body)
        return await self._writes.answer(request, tx, query.wait)

    async def _rehearse(self, request: Request, group: str, tx: Transaction, body: bytes) -> Response:
        """What `tx` would change if it were decided now."""
        stale_s = seconds(request, "versolog-staleness", STALENESS_MAX_S)
        try:
            partition = self._node.reader(group, stale_s=stale_s, forwarded=FORWARDED in request.headers)
        except Elsewhere as elsewhere:
            raise Elsewhere(elsewhere.partition, body, elsewhere.reason) from None
        return answer.document(_rehearsed(partition, tx), headers={"cache-control": "no-store"})

    async def _place(self, request: Request) -> Place:
        return await open_newest(self._node, request, segment(request, "group"), read_query(request, AtQuery))

    def _listed(self, place: Place, what: str, listed: list[dict[str, Any]]) -> Response:
        at = answer.place(place.at, place.partition.view.committed_at(place.at))
        return answer.document({what: listed, "at": at}, headers=place.headers)


def operation_of(request: Request, group: str, about: OperationQuery | About, branch: str = MAIN) -> Transaction:
    """A transaction whose operation is still to be said."""
    given = about.id if isinstance(about, About) else None
    key = idempotency_key(request)
    if given is not None and key is not None and given != key:
        raise Invalid("the body's id and Idempotency-Key name two transactions; leave one out", field="id")
    return Transaction(
        group, id=given or key, author=about.author, message=about.message, type=about.type, branch=branch
    )


def branches_at(place: Place) -> list[tuple[str, int]]:
    """The branches that stood at a place, by name, with the head that each had."""
    store, at = place.partition.store, place.at
    found = (
        (name, store.line(at.group, name, at.version))
        for name, kind, _ in store.names_at(at.group, at.version)
        if kind == "branch"
    )
    return [(name, line.upto) for name, line in found if line is not None]


def tags_at(place: Place) -> list[tuple[str, int]]:
    """The tags that stood at a place, by name, with the version that each named."""
    at = place.at
    names = place.partition.store.names_at(at.group, at.version)
    return [(name, version) for name, kind, version in names if kind == "tag"]


def _branch(place: Place, name: str, head: int) -> dict[str, Any]:
    at, store = place.at, place.partition.store
    line = store.line(at.group, name, at.version)
    assert line is not None, "it was listed"
    branch = store.branch_by_id(at.group, line.branch)
    assert branch is not None, "a line is a branch's"
    parent = None if branch.parent is None else store.branch_by_id(at.group, branch.parent)
    return {
        "name": name,
        "head": head,
        "committed_at": _committed_at(place, head),
        "id": branch.id,
        "parent": None if parent is None else parent.name,
        "fork": branch.fork or None,
    }


def _tag(place: Place, name: str, version: int) -> dict[str, Any]:
    return {"name": name, "version": version, "committed_at": _committed_at(place, version)}


def _committed_at(place: Place, version: int) -> str | None:
    step = place.partition.store.step(place.at.group, version)
    return None if step is None else millis_to_text(step.committed_at)


def _rehearsed(partition: Partition, tx: Transaction) -> dict[str, Any]:
    """What `tx`, of one group, would do to the rows. Raises its refusal."""
    part = tx.record()["parts"][0]
    line, _ = plan(partition.store, part)
    counts: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for (table, key), text in sorted(line.changed.items()):
        before = row_at(partition.store, line.group, line.levels, table, key)
        after = None if text is None else Row(0, 0, text)
        found = Difference(table, key, before, after)
        counts[commits.change_of(found)] += 1
        if len(shown) < ROWS_SHOWN_MAX:
            shown.append(commits.difference(found) | {"after": None if after is None else answer.row_text(after)})
    kinds = {kind: counts[kind] for kind in ("added", "changed", "removed")}
    return {
        "dry_run": True,
        "group": line.group,
        "branch": part["branch"],
        "counts": {"rows": counts.total(), **kinds, "complete": True},
        "rows": shown,
    }
