"""What happened: to a row, and to a group."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections import logs
from versolog.projections.blame import blame
from versolog.projections.http import answer, commits, cursor
from versolog.projections.http.budget import Budget
from versolog.projections.http.reads import Place, headers_of, open_partition, open_place, unknown_row
from versolog.projections.http.request import AtQuery, Flag, PageQuery, read_query, segment
from versolog.projections.logs import Sought
from versolog.projections.node import Node
from versolog.schemas.errors import Invalid
from versolog.schemas.times import micros_from_text
from versolog.streams.versions import At, unknown_group


class KeyQuery(AtQuery):
    """A row by its key."""

    key: str = Field(min_length=1, description="The row's key.")


class HistoryQuery(PageQuery):
    """The past of a row."""

    key: str = Field(min_length=1, description="The row's key.")


class LogQuery(PageQuery):
    """The commits that led to a place, and what they are searched for: all that is given must hold."""

    table: str | None = Field(None, description="Only commits that changed this table.")
    key: str | None = Field(None, description="Only commits that changed this row; beside `table`.")
    author: str | None = Field(None, description="Only commits by this author.")
    type: str | None = Field(None, description="Only commits of events that their service calls so.")
    operation: str | None = Field(None, description="Only commits of this kind: `write`, `merge`, `rollback`, …")
    message: str | None = Field(
        None, min_length=1, description="Only commits with this in their message, in capitals or small letters."
    )
    since: str | None = Field(None, description="Only commits at this time or later (RFC 3339).")
    until: str | None = Field(None, description="Only commits at this time or earlier.")
    all: Flag = Field(
        False, description="Every commit of the group on whatever branch, operations on branches and tags too."
    )
    graph: Flag = Field(
        False,
        description="Commits that merges brought, too, or with `all` those of every branch, and for each its place in "
        "the drawn graph: its parents, and the branches and tags that stand there now.",
    )

    def sought(self) -> Sought:
        """What to search for. Raises Invalid."""
        if self.key is not None and self.table is None:
            raise Invalid("a key is one of a table; name `table` too", field="table")
        since, until = _micros("since", self.since), _micros("until", self.until)
        return Sought(
            self.table, self.key, self.author, self.type, self.operation, self.message,
            since_ms=None if since is None else -(-since // 1_000), until_ms=None if until is None else until // 1_000,
        )  # fmt: skip


class History:
    """The handlers. They read in threads, since what they go through can be long."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def history(self, request: Request) -> Response:
        """GET …/tables/{table}/history"""
        group, table = segment(request, "group"), segment(request, "table")
        query = read_query(request, HistoryQuery)
        listing = cursor.listing("history", group, table, query.key, query.at, query.branch)
        place, before = await self._page(request, group, query, listing)
        changes, following = await asyncio.to_thread(_pasts, place, table, query, before)
        if not changes and before is None:
            raise unknown_row(place.at, table, query.key)
        told = {"group": group, "table": table, "key": query.key, "changes": changes}
        return _answer(place, told, listing, following)

    async def blame(self, request: Request) -> Response:
        """GET …/tables/{table}/blame"""
        group, table = segment(request, "group"), segment(request, "table")
        query = read_query(request, KeyQuery)
        place = await open_place(self._node, request, group, query)
        found = await asyncio.to_thread(blame, place.partition.view, place.at, table, query.key)
        if not found:
            raise unknown_row(place.at, table, query.key)
        fields = [{"path": one.path, "value": one.value, **commits.about(one.heading)} for one in found]
        told = {"group": group, "table": table, "key": query.key, "fields": fields, "at": _place(place)}
        return answer.document(told, headers=place.headers)

    async def log(self, request: Request) -> Response:
        """GET /v1/groups/{group}/log"""
        group = segment(request, "group")
        query = read_query(request, LogQuery)
        sought = query.sought()
        if query.all:
            return await self._whole_log(request, group, query, sought)
        listing = cursor.listing("log", group, query.at, query.branch, query.graph, *sought)
        place, following = await self._page(request, group, query, listing)
        view, limit = place.partition.view, query.limit

        def read() -> tuple[list[Any], Any]:
            if query.graph:
                drawn = logs.graph(view, place.at, limit=limit, open=following, sought=sought)
                return commits.graphed(view.store, group, drawn.commits), drawn.open
            page = logs.log(view, place.at, limit=limit, before=following, sought=sought)
            return [commits.heading(view.store, record) for record in page.commits], page.before

        listed, following = await asyncio.to_thread(read)
        if query.graph:
            place.headers["cache-control"] = answer.ASK_AGAIN  # it names branches and tags as they stand now
        return _answer(place, {"commits": listed}, listing, following)

    async def _whole_log(self, request: Request, group: str, query: LogQuery, sought: Sought) -> Response:
        if query.at is not None or query.branch is not None:
            raise Invalid("`all` is the log of the whole group; leave `at` and `branch` out", field="all")
        partition = await open_partition(self._node, request, group, query)
        listing = cursor.listing("whole-log", group, query.graph, *sought)
        before = None if query.cursor is None else cursor.unseal(listing, query.cursor)[0]
        if partition.store.head(group) is None:
            raise unknown_group(group)
        view = partition.view

        def read() -> tuple[list[Any], int | None]:
            page = logs.log_of_group(
                view, group, limit=query.limit, before=before, sought=sought, refs=not query.graph
            )
            if query.graph:
                return commits.graphed(view.store, group, page.commits), page.before
            return [commits.heading(view.store, record) for record in page.commits], page.before

        listed, following = await asyncio.to_thread(read)
        told = {"commits": listed, "cursor": None if following is None else cursor.seal(listing, [following])}
        return answer.document(told, headers={"cache-control": answer.ASK_AGAIN})

    async def _page(self, request: Request, group: str, query: PageQuery, listing: bytes) -> tuple[Place, Any]:
        """Where a listing is read, and where it goes on."""
        if query.cursor is None:
            return await open_place(self._node, request, group, query), None
        branch, branch_id, version, before = cursor.unseal(listing, query.cursor)
        partition = await open_partition(self._node, request, group, query)
        at = At(group, branch, branch_id, version)
        return Place(partition, at, headers_of(self._node, partition, at, unchanging=True)), before


def _answer(place: Place, told: dict[str, Any], listing: bytes, following: Any) -> Response:
    at = place.at
    sealed = None if following is None else cursor.seal(listing, [at.branch, at.branch_id, at.version, following])
    return answer.document({**told, "at": _place(place), "cursor": sealed}, headers=place.headers)


def _micros(name: str, text: str | None) -> int | None:
    """The time in a parameter. Raises Invalid, naming it."""
    try:
        return None if text is None else micros_from_text(text)
    except Invalid as error:
        raise Invalid(f"{name}: {error.detail}", field=name) from error


def _place(place: Place) -> dict[str, Any]:
    return answer.place(place.at, place.partition.view.committed_at(place.at))


def _pasts(
    place: Place, table: str, query: HistoryQuery, before: int | None
) -> tuple[list[dict[str, Any]], int | None]:
    """A page of a row's history, and the version to go on below."""
    view, budget = place.partition.view, Budget(query.limit)
    changes: list[dict[str, Any]] = []
    while True:
        page = view.history(place.at, table, query.key, limit=budget.next_rows(), before=before)
        changes += ({**commits.about(past.heading), "row": answer.row_text(past.row)} for past in page.changes)
        budget.took(len(page.changes), sum(len(past.row.text or b"") for past in page.changes))
        before = page.before
        if before is None or budget.spent:
            return changes, before
