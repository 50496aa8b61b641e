"""Conflicts of a merge as they are told, and the resolutions that answer them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

Path = tuple[str, ...]


class Absent:
    """No value: the row does not exist, or the object has no such field. Not the same as JSON's null."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
_SIDES = ("base", "ours", "theirs")


@dataclass(frozen=True, slots=True)
class Conflict:
    """A place that both sides changed, each in its own way. The whole row where `path` is empty."""

    table: str
    key: str
    path: Path
    code: str
    """`both-changed`, `changed-deleted`, `both-added`; `type` where a merge function can't take the values; `schema`
    for two schemas of a table of which neither takes the other's rows, or one that does not take the rows that stand;
    `no-conflict` for a resolution of what is in no conflict."""
    base: Any
    """What stood before both, as far as it is known; this and the two sides are ABSENT where there is no value."""
    ours: Any
    theirs: Any
    stale: bool = False
    """Whether a resolution was given, and made against other values."""

    def to_json(self) -> dict[str, Any]:
        """Sides that are absent are left out, and so is a base that is not known."""
        told: dict[str, Any] = {"table": self.table, "key": self.key, "path": list(self.path), "code": self.code}
        told |= _present(self)
        return told | ({"stale": True} if self.stale else {})

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        base, ours, theirs = (told.get(side, ABSENT) for side in _SIDES)
        place = told["table"], told["key"], tuple(told["path"])
        return cls(*place, told["code"], base, ours, theirs, told.get("stale", False))

    def take_ours(self) -> Resolution:
        """End it with what stands on the branch merged into."""
        return self._end("ours")

    def take_theirs(self) -> Resolution:
        """End it with what is merged."""
        return self._end("theirs")

    def take_value(self, value: Any) -> Resolution:
        """End it with another value: a JSON object for a whole row."""
        return self._end({"value": value})

    def delete(self) -> Resolution:
        """End it with no row, or no such field."""
        return self._end({"delete": True})

    def _end(self, take: Any) -> Resolution:
        return Resolution(self.table, self.key, self.path, self.base, self.ours, self.theirs, take)


@dataclass(frozen=True, slots=True)
class Resolution:
    """How one conflict is to end, and the values that it was decided on: made on others, it conflicts again."""

    table: str
    key: str
    path: Path
    base: Any
    ours: Any
    theirs: Any
    take: Any
    """`"ours"`, `"theirs"`, `{"value": …}` or `{"delete": True}`."""

    def to_json(self) -> dict[str, Any]:
        """As merges take it."""
        told: dict[str, Any] = {"table": self.table, "key": self.key, "path": list(self.path)}
        return told | _present(self) | {"take": self.take}


def _present(sides: Conflict | Resolution) -> dict[str, Any]:
    values = {"base": sides.base, "ours": sides.ours, "theirs": sides.theirs}
    return {side: value for side, value in values.items() if value is not ABSENT}
