"""Requests that another node has to answer, passed on to it once."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import httpx
import orjson
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from versolog.projections.http import answer
from versolog.projections.http.reads import BEYOND_WAIT_S, FORWARDED, SLOW_ANSWER_S
from versolog.projections.node import Elsewhere, Node, recovering
from versolog.projections.partition import Partition
from versolog.schemas.errors import Malformed, Unavailable, VersologError
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import partition_of
from versolog.streams.transaction import Transaction

CONNECT_TIMEOUT_S = 2.0
CONNECTIONS_MAX = 200
ASK_AGAIN_S = 0.02
AT_ONCE_S = 1.0
"""How long an owner may take that is asked for what can be told without it."""

_HOP_BY_HOP = {
    "connection", "content-length", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip

OF = "versolog-of"
"""Set on a request that is passed on: the group that it is about, percent-encoded."""
PARTITIONS = "versolog-partitions"
"""And this: which partitions are asked for, their numbers with commas between."""

BROKEN = (httpx.TransportError, AttributeError)
"""What sending fails with. The second comes from anyio on uvloop, which looks at the socket of a connection that broke as it
was made: there is none any more."""

_NOT_OWNER = ("not-owner", "recovering")
"""Codes of a node that is not the owner, or not yet."""
_PROBLEM = {"type", "title", "status", "detail", "code"}


def asked_of(node: Node, request: Request) -> list[Partition]:
    """The partitions that a request that was passed on asks this node for, as their owner. Raises Unavailable where it is
    not that, or not yet."""
    named = request.headers.get(PARTITIONS)
    if named is None:
        return node.owned()
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", named):
        raise Malformed(f"{PARTITIONS}: numbers with commas between are wanted", field=PARTITIONS)
    numbers = [int(number) for number in named.split(",")]
    for number in numbers:
        partition = node.partitions.get(number)
        if partition is not None and partition.role == "recovering":
            raise recovering(number)
    return [node.owned_here(number, forwarded=True) for number in numbers]


class Relay:
    """Asks the owner of a partition, and gives its answer back as it is."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
            trust_env=False,
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def pass_on(self, request: Request, elsewhere: Elsewhere) -> Response:
        """The owner's answer to `request`, as it comes. Raises Unavailable."""
        return _streamed(await self._passed_on(request, elsewhere))

    async def found(self, request: Request, elsewhere: Elsewhere) -> Response | None:
        """As `pass_on`; None where the owner answers 404. Raises Unavailable."""
        found = await self._passed_on(request, elsewhere)
        if found.status_code == HTTPStatus.NOT_FOUND:
            await found.aclose()
            return None
        return _streamed(found)

    async def _passed_on(self, request: Request, elsewhere: Elsewhere) -> httpx.Response:
        asked = self._client.build_request(
            request.method,
            "http://owner",
            headers=_passed_headers(request),
            content=elsewhere.body or None,
            timeout=_timeout(elsewhere.answer_within_s),
        )
        raw_path: bytes = request.scope["raw_path"]
        query: bytes = request.scope["query_string"]
        return await self._ask_owner(elsewhere, asked, raw_path + (b"?" + query if query else b""), stream=True)

    async def transaction(self, elsewhere: Elsewhere, tx: Transaction, timeout_s: float) -> Response:
        """The owner's answer to `tx`. Raises Unavailable."""
        found = await self._send(elsewhere, tx, timeout_s)
        return Response(found.content, found.status_code, _answer_headers(found))

    async def outcomes(
        self, elsewhere: Elsewhere, txs: Sequence[Transaction], timeout_s: float
    ) -> list[dict[str, Any]]:
        """The owner's answers to the lines of a batch, in their order; asked anew once where it has moved. Raises
        Unavailable, and then some may have been taken."""
        asked = self._client.build_request(
            "POST",
            "http://owner",
            headers={"content-type": answer.NDJSON, "versolog-wait": f"{timeout_s:.3f}", FORWARDED: "1"},
            content=b"\n".join(orjson.dumps(tx.to_json()) for tx in txs),
            timeout=_timeout(timeout_s + BEYOND_WAIT_S),
        )
        for is_last in (False, True):
            found = await self._ask_owner(elsewhere, asked, b"/v1/transactions:batch")
            told = _lines(found, len(txs))
            if is_last or not all(one.get("code") in _NOT_OWNER for one in told):
                break
            await self._node.owners(refresh=True)
        return told

    async def completed(self, outcome: Outcome, timeout_s: float) -> Outcome:
        """The outcome of a transaction over several partitions, with the hashes of the commits that other nodes made.
        What they don't tell in time stays unknown."""
        deadline_s = time.monotonic() + timeout_s
        while (missing := (outcome := self._node.completed(outcome)).missing) and time.monotonic() < deadline_s:
            with suppress(Unavailable, Elsewhere):
                owners = await self._node.owners()
                for group in missing:
                    url = owners.get(partition_of(group, self._node.count))
                    if url is not None and url != self._node.own_url:
                        path = f"/v1/transactions/{quote(outcome.transaction_id, safe='')}"
                        left_s = max(0.0, deadline_s - time.monotonic())
                        found = await self._get(url, path, {"group": group}, left_s)
                        if found.status_code == HTTPStatus.OK:
                            outcome = outcome.joined([Outcome.from_json(_document(found))])
            if outcome.missing:
                await asyncio.sleep(ASK_AGAIN_S)
        return outcome

    async def ask(self, elsewhere: Elsewhere, path: str, asked: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
        """The JSON that the owner answers to a POST of what one node asks another. Raises its error, and Unavailable."""
        request = self._client.build_request(
            "POST",
            "http://owner",
            headers={"content-type": answer.JSON, "versolog-wait": f"{wait_s:.3f}", FORWARDED: "1"},
            content=orjson.dumps(asked),
            timeout=_timeout(elsewhere.answer_within_s),
        )
        found = await self._ask_owner(elsewhere, request, path.encode())
        told = _document(found)
        if not found.is_success:
            kind = Unavailable if found.status_code == HTTPStatus.SERVICE_UNAVAILABLE else VersologError
            facts = {name: fact for name, fact in told.items() if name not in _PROBLEM}
            raise kind(told.get("detail", "the owner did not say why"), code=told.get("code", "owner-away"), status=found.status_code, **facts)
        return told

    async def first_found(self, request: Request, wait_s: float) -> Response | None:
        """The answer of an owner of other partitions that is not 404; None where they all answer so. Raises Unavailable."""
        if self._node.read_only:
            return None
        owned = {partition.number for partition in self._node.owned()}
        others = [number for number in range(self._node.count) if number not in owned]
        answers = await self._of_owners(others, request.scope["raw_path"].decode(), {}, wait_s)
        told = [found for found in answers if found.status_code != HTTPStatus.NOT_FOUND]
        if not told:
            return None
        found = next((one for one in told if one.status_code == HTTPStatus.OK), told[0])
        return Response(found.content, found.status_code, _answer_headers(found))

    async def gather(
        self, partitions: Iterable[int], path: str, query: Mapping[str, str], wait_s: float, *, slow: bool = False
    ) -> list[Any]:
        """The JSON answers of the owners of all these partitions. Raises Unavailable."""
        answers = []
        for found in await self._of_owners(partitions, path, query, wait_s, slow=slow):
            told = _document(found)
            if found.status_code != HTTPStatus.OK:
                where = f"{found.request.url.netloc.decode()} answers {found.status_code} to {path}"
                raise Unavailable(f"{where}: {told.get('detail', '')}", code=told.get("code", "owner-away"))
            answers.append(told)
        return answers

    async def gather_owned(self, path: str, query: Mapping[str, str] | None = None, *, of: str | None = None) -> list[Any]:
        """The JSON answers of the other owners; those that don't answer at once are passed over. `of` is the group that it
        is about."""
        owned = {partition.number for partition in self._node.owned()}
        others = [number for number in range(self._node.count) if number not in owned]
        owners = await self._node.owners() if others and not self._node.read_only else {}
        urls = sorted({owners[number] for number in others if number in owners} - {self._node.own_url})
        headers = {} if of is None else {OF: quote(of, safe="")}
        asked = (self._get(url, path, query or {}, AT_ONCE_S, headers) for url in urls)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found = [one for one in answers if isinstance(one, httpx.Response) and one.status_code == HTTPStatus.OK]
        return [_document(one) for one in found]

    async def _of_owners(
        self, partitions: Iterable[int], path: str, query: Mapping[str, str], wait_s: float, *, slow: bool = False
    ) -> list[httpx.Response]:
        """What the owners of these partitions answer, each told which of them it is asked for; asked anew once where one has
        moved. Raises Unavailable."""
        wanted, answers = list(partitions), []
        headers, answer_s = {"versolog-wait": f"{wait_s:.3f}"}, SLOW_ANSWER_S if slow else wait_s + BEYOND_WAIT_S
        for refresh in (False, True):
            try:
                urls = await self._owners_of(wanted, refresh=refresh)
                asked = (
                    self._get(url, path, query, answer_s, {**headers, PARTITIONS: ",".join(map(str, numbers))})
                    for url, numbers in urls.items()
                )
                answers = await asyncio.gather(*asked)
            except Unavailable:
                if refresh:
                    raise
                continue
            if refresh or not [one for one in answers if await _is_not_owner(one)]:
                break
        return answers

    async def _owners_of(self, partitions: Iterable[int], *, refresh: bool) -> dict[str, list[int]]:
        """By the other node that owns them, the partitions. Raises Unavailable where one has no owner, or this node is to be
        it and is not yet."""
        wanted = list(partitions)
        owners = await self._node.owners(refresh=refresh) if wanted else {}
        by_url: dict[str, list[int]] = {}
        for number in wanted:
            if (url := owners.get(number, self._node.own_url)) == self._node.own_url:
                here = self._node.partitions.get(number)
                raise Elsewhere(number, reason=None if here is None else here.error).nobody()
            by_url.setdefault(url, []).append(number)
        return by_url

    async def _get(
        self, url: str, path: str, query: Mapping[str, str], answer_s: float, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        asked = self._client.build_request(
            "GET", url, params=dict(query) or None, headers={FORWARDED: "1", **(headers or {})}, timeout=_timeout(answer_s)
        )
        asked.url = asked.url.copy_with(raw_path=path.encode() + (b"?" + asked.url.query if query else b""))
        try:
            return await self._client.send(asked)
        except BROKEN as error:
            raise Unavailable(f"{url} does not answer: {error}", code="owner-away") from error

    async def _send(self, elsewhere: Elsewhere, tx: Transaction, timeout_s: float) -> httpx.Response:
        asked = self._client.build_request(
            "POST",
            "http://owner",
            headers={"content-type": answer.JSON, "versolog-wait": f"{timeout_s:.3f}", FORWARDED: "1"},
            content=orjson.dumps(tx.to_json()),
            timeout=_timeout(timeout_s + BEYOND_WAIT_S),
        )
        try:
            return await self._ask_owner(elsewhere, asked, b"/v1/transactions")
        except VersologError as error:
            raise Unavailable(
                f"{error.detail}. Who was asked may have taken it: send the same id again",
                code=error.code, **{**error.facts, "id": tx.id, "group": tx.home},
            ) from error  # fmt: skip

    async def _ask_owner(
        self, elsewhere: Elsewhere, asked: httpx.Request, target: bytes, *, stream: bool = False
    ) -> httpx.Response:
        """The owner's answer, with `stream` before its body is read; asked for anew once where it moved, or doesn't answer
        to the end. Raises Unavailable."""
        for refresh in (False, True):
            url = (await self._node.owners(refresh=refresh)).get(elsewhere.partition)
            if url is None or url == self._node.own_url:
                continue
            asked.url = httpx.URL(url).copy_with(raw_path=target)
            asked.headers["host"] = asked.url.netloc.decode()
            try:
                found = await self._client.send(asked, stream=stream)
                if refresh or not await _is_not_owner(found):
                    return found
            except BROKEN:
                continue
        raise elsewhere.nobody()


def _document(found: httpx.Response) -> dict[str, Any]:
    """The JSON object that a node answered. Raises Unavailable where it is none: something stands in between."""
    with suppress(orjson.JSONDecodeError):
        if isinstance(told := orjson.loads(found.content), dict):
            return told
    raise Unavailable(
        f"{found.request.url.netloc.decode()} answers {found.status_code} with something else than JSON", code="owner-away"
    )


def _lines(found: httpx.Response, count: int) -> list[dict[str, Any]]:
    """The `count` outcomes of a batch that a node answered. Raises Unavailable where they are not all there."""
    with suppress(orjson.JSONDecodeError):
        told = [orjson.loads(line) for line in found.content.splitlines()]
        if found.is_success and len(told) == count and all(isinstance(one, dict) and "outcome" in one for one in told):
            return told
    raise Unavailable(
        f"{found.request.url.netloc.decode()} answers {found.status_code} and not the outcomes of {count} lines",
        code="owner-away",
    )


async def _is_not_owner(found: httpx.Response) -> bool:
    if found.status_code != 503:
        return False
    body = await found.aread()
    return any(f'"{code}"'.encode() in body for code in _NOT_OWNER)


def _timeout(answer_s: float) -> httpx.Timeout:
    return httpx.Timeout(answer_s, connect=CONNECT_TIMEOUT_S)


def _streamed(found: httpx.Response) -> Response:
    body: AsyncIterator[bytes] = found.aiter_raw() if not found.is_stream_consumed else _once(found.content)
    return StreamingResponse(body, found.status_code, _answer_headers(found), background=BackgroundTask(found.aclose))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _passed_headers(request: Request) -> dict[str, str]:
    kept = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    return {**kept, FORWARDED: "1", "accept-encoding": "identity"}


def _answer_headers(found: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in found.headers.items() if name not in _HOP_BY_HOP | {"date", "server"}}
