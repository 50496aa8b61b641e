"""Branches and tags."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer
from versolog.projections.http.reads import Place, open_newest
from versolog.projections.http.request import (
    Asked,
    AtQuery,
    Flag,
    Reference,
    fields_in,
    read_body,
    read_query,
    segment,
)
from versolog.projections.http.transactions import WriteQuery, Writes, idempotency_key
from versolog.projections.node import Node
from versolog.projections.past import Past
from versolog.schemas.errors import Invalid, refusal
from versolog.schemas.times import millis_to_text
from versolog.streams.graph import apart, merge_bases
from versolog.streams.state import MAIN, Branch, State
from versolog.streams.transaction import Transaction
from versolog.streams.versions import At, resolve, unknown_branch


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


class BranchRequest(About):
    """Where a branch shall begin."""

    name: str = Field(description="Its name.")
    from_: Reference | None = Field(
        None, alias="from", description="The version, branch, tag, `name~n` or time that it begins at. Default: main."
    )


class BranchQuery(AtQuery):
    """What to tell of a branch."""

    against: str | None = Field(
        None, description="A reference to compare the branch with: how many commits each has that the other has not."
    )


class OperationQuery(WriteQuery):
    """What to tell about an operation that has no body."""

    author: str = Field("", description="Who does it.")
    message: str = Field("", description="Why.")
    type: str = Field("", description="The service's own name for the event.")


class DeleteBranchQuery(OperationQuery):
    """How to delete a branch."""

    force: Flag = Field(False, description="Delete it though it has commits that no other branch has.")


class Refs:
    """The handlers of branches and tags."""

    def __init__(self, node: Node, writes: Writes) -> None:
        self._node, self._writes = node, writes

    async def branches(self, request: Request) -> Response:
        """GET /v1/groups/{group}/branches"""
        place = await self._place(request)
        told = await asyncio.to_thread(lambda: [_branch(place, one) for one in branches_at(place)])
        return self._listed(place, "branches", told)

    async def branch(self, request: Request) -> Response:
        """GET /v1/groups/{group}/branches/{name}"""
        query, name = read_query(request, BranchQuery), segment(request, "name")
        place = await open_newest(self._node, request, segment(request, "group"), query)
        past = Past(place.partition.store, place.at.group, place.at.version)
        branch = past.branch(place.at.group, name)
        if branch is None:
            raise unknown_branch(place.at.group, name)
        against = None
        if query.against is not None:
            other = resolve(past, place.at.group, query.against)
            against = {"ref": query.against} | await asyncio.to_thread(_apart, past, branch, other)
        told = _branch(place, branch) | {"against": against}
        return answer.document(told, headers=place.headers)

    async def create_branch(self, request: Request) -> Response:
        """POST /v1/groups/{group}/branches"""
        query = read_query(request, WriteQuery)
        asked = fields_in(await read_body(request), BranchRequest)
        self._node.refuse_time_to_come(asked.from_)
        tx = operation_of(request, segment(request, "group"), asked)
        tx.operation("create-branch", name=asked.name, **({} if asked.from_ is None else {"from": asked.from_}))
        return await self._writes.answer(request, tx, query.wait)

    async def delete_branch(self, request: Request) -> Response:
        """DELETE /v1/groups/{group}/branches/{name}"""
        query = read_query(request, DeleteBranchQuery)
        tx = operation_of(request, segment(request, "group"), query)
        tx.operation("delete-branch", name=segment(request, "name"), **({"force": True} if query.force else {}))
        return await self._writes.answer(request, tx, query.wait)

    async def tags(self, request: Request) -> Response:
        """GET /v1/groups/{group}/tags"""
        place = await self._place(request)
        told = await asyncio.to_thread(lambda: [_tag(place, name, version) for name, version in tags_at(place)])
        return self._listed(place, "tags", told)

    async def tag(self, request: Request) -> Response:
        """GET /v1/groups/{group}/tags/{name}"""
        place, name = await self._place(request), segment(request, "name")
        group = place.at.group
        kind, version = place.partition.store.name_at(group, name, place.at.version) or ("", 0)
        if kind != "tag":
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


def branches_at(place: Place) -> list[Branch]:
    """The branches that stood at a place, by name, as they stood then."""
    return Past(place.partition.store, place.at.group, place.at.version).branches(place.at.group)


def tags_at(place: Place) -> list[tuple[str, int]]:
    """The tags that stood at a place, by name, with the version that each named."""
    at = place.at
    names = place.partition.store.names_at(at.group, at.version)
    return [(name, version) for name, kind, version in names if kind == "tag"]


def _branch(place: Place, branch: Branch) -> dict[str, Any]:
    parent = None if branch.parent is None else place.partition.store.branch_by_id(place.at.group, branch.parent)
    return {
        "name": branch.name,
        "head": branch.head,
        "committed_at": _committed_at(place, branch.head),
        "id": branch.id,
        "parent": None if parent is None else parent.name,
        "fork": branch.fork or None,
    }


def _apart(state: State, branch: Branch, other: At) -> dict[str, Any]:
    """How a branch stands to another place."""
    group = other.group
    found = apart(state, group, branch.head, other.version)
    bases = merge_bases(state, group, [branch.head], other.version)
    return {"version": other.version, "ahead": found.ahead, "behind": found.behind, "bases": bases}


def _tag(place: Place, name: str, version: int) -> dict[str, Any]:
    return {"name": name, "version": version, "committed_at": _committed_at(place, version)}


def _committed_at(place: Place, version: int) -> str | None:
    step = place.partition.store.step(place.at.group, version)
    return None if step is None else millis_to_text(step.committed_at)
