"""How long a committer rests between small batches, by how much the worker has to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REST_COMMITS = 3
"""Where everything is busy, a partition rests so many times as long as the last commit took."""
REST_MAX_S = 0.05
"""And no longer, with few transactions at hand: a commit can take seconds, where Kafka is away, and what comes after it is
not to wait for that."""
FEW_WAITING = 25
"""With each so many more at hand it may be REST_MAX_S longer: they come faster than such small batches can be committed."""
REST_LONGEST_S = 0.2
"""However many they are."""
REST_AWAITED_MAX_S = 0.03
"""And no longer than this where most of them are awaited here: who gets an answer sends more."""
MANY_WAITING = 50
"""With so many transactions at hand a partition counts as busy, whatever the others do."""


class Pace:
    """Shared by the committers of one worker. Each Kafka transaction costs the worker and the broker the same few
    milliseconds of a processor, whatever it holds: where many want one, they do better to be fewer and larger; where few
    do, one that waits for company waits for nobody."""

    def __init__(self) -> None:
        self._members: set[int] = set()
        self._at_work: set[int] = set()

    def begin(self, partition: int) -> None:
        """The partition commits, or has something to commit."""
        self._at_work.add(partition)

    def end(self, partition: int) -> None:
        """It has nothing to commit."""
        self._at_work.discard(partition)

    @contextmanager
    def kept(self, partition: int) -> Iterator[None]:
        """The partition is one of those that commit."""
        self._members.add(partition)
        try:
            yield
        finally:
            self._members.discard(partition)
            self._at_work.discard(partition)

    def rest_s(self, partition: int, commit_s: float, waiting: int, *, awaited: int) -> float:
        """For how long `partition` rests after a commit that took `commit_s`, with `waiting` transactions at hand; somebody
        waits here for `awaited` outcomes, of these or of what is to come."""
        others = len(self._members) - 1
        busy = len(self._at_work - {partition}) / others if others > 0 else 0.0
        longest_s = min(REST_MAX_S * (1 + waiting / FEW_WAITING), REST_LONGEST_S)
        if awaited > waiting / 2:
            longest_s = REST_AWAITED_MAX_S
        return min(REST_COMMITS * commit_s, longest_s) * min(busy + (waiting - 1) / MANY_WAITING, 1.0)
