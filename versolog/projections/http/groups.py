"""Groups: which there are, what one holds, its tables' schemas and checks, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, cursor
from versolog.projections.http.reads import FORWARDED, Place, open_newest, open_place
from versolog.projections.http.refs import OperationQuery, branches_at, operation_of, tags_at
from versolog.projections.http.relay import Relay, asked_of
from versolog.projections.http.request import (
    LIMIT_MAX,
    Asked,
    AtQuery,
    Flag,
    Limit,
    WaitQuery,
    fields_in,
    read_body,
    read_json,
    read_query,
    segment,
    wait_s,
)
from versolog.projections.http.transactions import Writes
from versolog.projections.node import Node
from versolog.projections.partition import Partition
from versolog.schemas.errors import Invalid, Malformed, NotFound
from versolog.schemas.times import millis_to_text
from versolog.streams.state import MAIN, SETTINGS_TABLE


SURPLUS = 2
"""Groups that a node is asked for beyond a page: the one that the page comes after, and one that says that there are more."""


class GroupsQuery(WaitQuery):
    """Which groups to list."""

    prefix: str = Field("", description="Only groups whose name begins so.")
    start: str = Field("", description="Only groups from this name on.")
    limit: Limit = Field(1_000, description="The most to list in one answer.")
    cursor: str | None = Field(None, description="The `cursor` of the answer before, to go on there.")


class GroupQuery(AtQuery):
    """What to tell of a group."""

    count: Flag = Field(False, description="Count the rows of each table, which takes as long as reading them.")


class SettingQuery(OperationQuery):
    """Where to set what a table is given, and what to tell about it."""

    branch: str = Field(MAIN, description="The branch to do it on.")


class MergeFunctionsRequest(Asked):
    """How a table's conflicts are settled before anyone is asked."""

    row: str | None = Field(None, description="Of rows as a whole, which are then not taken apart.")
    fields: dict[str, str] = Field({}, description="Of fields, by path: `stock.left`; `*` is all others.")


class _Setting(NamedTuple):
    """What a table was given under one name, and what is told of when."""

    given: Any
    told: dict[str, Any]
    headers: dict[str, str]


class Groups:
    """The handlers of groups and of what tables are given."""

    def __init__(self, node: Node, writes: Writes, relay: Relay) -> None:
        self._node, self._writes, self._relay = node, writes, relay

    async def all(self, request: Request) -> Response:
        """GET /v1/groups"""
        query = read_query(request, GroupsQuery)
        listing = cursor.listing("groups", query.prefix, query.start)
        after = "" if query.cursor is None else str(cursor.unseal(listing, query.cursor)[0])
        start = max(query.prefix, query.start, after)
        forwarded = FORWARDED in request.headers
        limit = query.limit if forwarded else min(query.limit, LIMIT_MAX - SURPLUS)
        timeout_s = wait_s(request, query.wait)

        def mine() -> list[Partition]:
            return asked_of(self._node, request) if forwarded else self._node.owned()

        asked_first = mine()
        await asyncio.gather(*(self._node.stored(partition, None, timeout_s) for partition in asked_first))
        here = [partition for partition in mine() if partition in asked_first]  # one lost may lack what was told meanwhile
        found = await asyncio.to_thread(_heads, here, start, limit + SURPLUS)
        if not forwarded:
            others = set(range(self._node.count)) - {partition.number for partition in here}
            asked = {"start": start, "limit": str(limit + SURPLUS)}
            wanted = [] if self._node.read_only else sorted(others)
            for told in await self._relay.gather(wanted, "/v1/groups", asked, timeout_s):
                found |= {group["group"]: group for group in told["groups"]}
        names = sorted(name for name in found if name > after and name.startswith(query.prefix))
        page = names[:limit]
        following = cursor.seal(listing, [page[-1]]) if len(names) > limit else None
        told = {"groups": [found[name] for name in page], "cursor": following}
        return answer.document(told, headers={"cache-control": answer.ASK_AGAIN})

    async def one(self, request: Request) -> Response:
        """GET /v1/groups/{group}"""
        query = read_query(request, GroupQuery)
        place = await open_newest(self._node, request, segment(request, "group"), query, slow=query.count)
        told = await asyncio.to_thread(_group, place, count=query.count)
        return answer.document(told, headers=place.headers)

    async def drop(self, request: Request) -> Response:
        """DELETE /v1/groups/{group}"""
        query = read_query(request, OperationQuery)
        tx = operation_of(request, segment(request, "group"), query).operation("drop-group")
        return await self._writes.answer(request, tx, query.wait)

    async def schema(self, request: Request) -> Response:
        """GET …/tables/{table}/schema"""
        given, told, headers = await self._setting(request, "schema")
        return answer.document(told | {"schema": given}, headers=headers)

    async def put_schema(self, request: Request) -> Response:
        """PUT …/tables/{table}/schema"""
        schema = await read_json(request)
        if not isinstance(schema, dict):
            raise Malformed("an Avro record schema is a JSON object")
        return await self._set(request, "set-schema", schema=schema)

    async def delete_schema(self, request: Request) -> Response:
        """DELETE …/tables/{table}/schema"""
        return await self._set(request, "set-schema", schema=None)

    async def checks(self, request: Request) -> Response:
        """GET …/tables/{table}/checks"""
        given, told, headers = await self._setting(request, "checks")
        return answer.document(told | {"checks": given}, headers=headers)

    async def put_checks(self, request: Request) -> Response:
        """PUT …/tables/{table}/checks"""
        checks = await read_json(request)
        if not isinstance(checks, dict):
            raise Malformed("checks are a JSON object: each by its name")
        return await self._set(request, "set-checks", checks=checks)

    async def delete_checks(self, request: Request) -> Response:
        """DELETE …/tables/{table}/checks"""
        return await self._set(request, "set-checks", checks=None)

    async def merge_functions(self, request: Request) -> Response:
        """GET …/tables/{table}/merge"""
        rules, told, headers = await self._setting(request, "merge", "merge functions")
        return answer.document(told | {"row": rules.get("row"), "fields": rules.get("fields", {})}, headers=headers)

    async def put_merge_functions(self, request: Request) -> Response:
        """PUT …/tables/{table}/merge"""
        asked = fields_in(await read_body(request), MergeFunctionsRequest)
        if asked.row is None and not asked.fields:
            raise Invalid("give a function for rows as `row`, or for fields as `fields`; DELETE takes all away")
        return await self._set(request, "set-merge", row=asked.row, fields=asked.fields)

    async def delete_merge_functions(self, request: Request) -> Response:
        """DELETE …/tables/{table}/merge"""
        return await self._set(request, "set-merge", row=None, fields={})

    async def _setting(self, request: Request, name: str, called: str | None = None) -> _Setting:
        """What the table was given under that name, as of the place that is asked for. Raises NotFound."""
        group, table = segment(request, "group"), segment(request, "table")
        place = await open_place(self._node, request, group, read_query(request, AtQuery))
        row = place.partition.view.row(place.at, SETTINGS_TABLE, table)
        settings = {} if row is None or row.text is None else orjson.loads(row.text)
        if row is None or name not in settings:
            raise NotFound(
                f"the table {table!r} of {group!r} has no {called or name} at version {place.at.version}",
                code=f"unknown-{name}", group=group, table=table, at=place.at.version,
            )  # fmt: skip
        committed_at = millis_to_text(row.committed_at)
        told = {"group": group, "table": table, "version": row.version, "committed_at": committed_at}
        return _Setting(settings[name], told, place.headers | {"etag": f'"{row.version}"'})

    async def _set(self, request: Request, kind: str, **setting: Any) -> Response:
        query = read_query(request, SettingQuery)
        tx = operation_of(request, segment(request, "group"), query, query.branch)
        tx.operation(kind, table=segment(request, "table"), **setting)
        return await self._writes.answer(request, tx, query.wait)


def _heads(partitions: Iterable[Partition], start: str, limit: int) -> dict[str, dict[str, Any]]:
    """Of each partition the first groups from `start` on, by name."""
    found = {}
    for partition in partitions:
        for name in partition.store.groups(start=start, limit=limit):
            head = partition.store.head(name)
            assert head is not None, "it was listed by its head"
            found[name] = {
                "group": name, "version": head.version, "committed_at": millis_to_text(head.committed_at)
            }  # fmt: skip
    return found


def _group(place: Place, *, count: bool) -> dict[str, Any]:
    """What a group holds at a place."""
    at, view, store = place.at, place.partition.view, place.partition.store
    entry = store.commit_entry(at.group, at.version)
    assert entry is not None, "a place is a commit's"
    branches, tags, tables = branches_at(place), tags_at(place), view.tables(at)
    return {
        "group": at.group,
        "version": at.version,
        "hash": entry.hash.hex(),
        "committed_at": millis_to_text(entry.step.committed_at),
        "branches": [{"name": branch.name, "head": branch.head} for branch in branches],
        "tags": [{"name": name, "version": version} for name, version in tags],
        "tables": [{"table": table, "rows": _count(place, table) if count else None} for table in tables],
        "counts": {"commits": at.version, "branches": len(branches), "tags": len(tags), "tables": len(tables)},
    }


def _count(place: Place, table: str) -> int:
    return sum(row.text is not None for _, row in place.partition.view.all_rows(place.at, table))
