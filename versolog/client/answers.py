"""What reads answer, as objects: versions are integers, times are aware datetimes in UTC."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """The exact place that was read; `version` can be read again, for ever."""

    group: str
    branch: str
    version: int
    committed_at: datetime

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["group"], told["branch"], told["version"], moment(told["committed_at"]))


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and the version that last changed it: the one that `expect` means."""

    group: str
    table: str
    key: str
    version: int
    committed_at: datetime
    row: Json

    @classmethod
    def from_json(cls, told: Json) -> Self:
        committed_at = moment(told["committed_at"])
        return cls(told["group"], told["table"], told["key"], told["version"], committed_at, told["row"])


@dataclass(frozen=True, slots=True)
class Read:
    """One row by its `key`, or, without one, up to `limit` rows of a range: with `prefix`, from `start` up to, not
    including, `end`, with fields as `where` says, and after the key `after`."""

    group: str
    table: str
    key: str | None = None
    branch: str | None = None
    prefix: str | None = None
    start: str | None = None
    end: str | None = None
    where: str | None = None
    after: str | None = None
    limit: int | None = None

    def to_json(self) -> Json:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Range:
    """The rows of a range at a moment."""

    rows: list[Row]
    version: int
    """The version that the group stood at; 0 before its first."""
    after: str | None
    """Where the next read of the range, at the same moment, goes on; None at its end."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What stood at one moment, in the order it was asked for: a row (None where there was none) or a range.

    `at` may be asked for again, with the same answer for ever.
    """

    at: datetime
    results: list[Row | Range | None]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(moment(told["at"]), [_result(one) for one in told["results"]])

    def row(self, index: int) -> Row | None:
        """What was read as a row."""
        found = self.results[index]
        assert not isinstance(found, Range), f"read {index} is of a range"
        return found

    def range(self, index: int) -> Range:
        """What was read as a range."""
        found = self.results[index]
        assert isinstance(found, Range), f"read {index} is of a row"
        return found


@dataclass(frozen=True, slots=True)
class StoreTag:
    """A tag of the whole store, and the moment that it names."""

    name: str
    at: datetime
    version: int
    """Of the group `$store`, whose commit made it."""
    committed_at: datetime

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["name"], moment(told["at"]), told["version"], moment(told["committed_at"]))


def _result(told: Json | None) -> Row | Range | None:
    if told is None:
        return None
    if "rows" in told:
        return Range([Row.from_json(row) for row in told["rows"]], told["version"], told["after"])
    return Row.from_json(told)


@dataclass(frozen=True, slots=True)
class WaitingTransaction:
    """A transaction that a partition has taken in and not decided."""

    id: str
    groups: list[str]
    """Those of this partition."""
    partition: int
    since: datetime
    waited_s: float
    awaited: list[int]
    """The partitions that have not voted on it; none where it waits for transactions before it."""

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(**{**told, "since": moment(told["since"])})


@dataclass(frozen=True, slots=True)
class About:
    """Who, when and why."""

    version: int
    branch: str
    committed_at: datetime
    occurred_at: datetime | None
    author: str
    message: str
    type: str
    operation: str
    transaction_id: str


@dataclass(frozen=True, slots=True)
class Past(About):
    """What a commit made of a row; `row` is None where it deleted it."""

    row: Json | None

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(**about(told), row=told["row"])


@dataclass(frozen=True, slots=True)
class BlamedField(About):
    """A field of a row, and the commit that set it to what it is."""

    path: tuple[str, ...]
    value: Any

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(**about(told), path=tuple(told["path"]), value=told["value"])


@dataclass(frozen=True, slots=True)
class Heading(About):
    """A commit without its changes."""

    parents: tuple[int, ...]
    hash: str
    previous_hash: str
    arguments: Json | None

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(**heading(told))


@dataclass(frozen=True, slots=True)
class GraphPlace:
    """Where a commit stands in the drawn graph, and the branches and tags that stand there now."""

    parents: tuple[int, ...]
    branches: tuple[str, ...]
    tags: tuple[str, ...]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(tuple(told["parents"]), tuple(told["branches"]), tuple(told["tags"]))


@dataclass(frozen=True, slots=True)
class LoggedCommit(Heading):
    """A commit in a log; `graph` is None where it wasn't asked for."""

    graph: GraphPlace | None

    @classmethod
    def from_json(cls, told: Json) -> Self:
        place = told.get("graph")
        return cls(**heading(told), graph=None if place is None else GraphPlace.from_json(place))


@dataclass(frozen=True, slots=True)
class Commit(Heading):
    """A commit with all that it changed: (table, key, row) each, the row None where it was deleted."""

    group: str
    changes: tuple[tuple[str, str, Json | None], ...]
    refs: tuple[Json, ...]
    others: tuple[tuple[str, int], ...]
    """The groups and versions that the same transaction made elsewhere."""

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(
            **heading(told),
            group=told["group"],
            changes=tuple((change["table"], change["key"], change["row"]) for change in told["changes"]),
            refs=tuple(told["refs"]),
            others=tuple((other["group"], other["version"]) for other in told["others"]),
        )


@dataclass(frozen=True, slots=True)
class RowState:
    """A row at one of two places."""

    version: int
    committed_at: datetime
    row: Json

    @classmethod
    def from_json(cls, told: Json | None) -> Self | None:
        return None if told is None else cls(told["version"], moment(told["committed_at"]), told["row"])


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field that differs. `in_before` and `in_after` tell an absent field from one that is null."""

    path: tuple[str, ...]
    before: Any
    after: Any
    in_before: bool
    in_after: bool

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(tuple(told["path"]), told.get("before"), told.get("after"), "before" in told, "after" in told)


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row that differs: `change` is added, changed or removed."""

    table: str
    key: str
    change: str
    before: RowState | None
    after: RowState | None
    fields: tuple[FieldChange, ...]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        before, after = RowState.from_json(told["before"]), RowState.from_json(told["after"])
        return cls(told["table"], told["key"], told["change"], before, after, _fields(told))


@dataclass(frozen=True, slots=True)
class TableChanges:
    """How many rows of a table differ."""

    table: str
    rows: int
    added: int
    changed: int
    removed: int


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows differ; at least so many where `complete` is false. By table, where that was told."""

    rows: int
    added: int
    changed: int
    removed: int
    complete: bool
    tables: tuple[TableChanges, ...] = ()

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(**{**told, "tables": tuple(TableChanges(**table) for table in told.get("tables", ()))})


@dataclass(frozen=True, slots=True)
class Diff:
    """What two places of a group differ in: the counts of all, and the first rows."""

    before: Place
    after: Place
    counts: Counts
    rows: tuple[RowChange, ...]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        rows = tuple(RowChange.from_json(row) for row in told["rows"])
        counts = Counts.from_json(told["counts"])
        return cls(Place.from_json(told["from"]), Place.from_json(told["to"]), counts, rows)


@dataclass(frozen=True, slots=True)
class CommitChanges:
    """What a commit changed of the place that it found, None where that was nothing: the counts of all, and the first
    rows."""

    commit: Heading
    before: Place | None
    counts: Counts
    rows: tuple[RowChange, ...]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        rows = tuple(RowChange.from_json(row) for row in told["rows"])
        before = None if told["from"] is None else Place.from_json(told["from"])
        return cls(Heading.from_json(told["commit"]), before, Counts.from_json(told["counts"]), rows)


@dataclass(frozen=True, slots=True)
class RehearsedChange:
    """A row that would change; `after` is None where it would be deleted."""

    table: str
    key: str
    change: str
    before: RowState | None
    after: Json | None
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What an operation would change: the counts of all, and the first thousand rows."""

    counts: Counts
    rows: tuple[RehearsedChange, ...]
    version: int
    """The group's newest version, that it was planned at."""

    @classmethod
    def from_json(cls, told: Json) -> Self:
        rows = tuple(
            RehearsedChange(
                row["table"], row["key"], row["change"], RowState.from_json(row["before"]), row["after"], _fields(row)
            )
            for row in told["rows"]
        )
        return cls(Counts.from_json(told["counts"]), rows, told["version"])


@dataclass(frozen=True, slots=True)
class GroupHead:
    """A group and its newest version."""

    group: str
    version: int
    committed_at: datetime

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["group"], told["version"], moment(told["committed_at"]))


@dataclass(frozen=True, slots=True)
class Group:
    """What a group holds. The tables' rows are None unless they were counted."""

    group: str
    version: int
    hash: str
    committed_at: datetime
    branches: dict[str, int]
    tags: dict[str, int]
    tables: dict[str, int | None]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(
            told["group"],
            told["version"],
            told["hash"],
            moment(told["committed_at"]),
            {branch["name"]: branch["head"] for branch in told["branches"]},
            {tag["name"]: tag["version"] for tag in told["tags"]},
            {table["table"]: table["rows"] for table in told["tables"]},
        )


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch; it falls through to `parent` at version `fork`."""

    name: str
    head: int
    committed_at: datetime | None
    parent: str | None
    fork: int | None

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["name"], told["head"], _moment(told["committed_at"]), told["parent"], told["fork"])


@dataclass(frozen=True, slots=True)
class Apart:
    """How a branch stands to another place."""

    branch: Branch
    version: int
    """The place's version."""
    ahead: int
    """Commits that the branch has and the place has not."""
    behind: int
    """Commits that the place has and the branch has not."""
    bases: tuple[int, ...]
    """Their merge bases, newest first: several where merges crossed."""

    @classmethod
    def from_json(cls, told: Json) -> Self:
        found = told["against"]
        bases = tuple(found["bases"])
        return cls(Branch.from_json(told), found["version"], found["ahead"], found["behind"], bases)


@dataclass(frozen=True, slots=True)
class MergeFunctions:
    """How a table's conflicts are settled before anyone is asked: a function for rows as a whole, and for fields."""

    row: str | None
    fields: dict[str, str]
    version: int

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["row"], told["fields"], told["version"])


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag and the version that it names."""

    name: str
    version: int
    committed_at: datetime | None

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["name"], told["version"], _moment(told["committed_at"]))


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The Avro schema that a table's rows must fit, and the version that set it."""

    schema: Json
    version: int

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["schema"], told["version"])


@dataclass(frozen=True, slots=True)
class TableChecks:
    """The checks that a table's rows are held to, by name, and the version that changed the table's settings last."""

    checks: Json
    version: int

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["checks"], told["version"])


@dataclass(frozen=True, slots=True)
class Verified:
    """A group's chain, computed again from the log. `findings` say what is not as it was written."""

    ok: bool
    version: int
    hash: str
    commits: int
    findings: tuple[Json, ...]

    @classmethod
    def from_json(cls, told: Json) -> Self:
        return cls(told["ok"], told["version"], told["hash"], told["commits"], tuple(told["findings"]))


def moment(text: str) -> datetime:
    """The time in an answer."""
    return datetime.fromisoformat(text)


def about(told: Json) -> Json:
    """The arguments of `About` in an answer."""
    return {
        "version": told["version"],
        "branch": told["branch"],
        "committed_at": moment(told["committed_at"]),
        "occurred_at": _moment(told["occurred_at"]),
        "author": told["author"],
        "message": told["message"],
        "type": told["type"],
        "operation": told["operation"],
        "transaction_id": told["transaction_id"],
    }


def heading(told: Json) -> Json:
    """The arguments of `Heading` in an answer."""
    return {
        **about(told),
        "parents": tuple(told["parents"]),
        "hash": told["hash"],
        "previous_hash": told["previous_hash"],
        "arguments": told["arguments"],
    }


def _moment(text: str | None) -> datetime | None:
    return None if text is None else moment(text)


def _fields(told: Json) -> tuple[FieldChange, ...]:
    return tuple(FieldChange.from_json(field) for field in told["fields"])
