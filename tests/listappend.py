"""A workload of transactions that read and append to lists in several groups, and what its clients saw of it.

A list is a row, `{"list": [1, 2, 3]}`. A transaction is sent with the versions of all rows that were read for it as
preconditions, so what was read still stood when it was committed. Here is no I/O: it comes as two callables.

    recorder = Recorder()
    for plan in islice(plans(seed, groups), 20_000):  # or several clients at once, each with `recorder.attempt(plan)`
        recorder.run(plan, read, send)
    anomalies = recorder.check(read(recorder.keys))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import NamedTuple

from tests.serializability import Anomaly, Append, Observed, Read, check
from versolog.schemas.outcome import Outcome
from versolog.streams.transaction import Transaction

TABLE, FIELD = "lists", "list"
GROUPS_MAX = 4
READS_ALONE = 0.2
"""How many transactions append nothing, and are sent to say that what was read still stands."""


class Key(NamedTuple):
    """A list: the row `name` of the table `TABLE` in `group`."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"


class Row(NamedTuple):
    """A list as it was read: version 0 and empty where there is no such row."""

    version: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What one consistent read over groups answered: every key that was asked for."""

    rows: Mapping[Key, Row]
    moment: int | None = None
    """The committed_at that it read at, in milliseconds; None where the store doesn't tell."""


@dataclass(frozen=True)
class Plan:
    """A transaction to be: what it reads, and what it appends to some of that."""

    id: str
    keys: tuple[Key, ...]
    appends: tuple[tuple[Key, int], ...]

    def transaction(self, reading: Reading) -> Transaction:
        """The lengthened lists, on condition that all that was read still stands; or only the condition."""
        tx = Transaction(None, id=self.id, type="Appended" if self.appends else "Compared")
        lists = {key: list(reading.rows[key].values) for key in self.keys}
        for key in self.keys:
            tx.group(key.group).expect(TABLE, key.name, reading.rows[key].version)
        for key, value in self.appends:
            lists[key].append(value)
        for key in dict(self.appends):
            tx.group(key.group).put(TABLE, key.name, {FIELD: lists[key]})
        return tx


def plans(
    seed: int, groups: Sequence[str], *, lists_per_group: int = 2, appends_max: int = 100, prefix: str = "t"
) -> Iterator[Plan]:
    """Transactions without end, each over one to four of `groups`; the same ones for the same arguments.

    Clients share one such iterator (threads with a lock around it), for values are unique within it. A list with
    `appends_max` planned appends gives its place to a new one: rows stay small, and clients contend for few at a time.
    """
    random, number = Random(seed), 0
    made = dict.fromkeys(groups, lists_per_group)
    open_ = {group: [Key(group, str(name)) for name in range(lists_per_group)] for group in groups}
    planned: dict[Key, int] = {}
    while True:
        number += 1
        keys: list[Key] = []
        appends: list[tuple[Key, int]] = []
        for group in random.sample(groups, random.randint(1, min(GROUPS_MAX, len(groups)))):
            keys += random.sample(open_[group], random.randint(1, min(2, lists_per_group)))
        for key in keys:
            for _ in range(random.choice((0, 1, 1, 2))):
                appends.append((key, 100 * number + len(appends)))
                planned[key] = planned.get(key, 0) + 1
            if planned.get(key, 0) >= appends_max:
                open_[key.group][open_[key.group].index(key)] = Key(key.group, str(made[key.group]))
                made[key.group] += 1
        if random.random() < READS_ALONE:
            appends = []
        yield Plan(f"{prefix}{number}", tuple(keys), tuple(appends))


@dataclass
class Attempt:
    """One plan on its way: `read`, then send the transaction that it answers, then `ended`."""

    plan: Plan
    _clock: Callable[[], float]
    started: float
    reading: Reading | None = None
    read_at: float = inf
    outcome: Outcome | None = None
    ended_at: float = inf

    def read(self, reading: Reading) -> Transaction:
        """What was read, and the transaction to be sent, over and over if need be. From now on it may be committed."""
        self.reading, self.read_at = reading, self._clock()
        return self.plan.transaction(reading)

    def ended(self, outcome: Outcome | None) -> None:
        """How it ended; None where nobody knows. Whoever asks later may say so later."""
        if outcome is not None:
            self.outcome, self.ended_at = outcome, self._clock()

    def observed(self, fresh_reads: bool) -> Iterator[Observed]:
        """The read, which is a transaction of its own, and the one that was sent."""
        if self.reading is None:
            return
        reads = tuple(Read(key, self.reading.rows[key].values) for key in self.plan.keys)
        started = self.started if fresh_reads else -inf
        yield Observed(f"{self.plan.id}-read", reads, "committed", started, self.read_at, moment=self.reading.moment)
        appends = tuple(Append(key, value) for key, value in self.plan.appends)
        if self.outcome is None:
            yield Observed(self.plan.id, (*reads, *appends), "unknown", self.read_at)
        elif not self.outcome.committed:
            yield Observed(self.plan.id, (*reads, *appends), "refused", self.read_at, self.ended_at)
        else:
            versions = {part.group: part.version for part in self.outcome.parts if part.version}
            moment = self.outcome.committed_at if appends else None
            yield Observed(
                self.plan.id, (*reads, *appends), "committed", self.read_at, self.ended_at, versions, moment
            )  # fmt: skip


@dataclass
class Recorder:
    """What all clients saw. Several threads or tasks may use it at once.

    `fresh_reads` says that a read holds all that had been acknowledged before it began; set it to False where reads may
    be of the past, and they are held to a serial order alone.
    """

    fresh_reads: bool = True
    clock: Callable[[], float] = time.monotonic
    """Of all clients together, so that it can say what had ended before something else started."""
    attempts: list[Attempt] = field(default_factory=list)

    def attempt(self, plan: Plan) -> Attempt:
        """Begin with the plan's read. One that fails may be left where it is: it counts for as much as happened."""
        self.attempts.append(Attempt(plan, self.clock, self.clock()))
        return self.attempts[-1]

    def run(
        self, plan: Plan, read: Callable[[Collection[Key]], Reading], send: Callable[[Transaction], Outcome | None]
    ) -> Outcome | None:
        """The whole way of a plan: `read` all at one moment, then `send`, which answers None where nobody knows."""
        attempt = self.attempt(plan)
        attempt.ended(send(attempt.read(read(plan.keys))))
        return attempt.outcome

    @property
    def keys(self) -> list[Key]:
        """Every list that was read or appended to."""
        return sorted({key for attempt in self.attempts for key in attempt.plan.keys})

    @property
    def history(self) -> list[Observed]:
        """What happened, as the checker takes it: two transactions for each attempt that came so far."""
        return [one for attempt in self.attempts for one in attempt.observed(self.fresh_reads)]

    def check(self, final: Reading) -> list[Anomaly]:
        """All that was wrong, given every list of `keys` as it was after everything was decided."""
        return check(self.history, {key: row.values for key, row in final.rows.items()})
