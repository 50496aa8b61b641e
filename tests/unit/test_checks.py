"""Checks on tables: each kind, held through every operation that changes rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from tests.group import Group
from versolog.projections.digest import group_digest
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.errors import VersologError
from versolog.schemas.limits import RECORD_BYTES_MAX
from versolog.schemas.outcome import Outcome
from versolog.streams import invariants
from versolog.streams.decide import plan
from versolog.streams.transaction import Transaction

UNIQUE = {"plate": {"unique": "plate"}}
BALANCE = {"no debts": {"sum": "amount", "min": 0}}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "store")
    yield engine
    engine.flush()
    replayed = Store.open(tmp_path / "replayed", partition=0, codec=engine.codec, identity="test")
    engine.fold_log(replayed)
    assert group_digest(engine.store, "g") == group_digest(replayed, "g")
    replayed.close()
    engine.store.close()


@pytest.fixture
def group(engine: Engine) -> Group:
    group = Group(engine)
    group.put("k", {}, table="another")
    return group


def checked(group: Group, checks: dict[str, Any], branch: str = "main") -> int:
    return group.do("set-checks", branch, table="t", checks=checks)


def failed(group: Group, tx: Transaction) -> Outcome:
    """The refusal, which a dry run told before in the same words."""
    with pytest.raises(VersologError) as rehearsed:
        plan(group.engine.overlay, tx.record()["parts"][0])
    outcome = group.decided(tx)
    assert outcome.code == "check-failed", (outcome.code, outcome.detail)
    assert (outcome.detail, outcome.facts) == (rehearsed.value.detail, rehearsed.value.facts)
    return outcome


def failed_put(group: Group, key: str, row: dict[str, Any] | None, branch: str = "main") -> Outcome:
    tx = Transaction(group.name, branch=branch)
    return failed(group, tx.delete("t", key) if row is None else tx.put("t", key, row))


def failed_at(group: Group, kind: str, branch: str = "main", /, **arguments: Any) -> Outcome:
    return failed(group, Transaction(group.name, branch=branch).operation(kind, **arguments))


def sums(group: Group, at: str = "main") -> Any:
    return group.row('["t","no debts"]', at, "$sums")


# Each kind


@pytest.mark.parametrize(
    ("check", "good", "bad", "why"),
    [
        ({"required": ["a"]}, {"a": False}, {"b": 1}, "a is missing"),
        ({"required": ["a", "b.c"]}, {"a": 1, "b": {"c": ""}}, {"a": 1, "b": {"c": None}}, "b.c is missing"),
        ({"required": ["/a.b"]}, {"a.b": 1}, {"a": {"b": 1}}, "a.b is missing"),
        ({"range": "a", "min": 0}, {"a": 0}, {"a": -1}, "a is -1, not at least 0"),
        ({"range": "a", "max": "10.50"}, {"a": "10.5"}, {"a": "10.51"}, "a is 10.51, not at most 10.50"),
        ({"range": "a", "min": 1, "max": 3}, {"a": 2.5}, {"a": 3.5}, "a is 3.5, not at least 1 and at most 3"),
        ({"range": "a", "min": 0.1}, {"a": "0.1"}, {"a": "0.09999999999999999999"}, "a is 0.0999"),
        ({"range": "a", "min": 0.1}, {"a": 0.1}, {"a": True}, "a is true, which is no number"),
        ({"range": "a", "min": 0}, {}, {"a": "x"}, 'a is "x", which is no number'),
        ({"range": "a.b", "min": 0}, {"a": {"b": None}}, {"a": {"b": -1}}, "a.b is -1"),
        ({"sum": "a", "min": 0}, {}, {"a": -1}, "a of all rows would be -1, not at least 0"),
        ({"sum": "a", "max": "0.3"}, {"a": "0.3"}, {"a": "0.30000000000000000001"}, "a of all rows would be 0.3000"),
        ({"sum": "a", "equals": 0}, {"a": None}, {"a": 1}, "a of all rows would be 1, not 0"),
        ({"sum": "a", "min": 0}, {"a": 1}, {"a": 1.5}, "a can't be added"),
        ({"sum": "a.b", "min": 0}, {"a": {"b": 1}}, {"a": {"b": "-1"}}, "a.b of all rows would be -1"),
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_check_is_refused_and_named(
    group: Group, check: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], why: str
) -> None:
    group.put("k", good)
    checked(group, {"rule": check})
    group.put("k", good)
    outcome = failed_put(group, "k", bad)
    assert why in outcome.detail
    facts = {name: outcome.facts[name] for name in ("group", "table", "key", "check")}
    assert facts == {"group": "g", "table": "t", "key": "k", "check": "rule"}
    assert group.row("k") == good
    # And where it stands already, the check is not declared.
    group.do("set-checks", table="t")
    group.put("k", bad)
    outcome = failed_at(group, "set-checks", table="t", checks={"rule": check})
    assert outcome.facts["key"] == "k"
    assert why in outcome.detail


def test_no_two_rows_have_the_same_of_what_is_unique(group: Group) -> None:
    checked(group, UNIQUE)
    group.put("a", {"plate": "X 1"})
    group.put("nothing", {"plate": None})
    group.put("nothing either", {})
    outcome = failed_put(group, "b", {"plate": "X 1"})
    assert (outcome.facts["key"], outcome.facts["other"]) == ("b", "a")
    group.put("b", {"plate": "x 1"})
    group.put("a", {"plate": "X 1", "colour": "red"})
    group.put("a", {"plate": "X 2"})
    group.put("c", {"plate": "X 1"})
    group.put("c", None)
    group.put("b", {"plate": "X 1"})
    assert failed_put(group, "d", {"plate": "X 2"}).facts["other"] == "a"


def test_what_is_unique_is_told_apart_as_json(group: Group) -> None:
    checked(group, {"pair": {"unique": ["a", "b.c"]}})
    for number, a in enumerate([1, "1", 1.5, True, [1], {"x": 1}]):
        group.put(f"k{number}", {"a": a, "b": {"c": 0}})
    group.put("half", {"a": 1, "b": {}})
    group.put("other half", {"a": 1, "b": {}})
    assert failed_put(group, "z", {"b": {"c": 0}, "a": {"x": 1}}).facts["other"] == "k5"


def test_rows_exchange_unique_values_in_one_transaction(group: Group) -> None:
    checked(group, UNIQUE)
    group.put("a", {"plate": 1})
    group.put("b", {"plate": 2})
    group.done(Transaction("g").put("t", "a", {"plate": 2}).put("t", "b", {"plate": 1}))
    group.done(Transaction("g").put("t", "c", {"plate": 1}).delete("t", "b"))
    twice = failed(group, Transaction("g").put("t", "x", {"plate": 9}).put("t", "y", {"plate": 9}))
    assert (twice.facts["key"], twice.facts["other"]) == ("y", "x")
    assert failed_put(group, "d", {"plate": 2}).facts["other"] == "a"


def test_money_moves_and_does_not_come_or_go(group: Group) -> None:
    group.put("a", {"amount": "70.10"})
    group.put("b", {"amount": "29.90"})
    checked(group, {"money": {"sum": "amount", "constant": True}})
    assert group.row("t", table="$tables") == {"checks": {"money": {"sum": "amount", "equals": "100"}}}
    group.done(Transaction("g").add("t", "a", {"amount": "-0.1"}).add("t", "c", {"amount": "0.1"}))
    outcome = failed(group, Transaction("g").add("t", "a", {"amount": 5}).add("t", "b", {"amount": -4}))
    assert (outcome.facts["sum"], outcome.facts["key"]) == ("101", "a")
    assert failed_put(group, "b", None).facts["key"] == "b"


def test_sums_are_exact_and_spelled_alike(group: Group) -> None:
    group.put("a", {"amount": 2**63})
    checked(group, BALANCE)
    assert sums(group) == {"sum": str(2**63)}
    group.put("b", {"amount": "0." + "1" * 60})
    group.put("b", {"amount": "1.10"})
    group.put("a", {"amount": "-1.10"})
    assert sums(group) == {"sum": "0"}
    group.put("a", {"amount": 98})
    group.put("b", {"amount": "2.0"})
    assert sums(group) == {"sum": "100"}


def test_several_checks_and_a_schema_hold_together(group: Group) -> None:
    fields = [{"name": "plate", "type": ["null", "string"], "default": None}, {"name": "seats", "type": "long"}]
    group.do("set-schema", table="t", schema={"type": "record", "name": "car", "fields": fields})
    checked(group, UNIQUE | {"seats": {"range": "seats", "min": 1}, "all": {"sum": "seats", "max": 10}})
    group.put("a", {"plate": "X", "seats": 5})
    assert group.decided(Transaction("g").put("t", "b", {"plate": "X"})).code == "schema-mismatch"
    assert failed_put(group, "b", {"plate": "X", "seats": 5}).facts["check"] == "plate"
    assert failed_put(group, "b", {"plate": None, "seats": 0}).facts["check"] == "seats"
    assert failed_put(group, "b", {"plate": None, "seats": 6}).facts["check"] == "all"
    group.do("set-schema", table="t")
    assert failed_put(group, "b", {"seats": 6}).facts["check"] == "all"


# Declaring


@pytest.mark.parametrize(
    ("checks", "why"),
    [
        ({"": {"required": ["a"]}}, "name has 1 to 128 bytes"),
        ({"x": {}}, "is one of required, range, unique, sum"),
        ({"x": 1}, "is one of required"),
        ({"x": {"required": ["a"], "unique": "a"}}, "is one of required"),
        ({"x": {"required": []}}, "at least one"),
        ({"x": {"required": "a"}}, "a list of fields"),
        ({"x": {"required": [""]}}, "named by its path"),
        ({"x": {"required": ["a"] * 17}}, "at most 16"),
        ({"x": {"unique": "a" * 1_025}}, "up to 1,024 bytes"),
        ({"x": {"required": ["a"], "min": 1}}, "'min' is not known"),
        ({"x": {"range": "a"}}, "`min` or `max` is wanted"),
        ({"x": {"range": "a", "min": "one"}}, "is no number"),
        ({"x": {"range": "a", "min": True}}, "is no number"),
        ({"x": {"range": "a", "min": 2, "max": 1}}, "`min` is above `max`"),
        ({"x": {"sum": "a", "equals": 1, "max": 1}}, "no other bounds"),
        ({"x": {"sum": "a", "constant": False}}, "'constant' is not known"),
        ({"x": {"sum": ["a"], "constant": True}}, "named by its path"),
    ],
)  # fmt: skip
def test_what_is_no_check_is_refused(group: Group, checks: dict[str, Any], why: str) -> None:
    group.put("a", {})
    outcome = group.refused("set-checks", table="t", checks=checks)
    assert outcome.code == "invalid"
    assert why in outcome.detail


def test_a_table_has_so_many_checks_and_no_more(group: Group) -> None:
    group.put("a", {})
    many = {f"c{number}": {"required": ["a"]} for number in range(33)}
    assert group.refused("set-checks", table="t", checks=many).code == "too-large"
    assert group.refused("set-checks", table="$tables", checks={}).code == "invalid"
    assert group.refused("set-checks", "nowhere", table="t", checks={}).code == "unknown-branch"


def test_checks_take_the_place_of_the_former_ones(group: Group) -> None:
    group.put("a", {"amount": 5})
    checked(group, BALANCE | UNIQUE | {"named": {"required": ["amount"]}})
    checked(group, {"no debts": {"sum": "other", "min": -1}})
    assert sums(group) == {"sum": "0"}
    group.put("a", {"amount": -5, "plate": 1})
    group.put("b", {"plate": 1})
    group.do("set-checks", table="t", checks=None)
    assert sums(group) is None
    assert group.row("t", table="$tables") is None
    group.put("a", {"other": -100})


def test_a_check_taken_away_and_given_again_knows_the_rows_of_now(group: Group) -> None:
    checked(group, UNIQUE)
    group.put("a", {"plate": 1})
    group.put("b", {"plate": 2})
    group.do("set-checks", table="t")
    group.put("a", {"plate": 3})
    group.put("c", {"plate": 1})
    group.put("b", None)
    checked(group, UNIQUE)
    group.put("d", {"plate": 2})
    assert failed_put(group, "e", {"plate": 1}).facts["other"] == "c"
    assert failed_put(group, "e", {"plate": 3}).facts["other"] == "a"


def test_a_table_with_too_many_rows_is_given_no_check(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "ROWS_MAX", 3)
    for key in "abc":
        group.put(key, {})
    checked(group, UNIQUE)
    group.put("d", {"plate": 1})
    group.engine.flush()
    group.put("d", {"plate": 2})
    assert group.refused("set-checks", table="t", checks=UNIQUE | BALANCE).code == "too-large"
    checked(group, UNIQUE)
    group.do("set-checks", table="t")


def test_declaring_sees_rows_of_every_level_and_every_layer(group: Group) -> None:
    group.put("a", {"plate": 1})
    group.put("b", {"plate": 1})
    group.engine.flush()
    group.branch("plan")
    group.put("b", {"plate": 2}, "plan")
    group.put("c", {"plate": 1}, "plan")
    group.put("a", {"plate": 9})
    group.branch("deeper", "plan")
    group.engine.cut_batch()
    group.put("c", None, "plan")
    checked(group, UNIQUE, "plan")
    outcome = failed_at(group, "set-checks", "deeper", table="t", checks=UNIQUE)
    assert {outcome.facts["key"], outcome.facts["other"]} == {"a", "c"}
    checked(group, UNIQUE)


def test_groups_and_tables_without_checks_pay_nothing(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouchable:
        def __init__(self, *_: object) -> None:
            raise AssertionError("a table without checks was kept")

    monkeypatch.setattr(invariants, "_Keeping", Untouchable)
    group.put("a", {"x": 1})
    group.do("set-merge", table="t", row="last")
    group.put("a", {"x": 2})
    group.branch("plan")
    group.put("a", {"x": 3}, "plan")
    group.do("merge", source="plan")


def test_a_large_commit_with_what_follows_from_its_rows_is_cut(group: Group) -> None:
    checked(group, UNIQUE | BALANCE)
    tx = Transaction("g")
    for number in range(9_000):
        tx.put("t", f"k{number}", {"plate": number, "amount": 1})
    group.done(tx)
    (sealed,) = group.engine.decided[-1].commits
    assert len(sealed.pieces) > 1
    assert all(len(piece.body) <= RECORD_BYTES_MAX for piece in sealed.pieces)
    group.engine.restart()
    assert failed_put(group, "x", {"plate": 77}).facts["other"] == "k77"
    assert sums(group) == {"sum": "9000"}


# Branches, merges and undoing


def test_checks_are_a_branch_s_own_until_they_are_merged(group: Group) -> None:
    group.put("a", {"plate": 1})
    group.branch("plan")
    checked(group, UNIQUE, "plan")
    group.put("b", {"plate": 1})
    assert failed_put(group, "b", {"plate": 1}, "plan").facts["other"] == "a"
    outcome = failed_at(group, "merge", source="plan")
    assert {outcome.facts["key"], outcome.facts["other"]} == {"a", "b"}
    group.put("b", {"plate": 2})
    group.do("merge", source="plan")
    assert failed_put(group, "c", {"plate": 2}).facts["other"] == "b"


def test_a_value_taken_on_both_branches_names_both_rows(group: Group) -> None:
    checked(group, UNIQUE)
    group.put("a", {"plate": 1})
    group.branch("plan")
    group.put("ours", {"plate": 7})
    group.put("theirs", {"plate": 7}, "plan")
    outcome = failed_at(group, "merge", source="plan")
    assert (outcome.facts["key"], outcome.facts["other"]) == ("theirs", "ours")
    outcome = failed_at(group, "merge", "plan", source="main")
    assert (outcome.facts["key"], outcome.facts["other"]) == ("ours", "theirs")
    assert failed_at(group, "merge", source="plan", policy="theirs").facts["check"] == "plate"
    group.put("ours", {"plate": 8})
    group.do("merge", source="plan")
    assert failed_put(group, "x", {"plate": 7}).facts["other"] == "theirs"
    assert failed_put(group, "x", {"plate": 8}).facts["other"] == "ours"


def test_a_unique_value_that_moved_on_both_sides_stays_unique(group: Group) -> None:
    checked(group, UNIQUE)
    group.put("a", {"plate": 1, "n": 0})
    group.put("b", {"plate": 2, "n": 0})
    group.branch("plan")
    group.done(Transaction("g", branch="plan").put("t", "a", {"plate": 2, "n": 0}).put("t", "b", {"plate": 1, "n": 0}))
    group.put("a", {"plate": 1, "n": 5})
    group.do("merge", source="plan")
    assert [group.row(key) for key in "ab"] == [{"plate": 2, "n": 5}, {"plate": 1, "n": 0}]
    assert failed_put(group, "x", {"plate": 1}).facts["other"] == "b"


@pytest.mark.parametrize(("ours", "theirs"), [("main", "plan"), ("plan", "main")])
def test_what_both_sides_did_to_a_sum_adds_up(group: Group, ours: str, theirs: str) -> None:
    group.put("a", {"amount": 10})
    checked(group, BALANCE)
    group.branch("plan")
    group.put("b", {"amount": -6})
    assert sums(group) == {"sum": "4"}
    group.put("c", {"amount": -4}, "plan")
    assert sums(group, "plan") == {"sum": "6"}
    group.do("merge", ours, source=theirs)
    assert sums(group, ours) == {"sum": "0"}


def test_a_merge_that_overdraws_is_refused(group: Group) -> None:
    group.put("a", {"amount": 10})
    checked(group, BALANCE)
    group.branch("plan")
    group.put("b", {"amount": -6})
    group.put("c", {"amount": -6}, "plan")
    group.put("d", {"amount": 1}, "plan")
    outcome = failed_at(group, "merge", source="plan")
    assert (outcome.facts["key"], outcome.facts["sum"]) == ("c", "-1")
    assert sums(group) == {"sum": "4"}
    group.put("a", {"amount": 11})
    group.do("merge", source="plan")
    assert sums(group) == {"sum": "0"}


def test_counters_merged_by_a_function_keep_their_sum(group: Group) -> None:
    group.put("a", {"amount": 10})
    group.do("set-merge", table="t", fields={"amount": "sum"})
    checked(group, BALANCE)
    group.branch("plan")
    group.add("a", {"amount": -6})
    group.add("a", {"amount": -6}, "plan")
    assert failed_at(group, "merge", source="plan").facts["sum"] == "-2"
    group.add("a", {"amount": 2})
    group.do("merge", source="plan")
    assert (group.row("a"), sums(group)) == ({"amount": 0}, {"sum": "0"})


def test_a_check_changed_on_both_sides_is_one_conflict(group: Group) -> None:
    group.put("a", {"amount": 5})
    checked(group, {"size": {"sum": "amount", "min": 0, "max": 10}, "named": {"required": ["amount"]}})
    group.branch("plan")
    checked(group, {"size": {"sum": "amount", "min": 2, "max": 10}})
    checked(group, {"size": {"sum": "amount", "equals": 5}, "named": {"required": ["amount"]}}, "plan")
    (conflict,) = group.conflicts("merge", source="plan")
    assert (conflict["table"], conflict["key"], conflict["path"]) == ("$tables", "t", ["checks", "size"])
    del conflict["code"]
    group.do("merge", source="plan", resolutions=[conflict | {"take": "theirs"}])
    assert group.row("t", table="$tables") == {"checks": {"size": {"sum": "amount", "equals": 5}}}
    assert failed_put(group, "b", {"amount": 1}).facts["check"] == "size"


def test_a_resolution_makes_no_check_that_could_not_be_declared(group: Group) -> None:
    group.put("a", {"amount": 5})
    group.branch("plan")
    checked(group, {"size": {"sum": "amount", "min": 2}})
    checked(group, {"size": {"sum": "amount", "min": 3}}, "plan")
    (conflict,) = group.conflicts("merge", source="plan")
    del conflict["code"]
    for value, code in (
        ({"sum": "amount", "min": 9}, "check-failed"),
        ({"sum": "amount", "constant": True}, "invalid"),
    ):
        resolution = conflict | {"take": {"value": value}}
        assert group.refused("merge", source="plan", resolutions=[resolution]).code == code


def test_a_revert_that_breaks_a_check_is_refused(group: Group) -> None:
    checked(group, UNIQUE | BALANCE)
    group.put("a", {"plate": 1, "amount": 5})
    moved = group.put("a", {"plate": 2, "amount": 5})
    group.put("b", {"plate": 1, "amount": -4})
    assert failed_at(group, "revert", versions=[moved]).facts["other"] == "b"
    earned = group.put("c", {"amount": 4})
    group.put("d", {"amount": -4})
    assert failed_at(group, "revert", versions=[earned]).facts["sum"] == "-3"
    group.put("b", {"plate": 3, "amount": 0})
    group.do("revert", versions=[moved, earned])
    assert sums(group) == {"sum": "1"}
    assert failed_put(group, "x", {"plate": 1}).facts["other"] == "a"
    group.put("x", {"plate": 2})


def test_reverting_the_declaration_takes_the_checks_away(group: Group) -> None:
    group.put("a", {"plate": 1, "amount": 5})
    declared = checked(group, UNIQUE | BALANCE)
    undone = group.do("revert", versions=[declared])
    assert sums(group) is None
    group.put("b", {"plate": 1, "amount": -9})
    assert failed_at(group, "revert", versions=[undone]).code == "check-failed"
    group.put("b", {"plate": 2, "amount": -5})
    group.do("revert", versions=[undone])
    assert sums(group) == {"sum": "0"}
    assert failed_put(group, "c", {"plate": 1}).facts["other"] == "a"


def test_a_cherry_pick_that_breaks_a_check_is_refused(group: Group) -> None:
    checked(group, UNIQUE | BALANCE)
    group.put("a", {"plate": 1, "amount": 5})
    group.branch("plan")
    bought = group.put("b", {"plate": 2, "amount": -5}, "plan")
    group.put("c", {"plate": 2, "amount": 0})
    assert failed_at(group, "cherry-pick", versions=[bought]).facts["check"] == "plate"
    group.put("c", {"plate": 3, "amount": -1})
    assert failed_at(group, "cherry-pick", versions=[bought]).facts["check"] == "no debts"
    group.put("c", {"plate": 3, "amount": 0})
    group.do("cherry-pick", versions=[bought])
    assert (sums(group), sums(group, "plan")) == ({"sum": "0"}, {"sum": "0"})


def test_a_rollback_of_one_table_or_some_keys_keeps_the_checks(group: Group) -> None:
    checked(group, UNIQUE | BALANCE)
    before = group.put("a", {"plate": 1, "amount": 5})
    group.put("a", {"plate": 2, "amount": 9})
    group.put("b", {"plate": 1, "amount": -7})
    assert failed_at(group, "rollback", to=str(before), key="a").facts["check"] == "no debts"
    group.put("b", {"plate": 1, "amount": -5})
    assert failed_at(group, "rollback", to=str(before), key="a").facts["other"] == "b"
    group.do("rollback", to=str(before), table="t")
    assert sums(group) == {"sum": "5"}
    assert failed_put(group, "x", {"plate": 1}).facts["other"] == "a"
    group.put("x", {"plate": 2})


@pytest.mark.parametrize("asked", [{"prefix": "t"}, {"key": "t"}])
def test_a_rollback_of_rows_leaves_what_their_table_was_given(group: Group, asked: dict[str, str]) -> None:
    """Checks and schemas stand under the table's name, which is no row's."""
    before = group.put("t", {"plate": 1})
    checked(group, UNIQUE)
    group.put("t", {"plate": 2})
    group.do("rollback", to=str(before), **asked)
    assert group.row("t") == {"plate": 1}
    assert failed_put(group, "x", {"plate": 1}).facts["other"] == "t"


@pytest.mark.parametrize("table", ["$sums", "$unique"])
def test_what_follows_from_the_rows_is_not_rolled_back_itself(group: Group, table: str) -> None:
    checked(group, UNIQUE | BALANCE)
    before = group.put("a", {"plate": 1, "amount": 5})
    group.put("a", {"plate": 2, "amount": 9})
    group.do("rollback", to=str(before), table=table)
    assert sums(group) == {"sum": "9"}
    assert failed_put(group, "x", {"plate": 2}).facts["other"] == "a"


def test_a_rollback_brings_the_checks_of_then(group: Group) -> None:
    group.put("a", {"plate": 1, "amount": 5})
    first = checked(group, BALANCE)
    second = checked(group, UNIQUE)
    group.put("b", {"plate": 2, "amount": -50})
    group.do("rollback", to=str(first))
    assert sums(group) == {"sum": "5"}
    group.put("b", {"plate": 1, "amount": -5})
    assert failed_at(group, "rollback", to=str(second), table="$tables").facts["check"] == "plate"
    group.do("rollback", to="1")
    assert sums(group) is None
    group.do("rollback", to=str(second))
    assert failed_put(group, "x", {"plate": 1}).facts["other"] == "a"
    group.put("x", {"plate": 2})


def test_a_dropped_group_begins_without_checks(group: Group) -> None:
    group.put("a", {"plate": 1})
    checked(group, UNIQUE | BALANCE)
    group.do("drop-group")
    group.put("b", {"plate": 1, "amount": -1})
    group.put("c", {"plate": 1})


def test_parts_of_one_transaction_are_each_held_to_their_own_checks(group: Group) -> None:
    group.put("a", {"amount": 1})
    checked(group, BALANCE)
    tx = Transaction(None)
    tx.group("g").put("t", "a", {"amount": -1})
    tx.group("h").put("t", "a", {"amount": -1})
    assert group.decided(tx).code == "check-failed"
    assert group.engine.overlay.head("h") is None


def test_a_difference_and_a_dry_run_show_rows_and_not_what_follows_from_them(group: Group) -> None:
    checked(group, UNIQUE | BALANCE)
    before = group.put("a", {"plate": 1, "amount": 1})
    tx = Transaction("g").put("t", "b", {"plate": 2, "amount": 1})
    line, _ = plan(group.engine.overlay, tx.record()["parts"][0])
    assert list(line.changed) == [("t", "b")]
    group.done(tx)
    group.engine.flush()
    view = View(group.engine.store)
    found = view.diff(view.resolve("g", str(before)), view.resolve("g"), limit=10)
    assert [row.key for row in found.rows] == ["b"]
    assert view.tables(view.resolve("g")) == ["another", "t"]
