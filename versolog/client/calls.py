"""What both clients share: each call as a request to make and a way to read its answer. No I/O."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import orjson

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
from versolog.schemas import conflicts as kinds
from versolog.schemas.conflicts import Resolution
from versolog.schemas.errors import (
    REFUSALS,
    Conflict,
    Invalid,
    Malformed,
    MergeConflict,
    Misconfigured,
    NotFound,
    PreconditionFailed,
    TooLarge,
    TooMany,
    Unavailable,
    Undecided,
    VersologError,
)
from versolog.schemas.outcome import Outcome
from versolog.schemas.times import micros_from, millis_to_text
from versolog.streams.transaction import Transaction, new_id

Answer = TypeVar("Answer")
Item = TypeVar("Item")
At = str | int | datetime | None
"""A version, a name, `name~n`, a time; None is the head."""
Json = dict[str, Any]

TIMEOUT_S = 10.0
SLOW_TIMEOUT_S = 600.0
"""For what reads a whole group or more."""
RETRY_FOR_S = 30.0
PAGE_ROWS = 1_000
PAGE_COMMITS = 100
BATCH_LINES = 2_000
RETRY_AFTER_MIN_S = 0.05
WAIT_MAX_S = 30.0
PAGE_CONFLICTS = 1_000
GROUPS_REMEMBERED_MAX = 10_000

_PATHS = {"merge": "merges", "revert": "reverts", "cherry-pick": "cherry-picks", "rollback": "rollbacks"}
"""Where operations can be rehearsed and their conflicts listed, by kind."""

_BY_STATUS: dict[int, type[VersologError]] = {
    HTTPStatus.ACCEPTED: Undecided,
    HTTPStatus.BAD_REQUEST: Malformed,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.PRECONDITION_FAILED: PreconditionFailed,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: TooMany,
    HTTPStatus.BAD_GATEWAY: Unavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: Unavailable,
    HTTPStatus.GATEWAY_TIMEOUT: Unavailable,
}
_PROBLEM_FIELDS = frozenset({"type", "title", "status", "detail", "code"})


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A request, and what its answer means. All calls may be made again: reads change nothing, writes carry an id."""

    method: str
    path: str
    read: Callable[[bytes], Answer]
    """From the body of the answer."""
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    group: str | None = None
    """The group that is read: the answer shall hold what was written to it before."""
    timeout_s: float = 0.0
    """How long one try may take, where that is longer than the client's own time."""
    transaction: Transaction | None = None
    """What is sent or rehearsed, for a refusal to name."""
    writes: bool = False
    """Whether it is sent."""
    lists_conflicts: bool = False
    """Whether a merge's conflicts are what is asked for, and no error."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a listing."""

    items: list[Item]
    cursor: str | None


class Again(Exception):  # noqa: N818 - not an end: the call is made again
    """The call failed in a way that can pass."""

    def __init__(self, error: VersologError, retry_after_s: float | None) -> None:
        super().__init__(error.detail)
        self.error = error
        self.retry_after_s = retry_after_s


def backoff(error: Exception, *, deadline_s: float) -> bool | float:
    """Whether to make a call again, and where the server said so, after how many seconds: not beyond the deadline, a
    `time.monotonic`."""
    if not isinstance(error, Again):
        return False
    if error.retry_after_s is None:
        return True
    return max(0.0, min(max(error.retry_after_s, RETRY_AFTER_MIN_S), deadline_s - time.monotonic()))


def given_up(call: Call[Any], again: Again) -> VersologError:
    """What a call ends in that was made for long enough. A write may have been done all the same: its id is told."""
    error, tx = again.error, call.transaction
    if tx is None or not call.writes or isinstance(error, Undecided):
        return error
    error.facts.setdefault("id", tx.id)
    error.facts.setdefault("group", tx.home)
    return _saying(error, f"it may have been done: ask for the outcome of {tx.id}, or send it again with that id")


def broken_off(error: VersologError, untold: Sequence[Transaction]) -> VersologError:
    """What a batch ends in whose other transactions' outcomes are not told: with their ids."""
    error.facts["ids"] = [tx.id for tx in untold]
    return _saying(
        error,
        f"{len(untold):,} transactions of this batch have no outcome here, and may be decided: their ids are in "
        '`facts["ids"]`',
    )


def _saying(error: VersologError, more: str) -> VersologError:
    """The same error, which says `more`, too."""
    error.detail += f"; {more}"
    error.args = (error.detail,)
    return error


def checked_url(url: str) -> str:
    """The address of a versolog. Raises Misconfigured for what can be none."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise Misconfigured(f"{url!r} is no address of a versolog: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Misconfigured(f"{url!r} is no address of a versolog; one looks like http://127.0.0.1:8080")
    return url


class Written:
    """The newest version that this client wrote of each group, so that its reads see it. Any thread may use it."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, outcome: Outcome) -> Outcome:
        """Remember what `outcome` committed; answers the outcome."""
        with self._lock:
            for part in outcome.parts:
                if part.version:
                    self._versions[part.group] = max(part.version, self._versions.pop(part.group, 0))
            while len(self._versions) > GROUPS_REMEMBERED_MAX:
                self._versions.popitem(last=False)
        return outcome

    def token(self, group: str) -> str | None:
        """What a read of `group` carries."""
        version = self._versions.get(group)
        return None if version is None else f"{quote(group, safe='')}:{version}"


def headers_of(call: Call[Any], written: Written | None, timeout_s: float) -> dict[str, str]:
    """The headers of a request. The server gives up a little before the client does."""
    headers = {"versolog-wait": f"{min(WAIT_MAX_S, timeout_s * 0.8):.3f}"}
    if call.body is not None:
        headers["content-type"] = "application/json"
    token = None if call.group is None or written is None else written.token(call.group)
    if token is not None:
        headers["versolog-token"] = token
    return headers


def read_answer(call: Call[Answer], response: httpx.Response) -> Answer:
    """What `response` means. Raises Again where it can pass, the typed error it tells otherwise."""
    if response.is_success and response.status_code != HTTPStatus.ACCEPTED:
        try:
            return call.read(response.content)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as strange:
            raise Misconfigured(
                f"{response.url} answers {response.status_code} with what no versolog does: {response.text[:100]!r}"
            ) from strange
    error = error_in(response)
    if isinstance(error, MergeConflict):
        if call.lists_conflicts:
            return call.read(response.content)
        error.asked = call.transaction
    if error.retriable:
        raise Again(error, _seconds(response.headers.get("retry-after")))
    raise error


def no_answer(error: httpx.TransportError, url: object) -> Again:
    """A call that got no answer at all."""
    return Again(Unavailable(f"{url} does not answer: {type(error).__name__}: {error}"), None)


def error_in(response: httpx.Response) -> VersologError:
    """The error that an answer tells, by the same classes as everywhere."""
    try:
        told = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("detail"), str):
        said = response.text[:200]
        told = {"detail": f"{response.status_code} {response.reason_phrase} from {response.url}: {said}"}
    code = told.get("code")
    kind = REFUSALS.get(code or "") or _BY_STATUS.get(response.status_code, VersologError)
    facts = {name: fact for name, fact in told.items() if name not in _PROBLEM_FIELDS}
    return kind(told["detail"], code=code, status=response.status_code, **facts)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None


# Calls


def send(tx: Transaction) -> Call[Outcome]:
    """Send `tx` and wait for its outcome; a refusal is raised."""
    body = orjson.dumps(tx.to_json())
    return Call("POST", "/v1/transactions", _json(Outcome.from_json), body=body, transaction=tx, writes=True)


def send_many(transactions: Iterable[Transaction]) -> Call[list[Outcome | None]]:
    """Send many. Their outcomes, and None for each that has none yet and is to be sent again."""
    lines = b"\n".join(orjson.dumps(tx.to_json()) for tx in transactions)
    return Call("POST", "/v1/transactions:batch", _outcomes, body=lines)


def _outcomes(content: bytes) -> list[Outcome | None]:
    told = [orjson.loads(line) for line in content.splitlines()]
    return [Outcome.from_json(one) if "committed_at" in one else None for one in told]


def is_refusal(error: VersologError) -> bool:
    """Whether the error is the outcome of a transaction, which can be asked for by its id."""
    return error.facts.get("outcome") == "refused"


def outcome(transaction_id: str, group: str | None) -> Call[Outcome]:
    path = f"/v1/transactions/{_segment(transaction_id)}"
    return Call("GET", path, _json(Outcome.from_json), _query(group=group), group=group)


def row(group: str, table: str, key: str, at: At, branch: str | None) -> Call[Row]:
    return _read(group, f"{_table(table)}/rows/{_segment(key)}", Row.from_json, at=at, branch=branch)


def rows(group: str, table: str, query: Mapping[str, Any], cursor: str | None) -> Call[Page[Row]]:
    return _listing(group, f"{_table(table)}/rows", "rows", Row.from_json, query, cursor, PAGE_ROWS)


def history(group: str, table: str, query: Mapping[str, Any], cursor: str | None) -> Call[Page[Past]]:
    return _listing(group, f"{_table(table)}/history", "changes", Past.from_json, query, cursor, PAGE_COMMITS)


def blame(group: str, table: str, key: str, at: At, branch: str | None) -> Call[list[BlamedField]]:
    read = _each("fields", BlamedField.from_json)
    return _read(group, f"{_table(table)}/blame", read, key=key, at=at, branch=branch)


def log(group: str, query: Mapping[str, Any], cursor: str | None) -> Call[Page[LoggedCommit]]:
    return _listing(group, "/log", "commits", LoggedCommit.from_json, query, cursor, PAGE_COMMITS)


def commit(group: str, version: int) -> Call[Commit]:
    return _read(group, f"/commits/{version}", Commit.from_json)


def changes(group: str, version: int, query: Mapping[str, Any]) -> Call[CommitChanges]:
    return _read(group, f"/commits/{version}/changes", CommitChanges.from_json, **query)


def every_change(group: str, version: int, query: Mapping[str, Any], cursor: str | None) -> Call[Page[RowChange]]:
    path = f"/commits/{version}/changes"
    return _listing(group, path, "rows", RowChange.from_json, query, cursor, PAGE_ROWS)


def diff(group: str, query: Mapping[str, Any]) -> Call[Diff]:
    return _read(group, "/diff", Diff.from_json, **query)


def differences(group: str, query: Mapping[str, Any], cursor: str | None) -> Call[Page[RowChange]]:
    return _listing(group, "/diff", "rows", RowChange.from_json, query, cursor, PAGE_ROWS)


def rehearse(tx: Transaction) -> Call[Rehearsal]:
    """What an operation on one group would change; a merge's conflicts are raised."""
    part = tx.record()["parts"][0]
    path, asked = _operation(part)
    if part["expect_head"] is not None:
        asked["expect_head"] = part["expect_head"]
    body = orjson.dumps(asked | {"dry_run": True})
    return Call("POST", path, _json(Rehearsal.from_json), body=body, group=part["group"], transaction=tx)


def conflicts(refused: MergeConflict, cursor: str | None) -> Call[Page[kinds.Conflict]]:
    """A page of the conflicts of what was refused."""
    assert refused.asked is not None, "who has a cursor was told so by a client"
    parts = refused.asked.record()["parts"]
    path, asked = _operation(next(part for part in parts if part["group"] == refused.facts["group"]))
    body = orjson.dumps(asked | {"cursor": cursor, "limit": PAGE_CONFLICTS})
    read = _json(_page("conflicts", kinds.Conflict.from_json))
    return Call("POST", path, read, body=body, group=refused.facts["group"], lists_conflicts=True)


def _operation(part: Json) -> tuple[str, Json]:
    """The path for the operation of a transaction's part, and its body there."""
    operation, branch = part["operation"], part["branch"]
    kind = operation["kind"] if operation else "write"
    if kind not in _PATHS:
        raise Invalid(f"a {kind} can't be rehearsed; {', '.join(_PATHS)} can", field="operation")
    arguments = orjson.loads(operation["arguments"])
    asked = {name: value for name, value in arguments.items() if value is not None}
    asked["target" if kind == "merge" else "branch"] = branch
    return f"{_group(part['group'])}/{_PATHS[kind]}", asked


def settling(policy: str, resolutions: Iterable[Resolution | Mapping[str, Any]]) -> Json:
    """How conflicts shall end, as arguments of an operation."""
    listed = list(resolutions)
    return ({} if policy == "fail" else {"policy": policy}) | ({"resolutions": listed} if listed else {})


def commits(versions: int | Iterable[int], from_: At, to: At, parent: int | None) -> Json:
    """Which commits are meant, as arguments of an operation."""
    listed = [versions] if isinstance(versions, int) else list(versions)
    asked = {"versions": listed or None, "from": reference(from_), "to": reference(to), "parent": parent}
    return {name: value for name, value in asked.items() if value is not None}


def groups(prefix: str, cursor: str | None) -> Call[Page[GroupHead]]:
    query = _query(prefix=prefix or None, limit=PAGE_ROWS, cursor=cursor)
    return Call("GET", "/v1/groups", _json(_page("groups", GroupHead.from_json)), query)


def group(name: str, at: At, count: bool) -> Call[Group]:
    told = _read(name, "", Group.from_json, at=at, count="true" if count else None)
    return replace(told, timeout_s=SLOW_TIMEOUT_S) if count else told


def branches(group: str, at: At) -> Call[list[Branch]]:
    return _read(group, "/branches", _each("branches", Branch.from_json), at=at)


def compare(group: str, branch: str, against: At, at: At) -> Call[Apart]:
    return _read(group, f"/branches/{_segment(branch)}", Apart.from_json, against=against, at=at)


def merge_functions(group: str, table: str, at: At, branch: str | None) -> Call[MergeFunctions]:
    return _read(group, f"{_table(table)}/merge", MergeFunctions.from_json, at=at, branch=branch)


def tags(group: str, at: At) -> Call[list[Tag]]:
    return _read(group, "/tags", _each("tags", Tag.from_json), at=at)


def schema(group: str, table: str, at: At, branch: str | None) -> Call[TableSchema]:
    return _read(group, f"{_table(table)}/schema", TableSchema.from_json, at=at, branch=branch)


def checks(group: str, table: str, at: At, branch: str | None) -> Call[TableChecks]:
    return _read(group, f"{_table(table)}/checks", TableChecks.from_json, at=at, branch=branch)


def read(reads: Iterable[Read], at: At) -> Call[Moment]:
    asked = {"at": reference(at), "reads": [one.to_json() for one in reads]}
    return Call("POST", "/v1/read", _json(Moment.from_json), body=orjson.dumps(asked))


def waiting() -> Call[list[WaitingTransaction]]:
    told = _each("transactions", WaitingTransaction.from_json)
    return Call("GET", "/v1/transactions:waiting", _json(told))


def store_tags() -> Call[list[StoreTag]]:
    return Call("GET", "/v1/tags", _json(_each("tags", StoreTag.from_json)))


def store_tag(name: str) -> Call[StoreTag]:
    return Call("GET", f"/v1/tags/{_segment(name)}", _json(StoreTag.from_json))


def tag_store(name: str, at: At, about: Mapping[str, str]) -> Call[Outcome]:
    asked = {"id": new_id(), **about} | ({} if at is None else {"at": reference(at)})
    return Call("PUT", f"/v1/tags/{_segment(name)}", _json(Outcome.from_json), body=orjson.dumps(asked))


def verify(group: str) -> Call[Verified]:
    return replace(_read(group, "/verify", Verified.from_json), timeout_s=SLOW_TIMEOUT_S)


def digest(group: str | None, at: At) -> Call[str]:
    def read(told: Json) -> str:
        computed: str = told["digest"]
        return computed

    if group is None:
        return Call("GET", "/v1/digest", _json(read), _query(at=at), timeout_s=SLOW_TIMEOUT_S)
    return replace(_read(group, "/digest", read, at=at), timeout_s=SLOW_TIMEOUT_S)


def _read(group: str, path: str, read: Callable[[Any], Answer], **query: Any) -> Call[Answer]:
    return Call("GET", _group(group) + path, _json(read), _query(**query), group=group)


def _listing(
    group: str, path: str, what: str, read: Callable[[Json], Item], query: Mapping[str, Any], cursor: str | None,
    limit: int,
) -> Call[Page[Item]]:  # fmt: skip
    asked = _query(**{"limit": limit, **query}, cursor=cursor)
    return Call("GET", _group(group) + path, _json(_page(what, read)), asked, group=group)


def _json(read: Callable[[Any], Answer]) -> Callable[[bytes], Answer]:
    return lambda content: read(orjson.loads(content))


def _page(what: str, read: Callable[[Json], Item]) -> Callable[[Json], Page[Item]]:
    return lambda told: Page([read(item) for item in told[what]], told["cursor"])


def _each(what: str, read: Callable[[Json], Item]) -> Callable[[Json], list[Item]]:
    return lambda told: [read(item) for item in told[what]]


def _group(name: str) -> str:
    return f"/v1/groups/{_segment(name)}"


def _table(name: str) -> str:
    return f"/tables/{_segment(name)}"


def _segment(name: str) -> str:
    quoted = quote(name, safe="")
    return quoted.replace(".", "%2E") if name in (".", "..") else quoted  # else they would mean the path's own steps


def _query(**given: Any) -> dict[str, str]:
    return {name: str(at_text(value)) for name, value in given.items() if value is not None}


def reference(at: At) -> str | None:
    """A place as an operation's argument."""
    return None if at is None else str(at_text(at))


def at_text(value: Any) -> Any:
    """A time as the API writes it; anything else as it is."""
    return millis_to_text(micros_from(value) // 1000) if isinstance(value, datetime) else value
