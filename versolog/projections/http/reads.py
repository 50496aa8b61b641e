"""The beginning of every read of a group: which copy answers, what it must have seen, and at which version."""

from __future__ import annotations

from typing import NamedTuple

from starlette.requests import Request

from versolog.projections.http import answer
from versolog.projections.http.request import STALENESS_MAX_S, AtQuery, Query, seconds, wait_s
from versolog.projections.node import Elsewhere, Node
from versolog.projections.partition import Partition
from versolog.schemas.errors import NotFound
from versolog.schemas.outcome import read_token
from versolog.schemas.times import looks_like_time
from versolog.streams.versions import At

FORWARDED = "versolog-forwarded"
"""Set on a request that one node passes on to another, so that it's passed on once."""
BEYOND_WAIT_S = 5.0
"""An owner may wait as long as it was asked to; this much longer is waited for its answer."""
SLOW_ANSWER_S = 600.0
STALENESS = "versolog-staleness"
STALENESS_BOUND = "versolog-staleness-bound"


class Place(NamedTuple):
    """Where a read is answered from."""

    partition: Partition
    at: At
    headers: dict[str, str]
    """Those that say so."""


async def open_partition(
    node: Node, request: Request, group: str, query: Query, *, slow: bool = False, transaction_id: str = ""
) -> Partition:
    """The copy that answers, once it has all that anybody was told of, and that the request's token names. Raises
    Elsewhere and Unavailable.

    `slow` says that answering takes as long as reading the whole group. Where the end of a transaction is asked for, it is
    that which is waited for.
    """
    headers = request.headers
    stale_s = query.stale if query.stale is not None else seconds(request, STALENESS, STALENESS_MAX_S)
    try:
        partition = node.reader(group, stale_s=stale_s, forwarded=FORWARDED in headers)
        if partition.committing(group) is not None or partition.deciding(transaction_id) is not None:
            await node.stored(partition, group, wait_s(request, query.wait))
            await node.told(partition, transaction_id, wait_s(request, query.wait))
            partition = node.reader(group, stale_s=stale_s, forwarded=FORWARDED in headers)
    except Elsewhere as elsewhere:
        elsewhere.answer_within_s = SLOW_ANSWER_S if slow else wait_s(request, query.wait) + BEYOND_WAIT_S
        raise
    token = headers.get(answer.TOKEN)
    if token is not None:
        await node.visible(partition, read_token(token), wait_s(request, query.wait))
    return partition


async def open_place(node: Node, request: Request, group: str, query: AtQuery) -> Place:
    """As `open_partition`, and the exact version that `at` and `branch` name there."""
    partition = await open_partition(node, request, group, query)
    at = await node.resolve(partition, group, query.at, query.branch, wait_s(request, query.wait))
    return Place(partition, at, headers_of(node, partition, at, unchanging=is_unchanging(query.at)))


async def open_newest(node: Node, request: Request, group: str, query: AtQuery, *, slow: bool = False) -> Place:
    """As `open_place`; without `at` and `branch` the newest version of the group, whatever it changed."""
    partition = await open_partition(node, request, group, query, slow=slow)
    head = partition.store.head(group)
    newest = query.at is None and query.branch is None and head is not None
    wanted = str(head.version) if newest and head is not None else query.at
    at = await node.resolve(partition, group, wanted, query.branch, wait_s(request, query.wait))
    return Place(partition, at, headers_of(node, partition, at, unchanging=is_unchanging(query.at)))


def headers_of(node: Node, partition: Partition, at: At, *, unchanging: bool) -> dict[str, str]:
    """The headers of an answer read at `at`."""
    headers = {
        answer.VERSION: str(at.version),
        "cache-control": answer.FOR_EVER if unchanging else answer.ASK_AGAIN,
    }
    if partition.role != "owner" and (bound := node.lag.staleness_s(partition.number)) is not None:
        headers[STALENESS_BOUND] = f"{bound:.3f}"
    return headers


def unknown_row(at: At, table: str, key: str) -> NotFound:
    """What asking for a row that isn't there ends in."""
    return NotFound(
        f"{at.group!r} has no row {key!r} in {table!r} at version {at.version}",
        code="unknown-row", group=at.group, table=table, key=key, at=at.version,
    )  # fmt: skip


def is_unchanging(at: str | None) -> bool:
    """Whether `at` means the same for ever: a version does, a time that is closed, and no name."""
    return at is not None and ((at.isascii() and at.isdigit()) or looks_like_time(at))
