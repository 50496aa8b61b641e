"""The client for an event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import stamina

from versolog.client import calls
from versolog.client.answers import (
    Apart,
    BlamedField,
    Branch,
    Commit,
    CommitChanges,
    Diff,
    Group,
    GroupHead,
    LoggedCommit,
    MergeFunctions,
    Moment,
    Past,
    Read,
    Rehearsal,
    Row,
    RowChange,
    StoreTag,
    TableChecks,
    TableSchema,
    Tag,
    Verified,
    WaitingTransaction,
)
from versolog.client.calls import RETRY_FOR_S, TIMEOUT_S, Again, At, Call, Page, Written
from versolog.schemas.conflicts import Conflict, Resolution
from versolog.schemas.errors import MergeConflict, VersologError
from versolog.schemas.outcome import Outcome
from versolog.streams.state import MAIN, STORE_GROUP, STORE_TAGS_TABLE
from versolog.streams.transaction import Transaction

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class AsyncTransaction(Transaction):
    """A transaction with the client that sends it."""

    __slots__ = ("_client",)

    def __init__(self, client: AsyncClient, group: str | None, **about: Any) -> None:
        super().__init__(group, **about)
        self._client = client

    async def send(self) -> Outcome:
        """Send it and wait for its outcome. Raises the refusal, by its type; sending again is harmless."""
        return await self._client.send(self)


class AsyncClient:
    """As `Client`, on one event loop: the same calls to await, and `async for` where that has an iterator."""

    def __init__(
        self,
        url: str,
        *,
        author: str = "",
        timeout_s: float = TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        read_own_writes: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As `Client`."""
        self._author = author
        self._timeout_s, self._retry_for_s = timeout_s, retry_for_s
        self._written = Written() if read_own_writes else None
        self._http = httpx.AsyncClient(base_url=calls.checked_url(url), timeout=timeout_s, transport=transport)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Writing

    def transaction(
        self,
        group: str | None,
        *,
        id: str | None = None,
        author: str | None = None,
        message: str = "",
        type: str = "",
        occurred_at: datetime | None = None,
        branch: str = MAIN,
        expect_head: int | None = None,
    ) -> AsyncTransaction:
        """A transaction to build (`.put`, `.patch`, `.add`, `.delete`, `.expect`, `.group(…)`, …) and `.send()`.

        Every call that writes to a group takes these too: `put(…, message=…)`, `merge(…, expect_head=…)`.
        """
        author = self._author if author is None else author
        tx = AsyncTransaction(
            self, group, id=id, author=author, message=message, type=type, occurred_at=occurred_at, branch=branch
        )
        return tx if expect_head is None else tx.expect_head(expect_head)

    async def send(self, tx: Transaction) -> Outcome:
        """Send `tx` and wait for its outcome. Raises the refusal, by its type; sending again is harmless."""
        return self._note(await self._do(calls.send(tx)))

    async def send_many(self, transactions: Iterable[Transaction]) -> AsyncIterator[Outcome]:
        """Send many, each independent of the others, and yield their outcomes in the same order, refused ones too.

        What ends it otherwise has in `facts["ids"]` the ids of those that were taken from `transactions` and whose
        outcomes were not yielded. They may have been decided: ask for them by their ids, or send the same again.
        """
        remaining = iter(transactions)
        while some := list(islice(remaining, calls.BATCH_LINES)):
            yielded = 0
            try:
                told: list[Outcome | None] = await self._do(calls.send_many(some))
                for tx, outcome in zip(some, told, strict=True):
                    decided = outcome if outcome is not None else await self._decided(tx)
                    yielded += 1
                    yield self._note(decided)
            except VersologError as error:
                raise calls.broken_off(error, some[yielded:]) from error.__cause__

    async def put(self, group: str, table: str, key: str, row: Mapping[str, Any], **about: Any) -> Outcome:
        """The row shall be `row`. `about` as for `transaction`."""
        return await self.send(self.transaction(group, **about).put(table, key, row))

    async def patch(self, group: str, table: str, key: str, patch: Mapping[str, Any], **about: Any) -> Outcome:
        """The row shall be changed by an RFC 7396 merge patch. `about` as for `transaction`."""
        return await self.send(self.transaction(group, **about).patch(table, key, patch))

    async def delete(self, group: str, table: str, key: str, **about: Any) -> Outcome:
        """The row shall be absent. `about` as for `transaction`."""
        return await self.send(self.transaction(group, **about).delete(table, key))

    async def rollback(
        self, group: str, to: At, *, table: str | None = None, key: str | None = None, prefix: str | None = None,
        **about: Any,
    ) -> Outcome:  # fmt: skip
        """Make a branch, or only what `table`, `key` and `prefix` name, equal a past version, by a new commit."""
        tx = self.transaction(group, **about)
        return await self.send(tx.operation("rollback", to=calls.reference(to), table=table, key=key, prefix=prefix))

    async def rehearse_rollback(
        self, group: str, to: At, *, table: str | None = None, key: str | None = None, prefix: str | None = None,
        branch: str = MAIN,
    ) -> Rehearsal:  # fmt: skip
        """What `rollback` would change now."""
        tx = self.transaction(group, branch=branch)
        tx.operation("rollback", to=calls.reference(to), table=table, key=key, prefix=prefix)
        return await self.rehearse(tx)

    async def branch(self, group: str, name: str, at: At = None, **about: Any) -> Outcome:
        """Begin a branch at a version, at main's head by default. Nothing is copied."""
        arguments = {"name": name} if at is None else {"name": name, "from": calls.reference(at)}
        return await self.send(self.transaction(group, **about).operation("create-branch", **arguments))

    async def delete_branch(self, group: str, name: str, *, force: bool = False, **about: Any) -> Outcome:
        """Take a branch's name away; `force` where it has commits that no other branch has. They stay readable."""
        arguments = {"name": name, "force": True} if force else {"name": name}
        return await self.send(self.transaction(group, **about).operation("delete-branch", **arguments))

    async def merge(
        self, group: str, source: At, target: str = MAIN, *, policy: str = "fail", no_ff: bool = False,
        resolutions: Iterable[Resolution | Mapping[str, Any]] = (), **about: Any,
    ) -> Outcome:  # fmt: skip
        """Bring what `source` did onto the branch `target`. Raises MergeConflict, whose conflicts know how to end:
        `resolutions=[conflict.take_ours() for conflict in db.conflicts(error)]`."""
        return await self.send(self._merge(group, source, target, policy, no_ff, resolutions, **about))

    async def rehearse_merge(
        self, group: str, source: At, target: str = MAIN, *, policy: str = "fail", no_ff: bool = False,
        resolutions: Iterable[Resolution | Mapping[str, Any]] = (),
    ) -> Rehearsal:  # fmt: skip
        """What `merge` would change now. Raises MergeConflict where it would."""
        return await self.rehearse(self._merge(group, source, target, policy, no_ff, resolutions))

    async def revert(
        self, group: str, versions: int | Iterable[int] = (), *, from_: At = None, to: At = None,
        parent: int | None = None, policy: str = "fail",
        resolutions: Iterable[Resolution | Mapping[str, Any]] = (), **about: Any,
    ) -> Outcome:  # fmt: skip
        """Undo commits by a new one: those named, or those that led `from_` one place `to` another, the branch's head
        by default. `parent` says towards which of its parents a merge is undone. Raises MergeConflict."""
        asked = calls.commits(versions, from_, to, parent) | calls.settling(policy, resolutions)
        return await self.send(self.transaction(group, **about).operation("revert", **asked))

    async def cherry_pick(
        self, group: str, versions: int | Iterable[int] = (), *, from_: At = None, to: At = None,
        parent: int | None = None, policy: str = "fail",
        resolutions: Iterable[Resolution | Mapping[str, Any]] = (), **about: Any,
    ) -> Outcome:  # fmt: skip
        """Do again on a branch what commits elsewhere did; which, as in `revert`. Raises MergeConflict."""
        asked = calls.commits(versions, from_, to, parent) | calls.settling(policy, resolutions)
        return await self.send(self.transaction(group, **about).operation("cherry-pick", **asked))

    async def rehearse(self, tx: Transaction) -> Rehearsal:
        """What a merge, revert, cherry-pick or rollback of one group would change now. Raises MergeConflict."""
        return await self._do(calls.rehearse(tx))

    def conflicts(self, refused: MergeConflict) -> AsyncIterator[Conflict]:
        """All conflicts of what was refused, page by page: those of the versions that the refusal names, whatever was
        written since."""
        return self._all(lambda cursor: calls.conflicts(refused, cursor), Page(list(refused.conflicts), refused.cursor))

    async def set_merge(
        self, group: str, table: str, *, row: str | None = None, fields: Mapping[str, str] | None = None, **about: Any
    ) -> Outcome:
        """Set how the table's conflicts are settled before anyone is asked; without a function all are taken away."""
        tx = self.transaction(group, **about)
        return await self.send(tx.operation("set-merge", table=table, row=row, fields=dict(fields or {})))

    async def tag(self, group: str, name: str, at: At = None, *, move: bool = False, **about: Any) -> Outcome:
        """Name a version, the head by default; `move` lets a tag that exists name another one."""
        tx = self.transaction(group, **about)
        return await self.send(tx.operation("tag", name=name, at=calls.reference(at), move=move))

    async def delete_tag(self, group: str, name: str, **about: Any) -> Outcome:
        """Take a tag away."""
        return await self.send(self.transaction(group, **about).operation("delete-tag", name=name))

    async def tag_store(self, name: str, at: At = None, *, message: str = "", author: str | None = None) -> Outcome:
        """Name a moment of the whole store: a time, or the newest one. Raises PreconditionFailed for a taken name."""
        about = {"author": self._author if author is None else author, "message": message}
        return await self._do(calls.tag_store(name, at, about))

    async def delete_store_tag(self, name: str, **about: Any) -> Outcome:
        """Take a tag of the whole store away."""
        return await self.send(self.transaction(STORE_GROUP, **about).delete(STORE_TAGS_TABLE, name))

    async def set_schema(self, group: str, table: str, schema: Mapping[str, Any] | None, **about: Any) -> Outcome:
        """Set the Avro schema that the table's rows must fit from now on; None takes it away."""
        tx = self.transaction(group, **about)
        return await self.send(tx.operation("set-schema", table=table, schema=None if schema is None else dict(schema)))

    async def set_checks(self, group: str, table: str, checks: Mapping[str, Any] | None, **about: Any) -> Outcome:
        """Set what the table's rows are held to, in place of what they were: each check by its name; None for nothing.

        Raises Conflict (`check-failed`) where a row breaks one already.
        """
        tx = self.transaction(group, **about)
        return await self.send(tx.operation("set-checks", table=table, checks=None if checks is None else dict(checks)))

    async def drop_group(self, group: str, **about: Any) -> Outcome:
        """Drop a group. Its log stays, and its past can still be read by version."""
        return await self.send(self.transaction(group, **about).operation("drop-group"))

    # Reading

    async def outcome(self, transaction_id: str, group: str | None = None) -> Outcome:
        """The outcome of a transaction, refused ones too. Raises NotFound while it isn't decided."""
        return await self._do(calls.outcome(transaction_id, group))

    async def row(self, group: str, table: str, key: str, at: At = None, branch: str | None = None) -> Row:
        """The row. Raises NotFound where it is absent."""
        return await self._do(calls.row(group, table, key, at, branch))

    def rows(
        self, group: str, table: str, at: At = None, *, branch: str | None = None, prefix: str | None = None,
        start: str | None = None, end: str | None = None, where: str | None = None, page: int = calls.PAGE_ROWS,
    ) -> AsyncIterator[Row]:  # fmt: skip
        """The rows in key order, all of one version: keys with `prefix`, from `start` up to, not including, `end`, and
        fields as `where` says."""
        query = {"at": at, "branch": branch, "prefix": prefix, "start": start, "end": end, "where": where}
        return self._all(lambda cursor: calls.rows(group, table, {**query, "limit": page}, cursor))

    def history(
        self, group: str, table: str, key: str, at: At = None, *, branch: str | None = None
    ) -> AsyncIterator[Past]:
        """What happened to a row, the newest first."""
        query = {"key": key, "at": at, "branch": branch}
        return self._all(lambda cursor: calls.history(group, table, query, cursor))

    async def blame(
        self, group: str, table: str, key: str, at: At = None, branch: str | None = None
    ) -> list[BlamedField]:
        """For each field of a row the commit that set it to what it is."""
        return await self._do(calls.blame(group, table, key, at, branch))

    def log(
        self, group: str, at: At = None, *, branch: str | None = None, table: str | None = None, key: str | None = None,
        author: str | None = None, type: str | None = None, operation: str | None = None, message: str | None = None,
        since: datetime | str | None = None, until: datetime | str | None = None, all: bool = False,
        graph: bool = False, page: int = calls.PAGE_COMMITS,
    ) -> AsyncIterator[LoggedCommit]:  # fmt: skip
        """The commits that led to a place by first parents, the newest first; with `all` every commit of the group.

        Only those that changed a `table`, or a `key` of it, by this `author`, of this `type` and `operation`, with
        `message` somewhere in theirs, from `since` to `until`. With `graph` those that merges brought, too, and for
        each where to draw it.
        """
        query = {
            "at": at, "branch": branch, "table": table, "key": key, "author": author, "type": type,
            "operation": operation, "message": message, "since": since, "until": until, "limit": page,
            "all": "true" if all else None, "graph": "true" if graph else None,
        }  # fmt: skip
        return self._all(lambda cursor: calls.log(group, query, cursor))

    async def commit(self, group: str, version: int) -> Commit:
        """A commit with all that it changed."""
        return await self._do(calls.commit(group, version))

    async def changes(
        self, group: str, version: int, *, table: str | None = None, prefix: str | None = None, limit: int = 100
    ) -> CommitChanges:
        """How many rows a commit changed on its branch, and the first `limit` of them, field by field."""
        query = {"table": table, "prefix": prefix, "limit": limit}
        return await self._do(calls.changes(group, version, query))

    def every_change(
        self, group: str, version: int, *, table: str | None = None, prefix: str | None = None
    ) -> AsyncIterator[RowChange]:
        """All rows that a commit changed on its branch, field by field."""
        query = {"table": table, "prefix": prefix}
        return self._all(lambda cursor: calls.every_change(group, version, query, cursor))

    async def diff(
        self, group: str, before: At, after: At = None, *, branch: str | None = None, merge_base: bool = False,
        table: str | None = None, prefix: str | None = None, limit: int = 100,
    ) -> Diff:  # fmt: skip
        """How many rows differ between two places, and the first `limit` of them.

        With `merge_base` between where the two parted and `after`: what it has since, without what `before` has.
        """
        query = {
            "from": before, "to": after, "branch": branch, "merge_base": "true" if merge_base else None,
            "table": table, "prefix": prefix, "limit": limit,
        }  # fmt: skip
        return await self._do(calls.diff(group, query))

    def differences(
        self, group: str, before: At, after: At = None, *, branch: str | None = None, merge_base: bool = False,
        table: str | None = None, prefix: str | None = None,
    ) -> AsyncIterator[RowChange]:  # fmt: skip
        """All rows that differ between two places, or as `diff` has it, with `merge_base`."""
        query = {
            "from": before, "to": after, "branch": branch, "merge_base": "true" if merge_base else None,
            "table": table, "prefix": prefix,
        }  # fmt: skip
        return self._all(lambda cursor: calls.differences(group, query, cursor))

    async def read(self, *reads: Read, at: At = None) -> Moment:
        """Rows and ranges of many groups, all at one moment, so that every transaction is seen whole or not at all.

        `at` is a time or a store-wide tag; without it the moment is the newest, with all that was acknowledged, or
        could be read anywhere, before.
        """
        return await self._do(calls.read(reads, at))

    async def waiting(self) -> list[WaitingTransaction]:
        """The transactions that are taken in and not decided, in all partitions, and what they wait for."""
        return await self._do(calls.waiting())

    async def store_tags(self) -> list[StoreTag]:
        """The tags of the whole store, by name."""
        return await self._do(calls.store_tags())

    async def store_tag(self, name: str) -> StoreTag:
        """The moment that a tag of the whole store names. Raises NotFound."""
        return await self._do(calls.store_tag(name))

    def groups(self, prefix: str = "") -> AsyncIterator[GroupHead]:
        """The groups by name."""
        return self._all(lambda cursor: calls.groups(prefix, cursor))

    async def group(self, name: str, at: At = None, *, count: bool = False) -> Group:
        """What a group holds; `count` counts the rows of its tables."""
        return await self._do(calls.group(name, at, count))

    async def branches(self, group: str, at: At = None) -> list[Branch]:
        """The branches, by name."""
        return await self._do(calls.branches(group, at))

    async def compare(self, group: str, branch: str, against: At = MAIN, at: At = None) -> Apart:
        """How a branch stands to another place: the commits that each has and the other has not."""
        return await self._do(calls.compare(group, branch, against, at))

    async def merge_functions(self, group: str, table: str, at: At = None, branch: str | None = None) -> MergeFunctions:
        """The merge functions of a table. Raises NotFound where it has none."""
        return await self._do(calls.merge_functions(group, table, at, branch))

    async def tags(self, group: str, at: At = None) -> list[Tag]:
        """The tags, by name."""
        return await self._do(calls.tags(group, at))

    async def schema(self, group: str, table: str, at: At = None, branch: str | None = None) -> TableSchema:
        """The Avro schema of a table's rows. Raises NotFound where it has none."""
        return await self._do(calls.schema(group, table, at, branch))

    async def checks(self, group: str, table: str, at: At = None, branch: str | None = None) -> TableChecks:
        """What a table's rows are held to. Raises NotFound where that is nothing."""
        return await self._do(calls.checks(group, table, at, branch))

    async def verify(self, group: str) -> Verified:
        """Have the group's hash chain computed again from the log and compared with the store."""
        return await self._do(calls.verify(group))

    async def digest(self, group: str | None = None, at: At = None) -> str:
        """The digest of all that a group holds, its history included, or of the whole store."""
        return await self._do(calls.digest(group, at))

    def _merge(
        self, group: str, source: At, target: str, policy: str, no_ff: bool,
        resolutions: Iterable[Resolution | Mapping[str, Any]], **about: Any,
    ) -> AsyncTransaction:  # fmt: skip
        asked = {"source": calls.reference(source)} | ({"no_ff": True} if no_ff else {})
        tx = self.transaction(group, branch=target, **about)
        tx.operation("merge", **asked, **calls.settling(policy, resolutions))
        return tx

    # I/O

    async def _do(self, call: Call[Answer]) -> Answer:
        try:
            again = partial(calls.backoff, deadline_s=time.monotonic() + self._retry_for_s)
            async for attempt in stamina.retry_context(on=again, attempts=None, timeout=self._retry_for_s):
                with attempt:
                    return calls.read_answer(call, await self._ask(call))
        except Again as last:
            raise calls.given_up(call, last) from last.__cause__
        raise AssertionError("an attempt returns or raises")

    async def _ask(self, call: Call[Any]) -> httpx.Response:
        headers = calls.headers_of(call, self._written, self._timeout_s)
        try:
            return await self._http.request(
                call.method,
                call.path,
                params=dict(call.query) or None,
                content=call.body,
                headers=headers,
                timeout=max(call.timeout_s, self._timeout_s),
            )
        except httpx.TransportError as error:
            raise calls.no_answer(error, self._http.base_url) from error

    async def _all(
        self, call: Callable[[str | None], Call[Page[Item]]], page: Page[Item] | None = None
    ) -> AsyncIterator[Item]:
        """All items of a listing, from its first page on, where that is known."""
        if page is None:
            page = await self._do(call(None))
        while True:
            for item in page.items:
                yield item
            if page.cursor is None:
                return
            page = await self._do(call(page.cursor))

    async def _decided(self, tx: Transaction) -> Outcome:
        """The outcome of `tx`, sent alone, a refusal too."""
        try:
            return await self._do(calls.send(tx))
        except VersologError as error:
            if not calls.is_refusal(error):
                raise
            return await self.outcome(tx.id, tx.home)

    def _note(self, outcome: Outcome) -> Outcome:
        return outcome if self._written is None else self._written.note(outcome)
