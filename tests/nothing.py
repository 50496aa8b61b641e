"""A state in which nothing is: what stands below the overlay where there is no store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from versolog.streams.state import Branch, Head, Join, Level, Row, State, Step


class Nothing:
    """Answers every question with nothing."""

    def head(self, group: str) -> Head | None:
        return None

    def branch(self, group: str, name: str) -> Branch | None:
        return None

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        return None

    def branches(self, group: str) -> list[Branch]:
        return []

    def tag(self, group: str, name: str) -> int | None:
        return None

    def tags(self, group: str) -> dict[str, int]:
        return {}

    def row(self, group: str, level: Level, table: str, key: str) -> Row | None:
        return None

    def rows(self, group: str, level: Level, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        return [None] * len(places)

    def commit(self, group: str, version: int) -> dict[str, Any] | None:
        return None

    def step(self, group: str, version: int) -> Step | None:
        return None

    def line(self, group: str, name: str, upto: int) -> Level | None:
        return None

    def joins(self, group: str, level: Level) -> Iterator[Join]:
        return iter(())

    def version_at(self, group: str, time_ms: int) -> int:
        return 0

    def outcome(self, transaction_id: str) -> bytes | None:
        return None


NOTHING: State = Nothing()
