"""Rows: one, a range of them, and the writes that concern one row. The busiest paths, reached without FastAPI."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, cursor
from versolog.projections.http.budget import Budget
from versolog.projections.http.ranges import read_range
from versolog.projections.http.reads import Place, headers_of, open_partition, open_place, unknown_row
from versolog.projections.http.request import (
    AtQuery,
    PageQuery,
    absent_wanted,
    read_body,
    read_query,
    segment,
    version_tag,
)
from versolog.projections.http.transactions import WriteQuery, Writes, idempotency_key
from versolog.projections.node import Node
from versolog.projections.queries import Predicate
from versolog.schemas.documents import row_from_text
from versolog.schemas.errors import Malformed
from versolog.streams.state import MAIN
from versolog.streams.transaction import Transaction
from versolog.streams.versions import At


class ScanQuery(PageQuery):
    """A range of a table's rows, in the order of their keys' UTF-8 bytes."""

    prefix: str | None = Field(None, description="Only keys that begin so.")
    start: str | None = Field(None, description="Only keys from this one on.")
    end: str | None = Field(None, description="Only keys before this one.")
    where: str | None = Field(None, description='Only rows whose fields are so: `status = "departed" and delay > 15`.')


class RowWriteQuery(WriteQuery):
    """Where to write, and what to tell about it."""

    branch: str = Field(MAIN, description="The branch to write on.")
    author: str = Field("", description="Who does it.")
    message: str = Field("", description="Why.")
    type: str = Field("", description="The service's own name for the event.")


class Rows:
    """The handlers of `/v1/groups/{group}/tables/{table}/rows…`."""

    def __init__(self, node: Node, writes: Writes) -> None:
        self._node, self._writes = node, writes

    async def get(self, request: Request) -> Response:
        """GET …/rows/{key}"""
        group, table, key = segment(request, "group"), segment(request, "table"), segment(request, "key")
        place = await open_place(self._node, request, group, read_query(request, AtQuery))
        row = place.partition.view.row(place.at, table, key)
        if row is None:
            raise unknown_row(place.at, table, key)
        place.headers["etag"] = tag = f'"{row.version}"'
        if _names(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=place.headers)
        return answer.document(answer.RowText(group, table)(key, row), headers=place.headers)

    async def scan(self, request: Request) -> Response:
        """GET …/rows"""
        group, table = segment(request, "group"), segment(request, "table")
        query = read_query(request, ScanQuery)
        listing = cursor.listing("rows", group, table, query.at, query.branch, *_range_of(query))
        where = None if query.where is None else Predicate.parse(query.where)
        if query.cursor is None:
            place, after = await open_place(self._node, request, group, query), None
        else:
            branch, branch_id, version, after = cursor.unseal(listing, query.cursor)
            partition = await open_partition(self._node, request, group, query)
            at = At(group, branch, branch_id, version)
            place = Place(partition, at, headers_of(self._node, partition, at, unchanging=True))
        bounds = {"prefix": query.prefix, "start": query.start, "end": query.end, "where": where}
        budget = Budget(query.limit)
        rows, after = await read_range(
            place.partition.view, place.at, table, bounds, after=after, limit=query.limit, budget=budget
        )
        at = place.at
        ends = {
            "at": answer.place(at, place.partition.view.committed_at(at)),
            "cursor": None if after is None else cursor.seal(listing, [at.branch, at.branch_id, at.version, after]),
        }
        body = b'{"rows":[' + b",".join(rows) + b"]," + answer.text(ends)[1:]
        return answer.document(body, headers=place.headers)

    async def put(self, request: Request) -> Response:
        """PUT …/rows/{key}"""
        tx, query, table, key = self._one_change(request)
        tx.put(table, key, row_from_text(await read_body(request)))
        return await self._writes.answer(request, tx, query.wait, of_row=True)

    async def patch(self, request: Request) -> Response:
        """PATCH …/rows/{key}"""
        tx, query, table, key = self._one_change(request)
        tx.patch(table, key, row_from_text(await read_body(request)))
        return await self._writes.answer(request, tx, query.wait, of_row=True)

    async def delete(self, request: Request) -> Response:
        """DELETE …/rows/{key}"""
        tx, query, table, key = self._one_change(request)
        tx.delete(table, key)
        return await self._writes.answer(request, tx, query.wait)

    def _one_change(self, request: Request) -> tuple[Transaction, RowWriteQuery, str, str]:
        """A transaction with the request's preconditions; the change is still to be said."""
        query = read_query(request, RowWriteQuery)
        table, key = segment(request, "table"), segment(request, "key")
        tx = Transaction(
            segment(request, "group"),
            id=idempotency_key(request),
            author=query.author,
            message=query.message,
            type=query.type,
            branch=query.branch,
        )
        version = version_tag(request, "if-match")
        if absent_wanted(request):
            if version is not None:
                raise Malformed("If-Match and If-None-Match: * can't both hold", field="if-match")
            tx.expect_absent(table, key)
        elif version is not None:
            tx.expect(table, key, version)
        return tx, query, table, key


def _names(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names `tag`, weakly compared as RFC 9110 wants it."""
    if header is None:
        return False
    return header.strip() == "*" or tag in (named.strip().removeprefix("W/") for named in header.split(","))


def _range_of(query: ScanQuery) -> tuple[str | None, ...]:
    return query.prefix, query.start, query.end, query.where
