"""Branches, merges, reverts and cherry-picks as services ask for them: decided, logged, folded, read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import Engine
from tests.group import Group
from versolog.schemas.limits import RECORD_BYTES_MAX, ROW_BYTES_MAX
from versolog.schemas.times import millis_to_text
from versolog.streams.decide import plan
from versolog.streams.graph import apart, merge_bases
from versolog.streams.merging import Unmerged
from versolog.streams.operations import KINDS
from versolog.streams.state import Level
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, row_at

RECORD = {"type": "record", "name": "r"}
A = RECORD | {"fields": [{"name": "a", "type": "long"}]}
AB = RECORD | {"fields": [*A["fields"], {"name": "b", "type": "long", "default": 0}]}
AC = RECORD | {"fields": [*A["fields"], {"name": "c", "type": "long", "default": 0}]}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "store")
    yield engine
    engine.flush()
    engine.store.close()


@pytest.fixture
def group(engine: Engine) -> Group:
    return Group(engine)


# Merging


def test_a_merge_brings_what_changed_and_keeps_the_rest(group: Group) -> None:
    group.put("a", {"x": 1, "y": 1})
    group.put("b", {"x": 1})
    group.branch("plan")
    group.put("a", {"x": 2, "y": 1}, "plan")
    group.put("b", None, "plan")
    group.put("c", {"x": 9}, "plan")
    group.put("a", {"x": 1, "y": 5})
    version = group.do("merge", source="plan")
    assert [group.row(key) for key in "abc"] == [{"x": 2, "y": 5}, None, {"x": 9}]
    step = group.engine.overlay.step("g", version)
    assert step is not None
    assert step.parents == (7, 6)
    assert group.refused("merge", source="plan").code == "nothing-to-merge"


def test_a_fast_forward_ends_there(group: Group) -> None:
    """Two branches brought together so have nothing to merge in either direction, as in Git."""
    group.put("a", {"x": 1})
    group.branch("plan")
    tip = group.put("a", {"x": 2}, "plan")
    version = group.do("merge", source="plan")
    step = group.engine.overlay.step("g", version)
    assert step is not None
    assert step.parents == (tip,)
    assert group.row("a") == {"x": 2}
    assert group.refused("merge", "plan", source="main").code == "nothing-to-merge"
    assert apart(group.engine.overlay, "g", version, tip) == (0, 0)
    group.put("a", {"x": 3})
    assert merge_bases(group.engine.overlay, "g", [version + 1], tip) == [tip]
    assert group.do("delete-branch", name="plan"), "main has all that it had"


def test_a_merge_without_fast_forward_has_two_parents(group: Group) -> None:
    group.put("a", {"x": 1})
    group.branch("plan")
    group.put("a", {"x": 2}, "plan")
    step = group.engine.overlay.step("g", group.do("merge", source="plan", no_ff=True))
    assert step is not None
    assert step.parents == (1, 3)


def test_a_merge_takes_a_version_a_tag_or_a_time(group: Group) -> None:
    group.put("a", {"x": 1})
    group.branch("plan")
    group.put("a", {"x": 2}, "plan")
    then = millis_to_text(group.engine.clock)
    group.do("tag", name="v1", at="3")
    group.put("a", {"x": 3}, "plan")
    for number, source in enumerate(["3", "v1", "plan~1"]):
        group.branch(f"b{number}", "1")
        group.do("merge", f"b{number}", source=source)
        assert group.row("a", f"b{number}") == {"x": 2}
    assert group.refused("merge", "plan", source=then).code == "nothing-to-merge", "a time is main's"


def test_both_sides_count(group: Group) -> None:
    """Two branches that each counted one have counted two, also where the counter's row is new to both."""
    group.add("old", {"n": 5})
    group.do("set-merge", table="t", fields={"n": "sum"})
    group.branch("plan")
    for branch in ("main", "plan"):
        group.add("old", {"n": 1}, branch)
        group.add("new", {"n": 1}, branch)
    group.do("merge", source="plan")
    assert [group.row(key) for key in ("old", "new")] == [{"n": 7}, {"n": 2}]


def test_functions_set_on_one_side_settle_in_both_directions(group: Group) -> None:
    """Also those of a table whose name sorts before that of the system table they stand in."""
    for table in ("!", "t"):
        group.put("k", {"n": 1}, table=table)
    group.branch("plan")
    for table in ("!", "t"):
        group.do("set-merge", "plan", table=table, fields={"n": "sum"})
        group.put("k", {"n": 2}, table=table)
        group.put("k", {"n": 4}, "plan", table)
    group.branch("main-before")
    group.do("merge", source="plan")
    group.do("merge", "plan", source="main-before")
    for table in ("!", "t"):
        assert group.row("k", table=table) == group.row("k", "plan", table) == {"n": 5}


def test_last_is_the_row_that_was_changed_later_deletions_too(group: Group) -> None:
    group.put("a", {"x": 0})
    group.put("b", {"x": 0})
    group.do("set-merge", table="t", row="last")
    group.branch("plan")
    group.put("a", {"x": 1})
    group.put("a", {"x": 2}, "plan")
    group.put("b", {"x": 1}, "plan")
    group.put("b", None)
    group.branch("main-before")
    group.do("merge", source="plan")
    group.do("merge", "plan", source="main-before")
    for at in ("main", "plan"):
        assert (group.row("a", at), group.row("b", at)) == ({"x": 2}, None)


@pytest.mark.parametrize("path", ["m.n", "/m/n"])
def test_fields_are_named_by_dots_or_by_a_pointer(group: Group, path: str) -> None:
    group.put("a", {"m": {"n": 1}})
    group.do("set-merge", table="t", fields={path: "max"})
    group.branch("plan")
    group.put("a", {"m": {"n": 2}})
    group.put("a", {"m": {"n": 3}}, "plan")
    group.do("merge", source="plan")
    assert group.row("a") == {"m": {"n": 3}}


def test_a_field_with_dots_in_its_name_and_all_others(group: Group) -> None:
    group.put("a", {"a.b": 1, "c": 1})
    group.do("set-merge", table="t", fields={"/a.b": "sum", "*": "theirs"})
    group.branch("plan")
    group.put("a", {"a.b": 2, "c": 2})
    group.put("a", {"a.b": 2, "c": 3}, "plan")
    group.do("merge", source="plan")
    assert group.row("a") == {"a.b": 3, "c": 3}


def test_settings_given_on_both_sides_are_joined(group: Group) -> None:
    group.put("a", {"a": 1})
    group.branch("plan")
    group.do("set-schema", table="t", schema=AB)
    group.do("set-merge", "plan", table="t", fields={"a": "sum"})
    group.do("merge", source="plan")
    assert group.row("t", table="$tables") == {"schema": AB, "merge": {"fields": {"a": "sum"}}}


# Conflicts and their ends


@pytest.fixture
def apart_(group: Group) -> Group:
    """main and plan differ in one field of a row, and agree to differ in others."""
    group.put("k1", {"gate": "A1", "delay": 0})
    group.branch("plan")
    group.put("k1", {"gate": "B2", "delay": 0})
    group.put("k1", {"gate": "C3", "delay": 7}, "plan")
    return group


TOLD = {"table": "t", "key": "k1", "path": ["gate"], "code": "both-changed", "base": "A1", "ours": "B2", "theirs": "C3"}


def test_a_refused_merge_tells_its_conflicts(apart_: Group) -> None:
    assert apart_.conflicts("merge", source="plan") == [TOLD]
    assert apart_.row("k1") == {"gate": "B2", "delay": 0}


def test_a_policy_ends_them(apart_: Group) -> None:
    apart_.do("merge", source="plan", policy="theirs")
    assert apart_.row("k1") == {"gate": "C3", "delay": 7}


def test_what_is_told_is_sent_back_with_an_end(apart_: Group) -> None:
    apart_.do("merge", source="plan", resolutions=[TOLD | {"take": {"value": "D4"}}])
    assert apart_.row("k1") == {"gate": "D4", "delay": 7}


def test_a_resolution_made_on_other_values_conflicts_again(apart_: Group) -> None:
    apart_.put("k1", {"gate": "B9", "delay": 0})
    asked = [TOLD | {"take": "ours"}]
    assert apart_.conflicts("merge", source="plan", policy="theirs", resolutions=asked) == [
        TOLD | {"ours": "B9", "stale": True}
    ]


def test_a_resolution_of_what_is_in_no_conflict_is_told(apart_: Group) -> None:
    """Else it would be dropped without a word, where the row has changed so that both sides agree now."""
    apart_.put("k1", {"gate": "C3", "delay": 0})
    (told,) = apart_.conflicts("merge", source="plan", resolutions=[TOLD | {"take": "ours"}])
    assert told == {"table": "t", "key": "k1", "path": ["gate"], "code": "no-conflict", "ours": "C3", "stale": True}
    nowhere = {"table": "x", "key": "?", "path": ["a", "b"], "take": "ours"}
    conflicts = apart_.conflicts("merge", source="plan", resolutions=[nowhere])
    assert conflicts == [{"table": "x", "key": "?", "path": ["a", "b"], "code": "no-conflict", "stale": True}]


@pytest.mark.parametrize(
    ("resolution", "detail"),
    [
        ("x", "an object"),
        ({}, "an object"),
        ({"table": "t", "key": 1, "take": "ours"}, "an object"),
        ({"table": "t", "key": "k", "path": "gate", "take": "ours"}, "path is a list"),
        ({"table": "t", "key": "k", "path": [["gate"]], "take": "ours"}, "path is a list"),
        ({"table": "t", "key": "k", "path": None, "take": "ours"}, "path is a list"),
        ({"table": "t", "key": "k"}, "an object"),
        ({"table": "t", "key": "k", "take": None}, "take is"),
        ({"table": "t", "key": "k", "take": "mine"}, "take is"),
        ({"table": "t", "key": "k", "take": {"delete": False}}, "take is"),
        ({"table": "t", "key": "k", "take": {"value": {}, "delete": True}}, "take is"),
        ({"table": "t", "key": "k", "take": {"value": 5}}, "a row is a JSON object"),
        ({"table": "t", "key": "k", "take": {"value": None}}, "a row is a JSON object"),
    ],
)
def test_a_resolution_of_another_form_is_refused(apart_: Group, resolution: Any, detail: str) -> None:
    outcome = apart_.refused("merge", source="plan", resolutions=[TOLD | {"take": "ours"}, resolution])
    assert outcome.code == "invalid"
    assert outcome.facts == {"field": "resolutions/1"}
    assert detail in outcome.detail


def test_two_ends_of_one_conflict_are_refused(apart_: Group) -> None:
    twice = [TOLD | {"take": "ours"}, TOLD | {"take": "theirs"}]
    assert apart_.refused("merge", source="plan", resolutions=twice).code == "invalid"


def test_many_conflicts_are_told_in_part_and_kept_in_whole(group: Group) -> None:
    for table in ("t", "large"):
        for number in range(0, 300, 100):
            tx = Transaction("g")
            for key in range(number, number + 100):
                tx.put(table, f"{key:03}", {"x": 0})
            group.done(tx)
    group.branch("plan")
    for branch in ("main", "plan"):
        tx = Transaction("g", branch=branch)
        for key in range(300):
            tx.put("t", f"{key:03}", {"x": branch})
        group.done(tx)
        group.put("000", {"x": branch * 20_000}, branch, "large")
    tx = Transaction("g").operation("merge", source="plan")
    with pytest.raises(Unmerged) as found:
        plan(group.engine.overlay, tx.record()["parts"][0])
    assert len(found.value.every) == 301
    assert [conflict.table for conflict in found.value.every] == ["large"] + ["t"] * 300
    outcome = group.decided(tx)
    assert outcome.facts["total"] == 301
    assert len(outcome.facts["conflicts"]) == 100
    for key in range(3):
        for branch in ("main", "plan"):
            group.put(f"00{key}", {"x": branch * 50_000}, branch, "large")
    told = group.decided(Transaction("g").operation("merge", source="plan")).facts
    assert told["total"] == 303
    assert len(orjson.dumps(told)) < 300_000


def test_a_row_that_would_grow_too_large_is_refused(group: Group) -> None:
    group.put("a", {"l": []})
    group.do("set-merge", table="t", fields={"l": "union"})
    group.branch("plan")
    group.put("a", {"l": ["x" * 300_000]})
    group.put("a", {"l": ["y" * 300_000]}, "plan")
    outcome = group.refused("merge", source="plan")
    assert (outcome.code, outcome.facts["key"], outcome.facts["limit"]) == ("too-large", "a", ROW_BYTES_MAX)


# Schemas


def test_schemas_of_which_neither_takes_the_other_s_rows_conflict(group: Group) -> None:
    group.put("k", {"a": 1})
    group.do("set-schema", table="t", schema=A)
    group.branch("plan")
    group.do("set-schema", table="t", schema=AB)
    group.do("set-schema", "plan", table="t", schema=AC)
    group.put("l", {"a": 1, "c": 1}, "plan")
    (told,) = group.conflicts("merge", source="plan")
    assert (told["table"], told["key"], told["path"], told["code"]) == ("$tables", "t", ["schema"], "schema")
    assert group.refused("merge", source="plan", policy="theirs").facts["conflicts"] == [told]
    ours = group.refused("merge", source="plan", policy="ours")
    assert (ours.code, ours.facts["key"]) == ("schema-mismatch", "l"), "the row that comes does not fit ours"
    both = RECORD | {"fields": [*AB["fields"], *AC["fields"][1:]]}
    group.do("merge", source="plan", resolutions=[told | {"take": {"value": both}}])
    assert group.row("l") == {"a": 1, "c": 1}
    assert group.row("t", table="$tables") == {"schema": both}


def test_a_wider_schema_on_one_side_is_no_conflict(group: Group) -> None:
    group.put("k", {"a": 1})
    group.do("set-schema", table="t", schema=A)
    group.branch("plan")
    group.do("set-schema", "plan", table="t", schema=AB)
    group.put("k", {"a": 1, "b": 2}, "plan")
    group.put("l", {"a": 5})
    group.do("merge", source="plan")
    assert [group.row(key) for key in "kl"] == [{"a": 1, "b": 2}, {"a": 5}]


@pytest.mark.parametrize("path", [["merge", "fields", "a"], ["merge", "row"]])
def test_settings_can_t_be_resolved_to_what_no_operation_would_write(group: Group, path: list[str]) -> None:
    group.put("k", {"a": 1})
    group.do("set-merge", table="t", fields={"a": "sum"}, row="last")
    group.branch("plan")
    group.do("set-merge", table="t", fields={"a": "max"}, row="ours")
    group.do("set-merge", "plan", table="t", fields={"a": "min"}, row="theirs")
    told = group.conflicts("merge", source="plan")
    for value in ("nonsense", 5, {}, []):
        ends = [{"value": value} if conflict["path"] == path else "ours" for conflict in told]
        asked = [conflict | {"take": end} for conflict, end in zip(told, ends, strict=True)]
        assert group.refused("merge", source="plan", resolutions=asked).code == "invalid"
    group.do("merge", source="plan", resolutions=[conflict | {"take": "theirs"} for conflict in told])
    assert group.row("t", table="$tables") == {"merge": {"row": "theirs", "fields": {"a": "min"}}}


# Undoing and doing again


def test_a_revert_undoes_and_a_revert_of_it_does_again(group: Group) -> None:
    group.put("a", {"x": 1, "y": 1})
    version = group.put("a", {"x": 2, "y": 1, "z": 1})
    group.put("a", {"x": 2, "y": 5, "z": 1})
    undone = group.do("revert", versions=[version])
    assert group.row("a") == {"x": 1, "y": 5}
    group.do("revert", versions=[undone])
    assert group.row("a") == {"x": 2, "y": 5, "z": 1}


def test_the_first_commit_can_be_reverted(group: Group) -> None:
    group.put("a", {"x": 1})
    group.do("revert", versions=[1])
    assert group.row("a") is None


def test_several_are_reverted_newest_first_and_picked_in_the_order_given(group: Group) -> None:
    group.put("a", {"x": 0})
    versions = [group.put("a", {"x": number}) for number in (1, 2, 3)]
    group.branch("plan", "1")
    group.do("revert", versions=versions)
    assert group.row("a") == {"x": 0}
    group.do("cherry-pick", "plan", versions=versions)
    assert group.row("a", "plan") == {"x": 3}
    (told,) = group.conflicts("cherry-pick", "plan", versions=[versions[1]])
    assert (told["base"], told["ours"], told["theirs"]) == (1, 3, 2)


@pytest.mark.parametrize("kind", ["revert", "cherry-pick"])
@pytest.mark.parametrize("versions", [[-1], [0], [1, -1], [True], ["1"]])
def test_commits_are_named_by_their_numbers_whatever_refs_are_called(
    group: Group, kind: str, versions: list[Any]
) -> None:
    group.put("a", {"x": 0})
    group.do("tag", name="-1")
    assert group.refused(kind, versions=versions).code == "invalid"


def test_of_several_commits_the_first_that_conflicts_is_told(group: Group) -> None:
    group.put("a", {"x": 0})
    first = group.put("a", {"x": 1})
    second = group.put("a", {"x": 2})
    group.put("a", {"x": 9})
    told = group.conflicts("revert", versions=[first, second])
    assert told == [
        {"table": "t", "key": "a", "path": ["x"], "code": "both-changed", "base": 2, "ours": 9, "theirs": 1}
    ]
    assert group.refused("revert", versions=[first, second]).facts["version"] == second
    resolved = [told[0] | {"take": "ours"}]
    (later,) = group.conflicts("revert", versions=[first, second], resolutions=resolved)
    assert (later["base"], later["ours"], later["theirs"]) == (1, 9, 0), "the other's conflict, at the same place"
    group.do("revert", versions=[first, second], resolutions=[*resolved, later | {"take": "theirs"}])
    assert group.row("a") == {"x": 0}


def test_reverting_a_merge_needs_its_parent_named(group: Group) -> None:
    group.put("a", {"x": 1})
    group.branch("plan")
    group.put("b", {"x": 1}, "plan")
    group.put("c", {"x": 1})
    version = group.do("merge", source="plan")
    outcome = group.refused("revert", versions=[version])
    assert (outcome.code, outcome.facts["parents"]) == ("parent-needed", [4, 3])
    group.branch("try")
    group.do("revert", versions=[version], parent=1)
    assert [group.row(key) for key in "abc"] == [{"x": 1}, None, {"x": 1}]
    group.do("revert", "try", versions=[version], parent=2)
    assert [group.row(key, "try") for key in "abc"] == [{"x": 1}, {"x": 1}, None]
    for parent in (0, 3, -1):
        assert group.refused("revert", versions=[version], parent=parent).code == "invalid"
    assert group.refused("revert", versions=[version], parent=True).code == "invalid", "true is not 1"


def test_what_changed_no_rows_of_its_own_is_not_reverted(group: Group) -> None:
    group.put("a", {"x": 1})
    made = group.branch("plan")
    group.put("a", {"x": 2}, "plan")
    forward = group.do("merge", source="plan")
    for kind in ("revert", "cherry-pick"):
        assert group.refused(kind, versions=[made]).code == "invalid"
        outcome = group.refused(kind, versions=[forward])
        assert (outcome.code, outcome.facts["parents"]) == ("invalid", [3])
        assert "fast-forward" in outcome.detail


def test_a_counter_is_reverted_by_what_was_added(group: Group) -> None:
    group.add("a", {"n": 5})
    group.do("set-merge", table="t", fields={"n": "sum"})
    version = group.add("a", {"n": 3})
    group.add("a", {"n": 10})
    group.do("revert", versions=[version])
    assert group.row("a") == {"n": 15}


# Branches


def test_a_branch_is_made_at_a_time_of_the_branch_asked_on(group: Group) -> None:
    group.put("a", {"x": 1})
    group.branch("plan")
    group.put("a", {"x": 2}, "plan")
    then = millis_to_text(group.engine.clock)
    group.put("a", {"x": 3}, "plan")
    group.do("create-branch", "plan", name="past", **{"from": then})
    assert group.row("a", "past") == {"x": 2}
    group.do("create-branch", name="main-then", **{"from": then})
    assert group.row("a", "main-then") == {"x": 1}


@pytest.mark.parametrize("stored", [0, 1, 2, 3, 4])
def test_a_time_is_the_same_place_whatever_of_it_is_stored(group: Group, stored: int) -> None:
    """A branch whose newest commit is in the store ends there, though other branches go on above it."""
    steps = [
        lambda: group.put("a", {"x": 1}),
        lambda: group.put("a", {"x": 2}),
        lambda: group.branch("plan"),
        lambda: group.put("a", {"x": 3}, "plan"),
    ]
    for number, step in enumerate(steps, start=1):
        step()
        if number == stored:
            group.engine.flush()
    now = millis_to_text(group.engine.clock)
    assert resolve(group.engine.overlay, "g", now, "main").version == 2
    assert resolve(group.engine.overlay, "g", now, "plan").version == 4


def test_a_branch_that_is_not_merged_is_deleted_only_with_force(group: Group) -> None:
    group.put("a", {"x": 1})
    group.branch("plan")
    assert group.do("delete-branch", name="plan"), "it has nothing of its own"
    group.branch("plan")
    version = group.put("a", {"x": 2}, "plan")
    assert group.refused("delete-branch", name="plan").code == "not-merged"
    group.branch("copy", "plan")
    assert group.do("delete-branch", name="plan"), "another branch has it all"
    assert group.refused("delete-branch", name="copy").code == "not-merged"
    assert group.do("delete-branch", name="copy", force=True)
    assert group.row("a", str(version)) == {"x": 2}
    assert group.refused("delete-branch", name="main", force=True).code == "invalid"


def test_a_merge_that_is_looked_at_while_what_is_below_is_stored_loses_nothing(group: Group) -> None:
    """The store then has the merges that stand in the layers above it, too."""
    group.put("a", {"x": 1})
    group.branch("feat", "1")
    group.put("f", {"x": 1}, "feat")
    group.branch("plan", "1")
    group.put("p", {"x": 1}, "plan")
    group.put("b", {"x": 1})
    group.engine.flush()
    seventh = group.do("merge", source="plan")
    group.branch("x")
    ninth = group.do("merge", source="feat")
    group.put("c", {"x": 1}, "x")
    group.engine.cut_batch()
    snapshot, main = group.engine.overlay.snapshot(), Level(1, ninth)
    assert [join.version for join in snapshot.joins("g", main)] == [ninth, seventh]
    group.engine.write_oldest()
    assert [join.version for join in snapshot.joins("g", main)] == [ninth, seventh]
    asked = Transaction("g", branch="x").operation("merge", source="main").record()["parts"][0]
    line, _ = plan(snapshot, asked)
    assert ("t", "f") in line.changed


def test_no_policy_brings_a_schema_over_rows_that_follow_none(group: Group) -> None:
    one = RECORD | {"fields": [{"name": "a", "type": "long"}]}
    more = RECORD | {"fields": [*one["fields"], {"name": "b", "type": "string", "default": ""}]}
    group.put("k", {"a": 1})
    group.do("set-schema", table="t", schema=one)
    group.branch("plan")
    group.do("set-schema", "plan", table="t", schema=more)
    group.do("set-schema", table="t", schema=None)
    group.put("k", {"x": "free"})
    for policy in ("theirs", "fail"):
        refused = group.refused("merge", source="plan", policy=policy)
        assert (refused.code, refused.facts["conflicts"][0]["table"]) == ("merge-conflict", "$tables")
    group.do("merge", source="plan", policy="ours")
    assert group.row("k") == {"x": "free"}


# What can't be meant, and what is large


def test_what_is_repeated_in_each_piece_of_a_commit_leaves_room_for_its_rows(group: Group) -> None:
    """The groups beside it stand in each piece, the schemas of its tables once."""
    tables = [f"{number:03}" + "t" * 100 for number in range(300)]
    group.put("k", {})
    for table in tables:
        group.do("set-schema", table=table, schema=RECORD | {"fields": [{"name": "x", "type": "string"}]})
    group.branch("plan")
    for number, table in enumerate(tables[:8]):
        group.put("k", {"x": str(number) * 500_000}, "plan", table=table)
    for table in tables[8:]:
        group.put("k", {"x": "few"}, "plan", table=table)
    others = [f"{number:03}" + "g" * 253 for number in range(499)]
    tx = Transaction("g", id="many").operation("merge", source="plan")
    for other in others:
        tx.group(other).put("t", "k", {})
    group.engine.decide(tx)
    sealed = next(sealed for sealed in group.engine.decided[-1].commits if sealed.whole["group"] == "g")
    assert len(sealed.pieces) > 4
    assert all(len(piece.body) <= RECORD_BYTES_MAX for piece in sealed.pieces)
    group.engine.restart()
    record = group.engine.store.commit("g", sealed.whole["version"])
    assert record is not None
    assert sorted(met["table"] for met in record["schemas"]) == tables
    assert len(record["others"]) == 499


def test_large_arguments_leave_room_for_the_changes(group: Group) -> None:
    """The arguments are in a commit's first record; all fit the record limit, whatever was asked for."""
    group.put("k", {"x": 0})
    group.branch("plan")
    group.put("k", {"x": "o" * 250_000})
    group.put("k", {"x": "t" * 200_000}, "plan")
    (told,) = group.refused("merge", source="plan", resolutions=[]).facts["conflicts"] or [None]
    assert told is None, "too large to be told in an outcome"
    with pytest.raises(Unmerged) as found:
        plan(group.engine.overlay, Transaction("g").operation("merge", source="plan").record()["parts"][0])
    (conflict,) = found.value.every
    group.put("l", {"x": "l" * 510_000}, "plan")
    group.put("m", {"x": "m" * 510_000}, "plan")
    version = group.do("merge", source="plan", resolutions=[conflict.to_json() | {"take": {"value": "end"}}])
    *_, sealed = group.engine.decided[-1].commits
    assert len(sealed.pieces) == 2
    assert all(len(piece.body) <= RECORD_BYTES_MAX for piece in sealed.pieces)
    group.engine.restart()
    assert group.row("k") == {"x": "end"}
    record = group.engine.store.commit("g", version)
    assert record is not None
    assert record == sealed.whole | {"pieces": 2}


def test_a_schema_that_fills_a_record_is_kept_beside_its_change(group: Group) -> None:
    group.put("k", {"x": 0})
    fields = [{"name": f"field{number}", "type": "long", "default": 0} for number in range(10_000)]
    group.do("set-schema", table="u", schema=RECORD | {"fields": fields})
    (sealed,) = group.engine.decided[-1].commits
    assert all(len(piece.body) <= RECORD_BYTES_MAX for piece in sealed.pieces)
    group.engine.restart()
    assert group.row("u", table="$tables") == {"schema": RECORD | {"fields": fields}}
    many = {f"field{number}": "last" for number in range(8_000)}
    assert group.refused("set-merge", table="u", fields=many).code == "too-large"


refs = ["main", "plan", "v1", "1", "3", "9", "main~1", "4^2", "2026-01-01T00:00:00Z", "~", "-5", ""]
words = st.sampled_from([*refs, "t", "$tables", "k1", "merge", "row", "fields", "schema", "type", "name"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 8) | words,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=3),
    max_leaves=5,
)
ends = st.sampled_from(["ours", "theirs", {"delete": True}]) | st.fixed_dictionaries({"value": anything})
resolution = st.fixed_dictionaries(
    {"table": st.sampled_from(["t", "$tables"]), "key": st.sampled_from(["k1", "t"]), "take": ends},
    optional={"path": st.lists(words, max_size=2), "base": anything, "ours": anything, "theirs": anything},
)
ARGUMENTS = {
    "versions": st.lists(st.integers(-1, 8), max_size=3),
    "resolutions": st.lists(resolution | anything, max_size=2),
    "policy": st.sampled_from(["ours", "theirs", "fail"]),
    "checks": st.dictionaries(
        words,
        st.sampled_from(
            [
                {"required": ["gate"]},
                {"range": "delay", "min": 0, "max": 5},
                {"unique": "gate"},
                {"sum": "delay", "min": 0},
                {"sum": "delay", "constant": True},
                {"sum": "gate", "constant": True},
            ]
        )
        | anything,
        max_size=3,
    ),
}


@st.composite
def operations(draw: st.DrawFn) -> tuple[str, str, dict[str, Any]]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    known = {name: ARGUMENTS.get(name, words) | anything for name in KINDS[kind][1]}
    return kind, draw(st.sampled_from(["main", "plan", "x"])), draw(st.fixed_dictionaries({}, optional=known))


@settings(max_examples=300)
@given(st.lists(operations(), max_size=6))
def test_whatever_is_asked_is_committed_or_refused(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, str, dict[str, Any]]]
) -> None:
    """Nothing stops the partition, and what is left can be read, and written to."""
    engine = fuzzed(tmp_path_factory)
    group = Group(engine, f"g{engine.offset}")
    group.put("k1", {"gate": "A1", "delay": 0})
    group.branch("plan")
    group.do("set-merge", "plan", table="t", fields={"delay": "sum"})
    group.put("k1", {"gate": "B2", "delay": 0})
    group.put("k1", {"gate": "C3", "delay": 7}, "plan")
    for kind, branch, arguments in asked:
        tx = Transaction(group.name, branch=branch).operation(kind, **arguments)
        group.decided(tx)
    assert group.put("k1", {"delay": 1})
    group.decided(Transaction(group.name).operation("merge", source="plan", policy="ours"))
    engine.flush()
    for branch in engine.store.branches(group.name):
        at = resolve(engine.store, group.name, branch.name)
        for key, table in (("k1", "t"), ("t", "$tables")):
            row_at(engine.store, group.name, levels_at(engine.store, at), table, key)


_FUZZED: list[Engine] = []


def fuzzed(paths: pytest.TempPathFactory) -> Engine:
    """One engine for all examples, each with a group of its own."""
    if not _FUZZED:
        _FUZZED.append(Engine(paths.mktemp("fuzzed") / "store"))
    return _FUZZED[0]


# What a refusal names, and ranges


def test_a_refusal_names_the_versions_that_were_merged_and_what_to_do(apart_: Group) -> None:
    refused = apart_.refused("merge", source="plan")
    at = refused.facts["at"]
    state = apart_.engine.overlay
    assert at["ours"] == resolve(state, "g", "main").version
    assert at["theirs"] == resolve(state, "g", "plan").version
    assert at["bases"] == merge_bases(state, "g", [at["ours"]], at["theirs"])
    assert (refused.facts["group"], refused.facts["branch"]) == ("g", "main")
    assert "a resolution for each or a policy" in refused.detail
    stale = apart_.refused("merge", source="plan", resolutions=[TOLD | {"ours": "other", "take": "ours"}])
    assert "1 resolution on values that have changed since" in stale.detail


def test_a_range_is_what_led_from_one_place_to_another(group: Group) -> None:
    group.put("a", {"x": 1})
    start = group.put("b", {"x": 1})
    group.branch("plan")
    group.put("a", {"x": 2})
    group.put("c", {"x": 2}, "plan")
    end = group.put("b", {"x": 2})
    group.do("revert", **{"from": str(start), "to": str(end)})
    assert [group.row(key) for key in "abc"] == [{"x": 1}, {"x": 1}, None]
    group.do("cherry-pick", **{"from": str(start), "to": "plan"})
    assert [group.row(key) for key in "abc"] == [{"x": 1}, {"x": 1}, {"x": 2}]
    assert group.do("revert", **{"from": "main~1"}) > end, "up to the branch itself"
    assert group.row("c") is None
    for wrong in (
        {"from": str(end), "to": str(start)},
        {"from": "plan", "to": "main"},
        {"to": "main"},
        {"from": "1", "versions": [2]},
    ):
        refused = group.refused("revert", **wrong)
        assert refused.code == "invalid"
        assert refused.facts["field"] in ("from", "versions")
