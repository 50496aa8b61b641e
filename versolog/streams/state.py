"""What deciding and reading need to know of a partition: the shapes of its state, and the questions asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

MAIN = "main"
SETTINGS_TABLE = "$tables"
"""The system table that keeps each table's own settings, its Avro schema among them: versioned like any row."""
UNIQUE_TABLE = "$unique"
"""By table, check and the hash of a value, the key of the row that has it."""
SUMS_TABLE = "$sums"
"""By table and check, the sum."""
DERIVED_TABLES = frozenset({UNIQUE_TABLE, SUMS_TABLE})
"""Their rows follow from the other tables', on each branch: they are made anew, never merged or undone themselves."""

STORE_GROUP = "$store"
STORE_TAGS_TABLE = "tags"
"""Where store-wide tags are rows."""

NO_HASH = bytes(32)


class Head(NamedTuple):
    """Where the chain of a group stands: its newest version over all branches."""

    version: int
    hash: bytes
    committed_at: int
    """Milliseconds on the store's clock."""
    settings: int
    """The newest version that changed a system table on any branch; 0 where none ever did."""


class Branch(NamedTuple):
    """A line of commits. A deleted branch keeps its record, since its commits stay readable by version."""

    id: int
    """The version that created it; names can be used again, ids can't."""
    name: str
    head: int
    """Its newest version; `fork` where it has no commit of its own."""
    parent: int | None
    """The id of the branch it falls through to."""
    fork: int
    """The parent's version it falls through at; 0 without a parent."""
    live: bool
    """False once deleted."""

    def at_head(self, head: int) -> Branch:
        """The branch with another head."""
        return Branch(self.id, self.name, head, self.parent, self.fork, self.live)


class Row(NamedTuple):
    """A row as one commit left it."""

    version: int
    committed_at: int
    text: bytes | None
    """JSON with sorted keys; None where the commit deleted it."""


class Level(NamedTuple):
    """One step of the way that a read takes: this branch, up to this version."""

    branch: int
    upto: int


class Step(NamedTuple):
    """A commit without its changes: what walking the graph needs to know."""

    version: int
    branch: int
    """The id of the branch that it names."""
    parents: tuple[int, ...]
    tip: int
    """That branch's head after it: the version itself; for an operation on refs, the head that it left where it was."""
    committed_at: int
    operation: str


class Join(NamedTuple):
    """A merge: the commit on the branch merged into, and the version merged there."""

    version: int
    other: int


class State(Protocol):
    """A partition's state as deciding sees it. Every answer is that of the newest decided transaction."""

    def head(self, group: str) -> Head | None: ...
    def branch(self, group: str, name: str) -> Branch | None:
        """The live branch of that name."""

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        """The branch, deleted or not."""

    def branches(self, group: str) -> list[Branch]:
        """The live branches, by name."""

    def tag(self, group: str, name: str) -> int | None: ...
    def tags(self, group: str) -> dict[str, int]: ...
    def row(self, group: str, level: Level, table: str, key: str) -> Row | None:
        """The newest state of the row at one level, a deleted one included; None where this level says nothing."""

    def rows(self, group: str, level: Level, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        """As `row`, for many (table, key) at once."""

    def table_rows(self, group: str, level: Level, table: str) -> Iterator[tuple[str, Row]]:
        """Every row of the table at one level with its key, deleted ones included, in no order."""

    def commit(self, group: str, version: int) -> dict[str, Any] | None:
        """The commit as its Avro record, pieces joined."""

    def step(self, group: str, version: int) -> Step | None:
        """The commit's place in the graph, without reading its changes; None where there is no such version."""

    def line(self, group: str, name: str, upto: int) -> Level | None:
        """Where the branch that had this name when the group stood at version `upto` stood then: its id, and the newest
        version ≤ `upto` whose commit names it (its fork where none does). None where no branch had the name then."""

    def joins(self, group: str, level: Level) -> Iterator[Join]:
        """The merges into a branch, the newest first, fast-forwards too. Costs what is taken of them."""

    def version_at(self, group: str, time_ms: int) -> int:
        """The newest version with committed_at ≤ `time_ms`; 0 where there is none."""

    def outcome(self, transaction_id: str) -> bytes | None:
        """The Avro body of the outcome, where the transaction was decided."""
