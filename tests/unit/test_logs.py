"""Logs: which commits they list, page by page, and how much one page looks at."""

from __future__ import annotations

import pytest

from tests.scribe import START_MS, Scribe, fold, ref
from versolog.projections import logs
from versolog.projections.logs import GraphPlace, Log, Sought, graph, graph_places, log, log_of_group
from versolog.projections.views import View
from versolog.streams.graph import Ancestry


@pytest.fixture
def branched(view: View) -> View:
    """1 2 3 main · 4 makes plan at 2 · 5 plan · 6 main · 7 tags · 8 main merges 5"""
    scribe = Scribe()
    for number in range(1, 4):
        scribe.write("g", {("t" if number < 3 else "u", f"k{number}"): "{}"})
    scribe.refs("g", ref("branch", "plan", 2, 1), branch="plan", branch_id=4)
    scribe.write("g", {("t", "p"): "{}"}, branch="plan", branch_id=4, parents=[2], author="bea")
    scribe.write("g", {("t", "k1"): '{"n":6}'}, parents=[3], type="Moved", message="Späte Änderung")
    scribe.refs("g", ref("tag", "v1", 6))
    scribe.write("g", {("t", "p"): "{}"}, parents=[6, 5], operation="merge")
    fold(view.store, scribe.records)
    return view


def versions_of(page: logs.Log | logs.GraphLog) -> list[int]:
    return [heading["version"] for heading in page.commits]


def log_in_pages(view: View, at: str, sought: Sought = logs.EVERYTHING) -> list[int]:
    place, found, before = view.resolve("g", at), list[int](), None
    while True:
        page = log(view, place, limit=2, before=before, sought=sought)
        found += versions_of(page)
        if (before := page.before) is None:
            return found


def graph_in_pages(view: View, at: str, sought: Sought = logs.EVERYTHING) -> list[int]:
    place, found, open_ = view.resolve("g", at), list[int](), None
    while True:
        page = graph(view, place, limit=2, open=open_, sought=sought)
        found += versions_of(page)
        if (open_ := page.open) is None:
            return found


@pytest.mark.parametrize(
    ("at", "expected"), [("main", [8, 6, 3, 2, 1]), ("plan", [5, 2, 1]), ("7", [6, 3, 2, 1]), ("4", [2, 1]), ("1", [1])]
)
def test_a_log_follows_first_parents(branched: View, at: str, expected: list[int]) -> None:
    assert log_in_pages(branched, at) == expected


@pytest.mark.parametrize(
    ("at", "expected"), [("main", [8, 6, 5, 3, 2, 1]), ("plan", [5, 2, 1]), ("7", [6, 3, 2, 1]), ("4", [2, 1])]
)
def test_a_graph_follows_every_parent(branched: View, at: str, expected: list[int]) -> None:
    assert graph_in_pages(branched, at) == expected


def test_each_commit_of_a_graph_has_its_place(branched: View) -> None:
    commits = graph(branched, branched.resolve("g"), limit=9).commits
    places = graph_places(branched.store, "g", commits)
    assert dict(zip((commit["version"] for commit in commits), places, strict=True)) == {
        8: GraphPlace([6, 5], ["main"], []),
        6: GraphPlace([3], [], ["v1"]),
        5: GraphPlace([2], ["plan"], []),
        3: GraphPlace([2], [], []),
        2: GraphPlace([1], [], []),
        1: GraphPlace([], [], []),
    }


def test_a_branch_made_at_an_operation_hangs_on_the_commit_that_stood_there(view: View) -> None:
    scribe = Scribe()
    scribe.write("g", {("t", "a"): "{}"})
    scribe.refs("g", ref("tag", "v1", 1))
    scribe.refs("g", ref("branch", "plan", 2, 1), branch="plan", branch_id=3)
    scribe.write("g", {("t", "b"): "{}"}, branch="plan", branch_id=3, parents=[2])
    fold(view.store, scribe.records)
    commits = graph(view, view.resolve("g", "plan"), limit=9).commits
    assert [place.parents for place in graph_places(view.store, "g", commits)] == [[1], []]


def test_what_is_open_in_a_graph_is_no_more_than_the_branches(branched: View) -> None:
    ancestry = Ancestry(branched.store, "g", [8, 6, 5, 3, 2, 1])
    assert ancestry.open == [8, 5]
    assert [step.version for step in ancestry] == [8, 6, 5, 3, 2, 1]
    assert ancestry.open == []


@pytest.mark.parametrize(
    ("sought", "expected"),
    [
        (Sought("t"), [8, 6, 2, 1]),
        (Sought("u"), [3]),
        (Sought("t", "k1"), [6, 1]),
        (Sought("t", "p"), [8]),
        (Sought("none"), []),
        (Sought(author="bea"), []),
        (Sought(author="ada", operation="merge"), [8]),
        (Sought(type="Moved"), [6]),
        (Sought(message="äNDER"), [6]),
        (Sought(since_ms=START_MS + 3, until_ms=START_MS + 6), [6, 3]),
        (Sought("t", since_ms=START_MS + 2, until_ms=START_MS + 7), [6, 2]),
        (Sought("t", "k1", until_ms=START_MS + 5), [1]),
        (Sought(until_ms=START_MS), []),
        (Sought(since_ms=START_MS + 9), []),
    ],
)
def test_a_log_is_searched(branched: View, sought: Sought, expected: list[int]) -> None:
    assert log_in_pages(branched, "main", sought) == expected


@pytest.mark.parametrize(
    ("sought", "expected"),
    [
        (Sought(author="bea"), [5]),
        (Sought("t", "p"), [8, 5]),
        (Sought("t", until_ms=START_MS + 6), [6, 5, 2, 1]),
        (Sought(since_ms=START_MS + 4, until_ms=START_MS + 5), [5]),
    ],
)
def test_a_graph_is_searched(branched: View, sought: Sought, expected: list[int]) -> None:
    assert graph_in_pages(branched, "main", sought) == expected


def test_until_a_time_before_the_branch_is_what_it_began_with(branched: View) -> None:
    assert log_in_pages(branched, "plan", Sought(until_ms=START_MS + 4)) == [2, 1]
    assert log_in_pages(branched, "plan", Sought(until_ms=START_MS + 1)) == [1]


def test_until_a_time_at_which_a_branch_is_gone(view: View) -> None:
    scribe = Scribe()
    scribe.write("g", {("t", "a"): "{}"})
    scribe.refs("g", ref("branch", "plan", 1, 1), branch="plan", branch_id=2)
    scribe.write("g", {("t", "b"): "{}"}, branch="plan", branch_id=2, parents=[1])
    scribe.refs("g", ref("branch", "plan", None), branch="plan", branch_id=2)
    scribe.write("g", {("t", "c"): "{}"}, parents=[1])
    scribe.refs("g", ref("branch", "more", 4, 2), branch="more", branch_id=6)
    scribe.write("g", {("t", "d"): "{}"}, branch="more", branch_id=6, parents=[4])
    fold(view.store, scribe.records)
    for at in ("4", "more"):
        assert log_in_pages(view, at, Sought(until_ms=START_MS + 5)) == [3, 1]
        assert log_in_pages(view, at, Sought(until_ms=START_MS + 4)) == [3, 1]
        assert log_in_pages(view, at, Sought(until_ms=START_MS + 2)) == [1]


def test_the_log_of_a_group_has_all_its_versions(branched: View) -> None:
    page = log_of_group(branched, "g", limit=5)
    assert (versions_of(page), page.before) == ([8, 7, 6, 5, 4], 4)
    page = log_of_group(branched, "g", limit=5, before=page.before)
    assert (versions_of(page), page.before) == ([3, 2, 1], None)
    assert log_of_group(branched, "nobody", limit=5) == Log([], None)
    assert versions_of(log_of_group(branched, "g", limit=9, refs=False)) == [8, 6, 5, 3, 2, 1]


def test_the_log_of_a_group_is_searched_on_all_branches(branched: View) -> None:
    def found(**sought: object) -> list[int]:
        return versions_of(log_of_group(branched, "g", limit=9, sought=Sought(**sought)))  # type: ignore[arg-type]

    assert found(author="bea") == [5]
    assert found(table="t") == [8, 6, 5, 2, 1]
    assert found(table="t", key="p") == [8, 5]
    assert found(table="t", key="p", until_ms=START_MS + 7) == [5]
    assert found(since_ms=START_MS + 7) == [8, 7]


def test_a_page_looks_at_so_many_commits_and_goes_on(branched: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOKED_AT_MAX", 2 * (1 + logs.CHANGES_LOOKS))
    at, sought = branched.resolve("g"), Sought("u")
    page = log(branched, at, limit=9, sought=sought)
    assert (versions_of(page), page.before) == ([], 6)
    page = log(branched, at, limit=9, before=page.before, sought=sought)
    assert (versions_of(page), page.before) == ([3], 2)
    drawn = graph(branched, at, limit=9, sought=sought)
    assert (versions_of(drawn), drawn.open) == ([], [5, 3])
    drawn = graph(branched, at, limit=9, open=drawn.open, sought=sought)
    assert (versions_of(drawn), drawn.open) == ([3], [2])


def test_commits_with_many_changes_count_for_more(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOKED_AT_MAX", 10)
    scribe = Scribe()
    for _ in range(4):
        scribe.write("g", {("t", f"k{number}"): "{}" for number in range(5 * logs.CHANGES_A_LOOK)})
    fold(view.store, scribe.records)
    at = view.resolve("g")
    assert log(view, at, limit=9, sought=Sought("u")) == Log([], 3)
    assert versions_of(log(view, at, limit=9)) == [4, 3, 2, 1]


def test_a_heading_leaves_out_what_grows(branched: View) -> None:
    (heading,) = log(branched, branched.resolve("g"), limit=1).commits
    assert heading["parents"] == [6, 5]
    assert "changes" not in heading
