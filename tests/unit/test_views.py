"""Reading at a version: what each kind of read answers, page by page, and what it must not cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.scribe import START_MS, Scribe, fold, ref
from versolog.projections import views
from versolog.projections.logs import Sought, graph, log, log_of_group
from versolog.projections.queries import Predicate
from versolog.projections.views import View
from versolog.streams.state import Row


def keys(page: views.Page) -> list[str]:
    return [key for key, _ in page.rows]


# Scans


def test_a_scan_goes_by_pages_in_key_order(view: View, scribe: Scribe) -> None:
    names = ["", "a", "a\0", "a\0b", "aa", "b", "é", "\uffff", "\U00010000"][1:]
    scribe.write("g", {("t", name): "{}" for name in reversed(names)})
    scribe.write("g", {("t", "a\0"): None})
    fold(view.store, scribe.records)
    at = view.resolve("g")
    names.remove("a\0")
    found, after = [], None
    while True:
        page = view.scan(at, "t", limit=2, after=after)
        found += keys(page)
        if (after := page.cursor) is None:
            break
    assert found == names
    assert keys(view.scan(at, "t", limit=9, prefix="a")) == ["a", "a\0b", "aa"]
    assert keys(view.scan(at, "t", limit=9, start="aa", end="é")) == ["aa", "b"]
    assert keys(view.scan(at, "t", limit=9, start="b", end="a")) == []
    assert keys(view.scan(at, "other", limit=9)) == []


def test_a_cursor_stays_right_when_its_row_is_gone(view: View, scribe: Scribe) -> None:
    scribe.write("g", {("t", key): "{}" for key in "abcd"})
    fold(view.store, scribe.records)
    page = view.scan(view.resolve("g"), "t", limit=2)
    scribe.write("g", {("t", "b"): None, ("t", "bb"): "{}"})
    fold(view.store, scribe.records)
    assert keys(view.scan(view.resolve("g", "1"), "t", limit=9, after=page.cursor)) == ["c", "d"]
    assert keys(view.scan(view.resolve("g"), "t", limit=9, after=page.cursor)) == ["bb", "c", "d"]


def test_a_condition_chooses_rows_and_bounds_what_one_call_looks_at(
    view: View, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe.write("g", {("t", f"k{number:02}"): f'{{"n":{number}}}' for number in range(30)})
    fold(view.store, scribe.records)
    monkeypatch.setattr(views, "SCANNED_MAX", 10)
    at, where, pages, after = view.resolve("g"), Predicate.parse("n in (3, 14, 15, 29)"), [], None
    while True:
        pages.append(view.scan(at, "t", limit=2, after=after, where=where))
        if (after := pages[-1].cursor) is None:
            break
    assert [keys(page) for page in pages] == [["k03"], ["k14", "k15"], [], ["k29"]]
    assert [page.scanned for page in pages] == [12, 4, 12, 2]


def test_large_rows_bound_what_one_call_looks_at(view: View, scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    scribe.write("g", {("t", f"k{number}"): '{"n":"' + "x" * 900 + '"}' for number in range(10)})
    fold(view.store, scribe.records)
    monkeypatch.setattr(views, "SCANNED_BYTES_MAX", 2_000)
    at, after, seen = view.resolve("g"), None, []
    while True:
        page = view.scan(at, "t", limit=100, after=after, where=Predicate.parse("n = 1"))
        seen.append(page.scanned)
        if (after := page.cursor) is None:
            break
    assert seen == [3, 3, 3, 1]


def test_system_tables_are_listed_when_they_are_asked_for(view: View, scribe: Scribe) -> None:
    scribe.write("g", {("t", "a"): "{}", ("$tables", "t"): "{}", ("gone", "a"): "{}"})
    scribe.write("g", {("gone", "a"): None})
    fold(view.store, scribe.records)
    assert view.tables(view.resolve("g")) == ["t"]
    assert view.tables(view.resolve("g"), system=True) == ["$tables", "t"]
    assert view.tables(view.resolve("g", "1")) == ["gone", "t"]


# The past of a row


def test_the_history_of_a_row_says_who_when_and_what(view: View, scribe: Scribe) -> None:
    for number in range(1, 6):
        row = None if number == 3 else f'{{"n":{number}}}'
        scribe.write("g", {("t", "a"): row}, author=f"author {number}", message="m", type="Changed")
        scribe.write("g", {("t", "b"): "{}"})
    fold(view.store, scribe.records)
    at = view.resolve("g", "7")
    page = view.history(at, "t", "a", limit=3)
    assert [(past.row.version, past.row.text, past.heading["author"]) for past in page.changes] == [
        (7, b'{"n":4}', "author 4"),
        (5, None, "author 3"),
        (3, b'{"n":2}', "author 2"),
    ]
    assert page.changes[0].heading["committed_at"] == START_MS + 7
    assert page.before == 3
    last = view.history(at, "t", "a", limit=3, before=page.before)
    assert ([past.row.version for past in last.changes], last.before) == ([1], None)
    assert view.history(at, "t", "nothing", limit=3) == views.Pasts([], None)


def test_history_falls_through_to_where_the_branch_began(view: View, scribe: Scribe) -> None:
    for number in range(1, 4):
        scribe.write("g", {("t", "a"): f'{{"n":{number}}}'})
    scribe.refs("g", ref("branch", "plan", 2, 1), branch="plan", branch_id=4)
    scribe.write("g", {("t", "a"): '{"n":5}'}, branch="plan", branch_id=4, parents=[2])
    fold(view.store, scribe.records)
    page = view.history(view.resolve("g", "plan"), "t", "a", limit=9)
    assert [past.row.version for past in page.changes] == [5, 2, 1]
    assert view.row(view.resolve("g", "4"), "t", "a") == Row(2, START_MS + 2, b'{"n":2}')


@pytest.fixture
def branched(view: View, scribe: Scribe) -> View:
    """1 2 3 main · 4 makes plan at 2 · 5 plan · 6 main · 7 tags · 8 main merges 5"""
    for number in range(1, 4):
        scribe.write("g", {("t" if number < 3 else "u", f"k{number}"): "{}"})
    scribe.refs("g", ref("branch", "plan", 2, 1), branch="plan", branch_id=4)
    scribe.write("g", {("t", "p"): "{}"}, branch="plan", branch_id=4, parents=[2])
    scribe.write("g", {("t", "k1"): '{"n":6}'}, parents=[3])
    scribe.refs("g", ref("tag", "v1", 6))
    scribe.write("g", {("t", "p"): "{}"}, parents=[6, 5])
    fold(view.store, scribe.records)
    return view


# Differences


@pytest.mark.parametrize("changes_max", [views.DIFF_CHANGES_MAX, 0])
def test_differences_are_the_same_by_changes_and_by_rows(
    branched: View, monkeypatch: pytest.MonkeyPatch, changes_max: int
) -> None:
    monkeypatch.setattr(views, "DIFF_CHANGES_MAX", changes_max)
    before, after = branched.resolve("g", "plan"), branched.resolve("g", "main")

    def found(**asked: Any) -> list[tuple[str, str, int | None, int | None]]:
        rows, cursor = [], None
        while True:
            page = branched.diff(before, after, limit=1, cursor=cursor, **asked)
            rows += page.rows
            if (cursor := page.cursor) is None:
                break
        return [(r.table, r.key, r.before and r.before.version, r.after and r.after.version) for r in rows]

    assert found() == [("t", "k1", 1, 6), ("u", "k3", None, 3)]
    assert found(table="t") == [("t", "k1", 1, 6)]
    assert found(prefix="k3") == [("u", "k3", None, 3)]
    assert found(table="t", prefix="x") == []


@pytest.mark.parametrize("changes_max", [views.DIFF_CHANGES_MAX, 0])
def test_differences_in_system_tables_are_told_when_asked_for(
    view: View, scribe: Scribe, monkeypatch: pytest.MonkeyPatch, changes_max: int
) -> None:
    monkeypatch.setattr(views, "DIFF_CHANGES_MAX", changes_max)
    scribe.write("g", {("t", "a"): "{}"})
    scribe.write("g", {("$tables", "t"): "{}"})
    fold(view.store, scribe.records)
    before, after = view.resolve("g", "1"), view.resolve("g", "2")
    assert view.diff(before, after, limit=9).rows == []
    assert [row.key for row in view.diff(before, after, limit=9, table="$tables").rows] == ["t"]


# Cost


def test_reads_touch_what_they_answer_however_long_the_past_is(
    view: View, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in entries met in the database, so that it holds on any machine."""
    for number in range(600):
        scribe.write("g", {("t", f"k{number % 3}"): f'{{"n":{number}}}'})
    fold(view.store, scribe.records)
    rocks, met = view.store._rocks, [0]
    between, first, get = rocks.between, rocks.first, rocks.get

    def counted(*range_: Any) -> Iterator[tuple[bytes, bytes]]:
        for entry in between(*range_):
            met[0] += 1
            yield entry

    def counted_first(*range_: Any) -> tuple[bytes, bytes] | None:
        met[0] += 1
        return first(*range_)

    def counted_get(*key: Any) -> bytes | None:
        met[0] += 1
        return get(*key)

    monkeypatch.setattr(rocks, "between", counted)
    monkeypatch.setattr(rocks, "first", counted_first)
    monkeypatch.setattr(rocks, "get", counted_get)

    def cost(read: Any) -> int:
        met[0] = 0
        read()
        return met[0]

    head, old = view.resolve("g"), view.resolve("g", "10")
    assert cost(lambda: view.row(head, "t", "k1")) == 1
    assert cost(lambda: view.row(old, "t", "k1")) == 2
    assert cost(lambda: view.rows(old, [("t", "k1"), ("t", "x")])) <= 2
    assert cost(lambda: view.scan(head, "t", limit=9)) == 3
    assert cost(lambda: view.scan(old, "t", limit=9)) == 3
    assert cost(lambda: view.history(head, "t", "k1", limit=5)) <= 6 + 2 * 5
    for at in (head, old):
        assert cost(lambda at=at: log(view, at, limit=5)) <= 3 * 6  # type: ignore[misc]
        assert cost(lambda at=at: graph(view, at, limit=5)) <= 4 * 6  # type: ignore[misc]
        of_key = Sought("t", "k1", author="ada")
        assert cost(lambda at=at, of_key=of_key: log(view, at, limit=3, sought=of_key)) <= 4 * 6  # type: ignore[misc]
    assert cost(lambda: log(view, head, limit=5, sought=Sought(until_ms=START_MS + 77))) <= 3 * 6 + 10
    assert cost(lambda: log_of_group(view, "g", limit=3, sought=Sought("t", "k1"))) <= 4 * 6
    assert cost(lambda: view.store.version_at("g", START_MS + 77)) <= 10
    assert cost(lambda: view.diff(view.resolve("g", "595"), head, limit=9)) < 60
