"""What differs between any two versions of a random history is the same by the changes since and by all rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import Engine
from tests.lives import live_through
from versolog.projections import views
from versolog.projections.views import View
from versolog.streams.transaction import Transaction
from versolog.streams.versions import At, Difference


def differences(view: View, before: At, after: At, limit: int) -> list[Difference]:
    found: list[Difference] = []
    cursor = None
    while True:
        page = view.diff(before, after, limit=limit, cursor=cursor)
        found += page.rows
        if (cursor := page.cursor) is None:
            return found


def changes(view: View, version: int, limit: int) -> list[Difference]:
    found: list[Difference] = []
    cursor = None
    while True:
        page = view.changes("g", version, limit=limit, cursor=cursor)
        found += page.rows
        if (cursor := page.cursor) is None:
            return found


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_differences_are_those_of_all_rows(seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        engine = Engine(Path(directory) / "store")
        engine.send(Transaction("g").put("t", "a", {}))
        live_through(engine, random)
        head = engine.store.head("g")
        assert head is not None
        view, by_scan = View(engine.store), View(engine.store)
        for _ in range(40):
            limit = random.randint(1, 3)
            before, after = (view.resolve("g", str(random.randint(1, head.version))) for _ in range(2))
            found = differences(view, before, after, limit)
            with patch.object(views, "DIFF_CHANGES_MAX", -1):
                assert found == differences(by_scan, before, after, limit)
        for version in range(1, head.version + 1):
            found = changes(view, version, random.randint(1, 3))
            before, after = view.around("g", version)
            assert found == differences(view, before, after, 9)
            record = engine.store.commit("g", version)
            assert record is not None
            assert {(row.table, row.key) for row in found} <= {(one["table"], one["key"]) for one in record["changes"]}
        engine.store.close()
