"""The checker of list-append histories: bad ones of every kind, good ones, and good ones with one thing made wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import inf
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.serializability import Append, Key, Observed, Outcome, Read, Value, check

Final = dict[Key, list[Value]]

OUTCOMES: tuple[Outcome, ...] = ("committed", "refused", "unknown")

seeds = st.integers(0, 2**32)


def a(key: Key, value: Value) -> Append:
    return Append(key, value)


def r(key: Key, *values: Value) -> Read:
    return Read(key, values)


def t(id: str, *operations: Append | Read, during: tuple[float, float] | None = None) -> Observed:
    started, ended = (-inf, inf) if during is None else during
    return Observed(id, operations, started=started, ended=ended)


def refused(id: str, *operations: Append | Read) -> Observed:
    return Observed(id, operations, "refused")


def unknown(id: str, *operations: Append | Read, started: float = 0) -> Observed:
    return Observed(id, operations, "unknown", started)


def found(history: list[Observed], final: Mapping[Key, Sequence[Value]] | None = None) -> list[tuple[str, str]]:
    return [(anomaly.kind, " ".join(sorted(anomaly.transactions))) for anomaly in check(history, final)]


# Bad histories, made by hand

BAD: dict[str, tuple[str, list[Observed]]] = {
    "G0": ("t1 t2", [
        t("t1", a("x", 1), a("y", 1)),
        t("t2", a("x", 2), a("y", 2)),
        t("t3", r("x", 1, 2), r("y", 2, 1)),
    ]),
    "G0-realtime": ("t1 t2", [
        t("t1", a("x", 1), during=(3, 4)),
        t("t2", a("x", 2), during=(1, 2)),
        t("t3", r("x", 1, 2)),
    ]),
    "G1a": ("t1 t2", [
        refused("t1", a("x", 1)),
        t("t2", r("x", 1)),
    ]),
    "G1b": ("t1 t2", [
        t("t1", a("x", 1), a("x", 2)),
        t("t2", r("x", 1)),
        t("t3", r("x", 1, 2)),
    ]),
    "G1c": ("t1 t2", [
        t("t1", a("x", 1), r("y", 1)),
        t("t2", a("y", 1), r("x", 1)),
    ]),
    "G1c-realtime": ("t1 t2", [
        t("t1", a("x", 1), during=(3, 4)),
        t("t2", r("x", 1), during=(1, 2)),
    ]),
    "G-single": ("t1 t2", [
        t("t1", a("x", 1), a("y", 1)),
        t("t2", r("x", 1), r("y")),
        t("t3", r("y", 1)),
    ]),
    "G-single-realtime": ("t1 t2", [
        t("t1", a("x", 1), during=(1, 2)),
        t("t2", r("x"), during=(3, 4)),
        t("t3", r("x", 1)),
    ]),
    "G2": ("t1 t2", [
        t("t1", r("x"), a("y", 1)),
        t("t2", r("y"), a("x", 1)),
        t("t3", r("x", 1), r("y", 1)),
    ]),
    "G2-realtime": ("t1 t2 t3 t4", [
        t("t1", a("x", 1), during=(1, 9)),
        t("t2", a("y", 1), during=(2, 4)),
        t("t3", r("x", 1), r("y"), during=(2, 8)),
        t("t4", r("x"), during=(5, 6)),
        t("t5", r("y", 1)),
    ]),
    "lost-update": ("t1 t2", [
        t("t0", a("x", 0)),
        t("t1", r("x", 0), a("x", 1)),
        t("t2", r("x", 0), a("x", 2)),
        t("t3", r("x", 0, 1, 2)),
    ]),
    "internal": ("t2", [
        t("t1", a("x", 1)),
        t("t2", a("x", 2), r("x", 1)),
    ]),
    "incompatible-order": ("t3", [
        t("t1", a("x", 1), a("x", 2)),
        t("t2", r("x", 1, 2)),
        t("t3", r("x", 2)),
    ]),
    "duplicate": ("t1 t2", [
        t("t1", a("x", 1)),
        t("t2", r("x", 1, 1)),
    ]),
    "garbage": ("t2", [
        t("t1", a("x", 1)),
        t("t2", r("x", 1, 7)),
    ]),
    "version-reused": ("t1 t2", [
        replace(t("t1", a("x", 1)), versions={"g": 4}),
        replace(t("t2", a("y", 1)), versions={"g": 4}),
    ]),
    "wrong-moment": ("t2", [
        replace(t("t1", a("x", 1)), moment=20),
        replace(t("t2", r("x", 1)), moment=19),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_history_is_found_and_named(kind: str) -> None:
    transactions, history = BAD[kind]
    assert found(history) == [(kind, transactions)]
    assert found(history[::-1]) == [(kind, transactions)]


def test_an_appended_value_is_lost_at_the_end() -> None:
    history = [t("t1", a("x", 1)), t("t2", a("x", 2)), t("t3", r("x", 1))]
    assert found(history) == []
    assert found(history, {"x": [1]}) == [("lost-append", "t2")]


def test_what_was_read_before_and_is_gone_at_the_end_is_lost() -> None:
    history = [t("t1", a("x", 1)), t("t2", a("x", 2)), t("t3", r("x", 1, 2))]
    assert found(history, {"x": [1]}) == [("lost-append", "t2")]
    assert found(history, {"x": [2]}) == [("incompatible-order", ""), ("lost-append", "t1")]


def test_a_refused_append_rises_again_at_the_end() -> None:
    history = [t("t1", a("x", 1)), refused("t2", a("x", 2)), refused("t3", a("x", 3))]
    assert found(history, {"x": [1, 2]}) == [("resurrected", "t2")]


def test_the_end_holds_what_can_not_be() -> None:
    assert found([t("t1", a("x", 1))], {"x": [1, 7]}) == [("garbage", "")]
    assert found([t("t1", a("x", 1))], {"x": [1, 1]}) == [("duplicate", "")]


def test_two_lost_updates_of_which_nothing_is_seen_again() -> None:
    history = [t("t1", r("x"), a("x", 1)), t("t2", r("x"), a("x", 2))]
    assert found(history) == [("lost-update", "t1 t2")]


def test_a_lost_update_is_found_where_the_other_append_is_gone() -> None:
    history = [t("t1", r("x"), a("x", 1)), t("t2", r("x"), a("x", 2)), t("t3", r("x", 2))]
    assert found(history, {"x": [2]}) == [("lost-update", "t1 t2"), ("lost-append", "t1")]


@pytest.mark.parametrize(
    "operations",
    [
        (a("x", 2), r("x", 2, 1)),  # not at the end
        (a("x", 2), r("x")),  # not at all
        (r("x", 1), r("x")),  # two reads, two lists
        (r("x", 1, 2), a("x", 2)),  # too early
    ],
)
def test_a_transaction_that_does_not_see_itself_as_it_should(operations: tuple[Append | Read, ...]) -> None:
    assert found([t("t1", a("x", 1)), t("t2", *operations)]) == [("internal", "t2")]


def test_a_transaction_whose_own_appends_changed_places() -> None:
    history = [t("t1", a("x", 1), a("x", 2)), t("t2", r("x", 2, 1))]
    assert ("internal", "t1") in found(history)


def test_appends_of_two_transactions_can_not_be_mixed() -> None:
    history = [t("t1", a("x", 1), a("x", 3)), t("t2", a("x", 2)), t("t3", r("x", 1, 2, 3))]
    assert found(history) == [("G0", "t1 t2")]


def test_an_unknown_transaction_counts_once_it_is_seen() -> None:
    history = [unknown("t1", a("x", 1), a("y", 1)), t("t2", r("x", 1), r("y")), t("t3", r("y", 1))]
    assert found(history) == [("G-single", "t1 t2")]
    assert found(history[:2], {"x": [1], "y": []}) == [("lost-append", "t1"), ("G-single", "t1 t2")]
    assert found(history[:1], {"x": [], "y": []}) == []


def test_an_unknown_transaction_is_seen_by_an_unknown_one() -> None:
    history = [unknown("t1", a("x", 1)), unknown("t2", r("x", 1), a("y", 1)), t("t3", r("y", 1), r("x"))]
    assert found(history) == [("G-single", "t1 t2 t3")]


def test_an_unknown_transaction_may_take_effect_late_but_not_early() -> None:
    late = [unknown("t1", a("x", 1), started=1), t("t2", r("x"), during=(5, 6)), t("t3", r("x", 1), during=(7, 8))]
    assert found(late) == []
    early = [t("t1", r("x", 1), during=(1, 2)), unknown("t2", a("x", 1), started=3)]
    assert found(early) == [("G1c-realtime", "t1 t2")]


def test_refused_transactions_may_have_read_anything() -> None:
    assert found([t("t1", a("x", 1)), t("t2", r("x", 1)), refused("t3", r("x", 5, 5), r("x"))]) == []


def test_the_versions_of_a_group_are_an_order_too() -> None:
    history = [
        replace(t("t1", a("x", 1), r("y")), versions={"g": 2}),
        replace(t("t2", a("y", 1)), versions={"g": 1}),
        t("t3", r("y", 1)),
    ]
    assert found(history) == [("G-single", "t1 t2")]
    apart = [
        replace(t("t1", a("x", 1), a("y", 1)), versions={"g": 1, "h": 2}),
        replace(t("t2", a("x", 2), a("y", 2)), versions={"g": 2, "h": 1}),
    ]
    assert found(apart) == [("G0", "t1 t2")]


def test_a_read_at_a_time_holds_all_that_was_committed_by_then() -> None:
    writes = [replace(t(f"t{number}", a("x", number)), moment=10 * number) for number in (1, 2, 3)]
    all_ = t("t4", r("x", 1, 2, 3))

    def reading(moment: int, *values: int) -> list[tuple[str, str]]:
        return found([*writes, all_, replace(t("t5", r("x", *values)), moment=moment)])

    assert reading(20, 1, 2) == reading(29, 1, 2) == reading(9) == reading(30, 1, 2, 3) == []
    assert reading(19, 1, 2) == reading(30, 1, 2) == reading(10) == [("wrong-moment", "t5")]


def test_committed_at_does_not_fall_along_a_list() -> None:
    history = [
        replace(t("t1", a("x", 1)), moment=2),
        replace(t("t2", a("x", 2)), moment=1),
        t("t3", r("x", 1, 2)),
    ]
    assert found(history) == [("wrong-moment", "t2")]


def test_knots_apart_are_told_apart() -> None:
    skew = [t("a1", r("p"), a("q", 1)), t("a2", r("q"), a("p", 1)), t("a3", r("p", 1), r("q", 1))]
    assert found([*BAD["G0"][1], *skew]) == [("G0", "t1 t2"), ("G2", "a1 a2")]


def test_an_explanation_says_who_contradicts_whom() -> None:
    (anomaly,) = check(BAD["G-single-realtime"][1])
    assert str(anomaly) == (
        "G-single-realtime: t2 → t1 → t2, each before the next\n"
        "  t2 before t1 (rw): t2 read x without the 1 that t1 appended\n"
        "  t1 before t2 (real time): t1 had ended at 2, t2 started at 3"
    )
    (anomaly,) = check(BAD["G0"][1])
    assert str(anomaly) == (
        "G0: t1 → t2 → t1, each before the next\n"
        "  t1 before t2 (ww): t1 appended 1 to x, t2 2 behind it\n"
        "  t2 before t1 (ww): t2 appended 2 to y, t1 1 behind it"
    )


@pytest.mark.parametrize(
    "history",
    [
        [t("t1", a("x", 1)), t("t1", a("x", 2))],
        [t("t1", a("x", 1)), t("t2", a("x", 1))],
        [t("t1", a("x", 1), during=(2, 1))],
    ],
)
def test_a_history_that_can_not_be_judged_is_refused(history: list[Observed]) -> None:
    with pytest.raises(ValueError, match=r"same id|twice|before it started"):
        check(history)


# Good histories, and what is wrong with them after a change


@dataclass
class Serial:
    """Transactions executed one after the other, each at some point between its start and its end."""

    history: list[Observed] = field(default_factory=list)
    lists: Final = field(default_factory=dict)

    @classmethod
    def executed(cls, seed: int, *, transactions: int = 80, keys: int = 5, overlap: float = 0.4) -> Serial:
        random_, serial = Random(seed), cls()
        serial.lists = {f"{'gh'[number % 2]}/{number}": [] for number in range(keys)}
        for number in range(transactions):
            serial._execute(number, random_, overlap)
        random_.shuffle(serial.history)
        return serial

    def _execute(self, number: int, random_: Random, overlap: float) -> None:
        operations: list[Append | Read] = []
        lists = {key: list(values) for key, values in self.lists.items()}
        for step in range(random_.randint(1, 5)):
            key = random_.choice(list(lists))
            if random_.random() < 0.5:
                operations.append(a(key, 10 * number + step))
                lists[key].append(10 * number + step)
            else:
                operations.append(r(key, *lists[key]))
        written = {operation.key for operation in operations if isinstance(operation, Append)}
        outcome = random_.choices(OUTCOMES, [8, 1, 1])[0]
        self.history.append(Observed(
            f"t{number}", tuple(operations), outcome,
            started=number - overlap * random_.random(), ended=number + overlap * random_.random(),
            moment=number // 3 if outcome == "committed" and written else None,
            versions={str(key)[0]: number + 1 for key in written} if outcome == "committed" else {},
        ))  # fmt: skip
        if outcome == "committed" or (outcome == "unknown" and random_.random() < 0.5):
            self.lists = lists

    def kinds(self) -> set[str]:
        return {anomaly.kind for anomaly in check(self.history, self.lists)}

    def committed(self, random_: Random) -> list[tuple[int, int, Append | Read]]:
        """The operations of committed transactions and where they stand, in random order."""
        listed = [
            (index, at, operation)
            for index, one in enumerate(self.history)
            for at, operation in enumerate(one.operations)
            if one.outcome == "committed"
        ]
        random_.shuffle(listed)
        return listed

    def reads(self, random_: Random) -> list[tuple[int, int, Read]]:
        """Those of transactions that append nothing."""
        return [
            (index, at, operation)
            for index, at, operation in self.committed(random_)
            if isinstance(operation, Read) and not any(isinstance(o, Append) for o in self.history[index].operations)
        ]

    def put(self, index: int, at: int, operation: Append | Read) -> None:
        operations = list(self.history[index].operations)
        operations[at] = operation
        self.history[index] = replace(self.history[index], operations=tuple(operations))

    def drop(self, append: Append) -> None:
        """From all lists, and from all reads."""
        self.lists[append.key].remove(append.value)
        for index, one in enumerate(self.history):
            for at, operation in enumerate(one.operations):
                if isinstance(operation, Read) and operation.key == append.key:
                    values = tuple(value for value in operation.values if value != append.value)
                    self.put(index, at, replace(operation, values=values))

    def end(self, outcome: Outcome, other: Outcome, random_: Random) -> None:
        """Tell of a transaction that appends something, and ended with `outcome`, that it ended with the other one."""
        indexes = [
            index
            for index, one in enumerate(self.history)
            if one.outcome == outcome and any(isinstance(operation, Append) for operation in one.operations)
        ]
        assume(indexes)
        index = random_.choice(indexes)
        self.history[index] = replace(self.history[index], outcome=other)


@given(seeds, st.sampled_from([0.4, 3, 100]))
def test_a_serial_history_has_no_anomaly_however_much_overlaps(seed: int, overlap: float) -> None:
    serial = Serial.executed(seed, overlap=overlap)
    assert [str(anomaly) for anomaly in check(serial.history, serial.lists)] == []


@given(seeds)
def test_two_reads_that_changed_places_are_caught(seed: int) -> None:
    serial, reads = Serial.executed(seed), Serial.executed(seed).reads(Random(seed))
    pairs = [(o, p) for o in reads for p in reads if o[2].key == p[2].key and len(o[2].values) < len(p[2].values)]
    assume(pairs)
    (index, at, read), (other_index, other_at, other) = pairs[0]
    serial.put(index, at, other)
    serial.put(other_index, other_at, read)
    assert serial.kinds() & {"G1c-realtime", "G-single-realtime", "G1c", "G-single", "internal"}


@given(seeds)
def test_an_append_that_is_dropped_everywhere_is_caught(seed: int) -> None:
    serial = Serial.executed(seed)
    _, _, append = next(each for each in serial.committed(Random(seed)) if isinstance(each[2], Append))
    assert isinstance(append, Append)
    serial.drop(append)
    assert "lost-append" in serial.kinds()


@given(seeds, st.booleans())
def test_an_append_that_is_dropped_from_one_read_is_caught(seed: int, first: bool) -> None:
    serial, random_ = Serial.executed(seed), Random(seed)
    appended = {(append.key, append.value) for _, _, append in serial.committed(random_) if isinstance(append, Append)}
    reads = [each for each in serial.reads(random_) if len(each[2].values) > 1]
    reads = [each for each in reads if first or (each[2].key, each[2].values[-1]) in appended]
    assume(reads)
    index, at, read = reads[0]
    serial.put(index, at, replace(read, values=read.values[1:] if first else read.values[:-1]))
    stale = {"G-single", "G-single-realtime", "G1b", "internal"}
    assert serial.kinds() & ({"incompatible-order", "internal"} if first else stale)


@given(seeds)
def test_a_value_that_is_there_twice_is_caught(seed: int) -> None:
    serial = Serial.executed(seed)
    reads = [each for each in serial.reads(Random(seed)) if each[2].values]
    assume(reads)
    index, at, read = reads[0]
    serial.put(index, at, replace(read, values=(*read.values, read.values[0])))
    assert serial.kinds() & {"duplicate", "internal"}


@given(seeds)
def test_a_wrong_answer_is_caught(seed: int) -> None:
    serial, random_ = Serial.executed(seed), Random(seed)
    serial.end("committed", "refused", random_)
    assert "resurrected" in serial.kinds()
    serial = Serial.executed(seed)
    serial.end("refused", "committed", random_)
    assert "lost-append" in serial.kinds()


# Small histories, good or bad, beside every order that there could be


@given(seeds)
def test_a_small_history_has_an_anomaly_just_where_no_order_explains_it(seed: int) -> None:
    history, final = small_history(Random(seed))
    anomalies = check(history, final)
    assert (anomalies == []) == any(explains(order, final) for order in permutations(history))
    timeless = [replace(one, started=-inf, ended=inf) for one in history]
    in_real_time_alone = all(anomaly.kind.endswith("-realtime") for anomaly in anomalies)
    assert in_real_time_alone == any(explains(order, final) for order in permutations(timeless))


def small_history(random: Random) -> tuple[list[Observed], Final]:
    """Four transactions whose reads are some beginning of the lists as they are at the end, mostly the right one."""
    steps: list[list[tuple[Key, bool]]] = [
        [(random.choice("xy"), random.random() < 0.5) for _ in range(random.randint(1, 3))] for _ in range(4)
    ]
    final: Final = {"x": [], "y": []}
    for number, asked in enumerate(steps):
        for step, (key, appends) in enumerate(asked):
            if appends:
                final[key].append(10 * number + step)
    right = {key: list(values) for key, values in final.items()}
    if random.random() < 0.5:
        random.shuffle(final["x"])
    history = []
    for number, asked in enumerate(steps):
        operations: list[Append | Read] = []
        for step, (key, appends) in enumerate(asked):
            before = sum(value < 10 * number + step for value in right[key] if isinstance(value, int))
            seen = before if random.random() < 0.7 else random.randint(0, len(final[key]))
            operations.append(Append(key, 10 * number + step) if appends else Read(key, tuple(final[key][:seen])))
        during = number - 2 * random.random(), number + 2 * random.random()
        history.append(t(f"t{number}", *operations, during=during))
    return history, final


def explains(order: Sequence[Observed], final: Final) -> bool:
    """Is this what would have been read, had these been executed one after the other, and could they have been?"""
    lists: Final = {key: [] for key in final}
    for at, one in enumerate(order):
        if any(later.ended < one.started for later in order[at + 1 :]):
            return False
        for operation in one.operations:
            if isinstance(operation, Append):
                lists[operation.key].append(operation.value)
            elif tuple(lists[operation.key]) != operation.values:
                return False
    return lists == final
