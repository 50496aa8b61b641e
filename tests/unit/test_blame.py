"""Blame: the commit that set each field, however deep it stands and however many merges it came by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from tests.scribe import Scribe, fold
from versolog.projections.blame import blame
from versolog.projections.views import View
from versolog.streams.transaction import Transaction


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "engine")
    yield engine
    engine.store.close()


def patch(engine: Engine, branch: str, **fields: Any) -> int:
    return commit(engine, Transaction("g", branch=branch).patch("t", "k", fields))


def do(engine: Engine, kind: str, branch: str = "main", **arguments: Any) -> int:
    return commit(engine, Transaction("g", branch=branch).operation(kind, **arguments))


def commit(engine: Engine, tx: Transaction) -> int:
    (outcome,) = engine.send(tx)
    assert outcome.committed, outcome.detail
    return outcome.parts[0].version


def blamed(engine: Engine, at: str = "main") -> dict[str, int]:
    view = View(engine.store)
    return {".".join(field.path): field.version for field in blame(view, view.resolve("g", at), "t", "k")}


def test_blame_names_the_commit_that_set_each_field(view: View, scribe: Scribe) -> None:
    for version, row in enumerate(
        [
            '{"gate":"A1","n":1,"crew":{"captain":"Ada","size":2},"tags":["x"]}',
            '{"gate":"B2","n":1,"crew":{"captain":"Ada","size":3},"tags":["x"]}',
            None,
            '{"gate":"B2","n":1,"crew":{"captain":"Ada","size":3},"tags":["x"],"more":{}}',
            '{"gate":"B2","n":1.0,"crew":{"captain":"Bea","size":3},"tags":["x","y"],"more":{}}',
            '{"gate":"C3","n":1.0,"crew":{"captain":"Bea","size":3},"tags":["x","y"],"more":{}}',
            '{"gate":"B2","n":1.0,"crew":{"captain":"Bea","size":3},"tags":["x","y"],"more":{}}',
        ],
        1,
    ):
        scribe.write("g", {("t", "a"): row}, author=f"author {version}")
    fold(view.store, scribe.records)
    found = blame(view, view.resolve("g"), "t", "a")
    assert [(".".join(field.path), field.value, field.version) for field in found] == [
        ("crew.captain", "Bea", 5),
        ("crew.size", 3, 4),
        ("gate", "B2", 7),
        ("more", {}, 4),
        ("n", 1.0, 5),
        ("tags", ["x", "y"], 5),
    ]
    assert found[0].heading["author"] == "author 5"
    assert blame(view, view.resolve("g", "3"), "t", "a") == []
    assert blame(view, view.resolve("g"), "t", "nothing") == []


def test_a_field_is_followed_through_the_merge_that_brought_it(engine: Engine) -> None:
    first = patch(engine, "main", gate={"name": "A1", "hall": 1}, delay=0)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    renamed = patch(engine, "plan", gate={"name": "B2"})
    patch(engine, "plan", crew="Ada")
    delayed = patch(engine, "main", delay=5)
    crewed = patch(engine, "plan", crew="Bea")
    merge = do(engine, "merge", source="plan")
    expected = {"crew": crewed, "delay": delayed, "gate.hall": first, "gate.name": renamed}
    assert blamed(engine) == expected
    assert blamed(engine, str(merge)) == expected
    moved = patch(engine, "main", gate={"hall": 2})
    assert blamed(engine) == expected | {"gate.hall": moved}


def test_a_field_is_followed_through_merges_of_merges_both_ways(engine: Engine) -> None:
    first = patch(engine, "main", a=0, b=0, c=0)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    do(engine, "create-branch", name="fix", **{"from": "plan"})
    fixed = patch(engine, "fix", a=1)
    on_main = patch(engine, "main", b=1)
    do(engine, "merge", "plan", source="main")
    do(engine, "merge", "plan", source="fix")
    planned = patch(engine, "plan", d=1)
    do(engine, "merge", source="plan", no_ff=True)
    expected = {"a": fixed, "b": on_main, "c": first, "d": planned}
    assert blamed(engine) == expected
    assert blamed(engine, "plan") == expected


def test_a_fast_forward_set_nothing(engine: Engine) -> None:
    first = patch(engine, "main", a=0)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    planned = patch(engine, "plan", b=1)
    do(engine, "merge", source="plan")
    assert blamed(engine) == {"a": first, "b": planned}


def test_what_a_merge_settled_itself_is_the_merge_s(engine: Engine) -> None:
    patch(engine, "main", count=1, gate="A1")
    do(engine, "set-merge", table="t", fields={"count": "sum"})
    do(engine, "create-branch", name="plan", **{"from": "main"})
    patch(engine, "plan", count=3, gate="B2")
    kept = patch(engine, "main", count=6, gate="C3")
    merge = do(engine, "merge", source="plan", policy="ours")
    assert blamed(engine) == {"count": merge, "gate": kept}


def test_theirs_is_followed_and_undoing_is_not(engine: Engine) -> None:
    first = patch(engine, "main", gate="A1")
    do(engine, "create-branch", name="plan", **{"from": "main"})
    theirs = patch(engine, "plan", gate="B2")
    patch(engine, "main", gate="C3")
    do(engine, "merge", source="plan", policy="theirs")
    assert blamed(engine) == {"gate": theirs}
    back = do(engine, "rollback", to=str(first))
    assert blamed(engine) == {"gate": back}
