"""Transactions: one, a stream of them, and the outcome of one that was sent before."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from versolog.projections.http import answer
from versolog.projections.http.lines import lines
from versolog.projections.http.reads import FORWARDED, open_partition
from versolog.projections.http.rehearsals import with_cursor
from versolog.projections.http.relay import OF, Relay, asked_of
from versolog.projections.http.request import (
    BODY_BYTES_MAX,
    Asked,
    Query,
    Wait,
    WaitQuery,
    read_json,
    read_query,
    segment,
    version_tag,
    wait_s,
)
from versolog.projections.metrics import HttpMetrics
from versolog.projections.node import Elsewhere, Node, Sent
from versolog.schemas.documents import from_text
from versolog.schemas.errors import Invalid, Malformed, NotFound, Unavailable, Undecided, VersologError
from versolog.schemas.outcome import Outcome
from versolog.schemas.times import millis_to_text
from versolog.schemas.topics import partition_of
from versolog.streams.sequencer import SEQUENCER_BESIDE
from versolog.streams.transaction import Transaction

BATCH_UNDER_WAY_MAX = 2_000
"""Lines of one batch that may wait for their outcome; the next is read when the first of these is answered."""
BATCH_WAITS_MAX_S = 0.05
"""And while that one has waited for so long, hardly any are read: single writes stand behind them."""
BATCH_WAITS_ALONE_MAX_S = 0.25
"""The same while no single write is expected: the more is under way, the more goes into each Kafka transaction."""
SINGLE_WRITES_EXPECTED_S = 5.0
"""For so long after a single write another one is expected."""
SLICE_LINES = 25
"""Read between two turns of the event loop."""
SLICE_AFTER_S = 0.1
"""A slice is read after so long whatever waits: one line that waits for others does not stop the rest."""
FLUSH_BYTES = 64 * 1024
PASSED_AT_ONCE = 500
"""Lines in one request to another node."""
WHY_LATE_S = 2.0
"""How long it may take to find out for what a late transaction waits: who asked has waited long enough."""


WAITING = "/v1/transactions:waiting"


class WriteQuery(Asked):
    """How long to wait for the outcome."""

    wait: Wait | None = Field(
        None,
        description="How many seconds to wait for the outcome at most. Also as the header `Versolog-Wait`. Default 5. "
        "Without an outcome by then the answer is 202, and the transaction is decided later.",
    )


class WaitingQuery(WaitQuery):
    """Which of those that wait to tell."""

    id: str | None = Field(None, description="Only the transaction of this id.")


class OutcomeQuery(Query):
    """Which transaction is meant."""

    group: str | None = Field(
        None, description="A group of the transaction: the least by its UTF-8 bytes, where there are several. "
        "Without it every partition is asked.",
    )  # fmt: skip


class Writes:
    """Sends transactions and answers with their outcome, whatever endpoint they came in by."""

    def __init__(self, node: Node, relay: Relay, metrics: HttpMetrics) -> None:
        self._node, self._relay, self._metrics = node, relay, metrics
        self._single_s = float("-inf")
        """When the last single write came, on the monotonic clock."""

    async def one(self, request: Request) -> Response:
        """POST /v1/transactions"""
        query = read_query(request, WriteQuery)
        asked = await read_json(request)
        if isinstance(asked, dict):
            _take_headers(request, asked)
        return await self.answer(request, Transaction.from_json(asked), query.wait)

    async def answer(self, request: Request, tx: Transaction, wait: float | None, *, of_row: bool = False) -> Response:
        """Send `tx` and answer with its outcome; `of_row` says that it changes one row, whose ETag goes along."""
        timeout_s = wait_s(request, wait)
        self._single_s = time.monotonic()
        try:
            outcome = await self._node.submit(tx, timeout_s)
        except Elsewhere as elsewhere:
            if FORWARDED in request.headers:
                raise elsewhere.mistaken() from None
            return await self._relay.transaction(elsewhere, tx, timeout_s)
        except Undecided as late:
            self._metrics.decided("undecided")
            return undecided(await self._why_late(late, tx), tx)
        self._metrics.decided(outcome.code or "committed")
        if outcome.missing:
            outcome = await self._relay.completed(outcome, timeout_s)
        return outcome_answer(outcome, tx, of_row=of_row)

    async def waiting(self, request: Request) -> Response:
        """GET /v1/transactions:waiting"""
        query = read_query(request, WaitingQuery)
        found = await self._waiting(query.id, here_only=FORWARDED in request.headers)
        return answer.document({"transactions": found}, headers={"cache-control": "no-store"})

    async def _waiting(self, tx_id: str | None, *, here_only: bool = False) -> list[dict[str, Any]]:
        """What waits; with `tx_id` what each partition that has a share of it knows of that."""
        now_ms = time.time_ns() // 1_000_000
        found = [
            {
                "id": one.transaction_id,
                "groups": sorted(one.groups),
                "partition": one.partition,
                "since": millis_to_text(one.since_ms),
                "waited_s": max(0.0, (now_ms - one.since_ms) / 1000),
                "awaited": list(one.awaited),
            }
            for one in self._node.waiting()
            if tx_id is None or one.transaction_id == tx_id
        ]
        if not here_only:
            asked = {} if tx_id is None else {"id": tx_id}
            for told in await self._relay.gather_owned(WAITING, asked):
                found += told["transactions"]
        return sorted(found, key=lambda one: (one["since"], one["partition"]))

    async def _why_late(self, late: Undecided, tx: Transaction) -> Undecided:
        """`late`, with the partitions that the transaction waits for, as far as they can soon be told."""
        numbers = {partition_of(group, self._node.count) for group in tx.groups}
        is_of_one, is_ours = len(numbers) == 1, numbers <= {partition.number for partition in self._node.owned()}
        mine = await self._waiting(tx.id, here_only=True)
        if not (is_of_one and is_ours):
            with suppress(TimeoutError, VersologError):  # it is in the log all the same, and its sender has to hear that
                async with asyncio.timeout(WHY_LATE_S):
                    mine = await self._waiting(tx.id)
        if not mine:
            if is_of_one:
                return late
            return Undecided(
                f"{late.detail}; no partition that answers has a share of it yet, which the worker that owns partition "
                f"{SEQUENCER_BESIDE} gives out",
                **late.facts,
            )
        awaited = sorted({number for one in mine for number in one["awaited"]})
        behind = "the votes of partitions " + ", ".join(map(str, awaited)) if awaited else "transactions before it"
        return Undecided(f"{late.detail}; it waits for {behind}", **late.facts, awaited=awaited)

    async def batch(self, request: Request) -> Response:
        """POST /v1/transactions:batch"""
        query = read_query(request, WriteQuery)
        return answer.Talk(self._batch(request, wait_s(request, query.wait)), answer.NDJSON)

    async def _batch(self, request: Request, timeout_s: float) -> AsyncGenerator[bytes]:
        """The outcome of each line, in order, each as soon as those before it are known."""
        asked = _UnderWay(self._batch_waits_max_s)
        order = _Order(self._relay, timeout_s, forwarded=FORWARDED in request.headers)
        reader = asyncio.create_task(self._read_batch(request, asked, order, timeout_s))
        told = bytearray()
        try:
            while (line := await asked.first()) is not None:
                if told and not line.is_settled:
                    yield bytes(told)
                    told.clear()
                asked.pop()  # from here on it forgets itself
                told += answer.text(await line.outcome(self._metrics)) + b"\n"
                if not asked or len(told) >= FLUSH_BYTES:
                    yield bytes(told)
                    told.clear()
            if told:
                yield bytes(told)
            await reader
        finally:
            reader.cancel()
            await asyncio.wait({reader})
            asked.forget()
            order.end()

    def _batch_waits_max_s(self) -> float:
        is_alone = time.monotonic() - self._single_s > SINGLE_WRITES_EXPECTED_S
        return BATCH_WAITS_ALONE_MAX_S if is_alone else BATCH_WAITS_MAX_S

    async def _read_batch(self, request: Request, asked: _UnderWay, order: _Order, timeout_s: float) -> None:
        count = 0
        try:
            async for line in lines(request.stream(), BODY_BYTES_MAX):
                asked.append(self._send(line, order, timeout_s))
                count += 1
                if count % SLICE_LINES == 0:
                    await asyncio.sleep(0)
                    await asked.room()
        finally:
            asked.end()

    def _send(self, line: bytes | VersologError, order: _Order, timeout_s: float) -> _Line:
        """Send what one line holds."""
        tx_id: str | None = None
        tx: Transaction | None = None
        try:
            if isinstance(line, VersologError):
                raise line
            asked = from_text(line)
            tx_id = asked.get("id") if isinstance(asked, dict) and isinstance(asked.get("id"), str) else None
            tx = Transaction.from_json(asked)
            tx_id = tx.id
            order.refuse_behind(tx)
            return _Sent(self._node.send(tx), tx, time.monotonic() + timeout_s, self._relay)
        except Elsewhere as elsewhere:
            assert tx is not None, "it was sent"
            return order.pass_on(elsewhere, tx)
        except VersologError as error:
            if tx is not None and error.retriable:
                order.hold_back(tx.groups, error)
            return _Settled(_unsent(tx_id, error))

    async def outcome(self, request: Request) -> Response:
        """GET /v1/transactions/{id}"""
        query = read_query(request, OutcomeQuery)
        tx_id = segment(request, "id")
        is_first = FORWARDED not in request.headers
        if query.group is None:
            for partition in self._node.owned() if is_first else asked_of(self._node, request):
                await self._node.told(partition, tx_id, wait_s(request, query.wait))
            found = self._anywhere(tx_id, unquote(request.headers.get(OF, "")))
        else:
            try:
                partition = await open_partition(self._node, request, query.group, query, transaction_id=tx_id)
            except Elsewhere as elsewhere:
                passed = await self._relay.found(request, elsewhere)
                if passed is not None:
                    return passed
                found = None
            else:
                found = self._node.outcome_in(partition.number, tx_id)
            if found is None and is_first:
                found = await self._told_elsewhere(request, tx_id, query.group)
        if found is not None:
            found = self._node.completed(found)
            if found.missing and is_first:
                found = await self._relay.completed(found, wait_s(request, None))
            lasting = answer.ASK_AGAIN if found.missing else answer.FOR_EVER
            return answer.document(found.to_json(), headers={"cache-control": lasting})
        if query.group is None and is_first:
            self._node.refuse_recovering()
            passed = await self._relay.first_found(request, wait_s(request, query.wait))
            if passed is not None:
                return passed
        raise NotFound(f"no transaction {tx_id!r} was decided yet", code="unknown-transaction", id=tx_id)

    async def _told_elsewhere(self, request: Request, tx_id: str, group: str) -> Outcome | None:
        """What another participant of a transaction on `group` knows that can be asked at once: one that refuses knows
        before the others do."""
        found = self._anywhere(tx_id, group)
        if found is None:
            told = await self._relay.gather_owned(request.scope["raw_path"].decode(), of=group)
            found = next(map(Outcome.from_json, told), None)
        return found

    def _anywhere(self, tx_id: str, group: str = "") -> Outcome | None:
        """What any partition here knows of the id; only of a transaction on `group` where one is given, for others may have
        used the id as well."""
        found = (self._node.outcome_in(number, tx_id) for number in sorted(self._node.partitions))
        return next((outcome for outcome in found if outcome is not None and _is_on(outcome, group)), None)


def _is_on(outcome: Outcome, group: str) -> bool:
    return not group or not outcome.parts or any(part.group == group for part in outcome.parts)


# The lines of a batch, each on its way to its outcome


class _Settled:
    """A line whose end is known as it is read."""

    is_settled = True

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told

    async def outcome(self, metrics: HttpMetrics) -> dict[str, Any]:
        metrics.decided(self._told["code"])
        return self._told

    def forget(self) -> None:
        pass


class _Sent:
    """A line that was sent to the log."""

    def __init__(self, sent: Sent, tx: Transaction, deadline_s: float, relay: Relay) -> None:
        self._sent, self._tx, self._deadline_s, self._relay = sent, tx, deadline_s, relay

    @property
    def is_settled(self) -> bool:
        return self._sent.is_decided

    async def outcome(self, metrics: HttpMetrics) -> dict[str, Any]:
        try:
            outcome = await self._sent.outcome(max(0.0, self._deadline_s - time.monotonic()))
        except VersologError as error:
            metrics.decided(error.code)
            return _unsent(self._tx.id, error)
        metrics.decided(outcome.code or "committed")
        if outcome.missing:
            outcome = await self._relay.completed(outcome, max(0.0, self._deadline_s - time.monotonic()))
        return with_cursor(outcome.to_json(), self._tx)

    def forget(self) -> None:
        self._sent.forget()


class _Passed:
    """A line that another node is asked to send."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx
        self._told = asyncio.get_running_loop().create_future()

    def settle(self, told: dict[str, Any]) -> None:
        if not self._told.done():
            self._told.set_result(told)

    @property
    def is_settled(self) -> bool:
        return self._told.done()

    async def outcome(self, metrics: HttpMetrics) -> dict[str, Any]:
        told: dict[str, Any] = await self._told
        return told

    def forget(self) -> None:
        self._told.cancel()


_Line = _Settled | _Sent | _Passed


class _Order:
    """Keeps the lines of each group of one batch in order.

    Once a line is not taken for the moment, what comes behind it on its groups is not taken either: it would be decided
    before the line that is sent again. Lines for a partition that only another node sees go there in one request after
    the other, each with all that have come by then.
    """

    def __init__(self, relay: Relay, timeout_s: float, *, forwarded: bool) -> None:
        self._relay, self._timeout_s, self._forwarded = relay, timeout_s, forwarded
        self._held: dict[str, tuple[str, str]] = {}
        """By group, the code and the reason of the line that was not taken."""
        self._queues: dict[int, deque[_Passed]] = {}
        self._passing: dict[int, asyncio.Task[None]] = {}

    def hold_back(self, groups: Iterable[str], error: VersologError) -> None:
        """Take nothing more on these groups."""
        self._held.update(dict.fromkeys(groups, (error.code, error.detail)))

    def refuse_behind(self, tx: Transaction) -> None:
        """Raise Unavailable where `tx` comes behind a line that was not taken."""
        if not self._held:
            return
        for group in tx.groups:
            if group in self._held:
                code, detail = self._held[group]
                raise Unavailable(
                    f"a line before it on {group!r} was not taken ({detail}): send both again, in their order", code=code
                )

    def pass_on(self, elsewhere: Elsewhere, tx: Transaction) -> _Line:
        """Have the owner send `tx`, behind those that it was asked to send before."""
        if self._forwarded:
            error = elsewhere.mistaken()
            self.hold_back(tx.groups, error)
            return _Settled(_unsent(tx.id, error))
        number, line = elsewhere.partition, _Passed(tx)
        queue = self._queues.setdefault(number, deque())
        queue.append(line)
        if number not in self._passing or self._passing[number].done():
            self._passing[number] = asyncio.create_task(self._pass_on(elsewhere, queue))
        return line

    def end(self) -> None:
        """Ask no more."""
        for task in self._passing.values():
            task.cancel()

    async def _pass_on(self, elsewhere: Elsewhere, queue: deque[_Passed]) -> None:
        while queue:
            some = [queue.popleft() for _ in range(min(len(queue), PASSED_AT_ONCE))]
            for line in some:
                try:
                    self.refuse_behind(line.tx)
                except Unavailable as behind:
                    line.settle(_unsent(line.tx.id, behind))
            if asked := [line for line in some if not line.is_settled]:
                await self._ask(elsewhere, asked)

    async def _ask(self, elsewhere: Elsewhere, lines: Sequence[_Passed]) -> None:
        try:
            told = await self._relay.outcomes(elsewhere, [line.tx for line in lines], self._timeout_s)
        except VersologError as error:
            for line in lines:
                self.hold_back(line.tx.groups, error)
                line.settle(_unsent(line.tx.id, error))
            return
        for line, one in zip(lines, told, strict=True):
            if one["outcome"] == "undecided" and one.get("code") != Undecided.code:
                self.hold_back(line.tx.groups, Unavailable(one.get("detail", ""), code=one.get("code")))
            line.settle(one)


class _UnderWay:
    """The lines of one batch that were sent and are not answered, in order.

    No more are sent while there are many, or while the first one waits for long already. Then the lines come faster
    than they are decided, and what is sent beyond that only has all others wait, single writes too.
    """

    def __init__(self, waits_max_s: Callable[[], float]) -> None:
        """`waits_max_s` answers for how long the first one may wait before no more are sent."""
        self._waits_max_s = waits_max_s
        self._lines: deque[tuple[float, _Line]] = deque()
        self._is_over = False
        self._awaited: tuple[float, _Line] | None = None
        """What was popped last, whose outcome is waited for."""
        self._more, self._fewer = asyncio.Event(), asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def append(self, line: _Line) -> None:
        self._lines.append((time.monotonic(), line))
        self._more.set()

    def end(self) -> None:
        """There are no more."""
        self._is_over = True
        self._more.set()

    async def first(self) -> _Line | None:
        """The first of them, once there is one; None at the end."""
        self._awaited = None
        while not self._lines:
            if self._is_over:
                return None
            self._fewer.set()
            self._more.clear()
            await self._more.wait()
        self._fewer.set()
        return self._lines[0][1]

    def pop(self) -> None:
        """The first is taken over."""
        self._awaited = self._lines.popleft()

    async def room(self) -> None:
        """Wait until some more may be sent. For one that waits for others no longer than a moment: the rest need not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SLICE_AFTER_S):
                while self._first_waits():
                    await self._change()
        while len(self._lines) >= BATCH_UNDER_WAY_MAX:
            await self._change()

    async def _change(self) -> None:
        self._fewer.clear()
        await self._fewer.wait()

    def _first_waits(self) -> bool:
        first = self._awaited or (self._lines[0] if self._lines else None)
        return first is not None and time.monotonic() - first[0] > self._waits_max_s() and not first[1].is_settled

    def forget(self) -> None:
        """Wait for none of them any more."""
        for _, line in self._lines:
            line.forget()
        self._lines.clear()


# How outcomes are told


def outcome_answer(outcome: Outcome, tx: Transaction, *, of_row: bool = False) -> Response:
    """201 with the outcome, or the problem that its refusal is; the same for each retry."""
    if (problem := outcome.problem()) is not None:
        return answer.problem_document(with_cursor(problem, tx))
    headers = {"location": _location(outcome.transaction_id, outcome.parts[0].group)}
    if outcome.token:
        headers[answer.TOKEN] = outcome.token
    if len(outcome.parts) == 1 and outcome.parts[0].version:
        headers[answer.VERSION] = str(outcome.parts[0].version)
        if of_row:
            headers["etag"] = f'"{outcome.parts[0].version}"'
    return answer.document(outcome.to_json(), status=201, headers=headers)


def undecided(late: Undecided, tx: Transaction) -> Response:
    """202: it is in the log and will be decided."""
    headers = {"location": _location(tx.id, tx.home), "retry-after": str(answer.RETRY_AFTER_S)}
    return answer.document(_unsent(tx.id, late), status=202, headers=headers)


def _unsent(tx_id: str | None, error: VersologError) -> dict[str, Any]:
    """An outcome that isn't one: what will not be decided is refused, of the rest nothing is known yet."""
    verdict = "undecided" if error.retriable else "refused"
    return {"id": tx_id, "outcome": verdict, "code": error.code, "detail": error.detail} | {
        name: fact for name, fact in error.facts.items() if name != "id"
    }


def _location(tx_id: str, group: str) -> str:
    return f"/v1/transactions/{quote(tx_id, safe='')}?group={quote(group, safe='')}"


def _take_headers(request: Request, asked: dict[str, Any]) -> None:
    """Put `Idempotency-Key` and `If-Match` where a transaction says the same in its body."""
    key = idempotency_key(request)
    if key is not None and asked.setdefault("id", key) != key:
        raise Invalid("the body's id and Idempotency-Key name two transactions; leave one out", field="/id")
    head = version_tag(request, "if-match")
    if head is None:
        return
    if "parts" in asked:
        raise Invalid("If-Match can't say which of the groups it means; use expect_head in each part", field="if-match")
    if asked.setdefault("expect_head", head) != head:
        raise Invalid("the body's expect_head and If-Match name two versions; leave one out", field="/expect_head")


def idempotency_key(request: Request) -> str | None:
    """The transaction id in the `Idempotency-Key` header, bare or as a quoted string. Raises Malformed."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or not key.isascii() or not key.isprintable():
        raise Malformed("Idempotency-Key takes a transaction id of ASCII characters", field="idempotency-key")
    return key
