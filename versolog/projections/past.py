"""A group as it stood at one of its versions, to decide there again what was decided then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from versolog.projections.store import Store
from versolog.streams.state import Branch, Head, Join, Level, Row, Step


class Past:
    """The state that the transaction after `version` found; of the one group, and the same for ever.

    Also what a dry run reads, so that nothing that is folded meanwhile comes between two of its reads.
    """

    def __init__(self, store: Store, group: str, version: int) -> None:
        self._store, self._group, self._version = store, group, version

    def head(self, group: str) -> Head | None:
        entry = self._store.commit_entry(group, self._version)
        newest = self._store.head(group)
        if entry is None or newest is None:
            return None
        # Settings made since are not seen: only whether to look for them is known from this.
        return Head(self._version, entry.hash, entry.step.committed_at, newest.settings)

    def branch(self, group: str, name: str) -> Branch | None:
        level = self.line(group, name, self._version)
        branch = None if level is None else self._store.branch_by_id(group, level.branch)
        if level is None or branch is None:
            return None
        step = self._store.step(group, level.upto) if level.upto > branch.fork else None
        # The last commit that names the branch may be an operation on refs, which left the head where it was.
        return branch._replace(head=branch.fork if step is None else step.tip, live=True)

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        return self._store.branch_by_id(group, branch_id)

    def branches(self, group: str) -> list[Branch]:
        found = (self.branch(group, name) for name, kind, _ in self._names if kind == "branch")
        return [branch for branch in found if branch is not None]

    def tag(self, group: str, name: str) -> int | None:
        kind, version = self._store.name_at(group, name, self._version) or ("", 0)
        return version if kind == "tag" else None

    def tags(self, group: str) -> dict[str, int]:
        return {name: version for name, kind, version in self._names if kind == "tag"}

    def row(self, group: str, level: Level, table: str, key: str) -> Row | None:
        return self._store.row(group, level, table, key)

    def rows(self, group: str, level: Level, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        return self._store.rows(group, level, places)

    def table_rows(self, group: str, level: Level, table: str) -> Iterator[tuple[str, Row]]:
        return self._store.table_rows(group, level, table)

    def commit(self, group: str, version: int) -> dict[str, Any] | None:
        return self._store.commit(group, version)

    def step(self, group: str, version: int) -> Step | None:
        return self._store.step(group, version) if version <= self._version else None

    def line(self, group: str, name: str, upto: int) -> Level | None:
        return self._store.line(group, name, min(upto, self._version))

    def joins(self, group: str, level: Level) -> Iterator[Join]:
        return self._store.joins(group, level)

    def version_at(self, group: str, time_ms: int) -> int:
        return min(self._version, self._store.version_at(group, time_ms))

    def outcome(self, transaction_id: str) -> bytes | None:
        return self._store.outcome(transaction_id)

    @cached_property
    def _names(self) -> list[tuple[str, str, int]]:
        return list(self._store.names_at(self._group, self._version))
