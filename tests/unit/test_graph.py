"""Ancestry, and what asking for it costs. That it is Git's is held in tests/property/test_git_oracle.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from versolog.streams.graph import apart, brought, differing, found_by, is_ancestor, merge_bases, missing_from
from versolog.streams.state import State
from versolog.streams.transaction import Transaction


class Counting:
    """A state that counts what it is asked."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            self.asked[name] += 1
            return getattr(self._state, name)(*arguments)

        return ask


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "store")
    yield engine
    engine.flush()
    engine.store.close()


def write(engine: Engine, count: int, branch: str = "main", key: str = "k") -> int:
    """`count` commits, of which each changes the row; the version of the last."""
    before = engine.overlay.branch("g", branch)
    start = 0 if before is None else before.head
    outcomes = engine.send(
        *(Transaction("g", branch=branch).put("t", key, {"n": start + number}) for number in range(count))
    )
    assert all(outcome.committed for outcome in outcomes), outcomes[-1].detail
    return outcomes[-1].parts[0].version


def do(engine: Engine, kind: str, branch: str = "main", **arguments: Any) -> int:
    (outcome,) = engine.send(Transaction("g", branch=branch).operation(kind, **arguments))
    assert outcome.committed, outcome.detail
    return outcome.parts[0].version


@pytest.mark.parametrize("commits", [10, 1_000])
@pytest.mark.parametrize("stored", [True, False])
def test_merge_bases_cost_the_merges_and_not_the_commits(engine: Engine, commits: int, stored: bool) -> None:
    write(engine, commits)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    plan = write(engine, 3, "plan", "p")
    main = write(engine, commits)
    state = Counting(engine.store if stored else engine.overlay)
    assert merge_bases(state, "g", [main], plan) == [commits]
    assert not is_ancestor(state, "g", plan, [main])
    assert is_ancestor(state, "g", 5, [plan])
    assert brought(state, "g", commits, plan) == {("t", "p")}
    assert sum(state.asked.values()) < 60, state.asked


def test_a_branch_that_main_was_merged_into_brings_what_it_did(engine: Engine) -> None:
    """And costs that, not what main did between."""
    write(engine, 100)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    for number in range(5):
        merged = write(engine, 200, "main", f"m{number}")
        write(engine, 1, "plan", f"p{number}")
        do(engine, "merge", "plan", source="main")
    main, tip = write(engine, 200), write(engine, 1, "plan", "last")
    (base,) = merge_bases(engine.store, "g", [main], tip)
    assert base == merged
    state = Counting(engine.store)
    assert brought(state, "g", base, tip) == {("t", f"p{number}") for number in range(5)} | {("t", "last")}
    assert state.asked["commit"] == 6
    assert sum(state.asked.values()) < 250, state.asked


def test_distances_are_counted_without_fast_forwards(engine: Engine) -> None:
    write(engine, 2)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    tip = write(engine, 3, "plan")
    forward = do(engine, "merge", source="plan")
    assert apart(engine.store, "g", forward, tip) == (0, 0)
    main = write(engine, 2)
    assert apart(engine.store, "g", main, tip) == (2, 0)
    found = {step.version for step in missing_from(engine.store, "g", main, [1])}
    assert found == {main, main - 1, tip, tip - 1, tip - 2, 2}
    assert list(missing_from(engine.store, "g", tip, [main])) == []


def test_a_dropped_group_s_commits_are_no_ancestors_of_what_came_after(engine: Engine) -> None:
    old = write(engine, 2)
    do(engine, "drop-group")
    new = write(engine, 2)
    assert merge_bases(engine.store, "g", [new], old) == []
    assert apart(engine.store, "g", new, old) == (2, 2)
    assert do(engine, "merge", source=str(old), policy="theirs")


def test_what_a_branch_differs_from_main_in_costs_what_both_did_since_they_met(engine: Engine) -> None:
    """And not what main did before, since it was merged into the branch."""
    write(engine, 1)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    for number in range(5):
        write(engine, 200, "main", f"m{number}")
        write(engine, 1, "plan", f"p{number}")
        do(engine, "merge", "plan", source="main")
    main, plan = write(engine, 2, "main", "late"), engine.store.branch("g", "plan")
    assert plan is not None
    state = Counting(engine.store)
    found = differing(state, "g", main, plan.head, changes_max=1_000)
    assert found == ({("t", f"p{number}") for number in range(5)} | {("t", "late")}, True)
    assert state.asked["commit"] == 7
    assert not differing(state, "g", main, plan.head, changes_max=3).complete


def test_a_commit_is_told_by_what_its_branch_was_before(engine: Engine) -> None:
    first = write(engine, 2)
    do(engine, "create-branch", name="plan", **{"from": "main"})
    tip = write(engine, 3, "plan")
    forward = do(engine, "merge", source="plan")

    def before(version: int) -> int | None:
        step = engine.store.step("g", version)
        assert step is not None
        found = found_by(engine.store, "g", step)
        return None if found is None else found.version

    assert (before(forward), before(tip), before(tip - 2), before(1)) == (first, tip - 1, first, None)
