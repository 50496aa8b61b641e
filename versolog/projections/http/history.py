"""What happened: to a row, to a group, between two versions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections import logs
from versolog.projections.blame import blame
from versolog.projections.http import answer, commits, cursor
from versolog.projections.http.budget import Budget
from versolog.projections.http.reads import Place, headers_of, is_unchanging, open_partition, open_place, unknown_row
from versolog.projections.http.request import WHOLE, AtQuery, Flag, PageQuery, Query, read_query, segment, wait_s
from versolog.projections.logs import Sought
from versolog.projections.node import Node
from versolog.projections.partition import Partition
from versolog.projections.views import Differences, View
from versolog.schemas.errors import Invalid, refusal
from versolog.schemas.times import micros_from_text
from versolog.streams.versions import At, Difference

COUNTED_MAX = 50_000
"""Rows up to which a difference is counted."""
COUNTED_BYTES_MAX = 256 * 1024 * 1024
"""And the size of them."""
DIFF_LIMIT = 1_000
ROUNDS_MAX = 100
"""Calls for one answer: each looks at some thousand rows, of which perhaps none differs."""


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


class DiffQuery(Query):
    """Two places of a group."""

    from_: str = Field(alias="from", description="The place before: a version, a branch, a tag, `name~n` or a time.")
    to: str | None = Field(None, description="The place after. Default: the head of `branch`.")
    branch: str | None = Field(None, description="The branch that times mean, and the default of `to`.")
    table: str | None = Field(None, description="Only rows of this table; `$tables` shows changed schemas.")
    prefix: str | None = Field(None, description="Only rows whose key begins so.")
    limit: Annotated[int, Field(ge=1, le=DIFF_LIMIT), WHOLE] = Field(100, description="The most to list in one answer.")
    cursor: str | None = Field(None, description="The `cursor` of the answer before, to go on there.")


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
            raise refusal("unknown-group", f"no group {group!r}: nothing was ever written to it", group=group)
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

    async def commit(self, request: Request) -> Response:
        """GET /v1/groups/{group}/commits/{version}"""
        group, version = segment(request, "group"), segment(request, "version")
        partition = await open_partition(self._node, request, group, read_query(request, Query))
        store = partition.store
        if not (version.isascii() and version.isdigit()) or len(version) > 18:
            raise Invalid(f"a commit is asked for by its version, not {version[:64]!r}", field="version")
        record = await asyncio.to_thread(store.commit, group, int(version))
        if record is None:
            raise refusal("unknown-version", f"the group {group!r} has no version {version}", group=group)
        headers = {answer.VERSION: version, "cache-control": answer.FOR_EVER}
        return answer.document(commits.whole(store, record), headers=headers)

    async def diff(self, request: Request) -> Response:
        """GET /v1/groups/{group}/diff"""
        group = segment(request, "group")
        query = read_query(request, DiffQuery)
        listing = cursor.listing("diff", group, query.from_, query.to, query.branch, query.table, query.prefix)
        partition = await open_partition(self._node, request, group, query)
        if query.cursor is None:
            timeout_s = wait_s(request, query.wait)
            before = await self._node.resolve(partition, group, query.from_, query.branch, timeout_s)
            after = await self._node.resolve(partition, group, query.to, query.branch, timeout_s)
            position = None
        else:
            one, other, position = cursor.unseal(listing, query.cursor)
            before, after = At(group, *one), At(group, *other)
        told = await asyncio.to_thread(_diff, partition, before, after, query, position)
        following = told.pop("following")
        if following is not None:
            following = cursor.seal(listing, [before[1:], after[1:], following])
        unchanging = is_unchanging(query.from_) and is_unchanging(query.to)
        headers = headers_of(self._node, partition, after, unchanging=unchanging)
        return answer.document({**told, "cursor": following}, headers=headers)

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


def _diff(partition: Partition, before: At, after: At, query: DiffQuery, position: list[str] | None) -> dict[str, Any]:
    view = partition.view
    budget = Budget(query.limit)
    go_on = None if position is None else (position[0], position[1])
    rows: list[dict[str, Any]] = []
    for page in _differences(view, before, after, query, budget, go_on):
        rows += (commits.difference(found) for found in page.rows)
        following = page.cursor
    return {
        "from": answer.place(before, view.committed_at(before)),
        "to": answer.place(after, view.committed_at(after)),
        "counts": _counts(view, before, after, query) if go_on is None else None,
        "rows": rows,
        "following": following,
    }


def _counts(view: View, before: At, after: At, query: DiffQuery) -> dict[str, Any]:
    """How many rows differ in which way, of the first COUNTED_MAX."""
    counts: Counter[str] = Counter()
    budget = Budget(COUNTED_MAX, bytes_max=COUNTED_BYTES_MAX, slice_rows=COUNTED_MAX)
    for page in _differences(view, before, after, query, budget, None):
        counts.update(commits.change_of(found) for found in page.rows)
        complete = page.cursor is None
    kinds = {kind: counts[kind] for kind in ("added", "changed", "removed")}
    return {"rows": counts.total(), **kinds, "complete": complete}


def _differences(
    view: View, before: At, after: At, query: DiffQuery, budget: Budget, go_on: tuple[str, str] | None
) -> Iterator[Differences]:
    """The rows that differ, as far as the budget and ROUNDS_MAX go; at least one page."""
    for _ in range(ROUNDS_MAX):
        page = view.diff(before, after, table=query.table, prefix=query.prefix, limit=budget.next_rows(), cursor=go_on)
        yield page
        budget.took(len(page.rows), sum(_text_bytes(found) for found in page.rows))
        go_on = page.cursor
        if go_on is None or budget.spent:
            return


def _text_bytes(found: Difference) -> int:
    return sum(len(row.text or b"") for row in (found.before, found.after) if row is not None)
