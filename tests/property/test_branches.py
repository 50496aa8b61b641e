"""Nested branches, merges, deletes, re-creation, tags, drops, lost writes and restarts, against copies of dicts.

Every version of every branch stays readable, and a store made again from the log has the same digests.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine import Engine
from versolog.projections.digest import group_digest, rows_digest
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas import codec as avro
from versolog.schemas.documents import from_text
from versolog.schemas.outcome import Outcome
from versolog.schemas.times import millis_to_text
from versolog.streams.decide import OUTCOME, plan
from versolog.streams.merging import Unmerged
from versolog.streams.state import MAIN, State
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, rows_at

GROUP = "g"
PLACES = [("t", "a"), ("t", "b\x00c"), ("u", "a"), ("!", "ключ")]
NAMES = ("plan", "fix", "try", "v1")
"""Of branches and of tags: they share them."""

Row = tuple[int, Any]
"""The version that changed it last, and the document."""
Rows = dict[tuple[str, str], Row]

names = st.sampled_from(NAMES)
scalars = st.sampled_from([0, 1, True, 1.0, None, "x"])
documents = st.dictionaries(
    st.sampled_from("xyz"), scalars | st.dictionaries(st.sampled_from("uv"), scalars), max_size=3
)
changes = st.lists(st.tuples(st.sampled_from(PLACES), documents | st.none()), min_size=1, max_size=3)
_ABSENT = object()


class Clash(Exception):  # noqa: N818
    """A conflict."""


@dataclass
class Version:
    """What a version must be."""

    rows: Rows
    """As a read of it sees them; nothing reads a version that dropped the group."""
    parents: tuple[int, ...]
    heads: dict[str, int]
    """The branches as they stood then."""
    committed_at: int
    dropped: bool = False
    stands_for: int = 0
    """The commit that it is in the graph: itself, or another one where it only moved a name."""


@dataclass
class Model:
    """What the group must be, by version from 1."""

    versions: list[Version] = field(default_factory=lambda: [Version({}, (), {}, 0)])
    heads: dict[str, int] = field(default_factory=dict)
    tags: dict[str, int] = field(default_factory=dict)

    def ancestors(self, version: int) -> set[int]:
        """All commits that lead to it, itself included."""
        found: set[int] = set()
        open_ = [self.versions[version].stands_for]
        while open_:
            commit = open_.pop()
            if commit and commit not in found:
                found.add(commit)
                open_ += [self.versions[parent].stands_for for parent in self.versions[commit].parents]
        return found

    def bases(self, one: int, other: int) -> list[int]:
        common = self.ancestors(one) & self.ancestors(other)
        return [base for base in common if not any(base in self.ancestors(above) - {above} for above in common)]

    def merged(self, base: int, ours: int, theirs: int) -> Rows:
        """The rows of a merge, in the way of a textbook. Raises Clash."""
        version = len(self.versions)
        rows = dict(self.versions[ours].rows)
        for place in PLACES:
            sides = [self.versions[side].rows.get(place, (0, _ABSENT))[1] for side in (base, ours, theirs)]
            found = merged(*sides, whole=sides[0] is _ABSENT)
            if found is _ABSENT:
                rows.pop(place, None)
            elif not alike(found, sides[1]):
                rows[place] = (version, found)
        return rows


def merged(base: Any, ours: Any, theirs: Any, *, whole: bool = False) -> Any:
    if alike(ours, theirs) or alike(base, theirs):
        return ours
    if alike(base, ours):
        return theirs
    if whole or not (isinstance(ours, dict) and isinstance(theirs, dict)):
        raise Clash
    before = base if isinstance(base, dict) else {}
    names = before.keys() | ours.keys() | theirs.keys()
    fields = {name: merged(*(side.get(name, _ABSENT) for side in (before, ours, theirs))) for name in names}
    return {name: value for name, value in fields.items() if value is not _ABSENT}


def alike(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) if not isinstance(one, dict) else isinstance(other, dict) and (
        one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    )  # fmt: skip


class Branches(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="versolog-branches-"))
        self.engine = Engine(self.directory / "store")
        self.model = Model()

    def teardown(self) -> None:
        self.engine.flush()
        store = self.engine.store
        self.check_every_version(store)
        replayed = Store.open(self.directory / "replayed", partition=0, codec=self.engine.codec, identity="test")
        self.engine.fold_log(replayed)
        self.check_every_version(replayed)
        assert group_digest(store, GROUP) == group_digest(replayed, GROUP)
        for name in self.model.heads:
            live, again = (rows_digest(view, view.resolve(GROUP, name)) for view in (View(store), View(replayed)))
            assert live == again
        replayed.close()
        store.close()
        shutil.rmtree(self.directory)

    @initialize(asked=changes)
    def begin(self, asked: list[Any]) -> None:
        self.write("main", asked)

    # What services do

    @rule(branch=st.sampled_from([MAIN, *NAMES]), asked=changes)
    def write(self, branch: str, asked: list[Any]) -> None:
        tx = Transaction(GROUP, branch=branch)
        for (table, key), row in asked:
            tx.delete(table, key) if row is None else tx.put(table, key, row)
        outcome = self.decide(tx)
        if branch not in self.model.heads and branch != MAIN:
            assert outcome.code == "unknown-branch"
            return
        rows = self.rows(branch)
        for place, row in asked:
            rows.pop(place, None)
            rows |= {} if row is None else {place: (len(self.model.versions), row)}
        self.committed(outcome, branch, rows)

    @rule(
        name=names, place=st.sampled_from([MAIN, *NAMES]) | st.integers(1, 60), asked_on=st.sampled_from([MAIN, "plan"])
    )
    def create_branch(self, name: str, place: str | int, asked_on: str) -> None:
        tx = Transaction(GROUP, branch=asked_on).operation("create-branch", name=name, **{"from": str(place)})
        outcome, at = self.decide(tx), self.version_of(place)
        if not self.model.heads or at is None or (asked_on != MAIN and asked_on not in self.model.heads):
            assert outcome.code.startswith("unknown-") or name in self.taken
        elif name in self.taken:
            assert outcome.code == "ref-exists"
        else:
            self.model.heads[name] = at
            self.moved_a_name(outcome, at)

    @rule(name=names, force=st.booleans())
    def delete_branch(self, name: str, force: bool) -> None:
        outcome = self.decide(Transaction(GROUP).operation("delete-branch", name=name, force=force))
        model = self.model
        if name not in model.heads:
            assert outcome.code.startswith("unknown-")
            return
        head = model.heads[name]
        others = [other for of, other in model.heads.items() if of != name]
        stands_for = model.versions[head].stands_for
        if not force and not any(stands_for in model.ancestors(other) for other in others):
            assert outcome.code == "not-merged"
            return
        del model.heads[name]
        self.moved_a_name(outcome, head)

    @rule(
        name=names, place=st.sampled_from([MAIN, *NAMES]) | st.integers(1, 60), asked_on=st.sampled_from([MAIN, "fix"])
    )
    def tag(self, name: str, place: str | int, asked_on: str) -> None:
        outcome = self.decide(Transaction(GROUP, branch=asked_on).operation("tag", name=name, at=str(place), move=True))
        at, model = self.version_of(place), self.model
        if not model.heads or at is None or (asked_on != MAIN and asked_on not in model.heads):
            assert outcome.code.startswith("unknown-") or name in model.heads
        elif name in model.heads:
            assert outcome.code == "ref-exists"
        else:
            model.tags[name] = at
            self.moved_a_name(outcome, model.heads[asked_on])

    @rule(name=names)
    def delete_tag(self, name: str) -> None:
        outcome = self.decide(Transaction(GROUP).operation("delete-tag", name=name))
        if self.model.tags.pop(name, None) is None:
            assert outcome.code.startswith("unknown-")
        else:
            self.moved_a_name(outcome, self.model.heads[MAIN])

    @rule(
        into=st.sampled_from([MAIN, *NAMES]),
        source=st.sampled_from([MAIN, *NAMES]) | st.integers(1, 60),
        no_ff=st.booleans(),
    )
    def merge(self, into: str, source: str | int, no_ff: bool) -> None:
        tx = Transaction(GROUP, branch=into).operation("merge", source=str(source), no_ff=no_ff)
        theirs, model = self.version_of(source), self.model
        ours = model.heads.get(into)
        if ours is None or theirs is None:
            assert self.decide(tx).code.startswith("unknown-")
            return
        bases = model.bases(ours, theirs)
        if model.versions[theirs].stands_for in bases:
            assert self.decide(tx).code == "nothing-to-merge"
            return
        try:
            rows = model.merged(bases[0] if bases else 0, ours, theirs) if len(bases) < 2 else self.crossed(tx, into)
        except Clash:
            assert self.decide(tx).code == "merge-conflict"
            return
        forward = bases == [model.versions[ours].stands_for] and not no_ff
        self.committed(self.decide(tx), into, rows, theirs, forward=forward)

    def crossed(self, tx: Transaction, target: str) -> Rows:
        """Of merges that crossed, Git is the model; here only: the same whether it is rehearsed or done."""
        try:
            line, _ = plan(self.engine.overlay, tx.record()["parts"][0])
        except Unmerged as conflict:
            raise Clash from conflict
        rows = self.rows(target)
        for place, text in line.changed.items():
            rows.pop(place, None)
            rows |= {} if text is None else {place: (len(self.model.versions), from_text(text))}
        return rows

    @precondition(lambda self: self.model.heads)
    @rule(branch=st.sampled_from([MAIN, *NAMES]), asked=changes)
    def write_and_revert(self, branch: str, asked: list[Any]) -> None:
        """What is reverted at once leaves the rows as they were."""
        if branch not in self.model.heads:
            return
        before = self.rows(branch)
        self.write(branch, asked)
        version = self.model.heads[branch]
        changed = self.rows(branch)
        outcome = self.decide(Transaction(GROUP, branch=branch).operation("revert", versions=[version]))
        now = len(self.model.versions)
        after = {
            place: changed[place] if place in changed and alike(changed[place][1], row) else (now, row)
            for place, (_, row) in before.items()
        }
        self.committed(outcome, branch, after)

    @rule(branch=st.sampled_from([MAIN, *NAMES]), to=st.integers(1, 60))
    def roll_back(self, branch: str, to: int) -> None:
        outcome = self.decide(Transaction(GROUP, branch=branch).operation("rollback", to=str(to)))
        if branch not in self.model.heads or self.version_of(to) is None:
            assert outcome.code.startswith("unknown-")
            return
        now, rows = len(self.model.versions), self.rows(branch)
        wanted = self.model.versions[to].rows
        after = {
            place: rows[place] if place in rows and alike(rows[place][1], row) else (now, row)
            for place, (_, row) in wanted.items()
        }
        self.committed(outcome, branch, after)

    @rule()
    def drop(self) -> None:
        outcome = self.decide(Transaction(GROUP).operation("drop-group"))
        model = self.model
        if not model.heads:
            assert outcome.code == "unknown-group"
            return
        model.heads, model.tags = {}, {}
        self.moved_a_name(outcome, 0)
        model.versions[-1].dropped = True

    # What happens on the way

    @rule()
    def commit_without_writing_the_store(self) -> None:
        self.engine.cut_batch()

    @precondition(lambda self: self.engine.unwritten)
    @rule()
    def write_the_store(self) -> None:
        self.engine.write_oldest()

    @rule()
    def restart_from_the_log(self) -> None:
        self.engine.restart()

    @invariant()
    def every_branch_is_as_it_should_be(self) -> None:
        state, model = self.engine.overlay, self.model
        assert [(branch.name, branch.head) for branch in state.branches(GROUP)] == sorted(model.heads.items())
        assert state.tags(GROUP) == dict(sorted(model.tags.items()))
        now = millis_to_text(self.engine.clock)
        for name, head in model.heads.items():
            for at, branch in ((name, None), (now, name)):
                place = resolve(state, GROUP, at, branch)
                self.check_rows(state, place, self.model.versions[head].rows)
            assert place.version <= len(model.versions)

    # How it is looked at

    def decide(self, tx: Transaction) -> Outcome:
        return Outcome.from_avro(avro.decode(OUTCOME, self.engine.decide(tx).outcome))

    def rows(self, branch: str) -> Rows:
        return copy.deepcopy(self.model.versions[self.model.heads[branch]].rows) if branch in self.model.heads else {}

    @property
    def taken(self) -> set[str]:
        return self.model.heads.keys() | self.model.tags.keys()

    def version_of(self, place: str | int) -> int | None:
        """The version that is named; None where there is none to read."""
        model = self.model
        if isinstance(place, str):
            place = model.heads.get(place) or model.tags.get(place) or 0
        if not 0 < place < len(model.versions) or model.versions[place].dropped or not model.heads:
            return None
        return place

    def committed(
        self, outcome: Outcome, branch: str, rows: Rows, other: int | None = None, *, forward: bool = False
    ) -> None:
        """The branch moved to a new version."""
        model, version = self.model, len(self.model.versions)
        assert outcome.committed, outcome.detail
        assert outcome.parts[0].version == version
        parents = tuple(parent for parent in (model.heads.get(branch), other) if parent)
        stands_for = model.versions[other].stands_for if forward and other is not None else version
        model.heads[branch] = version
        model.versions.append(Version(rows, parents, dict(model.heads), self.engine.clock, stands_for=stands_for))

    def moved_a_name(self, outcome: Outcome, at: int) -> None:
        """The version that this took reads as `at`."""
        assert outcome.committed, outcome.detail
        model = self.model
        before = model.versions[at]
        model.versions.append(
            Version(before.rows, (), dict(model.heads), self.engine.clock, stands_for=before.stands_for)
        )

    def check_every_version(self, store: Store) -> None:
        for version, wanted in enumerate(self.model.versions[1:], start=1):
            if not wanted.dropped:
                self.check_rows(store, resolve(store, GROUP, str(version)), wanted.rows)
            for name, head in wanted.heads.items():
                then = resolve(store, GROUP, millis_to_text(wanted.committed_at), name)
                assert then.branch == name
                self.check_rows(store, then, self.model.versions[head].rows)

    @staticmethod
    def check_rows(state: State, at: Any, wanted: Rows) -> None:
        found = rows_at(state, GROUP, levels_at(state, at), PLACES)
        rows = {
            place: (row.version, from_text(row.text))
            for place, row in zip(PLACES, found, strict=True)
            if row is not None and row.text is not None
        }
        assert rows == wanted, at
        assert all(alike(row, wanted[place][1]) for place, (_, row) in rows.items())


TestBranches = Branches.TestCase
TestBranches.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
