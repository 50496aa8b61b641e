"""Who waits for whom within a partition: names are held in the order of the log, and given on in that order."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

Name = tuple[str, str]
"""What can be held: ("group", its name) or ("id", a transaction's id)."""


class Holds:
    """Queues for names. Whoever enters takes a place in the queue of each of its names, and its turn comes when it is
    the first in all of them. As all enter in one order, none can wait for one that waits for it."""

    def __init__(self) -> None:
        self._queues: dict[Name, deque[int]] = {}
        self._names: dict[int, Collection[Name]] = {}
        self._behind: dict[int, int] = {}
        """For each place in the log, the queues in which it is not the first."""

    def blocks(self, names: Collection[Name]) -> bool:
        """Whether any of the names is held."""
        queues = self._queues
        return any(name in queues for name in names)

    def enter(self, offset: int, names: Collection[Name]) -> bool:
        """Take a place in each queue, at the end; whether the turn has come at once. Offsets are ascending."""
        behind = 0
        for name in names:
            queue = self._queues.setdefault(name, deque())
            behind += bool(queue)
            queue.append(offset)
        self._names[offset], self._behind[offset] = names, behind
        return behind == 0

    def waits(self, offset: int) -> bool:
        """Whether the turn of one that entered has not come."""
        return self._behind[offset] > 0

    def leave(self, offset: int) -> list[int]:
        """Give up all places, whose turn it was; answers whose turn has come by that, in order."""
        assert self._behind.pop(offset) == 0, "only whose turn it is can leave"
        freed = []
        for name in self._names.pop(offset):
            queue = self._queues[name]
            queue.popleft()
            if not queue:
                del self._queues[name]
                continue
            self._behind[queue[0]] -= 1
            if self._behind[queue[0]] == 0:
                freed.append(queue[0])
        return sorted(freed)
