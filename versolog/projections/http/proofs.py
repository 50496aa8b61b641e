"""Proofs: the chain computed again from the log, and digests of all that a group or the store holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections import digest
from versolog.projections.http import answer
from versolog.projections.http.moments import Moments
from versolog.projections.http.reads import FORWARDED, open_partition
from versolog.projections.http.relay import Relay, asked_of
from versolog.projections.http.request import AtQuery, Query, WaitQuery, read_query, segment, wait_s
from versolog.projections.node import Node
from versolog.projections.partition import Partition
from versolog.projections.tail import Ends
from versolog.projections.verify import Verified, Verifier
from versolog.schemas.errors import VersologError
from versolog.schemas.times import millis_to_text
from versolog.schemas.topics import Topics
from versolog.streams.versions import unknown_group

AT_ONCE = 2
"""Proofs that are computed at a time; the next wait for one of them."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Source:
    """The log, to read it again from its beginning."""

    kafka: dict[str, Any]
    topics: Topics
    ends: Ends


class DigestQuery(WaitQuery):
    """As of when."""

    at: str | None = Field(None, description="An RFC 3339 time or a store-wide tag. Default: all there is.")


class Proofs:
    """The handlers. What they do takes as long as reading all of it, in threads."""

    def __init__(self, node: Node, relay: Relay, moments: Moments, source: Source | None) -> None:
        self._node, self._relay, self._moments, self._source = node, relay, moments, source
        self._threads = ThreadPoolExecutor(AT_ONCE, "versolog-proofs")

    async def verify_group(self, request: Request) -> Response:
        """GET /v1/groups/{group}/verify"""
        group = segment(request, "group")
        partition = await open_partition(self._node, request, group, read_query(request, Query), slow=True)
        if partition.store.head(group) is None:
            raise unknown_group(group)
        found = await self._verify(partition, group)
        version, hash_ = found.heads.get(group, (0, b""))
        told = {"group": group, **_told(found), "version": version, "hash": hash_.hex()}
        return answer.document(told, headers={"cache-control": "no-store"})

    async def verify_all(self, request: Request) -> Response:
        """GET /v1/verify: the partitions that this node owns"""
        read_query(request, WaitQuery)
        partitions = []
        for partition in self._node.owned():
            found = await self._verify(partition, None)
            partitions.append({"partition": partition.number, **_told(found), "groups": found.groups})
        told = {"ok": all(one["ok"] for one in partitions), "partitions": partitions}
        return answer.document(told, headers={"cache-control": "no-store"})

    async def _verify(self, partition: Partition, group: str | None) -> Verified:
        source = self._source
        if source is None:
            raise VersologError(
                "a copy has no log to be verified against; ask the live store", code="no-log", status=403
            )
        verifier = Verifier(
            partition.number, topics=source.topics, codec=self._node.codec, store=partition.store, group=group
        )
        return await self._apart(verifier.run, source.kafka, source.ends)

    async def _apart(self, slow: Callable[..., Answer], *arguments: object) -> Answer:
        """What `slow` returns, with few of its kind at once: all other reads would wait for a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, slow, *arguments)

    async def digest_group(self, request: Request) -> Response:
        """GET /v1/groups/{group}/digest"""
        group = segment(request, "group")
        query = read_query(request, AtQuery)
        partition = await open_partition(self._node, request, group, query, slow=True)
        await self._node.resolve(partition, group, query.at, query.branch, wait_s(request, query.wait))
        store = partition.store
        version = digest.version_named(store, group, query.at, query.branch)
        computed = await self._apart(digest.group_digest, store, group, version)
        told = {"group": group, "version": version, "digest": computed.hex()}
        return answer.document(told, headers={answer.VERSION: str(version), "cache-control": answer.ASK_AGAIN})

    async def digest_all(self, request: Request) -> Response:
        """GET /v1/digest"""
        query = read_query(request, DigestQuery)
        timeout_s = wait_s(request, query.wait)
        time_ms = None
        if query.at is not None:
            time_ms = await self._moments.time_of(query.at, time.monotonic() + timeout_s)
        forwarded = FORWARDED in request.headers
        here = asked_of(self._node, request) if forwarded else self._node.readable()
        for partition in here:
            if time_ms is None:
                await self._node.level(partition, timeout_s)
            else:
                await self._node.closed(partition, time_ms, timeout_s)
        digests = await self._apart(_digests, here, time_ms)
        if forwarded:
            return answer.document({group: computed.hex() for group, computed in digests.items()})
        asked = {} if time_ms is None else {"at": millis_to_text(time_ms)}
        for told in await self._relay.gather(self._node.elsewhere(), "/v1/digest", asked, timeout_s, slow=True):
            digests |= {group: bytes.fromhex(computed) for group, computed in told.items()}
        whole = digest.combined(digests.items())
        told = {"digest": whole.hex(), "groups": len(digests), "at": query.at}
        return answer.document(told, headers={"cache-control": answer.ASK_AGAIN})


def _digests(partitions: list[Partition], time_ms: int | None) -> dict[str, bytes]:
    return {
        group: digest.group_digest(partition.store, group, version)
        for partition in partitions
        for group, version in digest.standing(partition.store, time_ms)
    }


def _told(found: Verified) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "commits": found.commits,
        "outcomes": found.outcomes,
        "rows": found.rows,
        "findings": [finding.to_json() for finding in found.findings],
    }
