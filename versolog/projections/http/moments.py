"""Reads of many groups at one moment, and the store-wide tags that name moments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer
from versolog.projections.http.budget import Budget
from versolog.projections.http.ranges import read_range
from versolog.projections.http.reads import BEYOND_WAIT_S, FORWARDED
from versolog.projections.http.refs import About, OperationQuery, operation_of
from versolog.projections.http.relay import Relay
from versolog.projections.http.request import (
    LIMIT_MAX,
    Asked,
    Limit,
    WaitQuery,
    fields_in,
    read_body,
    read_query,
    segment,
    wait_s,
)
from versolog.projections.http.transactions import Writes, WriteQuery
from versolog.projections.moments import tagged_ms, unknown_tag
from versolog.projections.node import Elsewhere, Node
from versolog.projections.queries import Predicate
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.documents import to_text
from versolog.schemas.errors import Invalid
from versolog.schemas.times import looks_like_time, micros_from_text, millis_to_text
from versolog.schemas.topics import partition_of
from versolog.streams.state import MAIN, STORE_GROUP, STORE_TAGS_TABLE, Row
from versolog.streams.versions import At, TimeRef, resolve_ref

READ = "/v1/read"
READS_MAX = 1_000
SETTLE_S = 2.0
"""How long what a tag must come after is waited for, however short the wait for its outcome is to be."""


class ReadAsked(Asked):
    """One row by its key, or a range of a table's rows."""

    group: str = Field(min_length=1)
    table: str = Field(min_length=1)
    branch: str = Field(MAIN, description="The branch to read.")
    key: str | None = Field(None, min_length=1, description="The key of one row. Without it, a range is read.")
    prefix: str | None = Field(None, description="Only keys that begin so.")
    start: str | None = Field(None, description="Only keys from this one on.")
    end: str | None = Field(None, description="Only keys before this one.")
    where: str | None = Field(None, description="Only rows whose fields are so: `delay > 15`.")
    after: str | None = Field(None, description="Only keys after this one: the `after` of the answer before.")
    limit: Limit = Field(100, description="The most rows to answer.")

    @model_validator(mode="after")
    def _is_one_or_a_range(self) -> ReadAsked:
        ranged = self.model_fields_set & {"prefix", "start", "end", "where", "after", "limit"}
        if self.key is not None and ranged:
            raise ValueError(f"`key` reads one row, and {min(ranged)!r} is for ranges; leave one out")
        return self


class ReadRequest(Asked):
    """What to read, all of it at one moment."""

    at: str | None = Field(
        None,
        description="An RFC 3339 time or a store-wide tag. Default: the newest moment, with all that was acknowledged, "
        "or could be read anywhere, before.",
    )
    reads: list[ReadAsked] = Field(min_length=1, max_length=READS_MAX)


class StoreTagRequest(About):
    """What a store-wide tag shall name."""

    at: str | None = Field(
        None, description="An RFC 3339 time. Default: the newest moment, with all that was acknowledged before."
    )


class _Forwarded(Asked):
    """What one node asks another about a partition: a fresh moment of these groups; or what is read, at a time or now."""

    partition: int
    groups: list[str] | None = None
    at: str | None = None
    reads: list[ReadAsked] = []


Reads = Mapping[int, ReadAsked]
"""By their place in what was asked."""


class Moments:
    """The handlers of `/v1/read` and `/v1/tags…`."""

    def __init__(self, node: Node, writes: Writes, relay: Relay) -> None:
        self._node, self._writes, self._relay = node, writes, relay

    # Reading

    async def read(self, request: Request) -> Response:
        """POST /v1/read"""
        timeout_s = wait_s(request, read_query(request, WaitQuery).wait)
        body = await read_body(request)
        deadline_s = time.monotonic() + timeout_s
        if FORWARDED in request.headers:
            return answer.document(await self._for_another(fields_in(body, _Forwarded), deadline_s))
        asked = fields_in(body, ReadRequest)
        _refuse_too_much(asked.reads)
        time_ms, results = await self._read(asked.reads, asked.at, deadline_s)
        told = b'{"at":"%b","results":[%b]}' % (millis_to_text(time_ms).encode(), b",".join(results))
        return answer.document(told, headers={"cache-control": answer.ASK_AGAIN})

    async def _read(self, reads: Sequence[ReadAsked], at: str | None, deadline_s: float) -> tuple[int, list[bytes]]:
        """The moment that is meant, in milliseconds, and what stands there."""
        by_partition: dict[int, dict[int, ReadAsked]] = {}
        for place, one in enumerate(reads):
            by_partition.setdefault(partition_of(one.group, self._node.count), {})[place] = one
        if at is None:
            time_ms = await self._fresh({number: _groups(some) for number, some in by_partition.items()}, deadline_s)
        else:
            time_ms = await self.time_of(at, deadline_s)
        found: dict[int, bytes] = {}
        for some in await asyncio.gather(
            *(self._read_of(number, some, time_ms, deadline_s) for number, some in by_partition.items())
        ):
            found |= some
        return time_ms, [found[place] for place in range(len(reads))]

    async def _fresh(self, groups: Mapping[int, Collection[str] | None], deadline_s: float) -> int:
        """A moment, in milliseconds, with all that anybody was told before this call of groups of some partitions; None
        are all groups of one."""
        return max(await asyncio.gather(*(self._fresh_of(number, its, deadline_s) for number, its in groups.items())))

    async def _fresh_of(self, number: int, groups: Collection[str] | None, deadline_s: float) -> int:
        try:
            return await self._node.fresh(self._node.owned_here(number), groups, _left_s(deadline_s))
        except Elsewhere as elsewhere:
            asked = {"partition": number, "groups": None if groups is None else sorted(groups)}
            return int((await self._ask(elsewhere, asked, deadline_s))["fresh"])

    async def time_of(self, at: str, deadline_s: float) -> int:
        """The moment that a time or a store-wide tag names, in milliseconds."""
        if not at:
            raise Invalid("an RFC 3339 time or a store-wide tag is wanted, and nothing is given", field="at")
        if looks_like_time(at):
            self._node.refuse_time_to_come(at)
            return micros_from_text(at) // 1000
        return micros_from_text((await self._tag(at, deadline_s))["at"]) // 1000

    async def _read_of(self, number: int, reads: Reads, time_ms: int | None, deadline_s: float) -> dict[int, bytes]:
        """What one partition holds at a moment, or now, by place; asked of its owner."""
        try:
            return await self._read_here(number, reads, time_ms, deadline_s)
        except Elsewhere as elsewhere:
            asked = {
                "partition": number,
                "at": None if time_ms is None else millis_to_text(time_ms),
                "reads": [one.model_dump(exclude_unset=True) for one in reads.values()],
            }
            told = await self._ask(elsewhere, asked, deadline_s)
            return dict(zip(reads, map(orjson.dumps, told["results"]), strict=True))

    async def _read_here(
        self, number: int, reads: Reads, time_ms: int | None, deadline_s: float, *, forwarded: bool = False
    ) -> dict[int, bytes]:
        partition = self._node.owned_here(number, forwarded=forwarded)
        if time_ms is None:
            for group in _groups(reads):
                await self._node.stored(partition, group, _left_s(deadline_s))
            self._node.owned_here(number, forwarded=forwarded)  # as it was before: who lost it may have missed what was told
        else:
            await self._node.closed(partition, time_ms, _left_s(deadline_s), groups=_groups(reads), has_been=True)
        budget, view = Budget(LIMIT_MAX), partition.view
        return {place: await _result(view, one, time_ms, budget) for place, one in reads.items()}

    async def _ask(self, elsewhere: Elsewhere, asked: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        left_s = _left_s(deadline_s)
        elsewhere.answer_within_s = left_s + BEYOND_WAIT_S
        return await self._relay.ask(elsewhere, READ, asked, left_s)

    async def _for_another(self, asked: _Forwarded, deadline_s: float) -> dict[str, Any]:
        reads = dict(enumerate(asked.reads))
        if reads:
            time_ms = None if asked.at is None else micros_from_text(asked.at) // 1000
            found = await self._read_here(asked.partition, reads, time_ms, deadline_s, forwarded=True)
            return {"results": [orjson.Fragment(found[place]) for place in reads]}
        partition = self._node.owned_here(asked.partition, forwarded=True)
        return {"fresh": await self._node.fresh(partition, asked.groups, _left_s(deadline_s))}

    # Store-wide tags

    async def tags(self, request: Request) -> Response:
        """GET /v1/tags"""
        timeout_s = wait_s(request, read_query(request, WaitQuery).wait)
        found = await self._read_tags(_of_tags(limit=LIMIT_MAX), time.monotonic() + timeout_s)
        told = (_told(row) for row in orjson.loads(found)["rows"])
        tags = [tag for tag in told if tag is not None]
        return answer.document({"tags": tags}, headers={"cache-control": answer.ASK_AGAIN})

    async def tag(self, request: Request) -> Response:
        """GET /v1/tags/{name}"""
        timeout_s = wait_s(request, read_query(request, WaitQuery).wait)
        told = await self._tag(segment(request, "name"), time.monotonic() + timeout_s)
        return answer.document(told, headers={"cache-control": answer.ASK_AGAIN})

    async def put_tag(self, request: Request) -> Response:
        """PUT /v1/tags/{name}"""
        query = read_query(request, WriteQuery)
        asked = fields_in(await read_body(request), StoreTagRequest)
        name = segment(request, "name")
        deadline_s = time.monotonic() + max(SETTLE_S, wait_s(request, query.wait))
        if looks_like_time(name):
            raise Invalid(f"{name!r} would be read as a time; give the tag another name", field="name")
        row: dict[str, Any] = {}
        if asked.at is None:
            # The tag's own commit comes after all that there is by now, whatever the clocks of the brokers say.
            time_ms = await self._fresh(dict.fromkeys(range(self._node.count)), deadline_s)
            number = partition_of(STORE_GROUP, self._node.count)
            await self._read_of(number, {0: _of_tags(key=name)}, time_ms, deadline_s)
        else:
            row["at"] = millis_to_text(await self.time_of(asked.at, deadline_s))
        tx = operation_of(request, STORE_GROUP, asked).put(STORE_TAGS_TABLE, name, row).expect_absent(STORE_TAGS_TABLE, name)
        return await self._writes.answer(request, tx, query.wait)

    async def delete_tag(self, request: Request) -> Response:
        """DELETE /v1/tags/{name}"""
        query = read_query(request, OperationQuery)
        tx = operation_of(request, STORE_GROUP, query).delete(STORE_TAGS_TABLE, segment(request, "name"))
        return await self._writes.answer(request, tx, query.wait)

    async def _read_tags(self, asked: ReadAsked, deadline_s: float) -> bytes:
        """As they are now: of one group there is no moment to wait for."""
        found = await self._read_of(partition_of(STORE_GROUP, self._node.count), {0: asked}, None, deadline_s)
        return found[0]

    async def _tag(self, name: str, deadline_s: float) -> dict[str, Any]:
        row = orjson.loads(await self._read_tags(_of_tags(key=name), deadline_s))
        told = None if row is None else _told(row)
        if told is None:
            raise unknown_tag(name)
        return told


async def _result(view: View, asked: ReadAsked, time_ms: int | None, budget: Budget) -> bytes:
    """What was asked, at the moment or now, as JSON."""
    at = _place(view.store, asked, time_ms)
    if asked.key is not None:
        row = None if at is None else view.row(at, asked.table, asked.key)
        return b"null" if row is None else answer.RowText(asked.group, asked.table)(asked.key, row)
    where = None if asked.where is None else Predicate.parse(asked.where)
    rows: list[bytes] = []
    after = None
    if at is not None:
        bounds = {"prefix": asked.prefix, "start": asked.start, "end": asked.end, "where": where}
        rows, after = await read_range(
            view, at, asked.table, bounds, after=asked.after, limit=asked.limit, budget=budget
        )
    ends = {"version": 0 if at is None else at.version, "after": after}
    return b'{"rows":[' + b",".join(rows) + b"]," + answer.text(ends)[1:]


def _place(store: Store, asked: ReadAsked, time_ms: int | None) -> At | None:
    """Where the branch stood; None for a group that was not there yet, in which nothing is."""
    if store.head(asked.group) is None:
        return None
    if time_ms is None:
        return resolve_ref(store, asked.group, None, asked.branch)
    if store.version_at(asked.group, time_ms) == 0:
        return None
    return resolve_ref(store, asked.group, TimeRef(time_ms), asked.branch)


def _refuse_too_much(reads: Sequence[ReadAsked]) -> None:
    rows = sum(1 if one.key is not None else one.limit for one in reads)
    if rows > LIMIT_MAX:
        raise Invalid(
            f"all reads together may answer {rows:,} rows, and the limit is {LIMIT_MAX:,}; ask for less at once, and "
            "for the rest at the moment that the first answer names",
            field="reads", limit=LIMIT_MAX,
        )  # fmt: skip


def _of_tags(**about: Any) -> ReadAsked:
    return ReadAsked.model_validate({"group": STORE_GROUP, "table": STORE_TAGS_TABLE, **about})


def _groups(reads: Reads) -> set[str]:
    return {one.group for one in reads.values()}


def _left_s(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


def _told(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A store-wide tag as it is told, of its row as HTTP tells that; None for a row that says no moment."""
    committed_at = micros_from_text(row["committed_at"]) // 1000
    time_ms = tagged_ms(Row(row["version"], committed_at, to_text(row["row"]).encode()))
    if time_ms is None:
        return None
    return {
        "name": row["key"],
        "at": millis_to_text(time_ms),
        "version": row["version"],
        "committed_at": row["committed_at"],
    }
