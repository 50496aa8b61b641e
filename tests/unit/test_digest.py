"""Digests: equal where the content is, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scribe import START_MS, Scribe, codec, fold, ref
from versolog.projections import keys, layout
from versolog.projections.digest import combined, group_digest, rows_digest, store_digest, version_named
from versolog.projections.rocks import StoreUnusable
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.times import millis_to_text

Open = Callable[[str], Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    opened: list[Store] = []

    def open_(name: str) -> Store:
        opened.append(Store.open(tmp_path / name, codec=codec()))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def rows_of(store: Store, at: str) -> bytes:
    view = View(store)
    return rows_digest(view, view.resolve("g", at))


def test_rows_have_the_digest_of_their_content_whatever_their_history(open_store: Open) -> None:
    store, scribe = open_store("store"), Scribe()
    scribe.write("g", {("t", "a"): '{"n":1}', ("$tables", "t"): "{}"})
    scribe.write("g", {("t", "a"): '{"n":2}', ("t", "b"): "{}"})
    scribe.write("g", {("t", "a"): '{"n":1}', ("t", "b"): None})
    scribe.refs("g", ref("branch", "plan", 1, 1), branch="plan", branch_id=4)
    scribe.write("g", {("$tables", "t"): None}, branch="plan", branch_id=4, parents=[1])
    fold(store, scribe.records)
    assert rows_of(store, "1") == rows_of(store, "3") == rows_of(store, "4") == rows_of(store, "main")
    assert len({rows_of(store, at) for at in ("1", "2", "plan")}) == 3


@pytest.mark.parametrize(
    "other",
    [
        {("t", "ab"): '{"n":1}'},
        {("ta", "b"): '{"n":1}'},
        {("t", "a"): '{"n":2}', ("t", "b"): "{}"},
        {("t", "a"): '{"n":1}', ("t", "a\0b"): "{}"},
        {},
    ],
)
def test_other_rows_have_another_digest(open_store: Open, other: dict[tuple[str, str], str | None]) -> None:
    digests = set()
    for name, rows in (("one", {("t", "a"): '{"n":1}', ("t", "b"): "{}"}), ("other", other)):
        store, scribe = open_store(name), Scribe()
        scribe.write("g", rows)
        fold(store, scribe.records)
        digests.add(rows_of(store, "1"))
    assert len(digests) == 2


def test_a_store_has_the_digest_of_one_that_ends_there(open_store: Open) -> None:
    scribe = Scribe()
    for number in range(5):
        scribe.write("g", {("t", "a"): f'{{"n":{number}}}'})
        scribe.write("h", {("t", "a"): "{}"})
    scribe.refs("h", ref("tag", "v1", 2))
    whole, half = open_store("whole"), open_store("half")
    fold(whole, scribe.records)
    fold(half, scribe.records[:6])
    time_ms = scribe.records[5].record["committed_at"]
    assert store_digest([whole], time_ms=time_ms) == store_digest([half]) != store_digest([whole])
    assert group_digest(whole, "h", 3) == group_digest(half, "h")
    assert version_named(whole, "g", millis_to_text(time_ms)) == version_named(half, "g", None) == 3
    assert store_digest([whole], time_ms=START_MS) == store_digest([]) == combined([])


def test_a_digest_does_not_depend_on_how_groups_are_spread(open_store: Open) -> None:
    stores = [open_store(name) for name in ("one", "two", "both")]
    for group in ("g", "g\0", "h"):
        scribe = Scribe()
        scribe.write(group, {("t", group): "{}"})
        fold(stores[len(group) - 1], scribe.records)
        fold(stores[2], scribe.records)
    one, two, both = stores
    assert store_digest([one, two]) == store_digest([two, one]) == store_digest([both]) != store_digest([one])


def test_a_row_that_reads_get_differently_is_found(open_store: Open) -> None:
    store, scribe = open_store("store"), Scribe()
    scribe.write("g", {("t", "a"): '{"n":1}', ("t", "b"): "{}"})
    fold(store, scribe.records)
    digest = group_digest(store, "g")
    place = layout.row_prefix("g", 1, "t") + keys.text("a")
    good = store._rocks.get(layout.LATEST, place)
    assert good is not None
    store._rocks.put(layout.LATEST, place, good.replace(b"1", b"2"))
    with pytest.raises(StoreUnusable, match="reads get what version 1 says"):
        group_digest(store, "g")
    store._rocks.put(layout.LATEST, place, good)
    assert group_digest(store, "g") == digest
    store._rocks.put(layout.ROWS, place + keys.descending(1), good[8:].replace(b"1", b"2"))
    with pytest.raises(StoreUnusable):
        group_digest(store, "g")


@pytest.mark.parametrize("name", ["0", "a\u0001", "z"])
def test_a_row_that_nothing_wrote_is_found(open_store: Open, name: str) -> None:
    """Before, between and after those that there are."""
    store, scribe = open_store("store"), Scribe()
    scribe.write("g", {("t", "a"): "{}", ("t", "b"): "{}"})
    scribe.write("g", {("t", "c"): "{}"})
    fold(store, scribe.records)
    before = group_digest(store, "g", 1)
    forged = layout.row_prefix("g", 1, "t") + keys.text(name)
    store._rocks.put(layout.LATEST, forged, layout.row_value(2, START_MS, b"{}"))
    with pytest.raises(StoreUnusable, match="has not"):
        group_digest(store, "g")
    assert group_digest(store, "g", 1) == before, "it could be of a later version"
