"""What differs: between two places of a group, and between what a commit found and what it left. Counted first, then
listed in pages."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, commits, cursor
from versolog.projections.http.budget import Budget
from versolog.projections.http.reads import headers_of, is_unchanging, open_partition
from versolog.projections.http.request import WHOLE, Flag, Query, read_query, segment, wait_s
from versolog.projections.node import Node
from versolog.projections.partition import Partition
from versolog.projections.store import Store
from versolog.projections.views import Differences, View
from versolog.schemas.codec import Record
from versolog.schemas.errors import Invalid
from versolog.streams.graph import merge_bases
from versolog.streams.versions import At, Difference, unknown_group, unknown_version

COUNTED_MAX = 50_000
"""Rows up to which a difference is counted."""
COUNTED_BYTES_MAX = 256 * 1024 * 1024
"""And the size of them."""
LIMIT = 1_000
ROUNDS_MAX = 100
"""Calls for one answer: each looks at some thousand rows, of which perhaps none differs."""

KINDS = ("added", "changed", "removed")
Position = tuple[str, str] | None
"""The table and key to go on after."""
Read = Callable[[int, Position], Differences]
"""Reads up to so many differences from a position on."""


class ChangesQuery(Query):
    """The rows that differ."""

    table: str | None = Field(None, description="Only rows of this table; `$tables` shows changed schemas.")
    prefix: str | None = Field(None, description="Only rows whose key begins so.")
    limit: Annotated[int, Field(ge=1, le=LIMIT), WHOLE] = Field(100, description="The most to list in one answer.")
    cursor: str | None = Field(None, description="The `cursor` of the answer before, to go on there.")


class DiffQuery(ChangesQuery):
    """Two places of a group."""

    from_: str = Field(alias="from", description="The place before: a version, a branch, a tag, `name~n` or a time.")
    to: str | None = Field(None, description="The place after. Default: the head of `branch`.")
    branch: str | None = Field(None, description="The branch that times mean, and the default of `to`.")
    merge_base: Flag = Field(
        False, description="Begin where the two parted: what `to` has since, without what `from` has."
    )


class Comparisons:
    """The handlers. They read in threads, since what they go through can be long."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def diff(self, request: Request) -> Response:
        """GET /v1/groups/{group}/diff"""
        group = segment(request, "group")
        query = read_query(request, DiffQuery)
        listing = cursor.listing(
            "diff", group, query.from_, query.to, query.branch, query.merge_base, query.table, query.prefix
        )
        partition = await open_partition(self._node, request, group, query)
        if query.cursor is None:
            timeout_s = wait_s(request, query.wait)
            before = await self._node.resolve(partition, group, query.from_, query.branch, timeout_s)
            after = await self._node.resolve(partition, group, query.to, query.branch, timeout_s)
            if query.merge_base:
                before = await asyncio.to_thread(_merge_base, partition.view, before, after)
            position = None
        else:
            one, other, position = cursor.unseal(listing, query.cursor)
            before, after = At(group, *one), At(group, *other)
        read = partial(_between, partition.view, before, after, query)
        told, following = await asyncio.to_thread(_listed, read, query.limit, position)
        sealed = None if following is None else cursor.seal(listing, [before[1:], after[1:], following])
        view = partition.view
        places = {
            "from": answer.place(before, view.committed_at(before)),
            "to": answer.place(after, view.committed_at(after)),
        }
        unchanging = is_unchanging(query.from_) and is_unchanging(query.to)
        headers = headers_of(self._node, partition, after, unchanging=unchanging)
        return answer.document({**places, **told, "cursor": sealed}, headers=headers)

    async def commit(self, request: Request) -> Response:
        """GET /v1/groups/{group}/commits/{version}"""
        partition, record = await self._commit(request, read_query(request, Query), Store.commit)
        told = await asyncio.to_thread(commits.whole, partition.store, record)
        return answer.document(told, headers=_headers_of_commit(record))

    async def changes(self, request: Request) -> Response:
        """GET /v1/groups/{group}/commits/{version}/changes"""
        query = read_query(request, ChangesQuery)
        partition, record = await self._commit(request, query, Store.heading)
        group, version = record["group"], record["version"]
        listing = cursor.listing("changes", group, version, query.table, query.prefix)
        position = None if query.cursor is None else cursor.unseal(listing, query.cursor)
        view = partition.view
        read = partial(_of_commit, view, group, version, query)
        told, following = await asyncio.to_thread(_listed, read, query.limit, position)
        found = (await asyncio.to_thread(view.around, group, version))[0]
        named = {
            "group": group,
            "commit": commits.heading(partition.store, record),
            "from": answer.place(found, view.committed_at(found)) if found.version else None,
        }
        sealed = None if following is None else cursor.seal(listing, list(following))
        return answer.document({**named, **told, "cursor": sealed}, headers=_headers_of_commit(record))

    async def _commit(
        self, request: Request, query: Query, read: Callable[[Store, str, int], Record | None]
    ) -> tuple[Partition, Record]:
        """The commit that the path names. Raises Invalid, and the refusal `unknown-version`."""
        group, version = segment(request, "group"), segment(request, "version")
        partition = await open_partition(self._node, request, group, query)
        if not (version.isascii() and version.isdigit()) or len(version) > 18:
            raise Invalid(f"a commit is asked for by its version, not {version[:64]!r}", field="version")
        record = await asyncio.to_thread(read, partition.store, group, int(version))
        if record is None:
            head = partition.store.head(group)
            raise unknown_group(group) if head is None else unknown_version(group, int(version), head)
        return partition, record


def _headers_of_commit(record: Record) -> dict[str, str]:
    return {answer.VERSION: str(record["version"]), "cache-control": answer.FOR_EVER}


def _merge_base(view: View, one: At, other: At) -> At:
    """Where two places parted; the newest such place where merges crossed. Raises Invalid where there is none."""
    bases = merge_bases(view.store, one.group, [one.version], other.version)
    if not bases:
        raise Invalid(
            f"versions {one.version} and {other.version} have no commit in common; leave merge_base out",
            field="merge_base",
        )
    return view.resolve(one.group, str(bases[0]))


def _between(view: View, before: At, after: At, query: DiffQuery, limit: int, position: Position) -> Differences:
    return view.diff(before, after, table=query.table, prefix=query.prefix, limit=limit, cursor=position)


def _of_commit(view: View, group: str, version: int, query: ChangesQuery, limit: int, position: Position) -> Differences:
    return view.changes(group, version, table=query.table, prefix=query.prefix, limit=limit, cursor=position)


def _listed(read: Read, limit: int, position: list[str] | None) -> tuple[dict[str, Any], Position]:
    """A page, with the counts of all where it is the first, and where the next one begins."""
    rows: list[dict[str, Any]] = []
    go_on = None if position is None else (position[0], position[1])
    following = None
    for page in _pages(read, Budget(limit), go_on):
        rows += (commits.difference(found) for found in page.rows)
        following = page.cursor
    return {"counts": _counts(read) if position is None else None, "rows": rows}, following


def _counts(read: Read) -> dict[str, Any]:
    """How many rows differ in which way, in all and by table, of the first COUNTED_MAX."""
    by_table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    complete = True
    for page in _pages(read, Budget(COUNTED_MAX, bytes_max=COUNTED_BYTES_MAX, slice_rows=COUNTED_MAX), None):
        for found in page.rows:
            by_table[found.table][commits.change_of(found)] += 1
        complete = page.cursor is None
    counts = sum(by_table.values(), Counter[str]())
    tables = [{"table": table, **_kinds(by_table[table])} for table in sorted(by_table)]
    return {**_kinds(counts), "complete": complete, "tables": tables}


def _kinds(counts: Counter[str]) -> dict[str, int]:
    return {"rows": counts.total(), **{kind: counts[kind] for kind in KINDS}}


def _pages(read: Read, budget: Budget, go_on: Position) -> Iterator[Differences]:
    """The rows that differ, as far as the budget and ROUNDS_MAX go; at least one page."""
    for _ in range(ROUNDS_MAX):
        page = read(budget.next_rows(), go_on)
        yield page
        budget.took(len(page.rows), sum(_text_bytes(found) for found in page.rows))
        go_on = page.cursor
        if go_on is None or budget.spent:
            return


def _text_bytes(found: Difference) -> int:
    return sum(len(row.text or b"") for row in (found.before, found.after) if row is not None)
