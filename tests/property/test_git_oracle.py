"""Random histories of writes, branches, merges, reverts and cherry-picks, done here and in a real Git repository.

The same rows at every version, the same merge bases, the same merges clean, and conflicts in the same rows and fields.
Where the two differ on purpose is in `Difference`, each with the only condition on which a history may show it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from enum import Enum
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.engine import Engine
from tests.git import GitRepository, ImpossibleRowError, Merged
from versolog.projections.past import Past
from versolog.schemas import codec as avro
from versolog.schemas.conflicts import ABSENT
from versolog.schemas.documents import from_text, merge_patch
from versolog.schemas.errors import VersologError
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME, plan
from versolog.streams.graph import apart, merge_bases
from versolog.streams.merge import same
from versolog.streams.merging import Unmerged
from versolog.streams.state import MAIN, State
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, rows_at

HISTORIES = 400
HISTORIES_FULL = 10_000
STEPS_MAX = 40
KEYS = ("k1", "k2", "k3", "k4")
SLOTS = ("a", "b", "c", "m", "m.u", "m.v")
VALUES = ("A", "B", "C", 0, 1, 1.0, True, False, None, "", [1], [])
NAMES = ("plan", "fix", "try")
Documents = dict[str, dict[str, Any]]


class Difference(Enum):
    """Where we differ from Git on purpose; `docs/decisions/merging.md` says why."""

    MAP = "a map that one side took away and the other changed within: Git sees lines, of which only some conflict"
    CROSSED = "bases that crossed, of which one deleted what another changed: Git goes on from what was before both"


class History:
    """One group, and the same in Git."""

    def __init__(self, engine: Engine, git: GitRepository, seed: int) -> None:
        self.engine, self.git, self.random = engine, git, Random(seed)
        self.group = f"history-{seed}"
        self.nested = self.random.random() < 0.3
        """Whether rows have maps in them."""
        self.at: list[str] = [""]
        """By version, the Git commit that a read of it stands for."""
        self.commits: list[int] = []
        """The versions that have a Git commit of their own."""
        self.heads: dict[str, int] = {}
        """The newest version of each branch."""
        self.seen: Counter[str] = Counter()
        self.told: list[str] = []
        self.asked: list[tuple[int, Transaction, Outcome]] = []
        """Each operation with the group's version that it found, and what became of it."""

    def run(self) -> None:
        self.write(MAIN)
        weighted = {
            self.write: 8, self.create_branch: 3, self.merge: 6, self.cross: 3, self.revert: 2, self.pick: 2,
            self.roll_back: 1, self.delete_branch: 1, self.write_the_store: 1,
        }  # fmt: skip
        steps, weights = list(weighted), list(weighted.values())
        for step in self.random.choices(steps, weights, k=self.random.randint(10, STEPS_MAX)):
            step(self.any_branch())
        self.compare_distances()
        self.engine.flush()
        for version in range(1, len(self.at)):
            assert self.rows_here(self.engine.store, str(version)) == self.git.rows(self.at[version]), version
        self.decide_again()

    # Steps

    def write(self, branch: str) -> None:
        rows = self.git.rows(self.at[self.heads[branch]]) if branch in self.heads else {}
        tx = Transaction(self.group, branch=branch)
        for _ in range(self.random.randint(1, 3)):
            key, kind = self.random.choice(KEYS), self.random.random()
            if kind < 0.15:
                tx.delete("t", key)
                rows.pop(key, None)
            elif kind < 0.4:
                rows[key] = self.document()
                tx.put("t", key, rows[key])
            else:
                patch = {self.random.choice("abc"): self.random.choice([*VALUES, None])}
                if self.nested and self.random.random() < 0.5:
                    patch = {"m": {self.random.choice("uv"): self.random.choice([*VALUES, None])}}
                rows[key] = merge_patch(rows.get(key, {}), patch)
                tx.patch("t", key, patch)
        parents = [self.at[self.heads[branch]]] if branch in self.heads else []
        self.expect_commit(self.decide(tx), branch, self.git.commit(rows, parents))

    def create_branch(self, _: str) -> None:
        name, source = self.random.choice(NAMES), self.any_place()
        outcome = self.ask(MAIN, "create-branch", {"name": name, "from": str(source)})
        if name in self.heads:
            assert outcome.code == "ref-exists"
            return
        assert outcome.committed, outcome.detail
        self.heads[name] = self.version_of(source)
        self.at.append(self.at[self.heads[name]])

    def delete_branch(self, name: str) -> None:
        if name == MAIN:
            return
        force, commit = self.random.random() < 0.5, self.at[self.heads[name]]
        outcome = self.ask(MAIN, "delete-branch", {"name": name, "force": force})
        others = (self.at[head] for other, head in self.heads.items() if other != name)
        if not force and not any(self.git.merge_bases(commit, other) == {commit} for other in others):
            assert outcome.code == "not-merged"
            return
        assert outcome.committed, outcome.detail
        del self.heads[name]
        self.at.append(commit)

    def merge(self, target: str) -> None:
        others = sorted(self.heads.keys() - {target})
        self.merge_into(target, self.random.choice([*others, *others, self.any_place()]))

    def cross(self, one: str) -> None:
        """Merge two branches into each other, each as it stood before."""
        other, before = self.random.choice(sorted(self.heads)), self.heads[one]
        self.merge_into(one, self.heads[other])
        self.merge_into(other, before)

    def merge_into(self, target: str, source: str | int) -> None:
        version = self.version_of(source)
        ours, theirs = self.at[self.heads[target]], self.at[version]
        bases = self.git.merge_bases(ours, theirs)
        found = merge_bases(self.engine.overlay, self.group, [self.heads[target]], version)
        assert {self.at[base] for base in found} == bases, f"merge bases of {target} and {source}: {found}"
        asked = {"source": str(source), "no_ff": self.random.random() < 0.2}
        if theirs in bases:
            assert self.ask(target, "merge", asked).code == "nothing-to-merge"
        elif bases == {ours} and not asked["no_ff"]:
            self.seen["fast-forward"] += 1
            self.expect_commit(self.ask(target, "merge", asked), target, theirs)
        else:
            self.seen["crossed" if len(bases) > 1 else "merge"] += 1
            if isinstance(source, str) and bases != {ours}:
                self.compare_directions(target, source)
            rows = self.settle(target, "merge", asked, self.git.merge(ours, theirs), bases, (ours, theirs))
            if rows is not None:
                self.expect_commit(self.ask(target, "merge", asked), target, self.git.commit(rows, [ours, theirs]))

    def revert(self, branch: str) -> None:
        versions = self.random.sample(self.commits, min(len(self.commits), self.random.choice([1, 1, 1, 2])))
        self.apply("revert", branch, sorted(versions, reverse=True))

    def pick(self, branch: str) -> None:
        versions = self.random.sample(self.commits, min(len(self.commits), self.random.choice([1, 1, 2])))
        self.apply("cherry-pick", branch, versions)

    def apply(self, kind: str, branch: str, versions: Sequence[int]) -> None:
        head = self.at[self.heads[branch]]
        asked: dict[str, Any] = {"versions": versions}
        parents = [self.git.parents(self.at[version]) for version in versions]
        if any(len(named) > 1 for named in parents):
            assert self.ask(branch, kind, asked).code == "parent-needed"
            asked["parent"] = self.random.choice([1, 2])
            if asked["parent"] == 2 and any(len(named) < 2 for named in parents):
                assert self.ask(branch, kind, asked).code == "invalid"
                return
        ours = head
        for index, (version, named) in enumerate(zip(versions, parents, strict=True)):
            after = self.at[version]
            before = named[asked.get("parent", 1) - 1] if named else self.git.commit({}, [])
            base, theirs = (after, before) if kind == "revert" else (before, after)
            self.seen[kind] += 1
            some = asked | {"versions": versions[: index + 1]}
            merged = self.git.apply(base, ours, theirs)
            # A resolution ends every conflict with its values, so one of an earlier commit would do for this one too.
            last = version == versions[-1]
            rows = self.settle(branch, kind, some, merged, {base}, (ours, theirs), may_resolve=last)
            if rows is None:
                return
            asked = some
            ours = self.git.commit(rows, [])
        self.expect_commit(self.ask(branch, kind, asked), branch, self.git.commit(self.git.rows(ours), [head]))

    def roll_back(self, branch: str) -> None:
        to = self.random.randint(1, len(self.at) - 1)
        rows = self.git.rows(self.at[to])
        outcome = self.ask(branch, "rollback", {"to": str(to)})
        self.expect_commit(outcome, branch, self.git.commit(rows, [self.at[self.heads[branch]]]))

    def write_the_store(self, _: str) -> None:
        self.engine.flush()

    # What must come of them

    def settle(
        self, branch: str, kind: str, asked: dict[str, Any], merged: Merged, bases: set[str], sides: tuple[str, str],
        *, may_resolve: bool = True,
    ) -> Documents | None:  # fmt: skip
        """The rows that it must come to, resolutions added to `asked` where there are conflicts. None where it is
        refused, and was."""
        ours, theirs = map(self.git.rows, sides)
        conflicts = self.conflicts(branch, kind, asked)
        here, there = {conflict["key"] for conflict in conflicts}, merged.stages.keys()
        assert merged.impossible <= here, "what Git merges to no row is a conflict here"
        for key in here ^ there:
            why = self.difference(bases, ours, theirs, key)
            assert why is not None, f"{key} conflicts here {here} and in Git {there}: {conflicts}"
            self.seen[why.name] += 1
        self.seen["conflicts" if conflicts else "clean"] += 1
        if not conflicts and not there:
            return merged.rows
        chosen = self.chosen(conflicts, merged, ours, theirs, len(bases)) if here == there else None
        if chosen is not None and may_resolve and self.random.random() < 0.6:
            self.seen["resolved"] += 1
            rows, asked["resolutions"] = chosen
            return merged.rows | rows
        if conflicts:
            outcome = self.ask(branch, kind, asked)
            assert (outcome.code, outcome.facts["conflicts"]) == ("merge-conflict", conflicts)
        return None

    def chosen(
        self, conflicts: list[Any], merged: Merged, ours: Documents, theirs: Documents, bases: int
    ) -> tuple[Documents, list[Any]] | None:
        """A side for each conflict: the rows that come of it, and the resolutions that ask for it. None where that
        can't be compared: Git has other fields in conflict, or comes to what is no row."""
        rows, resolutions = {}, []
        for key, stages in merged.stages.items():
            told = [conflict for conflict in conflicts if conflict["key"] == key]
            sides = {".".join(conflict["path"]): self.random.choice(["ours", "theirs"]) for conflict in told}
            fields = self.git.conflicting(merged.files[key]) if stages == {1, 2, 3} else {""}
            if sides.keys() != fields:
                assert self.nested or bases > 1, f"{key} conflicts in {sides.keys()}, in Git in {fields}"
                return None
            if fields == {""}:
                row = {"ours": ours, "theirs": theirs}[sides[""]].get(key)
                rows |= {key: row} if row is not None else {}
            else:
                try:
                    rows[key] = self.git.row(self.git.settled(merged.files[key], sides))
                except ImpossibleRowError:
                    return None
            resolutions += [conflict | {"take": sides[".".join(conflict["path"])]} for conflict in told]
        return rows, resolutions

    def difference(self, bases: set[str], ours: Documents, theirs: Documents, key: str) -> Difference | None:
        """Why it can be that a row conflicts here and not in Git, or the other way round."""
        before = [self.git.rows(base).get(key) for base in self.below(bases)]
        one, other = (rows.get(key, {}).get("m", ABSENT) for rows in (ours, theirs))
        for base in ((row or {}).get("m", ABSENT) for row in before):
            gone = not (isinstance(one, dict) and isinstance(other, dict))
            if isinstance(base, dict) and gone and not same(base, one) and not same(base, other):
                return Difference.MAP
        kinds = {(row is None, row is not None and isinstance(row.get("m"), dict)) for row in before}
        return Difference.CROSSED if len(kinds) > 1 else None

    def below(self, bases: set[str]) -> set[str]:
        """These bases and, where they crossed, theirs."""
        found = set(bases)
        for one, other in combinations(sorted(bases), 2):
            found |= self.below(self.git.merge_bases(one, other))
        return found

    def decide_again(self) -> None:
        """Every operation comes to the same, decided again on the group as it stood then."""
        for before, tx, outcome in self.asked:
            past = Past(self.engine.store, self.group, before)
            refused = None
            try:
                line, _ = plan(past, tx.record()["parts"][0])
            except VersologError as error:
                refused = error
            if refused is not None:
                again = (refused.code, refused.detail, refused.facts)
                assert again == (outcome.code, outcome.detail, outcome.facts), f"another refusal at {before}"
                continue
            assert outcome.committed, f"{outcome.detail} at {before}, and not there"
            commit = self.engine.store.commit(self.group, outcome.version)
            assert commit is not None
            changes = {(change["table"], change["key"]): change["row"] for change in commit["changes"]}
            planned = {place: None if text is None else text.decode() for place, text in line.changed.items()}
            assert changes == planned, f"another commit at {before}"
            self.seen["decided again"] += 1

    def compare_directions(self, one: str, other: str) -> None:
        """Two branches merge to the same rows, or meet the same conflicts, in either direction."""
        found = self.rows_planned(one, "merge", {"source": other})
        turned = self.rows_planned(other, "merge", {"source": one})
        if isinstance(turned, list):
            swap = {"ours": "theirs", "theirs": "ours"}
            turned = [{swap.get(name, name): value for name, value in conflict.items()} for conflict in turned]
        assert found == turned, f"{one} and {other} differ with the direction"
        self.seen["both directions"] += 1

    def compare_distances(self) -> None:
        one, other = self.any_branch(), self.any_branch()
        found = apart(self.engine.overlay, self.group, self.heads[one], self.heads[other])
        assert tuple(found) == self.git.apart(self.at[self.heads[one]], self.at[self.heads[other]])

    def expect_commit(self, outcome: Outcome, branch: str, commit: str) -> None:
        assert outcome.committed, outcome.detail
        version = len(self.at)
        assert outcome.parts[0].version == version
        if commit not in self.at:
            self.commits.append(version)
        self.at.append(commit)
        self.heads[branch] = version
        assert self.rows_here(self.engine.overlay, str(version)) == self.git.rows(commit)

    # How it is done

    def ask(self, branch: str, kind: str, arguments: dict[str, Any]) -> Outcome:
        tx = Transaction(self.group, branch=branch).operation(kind, **arguments)
        found = self.engine.overlay.head(self.group)
        assert found is not None
        outcome = self.decide(tx)
        self.asked.append((found.version, tx, outcome))
        return outcome

    def decide(self, tx: Transaction) -> Outcome:
        outcome = Outcome.from_avro(avro.decode(OUTCOME, self.engine.decide(tx).outcome))
        (part,) = tx.to_json()["parts"] if "parts" in tx.to_json() else (tx.to_json(),)
        what = {name: part[name] for name in ("branch", "operation", "changes") if part.get(name)}
        self.told.append(f"{len(self.at)}: {what} → {outcome.code or 'committed'}")
        return outcome

    def conflicts(self, branch: str, kind: str, arguments: dict[str, Any]) -> list[Any]:
        found = self.rows_planned(branch, kind, arguments)
        return found if isinstance(found, list) else []

    def rows_planned(self, branch: str, kind: str, arguments: dict[str, Any]) -> Documents | list[Any]:
        """The rows that a dry run comes to, or the conflicts."""
        tx = Transaction(self.group, branch=branch).operation(kind, **arguments)
        try:
            line, _ = plan(self.engine.overlay, tx.record()["parts"][0])
        except Unmerged as conflict:
            told: list[Any] = conflict.facts["conflicts"]
            return told
        rows = self.rows_here(self.engine.overlay, branch)
        for (_table, key), text in line.changed.items():
            rows.pop(key, None)
            rows |= {key: from_text(text)} if text is not None else {}
        return rows

    def rows_here(self, state: State, at: str) -> Documents:
        place = resolve(state, self.group, at)
        found = rows_at(state, self.group, levels_at(state, place), [("t", key) for key in KEYS])
        return {key: from_text(row.text) for key, row in zip(KEYS, found, strict=True) if row and row.text}

    def any_branch(self) -> str:
        return self.random.choice(sorted(self.heads))

    def any_place(self) -> str | int:
        return self.any_branch() if self.random.random() < 0.7 else self.random.randint(1, len(self.at) - 1)

    def version_of(self, place: str | int) -> int:
        return self.heads[place] if isinstance(place, str) else place

    def document(self) -> dict[str, Any]:
        row: dict[str, Any] = {name: self.random.choice(VALUES) for name in "abc" if self.random.random() < 0.7}
        if self.nested and self.random.random() < 0.7:
            within = {name: self.random.choice(VALUES) for name in "uv" if self.random.random() < 0.6}
            row["m"] = within if self.random.random() < 0.8 else self.random.choice(VALUES)
        return row


@contextmanager
def oracle() -> Iterator[tuple[Engine, GitRepository]]:
    with tempfile.TemporaryDirectory(prefix="versolog-git-") as directory:
        engine, git = Engine(Path(directory) / "store"), GitRepository(Path(directory) / "git", SLOTS)
        try:
            yield engine, git
        finally:
            git.close()
            engine.store.close()


def compare(seeds: range) -> Counter[str]:
    """What was met in the histories of these seeds."""
    seen: Counter[str] = Counter()
    with oracle() as (engine, git):
        for seed in seeds:
            history = History(engine, git, seed)
            try:
                history.run()
            except (AssertionError, VersologError) as error:
                raise AssertionError("\n".join([f"history {seed}", *history.told, str(error)])) from error
            seen += history.seen
    return seen


def check_all_was_met(seen: Counter[str], histories: int) -> None:
    """A history that never gets to what it is for proves nothing."""
    for what in ("merge", "fast-forward", "crossed", "revert", "cherry-pick", "clean", "conflicts", "resolved"):
        assert seen[what] > histories / 10, seen
    different = sum(seen[why.name] for why in Difference)
    assert different < 0.05 * (seen["clean"] + seen["conflicts"]), seen


def test_histories_are_as_in_git() -> None:
    check_all_was_met(compare(range(HISTORIES)), HISTORIES)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_many_histories_are_as_in_git() -> None:
    """Ten thousand, on all cores."""
    size = 250
    runs = [range(start, start + size) for start in range(HISTORIES, HISTORIES + HISTORIES_FULL, size)]
    # Not forked: a store that was open here has threads, which a fork leaves behind, and RocksDB waits for them.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        seen = sum(processes.map(compare, runs), Counter())
    check_all_was_met(seen, HISTORIES_FULL)
