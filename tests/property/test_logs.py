"""Logs of random histories, in pages of any size, are those that plain lists of the same commits give."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import Engine
from tests.lives import AUTHORS, KEYS, STEPS, TABLES, TYPES, live_through
from versolog.projections import logs
from versolog.projections.logs import Sought, graph, log, log_of_group
from versolog.projections.views import View
from versolog.schemas.codec import Record
from versolog.streams.transaction import Transaction
from versolog.streams.versions import moves_head


class Listed:
    """A group's commits as a list, and what leads to each by going through it."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def stands_for(self, version: int) -> Record | None:
        """The commit whose rows a read of the version sees."""
        record = self.records[version - 1]
        if moves_head(record):
            return record
        on_branch = [one for one in self.records[:version] if one["branch_id"] == record["branch_id"]]
        made = [one for one in on_branch if moves_head(one)]
        if made:
            return made[-1]
        fork = next(ref["version"] for ref in on_branch[0]["refs"] if ref["kind"] == "branch")
        return self.stands_for(fork) if fork else None

    def first_parents(self, version: int) -> Iterator[Record]:
        record = self.stands_for(version)
        while record is not None:
            yield record
            record = self.stands_for(record["parents"][0]) if record["parents"] else None

    def ancestry(self, version: int) -> list[Record]:
        found: dict[int, Record] = {}
        open_ = [self.stands_for(version)]
        while open_:
            record = open_.pop()
            if record is not None and record["version"] not in found:
                found[record["version"]] = record
                open_ += [self.stands_for(parent) for parent in record["parents"]]
        return [found[one] for one in sorted(found, reverse=True)]


def fits(record: Record, sought: Sought) -> bool:
    changes = [
        change for change in record["changes"]
        if sought.table in (None, change["table"]) and sought.key in (None, change["key"])
    ]  # fmt: skip
    return (
        (sought.table is None or bool(changes))
        and sought.author in (None, record["author"])
        and sought.type in (None, record["type"])
        and sought.operation in (None, record["operation"])
        and (sought.message or "").casefold() in record["message"].casefold()
        and (sought.since_ms is None or record["committed_at"] >= sought.since_ms)
        and (sought.until_ms is None or record["committed_at"] <= sought.until_ms)
    )


def any_sought(random: Random, newest_ms: int) -> Sought:
    def perhaps(choose: Callable[[], Any]) -> Any:
        return choose() if random.random() < 0.3 else None

    table = perhaps(partial(random.choice, TABLES))
    return Sought(
        table,
        None if table is None or random.random() < 0.5 else random.choice(KEYS),
        perhaps(partial(random.choice, AUTHORS)),
        perhaps(partial(random.choice, TYPES)),
        perhaps(partial(random.choice, ("write", "merge", "tag"))),
        perhaps(partial(random.choice, ("GATE", "straße", "e"))),
        perhaps(lambda: newest_ms - random.randrange(2 * STEPS)),
        perhaps(lambda: newest_ms - random.randrange(2 * STEPS)),
    )


def in_pages(page: Callable[[Any], tuple[list[Record], Any]]) -> list[int]:
    found: list[int] = []
    go_on = None
    while True:
        commits, go_on = page(go_on)
        found += [heading["version"] for heading in commits]
        if go_on is None:
            return found


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_logs_are_what_plain_lists_give(seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as directory, patch.object(logs, "LOOKED_AT_MAX", random.randint(1, 6)):
        engine = Engine(Path(directory) / "store")
        engine.send(Transaction("g").put("t", "a", {}))
        live_through(engine, random)
        head = engine.store.head("g")
        assert head is not None
        records = [engine.store.commit("g", version) for version in range(1, head.version + 1)]
        listed, view = Listed([record for record in records if record is not None]), View(engine.store)
        for _ in range(20):
            sought, limit = any_sought(random, head.committed_at), random.randint(1, 4)
            at = view.resolve("g", str(random.randint(1, head.version)))
            check(view, listed, at, sought, limit)
        engine.store.close()


def check(view: View, listed: Listed, at: Any, sought: Sought, limit: int) -> None:
    def versions(records: Any) -> list[int]:
        return [record["version"] for record in records if fits(record, sought)]

    whole = in_pages(lambda before: log_of_group(view, "g", limit=limit, before=before, sought=sought))
    assert whole == versions(reversed(listed.records))
    drawn = in_pages(lambda open_: graph(view, at, limit=limit, open=open_, sought=sought))
    assert drawn == versions(listed.ancestry(at.version))
    line = in_pages(lambda before: log(view, at, limit=limit, before=before, sought=sought))
    if sought.key is not None:
        history = [row.version for row in view.states(at, sought.table or "", sought.key)]
        assert line == [version for version in history if fits(listed.records[version - 1], sought)]
    elif sought.until_ms is None or not any(is_forward(record) for record in listed.first_parents(at.version)):
        assert line == versions(listed.first_parents(at.version))


def is_forward(record: Record) -> bool:
    """A fast-forward: what stood on the branch before is not what first parents lead to."""
    return bool(record["operation"] == "merge" and len(record["parents"]) == 1)
