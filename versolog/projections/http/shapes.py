"""The documents that go in and out, as the OpenAPI description has them. Answers aren't built from these: tests hold
every answer against them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = dict[str, Any]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2013-06-01T12:00:00.000Z"])]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256, in hexadecimal.")]
Version = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Cursor = Annotated[str | None, Field(description="Send it as `cursor` to go on; null at the end.")]


class Shape(BaseModel):
    """A document of known members."""

    model_config = ConfigDict(extra="forbid")


def _example(example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class Place(Shape):
    """The exact place that was read."""

    group: Name
    branch: Name
    version: Version
    committed_at: Time


class Row(Shape):
    """A row, and the version that last changed it."""

    model_config = _example(
        {
            "group": "UA",
            "table": "flights",
            "key": "2013-06-01-UA-1545-EWR",
            "version": 42,
            "committed_at": "2013-06-01T09:17:00.250Z",
            "row": {"status": "departed", "delay": 2},
        }
    )
    group: Name
    table: Name
    key: Name
    version: Version
    committed_at: Time
    row: JsonObject


class Rows(Shape):
    """A page of rows in the order of their keys."""

    rows: list[Row]
    at: Place
    cursor: Cursor


class Expectation(Shape):
    """A precondition: the version that last changed the row, 0 where it must be absent."""

    table: Name
    key: Name
    version: Annotated[int, Field(ge=0)]


class Change(Shape):
    """`put` gives the whole row, `patch` an RFC 7396 merge patch, `add` amounts by field, `delete` nothing."""

    op: Literal["put", "patch", "add", "delete"]
    table: Name
    key: Name
    row: JsonObject | None = None


class Operation(Shape):
    """A version-control operation, in place of changes. The endpoints for them are shorter."""

    kind: Name
    arguments: JsonObject = {}


class Part(Shape):
    """What is asked of one group."""

    group: Name
    branch: Name = "main"
    expect_head: Annotated[int, Field(ge=0)] | None = None
    expect: list[Expectation] = []
    changes: list[Change] = []
    operation: Operation | None = None


class Transaction(Shape):
    """What is asked for. Over several groups, `parts` stands in place of `group`, `branch`, `expect_head`, `expect`,
    `changes` and `operation`."""

    model_config = _example(
        {
            "id": "0190b6a5-3c5e-7b1e-9b1a-5f3b8d3c2a10",
            "author": "ops",
            "message": "Gate closed",
            "type": "FlightDeparted",
            "group": "UA",
            "expect": [{"table": "flights", "key": "k1", "version": 40}],
            "changes": [
                {"op": "put", "table": "flights", "key": "k1", "row": {"status": "departed", "delay": 2}},
                {"op": "patch", "table": "flights", "key": "k2", "row": {"delay": 7}},
                {"op": "add", "table": "carriers", "key": "UA", "row": {"departures": 1}},
                {"op": "delete", "table": "flights", "key": "k3"},
            ],
        }
    )
    id: Name | None = None
    author: str = ""
    message: str = ""
    type: str = ""
    occurred_at: Time | None = None
    group: Name | None = None
    branch: Name = "main"
    expect_head: Annotated[int, Field(ge=0)] | None = None
    expect: list[Expectation] = []
    changes: list[Change] = []
    operation: Operation | None = None
    parts: list[Part] | None = None


class PartOutcome(Shape):
    """What became of one group: version 0 and no hash where it was only asked about."""

    group: Name
    branch: Name
    version: Annotated[int, Field(ge=0)]
    hash: Hash | None


class Outcome(BaseModel):
    """The end of a transaction. A refusal has `code`, `detail` and the facts of its case; several groups `parts`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "id": "0190b6a5-3c5e-7b1e-9b1a-5f3b8d3c2a10",
                    "outcome": "committed",
                    "committed_at": "2013-06-01T09:17:00.250Z",
                    "group": "UA",
                    "branch": "main",
                    "version": 42,
                    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "token": "UA:42",
                }
            ]
        },
    )
    id: str
    outcome: Literal["committed", "refused"]
    committed_at: Time


class Undecided(BaseModel):
    """The transaction is in the log and not decided yet. Ask for its id, or send it again."""

    model_config = ConfigDict(extra="allow")
    id: str
    outcome: Literal["undecided"]
    code: str
    detail: str


class WaitingTransaction(Shape):
    """A transaction that a partition has taken in and not decided."""

    id: str
    groups: list[Name] = Field(description="Those of this partition.")
    partition: Annotated[int, Field(ge=0)]
    since: Time
    waited_s: float
    awaited: list[int] = Field(
        description="The partitions that have not voted on it; none where it waits for transactions before it."
    )


class WaitingTransactions(Shape):
    """What waits in all partitions, by when it came."""

    transactions: list[WaitingTransaction]


class Problem(BaseModel):
    """Any error, as RFC 9457 has it. `code` is for programs; the facts of the case are members beside it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "https://versolog.dev/problems/version-mismatch",
                    "title": "Version mismatch",
                    "status": 412,
                    "detail": "the row 'k1' of 'flights' was last changed by version 41, not 40",
                    "code": "version-mismatch",
                    "expected": 40,
                    "found": 41,
                }
            ]
        },
    )
    type: str
    title: str
    status: int
    detail: str
    code: str


class Conflict(Shape):
    """A place that both sides changed. The whole row where `path` is empty; sides without a value are left out."""

    table: Name
    key: Name
    path: list[str]
    code: Literal["both-changed", "changed-deleted", "both-added", "type", "schema", "no-conflict"]
    base: Any = None
    ours: Any = None
    theirs: Any = None
    stale: bool = False


class MergedVersions(Shape):
    """The versions that were merged, and the group's newest then."""

    version: Version
    ours: Version
    theirs: Annotated[int, Field(ge=0)]
    bases: list[Version]


class MergeProblem(Problem):
    """Any conflict with what was decided. With code `merge-conflict` it has the first conflicts of all, and the cursor
    to the next: send the same again with it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "https://versolog.dev/problems/merge-conflict",
                    "title": "Merge conflict",
                    "status": 409,
                    "code": "merge-conflict",
                    "detail": "1 conflict: send it again, with a resolution for each or a policy",
                    "group": "UA",
                    "branch": "main",
                    "at": {"version": 43, "ours": 43, "theirs": 42, "bases": [40]},
                    "total": 1,
                    "cursor": None,
                    "conflicts": [
                        {
                            "table": "flights",
                            "key": "k1",
                            "path": ["gate"],
                            "code": "both-changed",
                            "base": "A1",
                            "ours": "B2",
                            "theirs": "C3",
                        }
                    ],
                }
            ]
        },
    )
    at: MergedVersions | None = None
    total: int | None = None
    conflicts: list[Conflict] | None = None
    cursor: str | None = None


class RegisteredText(Shape):
    """A schema's JSON as it was registered."""

    schema_: Annotated[str, Field(alias="schema")]


class RegisteredVersion(Shape):
    """A schema as one version of a subject."""

    subject: Name
    version: Version
    id: Version
    schema_type: Annotated[Literal["AVRO"], Field(alias="schemaType")]
    schema_: Annotated[str, Field(alias="schema")]


class RegistryProblem(Shape):
    """An error as Confluent's registry tells it."""

    error_code: int
    message: str


class Live(Shape):
    """The process answers."""

    status: Literal["live"]


class PartitionHealth(Shape):
    """How a partition stands on this worker. Lags are null while they aren't known."""

    partition: Annotated[int, Field(ge=0)]
    role: Literal["owner", "follower", "recovering", "idle", "stopped"]
    error: str | None
    lag_offsets: int | None
    undecided_offsets: int | None
    waiting: int = Field(description="Transactions taken in that wait for votes, or for others that do.")
    lag_s: float | None


class Away(Shape):
    """A partition, of whatever worker, that has not voted for long, and the transactions that wait for it."""

    partition: Annotated[int, Field(ge=0)]
    transactions: int
    for_s: float


class Ready(Shape):
    """Whether every partition of this worker is as it should be."""

    status: Literal["ready", "not ready"]
    read_only: bool
    outage: str | None = Field(description="Why this worker takes no part in the group just now.")
    away: list[Away] = Field(description="Partitions that transactions here have waited for, for long.")
    partitions: list[PartitionHealth]


class About(BaseModel):
    """Who, when and why."""

    model_config = ConfigDict(extra="forbid")
    version: Version
    branch: Name
    committed_at: Time
    occurred_at: Time | None
    author: str
    message: str
    type: str
    operation: Name
    transaction_id: Name


class Past(About):
    """What a commit made of a row; null where it deleted it."""

    row: JsonObject | None


class History(Shape):
    """What happened to a row, the newest first."""

    group: Name
    table: Name
    key: Name
    changes: list[Past]
    at: Place
    cursor: Cursor


class BlamedField(About):
    """A field, and the commit that set it to what it is."""

    path: list[str]
    value: Any


class Blame(Shape):
    """Where each field of a row comes from."""

    group: Name
    table: Name
    key: Name
    fields: list[BlamedField]
    at: Place


class Heading(About):
    """A commit without its changes. Each names the hash of the one before it in its group."""

    parents: list[Version]
    hash: Hash
    previous_hash: Hash
    arguments: JsonObject | None


class GraphPlace(Shape):
    """Where a commit stands in the drawn graph, and the names that stand there now."""

    parents: list[Version]
    branches: list[Name]
    tags: list[Name]


class LoggedCommit(Heading):
    """A commit in a log; `graph` where it was asked for."""

    graph: GraphPlace | None = None


class Log(Shape):
    """Commits, the newest first. `at` is missing in the log of a whole group."""

    commits: list[LoggedCommit]
    at: Place | None = None
    cursor: Cursor


class CommittedChange(Shape):
    """A row as the commit left it; null where it deleted it."""

    table: Name
    key: Name
    row: JsonObject | None


class RefChange(Shape):
    """A branch or a tag as the commit left it."""

    kind: Literal["branch", "tag"]
    name: Name
    version: int | None
    parent: int | None


class GroupVersion(Shape):
    """The version that the same transaction made of another group."""

    group: Name
    version: Version


class MetSchema(Shape):
    """The schema that the changed rows of a table fit."""

    table: Name
    fingerprint: Hash


class Commit(Heading):
    """A commit, whole."""

    group: Name
    branch_id: Version
    intent_hash: Hash
    transaction_offset: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0, description="Of its first piece, in the topic `commits`.")]
    pieces: Annotated[int, Field(ge=1)]
    others: list[GroupVersion]
    changes: list[CommittedChange]
    refs: list[RefChange]
    schemas: list[MetSchema]


class RowState(Shape):
    """A row at one of two places."""

    version: Version
    committed_at: Time
    row: JsonObject


class FieldChange(Shape):
    """A field that differs; `before` or `after` is missing where the field is."""

    path: list[str]
    before: Any = None
    after: Any = None


class RowChange(Shape):
    """A row that differs."""

    table: Name
    key: Name
    change: Literal["added", "changed", "removed"]
    before: RowState | None
    after: RowState | None
    fields: list[FieldChange]


class Counts(Shape):
    """How many rows differ; at least so many, where they were too many to count."""

    rows: int
    added: int
    changed: int
    removed: int
    complete: bool


class TableChanges(Shape):
    """How many rows of a table differ."""

    table: Name
    rows: int
    added: int
    changed: int
    removed: int


class DiffCounts(Counts):
    """How many rows differ, in all and by table."""

    tables: list[TableChanges]


class Diff(Shape):
    """What two places of a group differ in."""

    from_: Annotated[Place, Field(alias="from")]
    to: Place
    counts: DiffCounts | None
    rows: list[RowChange]
    cursor: Cursor


class CommitChanges(Shape):
    """What a commit changed of the place that it found; `from` is null where that was nothing."""

    group: Name
    commit: Heading
    from_: Annotated[Place | None, Field(alias="from")]
    counts: DiffCounts | None
    rows: list[RowChange]
    cursor: Cursor


class RehearsedChange(Shape):
    """A row that would change."""

    table: Name
    key: Name
    change: Literal["added", "changed", "removed"]
    before: RowState | None
    after: JsonObject | None
    fields: list[FieldChange]


class Rehearsal(Shape):
    """What would change, and did not. `version` is the group's newest, that it was planned at; the counts come with the
    first page."""

    dry_run: Literal[True]
    group: Name
    branch: Name
    version: Version
    counts: Counts | None
    rows: list[RehearsedChange]
    cursor: Cursor


class GroupHead(Shape):
    """A group and its newest version."""

    group: Name
    version: Version
    committed_at: Time


class Groups(Shape):
    """Groups by name."""

    groups: list[GroupHead]
    cursor: Cursor


class BranchHead(Shape):
    """A branch and its newest version."""

    name: Name
    head: Version


class TagTarget(Shape):
    """A tag and the version that it names."""

    name: Name
    version: Version


class TableCount(Shape):
    """A table, and how many rows it has where they were counted."""

    table: Name
    rows: int | None


class GroupCounts(Shape):
    """How much there is."""

    commits: int
    branches: int
    tags: int
    tables: int


class Group(Shape):
    """What a group holds."""

    group: Name
    version: Version
    hash: Hash
    committed_at: Time
    branches: list[BranchHead]
    tags: list[TagTarget]
    tables: list[TableCount]
    counts: GroupCounts


class Branch(Shape):
    """A branch. `parent` is what it falls through to at version `fork`."""

    name: Name
    head: Version
    committed_at: Time | None
    id: Version
    parent: str | None
    fork: int | None


class Apart(Shape):
    """How a branch stands to another place: the commits that each has and the other has not, and the merge bases."""

    ref: str
    version: Version
    ahead: Annotated[int, Field(ge=0)]
    behind: Annotated[int, Field(ge=0)]
    bases: list[Version]


class BranchApart(Branch):
    """A branch, and how it stands to what it was asked to be compared with."""

    against: Apart | None


class Branches(Shape):
    """Branches by name."""

    branches: list[Branch]
    at: Place


class Tag(Shape):
    """A tag."""

    name: Name
    version: Version
    committed_at: Time | None


class Tags(Shape):
    """Tags by name."""

    tags: list[Tag]
    at: Place


class Range(Shape):
    """The rows of a range at a moment, and the version that their group stood at, 0 before its first."""

    rows: list[Row]
    version: Annotated[int, Field(ge=0)]
    after: Annotated[str | None, Field(description="Send it as `after`, at the same moment, to go on; null at the end.")]


class Moment(Shape):
    """What stood at one moment: for each read, in order, the row (null where there was none) or the range."""

    at: Time
    results: list[Row | Range | None]


class StoreTag(Shape):
    """A store-wide tag: the moment it names, and the version of `$store` that set it."""

    name: Name
    at: Time
    version: Version
    committed_at: Time


class StoreTags(Shape):
    """Store-wide tags by name."""

    tags: list[StoreTag]


class TableSchema(Shape):
    """The Avro schema that a table's rows must fit, and the version that set it."""

    group: Name
    table: Name
    version: Version
    committed_at: Time
    schema_: Annotated[JsonObject, Field(alias="schema")]


class TableChecks(Shape):
    """The checks that a table's rows are held to, by name, and the version that changed the table's settings last."""

    group: Name
    table: Name
    version: Version
    committed_at: Time
    checks: JsonObject


class MergeFunctions(Shape):
    """How a table's conflicts are settled before anyone is asked, and the version that last gave the table something."""

    group: Name
    table: Name
    version: Version
    committed_at: Time
    row: str | None
    fields: dict[str, str]


class Finding(BaseModel):
    """Something that is not as it was written."""

    model_config = ConfigDict(extra="allow")
    where: str
    partition: int
    offset: int
    group: str | None
    version: int | None
    detail: str


class Checked(Shape):
    """What was compared, and what was found not to fit."""

    ok: bool
    commits: int
    outcomes: int
    rows: int
    findings: list[Finding]


class VerifiedGroup(Checked):
    """The chain of a group, up to the version and hash computed."""

    group: Name
    version: int
    hash: str


class VerifiedPartition(Checked):
    """All chains of a partition."""

    partition: int
    groups: int


class Verified(Shape):
    """All partitions of a worker."""

    ok: bool
    partitions: list[VerifiedPartition]


class GroupDigest(Shape):
    """The digest of a group up to a version."""

    group: Name
    version: int
    digest: Hash


class StoreDigest(Shape):
    """The digest of all groups."""

    digest: Hash
    groups: int
    at: str | None
