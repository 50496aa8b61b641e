"""What an operation would do, or why it can't, page by page: dry runs, and the conflicts of what was refused.

Pages are not kept but computed again, at the version of the group that the first one was computed at: what an
operation does is a function of that. A refusal names the version, so its pages go on from what its outcome holds.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer, commits, cursor
from versolog.projections.http.budget import PAGE_BYTES_MAX
from versolog.projections.http.reads import open_partition
from versolog.projections.http.request import Query, wait_s
from versolog.projections.node import Elsewhere, Node
from versolog.projections.partition import Partition
from versolog.projections.past import Past
from versolog.schemas.codec import Record
from versolog.schemas.documents import from_text
from versolog.schemas.errors import MergeConflict
from versolog.streams.changes import Line
from versolog.streams.decide import plan
from versolog.streams.merging import CONFLICTS_TOLD_MAX, Unmerged
from versolog.streams.state import Row
from versolog.streams.transaction import Transaction
from versolog.streams.versions import Difference, rows_at, unknown_group

Json = dict[str, Any]

ROWS_SHOWN_MAX = 1_000
KEPT_MAX = 8
KEPT_BYTES_MAX = 64 * 1024 * 1024
"""What was computed last is kept for the pages that follow; more of it is computed again."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What an operation came to at one version: rows that would change, or conflicts."""

    at: int
    told: Json
    """The answer but for its listing."""
    items: list[bytes]
    """The listing, each item as JSON."""
    conflicts: bool
    first: int
    """How many conflicts a refusal holds."""

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.items))


class Rehearsals:
    """Answers dry runs and the pages after a first one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._kept: OrderedDict[tuple[int, bytes, int], Rehearsed] = OrderedDict()

    async def answer(
        self, request: Request, tx: Transaction, body: bytes, wait: float | None, *, limit: int | None = None,
        page: str | None = None, references: Sequence[str | None] = (),
    ) -> Response:  # fmt: skip
        """What `tx`, of one group, would do if it were decided now; with `page`, the page that this cursor leads to.

        `references` are those that the operation names: times among them are waited for.
        """
        part: Record = tx.record()["parts"][0]
        listing = listing_of(part)
        position = None if page is None else cursor.unseal(listing, page)
        partition = await self._partition(request, tx.home, body, wait)
        if position is None:
            for reference in references:
                await self._node.resolve(partition, tx.home, reference, part["branch"], wait_s(request, wait))
            rehearsed, start = await asyncio.to_thread(_rehearse, partition, part, None), 0
        else:
            at, start = position
            await self._node.visible(partition, {tx.home: at}, wait_s(request, wait))
            rehearsed = await self._again(partition, part, listing, at)
        if limit is None and position is None and rehearsed.conflicts:
            return _told(rehearsed, listing, start, rehearsed.first)  # what a refusal would hold
        return _page(rehearsed, listing, start, limit)

    async def _partition(self, request: Request, group: str, body: bytes, wait: float | None) -> Partition:
        try:
            return await open_partition(self._node, request, group, Query(wait=wait, stale=None))
        except Elsewhere as elsewhere:
            elsewhere.body = body
            raise

    async def _again(self, partition: Partition, part: Record, listing: bytes, at: int) -> Rehearsed:
        """As it was at version `at`, when all that it expected was so."""
        key = (partition.number, listing, at)
        kept = self._kept.pop(key, None)
        if kept is None:
            part = part | {"expect_head": None, "expect": []}
            kept = await asyncio.to_thread(_rehearse, partition, part, at)
        self._kept[key] = kept
        while len(self._kept) > KEPT_MAX or sum(one.size_bytes for one in self._kept.values()) > KEPT_BYTES_MAX:
            self._kept.popitem(last=False)
        return kept


def listing_of(part: Record) -> bytes:
    """The name of what the operation of a part lists: the same however its defaults are spelled."""
    operation = part["operation"]
    asked = {
        name: value
        for name, value in from_text(operation["arguments"]).items()
        if value not in (None, False, [], {}) and (name, value) != ("policy", "fail")
    }
    text = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS).decode()
    return cursor.listing("rehearsal", part["group"], part["branch"], operation["kind"], text)


def with_cursor(told: Mapping[str, Any], tx: Transaction) -> Json:
    """A refusal of `tx` as it is told, with the cursor to the conflicts that its outcome has no room for."""
    whole = dict(told)
    if whole.get("code") != MergeConflict.code or "at" not in whole:
        return whole
    part = next(part for part in tx.record()["parts"] if part["group"] == whole["group"])
    listed = len(whole["conflicts"])
    more = listed < whole["total"] and part["operation"] is not None
    return whole | {"cursor": cursor.seal(listing_of(part), [whole["at"]["version"], listed]) if more else None}


def _rehearse(partition: Partition, part: Record, at: int | None) -> Rehearsed:
    """Plan the part at a version, the newest by default. Raises its refusal, where that is not a listing itself."""
    group, store = part["group"], partition.store
    if at is None:
        head = store.head(group)
        if head is None:
            raise unknown_group(group)
        at = head.version
    try:
        line, _ = plan(Past(store, group, at), part)
    except Unmerged as refused:
        told = refused.problem()
        first = len(told.pop("conflicts"))
        return Rehearsed(at, told, [orjson.dumps(found.to_json()) for found in refused.every], True, first)
    counts, items = _changes(partition, line)
    told = {"dry_run": True, "group": group, "branch": part["branch"], "version": at, "counts": counts}
    return Rehearsed(at, told, items, False, 0)


def _changes(partition: Partition, line: Line) -> tuple[Json, list[bytes]]:
    """How many rows would change in which way, and each of them."""
    places = sorted(line.changed)
    before = rows_at(partition.store, line.group, line.levels, places) if line.levels else [None] * len(places)
    counts: Counter[str] = Counter()
    items: list[bytes] = []
    for (table, key), row in zip(places, before, strict=True):
        text = line.changed[table, key]
        if (None if row is None else row.text) == text:
            continue
        after = None if text is None else Row(0, 0, text)
        found = Difference(table, key, row, after)
        counts[commits.change_of(found)] += 1
        shown = commits.difference(found) | {"after": None if after is None else answer.row_text(after)}
        items.append(orjson.dumps(shown))
    kinds = {kind: counts[kind] for kind in ("added", "changed", "removed")}
    return {"rows": counts.total(), **kinds, "complete": True}, items


def _page(rehearsed: Rehearsed, listing: bytes, start: int, limit: int | None) -> Response:
    """The items from `start` on, as many as fit and at least one."""
    default = CONFLICTS_TOLD_MAX if rehearsed.conflicts else ROWS_SHOWN_MAX
    count = size = 0
    for item in rehearsed.items[start : start + (limit or default)]:
        size += len(item)
        if count and size > PAGE_BYTES_MAX:
            break
        count += 1
    return _told(rehearsed, listing, start, count)


def _told(rehearsed: Rehearsed, listing: bytes, start: int, count: int) -> Response:
    end = start + count
    page = [orjson.Fragment(item) for item in rehearsed.items[start:end]]
    following = cursor.seal(listing, [rehearsed.at, end]) if end < len(rehearsed.items) else None
    told = dict(rehearsed.told)
    if rehearsed.conflicts:
        return answer.problem_document(told | {"conflicts": page, "cursor": following})
    if start:
        told["counts"] = None
    headers = {"cache-control": "no-store"}
    return answer.document(told | {"rows": page, "cursor": following}, headers=headers)
