"""References, and the walk between two versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scribe import START_MS, Scribe, codec, fold, ref
from versolog.projections.store import Store
from versolog.schemas.errors import Invalid, Malformed, NotFound, TooLarge, VersologError
from versolog.schemas.times import millis_to_text
from versolog.streams.versions import (
    STEPS_MAX,
    AncestorRef,
    At,
    NameRef,
    Ref,
    TimeRef,
    VersionRef,
    check_ref_name,
    diff,
    parse_ref,
    resolve,
    touched,
)

ROW = '{"n":1}'


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """
    1 2 3   main
    4       plan, made at 2
    5       plan
    6       main, merges 5
    7       v1 names 5
    8       plan is deleted
    9       plan, made at 3
    """
    scribe = Scribe()
    for key in "abc":
        scribe.write("g", {("t", key): ROW})
    scribe.refs("g", ref("branch", "plan", 2, 1), branch="plan", branch_id=4, operation="create-branch")
    scribe.write("g", {("t", "d"): ROW}, branch="plan", branch_id=4, parents=[2])
    scribe.write("g", {("t", "a"): '{"n":2}'}, parents=[3, 5])
    scribe.refs("g", ref("tag", "v1", 5), operation="tag")
    scribe.refs("g", ref("branch", "plan", None), branch="plan", branch_id=4, operation="delete-branch")
    scribe.refs("g", ref("branch", "plan", 3, 1), branch="plan", branch_id=9, operation="create-branch")
    scribe.write("gone", {("t", "a"): ROW})
    scribe.refs("gone", ref("branch", "main", None), operation="drop-group")
    with_all = Store.open(tmp_path / "store", partition=0, codec=codec())
    fold(with_all, scribe.records)
    yield with_all
    with_all.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("41", VersionRef(41)),
        ("main", NameRef("main")),
        ("2013-01-01", NameRef("2013-01-01")),
        ("ветка", NameRef("ветка")),
        ("main~3", AncestorRef(NameRef("main"), (1, 1, 1))),
        ("main~", AncestorRef(NameRef("main"), (1,))),
        ("41^2~1", AncestorRef(VersionRef(41), (2, 1))),
        ("main^", AncestorRef(NameRef("main"), (1,))),
        ("main^0", AncestorRef(NameRef("main"), ())),
        ("2026-01-01T00:00:00Z", TimeRef(START_MS)),
        ("2026-01-01T01:00:00.0019+01:00", TimeRef(START_MS + 1)),
        ("2026-01-01t00:00:00z~2", AncestorRef(TimeRef(START_MS), (1, 1))),
    ],
)
def test_references_are_read(text: str, expected: Ref) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "~1", "a~b", "a~1b", "a/b", "a^^x", "x" * 257, "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "a~999999999"],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises((Malformed, Invalid)):
        parse_ref(text)


@pytest.mark.parametrize("name", ["plan", "2013-01-01", "v1.2", "ветка", "1a", "٣"])
def test_names_for_branches_and_tags(name: str) -> None:
    assert check_ref_name("branch", name) == name
    assert parse_ref(name) == NameRef(name)


@pytest.mark.parametrize("name", ["", "a~1", "a^", "a/b", "123", "2026-01-01T00:00:00Z", "2026-01-01T00:00"])
def test_names_that_would_read_as_something_else_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        check_ref_name("tag", name)


def test_a_long_name_is_refused() -> None:
    with pytest.raises(TooLarge):
        check_ref_name("tag", "ü" * 65)


@pytest.mark.parametrize(
    ("text", "branch", "expected"),
    [
        (None, None, At("g", "main", 1, 6)),
        (None, "plan", At("g", "plan", 9, 3)),
        ("main", "plan", At("g", "main", 1, 6)),
        ("plan", None, At("g", "plan", 9, 3)),
        ("v1", None, At("g", "plan", 4, 5)),
        ("2", None, At("g", "main", 1, 2)),
        ("4", None, At("g", "plan", 4, 4)),
        ("7", None, At("g", "main", 1, 7)),
        ("8", None, At("g", "plan", 4, 8)),
        ("7~0", None, At("g", "main", 1, 6)),
        ("7~", None, At("g", "main", 1, 3)),
        ("main^2", None, At("g", "plan", 4, 5)),
        ("main^2~1", None, At("g", "main", 1, 2)),
        ("v1~2", None, At("g", "main", 1, 1)),
        (millis_to_text(START_MS + 5), None, At("g", "main", 1, 3)),
        (millis_to_text(START_MS + 5), "plan", At("g", "plan", 4, 5)),
        (millis_to_text(START_MS + 6), "plan", At("g", "plan", 4, 5)),
        (millis_to_text(START_MS + 9), "plan", At("g", "plan", 9, 9)),
        (millis_to_text(START_MS + 999), None, At("g", "main", 1, 7)),
    ],
)
def test_references_lead_where_they_say(store: Store, text: str | None, branch: str | None, expected: At) -> None:
    assert resolve(store, "g", text, branch) == expected


@pytest.mark.parametrize(
    ("group", "text", "branch", "code"),
    [
        ("nobody", None, None, "unknown-group"),
        ("nobody", "1", None, "unknown-group"),
        ("g", None, "other", "unknown-branch"),
        ("g", "other", None, "unknown-ref"),
        ("g", "0", None, "unknown-version"),
        ("g", "10", None, "unknown-version"),
        ("g", "9" * 200, None, "unknown-version"),
        ("g", "main~4", None, "unknown-version"),
        ("g", "1^2", None, "unknown-version"),
        ("g", f"main~{STEPS_MAX}", None, "unknown-version"),
        ("g", millis_to_text(START_MS), None, "unknown-version"),
        ("g", millis_to_text(START_MS + 3), "plan", "unknown-branch"),
        ("g", millis_to_text(START_MS + 8), "plan", "unknown-branch"),
        ("gone", None, None, "unknown-group"),
        ("gone", "main", None, "unknown-group"),
        ("gone", "2", None, "unknown-group"),
        ("gone", millis_to_text(START_MS + 999), None, "unknown-group"),
    ],
)
def test_what_there_is_not_is_not_found(store: Store, group: str, text: str, branch: str, code: str) -> None:
    with pytest.raises(NotFound) as raised:
        resolve(store, group, text, branch)
    assert raised.value.code == code


def test_a_version_to_come_names_the_newest(store: Store) -> None:
    with pytest.raises(VersologError) as raised:
        resolve(store, "g", "10")
    assert raised.value.facts == {"group": "g", "version": 10, "newest": 9}


def test_a_dropped_group_says_when_and_its_past_can_be_read(store: Store) -> None:
    with pytest.raises(NotFound) as raised:
        resolve(store, "gone")
    assert raised.value.facts["dropped_at"] == 2
    assert resolve(store, "gone", "1") == At("gone", "main", 1, 1)


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [(1, 1, ""), (1, 3, "bc"), (3, 1, "bc"), (3, 6, "a"), (5, 6, "acd"), (2, 9, "c"), (4, 2, ""), (7, 6, "")],
)
def test_what_can_differ_is_what_was_changed_since_the_lines_parted(
    store: Store, before: int, after: int, keys: str
) -> None:
    walk = touched(store, "g", before, after)
    assert walk.complete
    assert walk.rows == {("t", key) for key in keys}


def test_the_walk_gives_up_where_there_is_more_than_was_asked_for(store: Store) -> None:
    assert not touched(store, "g", 1, 6, changes_max=2).complete
    assert touched(store, "g", 1, 6, changes_max=6).complete


def test_a_row_changed_back_is_no_difference(store: Store) -> None:
    scribe = Scribe()
    scribe.write("h", {("t", "a"): ROW, ("t", "b"): ROW})
    scribe.write("h", {("t", "a"): None, ("t", "b"): '{"n":2}'})
    scribe.write("h", {("t", "a"): ROW, ("t", "c"): ROW})
    fold(store, scribe.records)
    changes = diff(store, resolve(store, "h", "1"), resolve(store, "h", "3"))
    assert [(row.key, row.before and row.before.version, row.after and row.after.version) for row in changes] == [
        ("b", 1, 2),
        ("c", None, 3),
    ]
