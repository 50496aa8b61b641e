"""The list-append workload against stores of a few lines: a correct one, and ones with a bug that must be caught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain, count, islice
from random import Random
from typing import Any

import orjson
import pytest

from tests.listappend import FIELD, TABLE, Key, Plan, Reading, Recorder, Row, plans
from versolog.schemas.outcome import Outcome, PartOutcome
from versolog.streams.transaction import Transaction

GROUPS = ("g1", "g2", "g3", "g4", "g5", "g6")
CLIENTS, TRANSACTIONS = 6, 300
UNSENT, UNANSWERED = 0.03, 0.05

Rows = dict[Key, Row]


class Store:
    """Lists in memory. What is sent is decided and applied at once, one transaction after the other."""

    def __init__(self) -> None:
        self.rows: Rows = {}
        self.heads = dict.fromkeys(GROUPS, 0)
        self.time = 0

    def read(self, keys: Collection[Key]) -> Reading:
        return Reading({key: self.rows.get(key, Row(0, ())) for key in keys}, self.time)

    def send(self, tx: Transaction) -> Outcome:
        self.time += 1
        parts = tx.record()["parts"]
        if not all(self.holds(part["group"], expected) for part in parts for expected in part["expect"]):
            return Outcome(tx.id, False, self.time, (), "version-mismatch")
        made = []
        for part in parts:
            group, changes = part["group"], part["changes"]
            self.heads[group] += bool(changes)
            made.append(PartOutcome(group, "main", self.heads[group] if changes else 0, bytes(32)))
        self.apply([self.changed(part["group"], part["changes"]) for part in parts])
        return Outcome(tx.id, True, self.time, tuple(made))

    def holds(self, group: str, expected: dict[str, Any]) -> bool:
        row = self.rows.get(Key(group, expected["key"]), Row(0, ()))
        return bool(row.version == expected["version"])

    def changed(self, group: str, changes: list[dict[str, Any]]) -> Rows:
        assert all((change["op"], change["table"]) == ("put", TABLE) for change in changes)
        return {
            Key(group, change["key"]): Row(self.heads[group], tuple(orjson.loads(change["row"])[FIELD]))
            for change in changes
        }

    def apply(self, parts: list[Rows]) -> None:
        for rows in parts:
            self.rows |= rows

    def settle(self) -> None:
        """Nothing is on its way any more."""


class StoreWithoutPreconditions(Store):
    def holds(self, group: str, expected: dict[str, Any]) -> bool:
        return True


class StoreOfHalves(Store):
    """The first group has its part at once, the others later. Until then these rows can be read, but not changed."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[tuple[int, Rows]] = []

    def apply(self, parts: list[Rows]) -> None:
        super().apply(parts[:1])
        self.waiting += [(self.time + 2, rows) for rows in parts[1:]]

    def send(self, tx: Transaction) -> Outcome:
        due = [rows for time, rows in self.waiting if time <= self.time]
        self.waiting = self.waiting[len(due) :]
        super().apply(due)
        return super().send(tx)

    def holds(self, group: str, expected: dict[str, Any]) -> bool:
        held = any(Key(group, expected["key"]) in rows for _, rows in self.waiting)
        return not held and super().holds(group, expected)

    def settle(self) -> None:
        super().apply([rows for _, rows in self.waiting])


class StoreOfThePast(Store):
    """Now and then a read is of some transactions ago, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.past: list[Rows] = [{}]

    def send(self, tx: Transaction) -> Outcome:
        outcome = super().send(tx)
        self.past.append(dict(self.rows))
        return outcome

    def read(self, keys: Collection[Key]) -> Reading:
        moment = max(0, self.time - 20) if self.time % 4 == 0 else self.time
        return Reading({key: self.past[moment].get(key, Row(0, ())) for key in keys}, moment)

    def settle(self) -> None:
        self.past = [self.rows] * len(self.past)


class StoreOfWrongTimes(Store):
    """Reads are said to be of a time that is past."""

    def read(self, keys: Collection[Key]) -> Reading:
        return Reading(super().read(keys).rows, max(0, self.time - 1))


def client(mine: Iterator[Plan], store: Store, recorder: Recorder, random: Random) -> Iterator[None]:
    """One transaction after the other; a `yield` is where others come in between."""
    for plan in mine:
        attempt = recorder.attempt(plan)
        yield
        reading = store.read(plan.keys)
        yield
        tx = attempt.read(reading)
        yield
        if random.random() < UNSENT:
            continue
        outcome = store.send(tx)
        yield
        attempt.ended(None if random.random() < UNANSWERED else outcome)


def ran(store: Store, *, fresh_reads: bool = True, seed: int = 0) -> Recorder:
    """The workload of several clients, in an order that the seed decides."""
    random, steps = Random(seed), count()
    recorder = Recorder(fresh_reads, clock=lambda: next(steps))
    shared = islice(plans(seed, GROUPS, appends_max=20), TRANSACTIONS)
    clients = [client(shared, store, recorder, random) for _ in range(CLIENTS)]
    while clients:
        chosen = random.choice(clients)
        if next(chosen, chain) is chain:
            clients.remove(chosen)
    store.settle()
    return recorder


def kinds(store: Store, *, fresh_reads: bool = True, seed: int = 0) -> set[str]:
    recorder = ran(store, fresh_reads=fresh_reads, seed=seed)
    return {anomaly.kind for anomaly in recorder.check(store.read(recorder.keys))}


@pytest.mark.parametrize("seed", range(5))
def test_a_correct_store_has_no_anomaly(seed: int) -> None:
    store = Store()
    recorder = ran(store, seed=seed)
    assert [str(anomaly) for anomaly in recorder.check(store.read(recorder.keys))] == []
    ends = Counter(one.outcome for one in recorder.history if not one.id.endswith("-read"))
    assert ends["committed"] > ends["refused"] > ends["unknown"] > 0
    assert len(recorder.keys) > 2 * len(GROUPS)


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_forgets_preconditions_loses_updates(seed: int) -> None:
    assert {"lost-update", "lost-append"} <= kinds(StoreWithoutPreconditions(), seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_is_not_atomic_over_groups_shows_halves(seed: int) -> None:
    found = kinds(StoreOfHalves(), seed=seed)
    assert "G-single" in found
    assert "lost-update" not in found


@pytest.mark.parametrize("seed", range(5))
def test_a_store_that_reads_the_past_is_serializable_but_not_in_real_time(seed: int) -> None:
    found = kinds(StoreOfThePast(), seed=seed)
    assert "G-single-realtime" in found
    assert all(kind.endswith("-realtime") for kind in found)
    assert kinds(StoreOfThePast(), fresh_reads=False, seed=seed) == set()


def test_a_read_of_another_time_than_it_says_is_caught() -> None:
    assert kinds(StoreOfWrongTimes()) == {"wrong-moment"}


def test_plans_are_the_same_for_the_same_seed_and_spread_over_groups() -> None:
    planned = list(islice(plans(1, GROUPS), 500))
    assert planned == list(islice(plans(1, GROUPS), 500))
    assert planned != list(islice(plans(2, GROUPS), 500))
    assert {len({key.group for key in plan.keys}) for plan in planned} == {1, 2, 3, 4}
    assert any(not plan.appends for plan in planned)
    appends = [append for plan in planned for append in plan.appends]
    assert len(set(appends)) == len(appends)
    assert max(Counter(key for key, _ in appends).values()) <= 101


def test_a_transaction_expects_all_that_was_read_and_puts_what_it_lengthens() -> None:
    x, y, z = Key("g", "x"), Key("g", "y"), Key("h", "z")
    plan = Plan("t1", (x, y, z), ((x, 5), (z, 6), (z, 7)))
    tx = plan.transaction(Reading({x: Row(3, (1, 2)), y: Row(4, (3,)), z: Row(0, ())}))
    assert tx.to_json() == {
        "id": "t1", "type": "Appended", "parts": [
            {"group": "g", "expect": [{"table": "lists", "key": "x", "version": 3},
                                      {"table": "lists", "key": "y", "version": 4}],
             "changes": [{"op": "put", "table": "lists", "key": "x", "row": {"list": [1, 2, 5]}}]},
            {"group": "h", "expect": [{"table": "lists", "key": "z", "version": 0}],
             "changes": [{"op": "put", "table": "lists", "key": "z", "row": {"list": [6, 7]}}]},
        ],
    }  # fmt: skip


def test_an_outcome_that_was_learned_later_counts() -> None:
    store, recorder = Store(), Recorder(clock=count().__next__)
    plan = Plan("t1", (Key("g1", "0"),), ((Key("g1", "0"), 1),))
    attempt = recorder.attempt(plan)
    outcome = store.send(attempt.read(store.read(plan.keys)))
    attempt.ended(None)
    assert [one.outcome for one in recorder.history] == ["committed", "unknown"]
    attempt.ended(outcome)
    assert [one.outcome for one in recorder.history] == ["committed", "committed"]
    assert recorder.run(Plan("t2", plan.keys, ()), store.read, store.send) is not None
    assert recorder.check(store.read(recorder.keys)) == []
    assert [anomaly.kind for anomaly in recorder.check(Reading({plan.keys[0]: Row(0, ())}))] == ["lost-append"]
