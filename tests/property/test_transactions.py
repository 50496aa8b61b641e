"""Random transactions, version operations, lost writes and restarts against a plain model: a list of states a group."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.engine import Engine
from versolog.projections.store import Store
from versolog.schemas import codec as avro
from versolog.schemas.documents import from_text, merge_patch
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME
from versolog.streams.state import Level
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, row_at

Rows = dict[tuple[str, str], dict[str, Any]]

GROUPS = ("g", "h\x00/é")
TABLES = ("t", "t2")
KEYS = ("", "a", "a\x00", "b/c", "ключ")[1:]

groups = st.sampled_from(GROUPS)
places = st.tuples(st.sampled_from(TABLES), st.sampled_from(KEYS))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3))
nested = st.dictionaries(st.sampled_from("uv"), scalars, max_size=2)
documents = st.dictionaries(st.sampled_from("nxyz"), scalars | nested)
numbers = st.dictionaries(st.sampled_from("nm"), st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=2)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("put"), places, documents),
        st.tuples(st.just("patch"), places, documents),
        st.tuples(st.just("add"), places, numbers),
        st.tuples(st.just("delete"), places, st.none()),
    ),
    min_size=1,
    max_size=4,
)


class Model:
    """What a group must be: its rows after each version, and its tags."""

    def __init__(self) -> None:
        self.states: list[Rows | None] = [None]
        """By version; None where the group does not exist."""
        self.changed: list[dict[tuple[str, str], int]] = [{}]
        """By version, the version that last changed each row that is there."""
        self.tags: dict[str, int] = {}
        self.heads: list[int] = [0]
        """By version, the head of main."""

    @property
    def version(self) -> int:
        return len(self.states) - 1

    @property
    def rows(self) -> Rows:
        return self.states[-1] or {}

    def advance(self, rows: Rows | None, moved: set[tuple[str, str]], *, head: int | None = None) -> None:
        version = self.version + 1
        before = self.changed[-1] if self.states[-1] is not None else {}
        changed = {place: before.get(place, version) for place in rows or {}}
        changed.update({place: version for place in moved if place in (rows or {})})
        self.states.append(rows)
        self.changed.append(changed)
        self.heads.append(version if head is None else head)


def added(base: dict[str, Any], amounts: dict[str, int]) -> dict[str, Any] | None:
    """None where adding is refused."""
    total = dict(base)
    for name, amount in amounts.items():
        here = base.get(name, 0)
        if here is None:
            here = 0
        if isinstance(here, bool) or not isinstance(here, int):
            return None
        total[name] = here + amount
        if not -(2**63) <= total[name] < 2**63:
            return None
    return total


def applied(rows: Rows, asked: list[tuple[str, tuple[str, str], Any]]) -> tuple[Rows, set[tuple[str, str]]] | None:
    """The rows after the changes and which of them were touched; None where one of the changes is refused."""
    after, touched = dict(rows), set()
    for op, place, argument in asked:
        if op == "delete":
            if place in after:
                del after[place]
                touched.add(place)
            continue
        touched.add(place)
        base = after.get(place, {})
        document = argument if op == "put" else merge_patch(base, argument) if op == "patch" else added(base, argument)
        if document is None:
            return None
        after[place] = document
    return after, touched


class Transactions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="versolog-property-"))
        self.engine = Engine(self.directory / "store")
        self.models = {group: Model() for group in GROUPS}
        self.sent: list[tuple[Transaction, bytes]] = []

    def teardown(self) -> None:
        self.engine.flush()
        for group, model in self.models.items():
            self.check_every_version(self.engine.store, group, model)
        fresh = Store.open(self.directory / "replay", partition=0, codec=self.engine.codec, identity="test")
        self.engine.fold_log(fresh)
        for group, model in self.models.items():
            self.check_every_version(fresh, group, model)
            assert fresh.head(group) == self.engine.store.head(group)
        fresh.close()
        self.engine.store.close()
        shutil.rmtree(self.directory)

    @initialize()
    def begin(self) -> None:
        assert self.engine.store.groups(limit=10) == []

    # What services do

    @rule(group=groups, asked=changes, tick_ms=st.integers(-2, 3))
    def write(self, group: str, asked: list[Any], tick_ms: int) -> None:
        model = self.models[group]
        outcome = self.decide(self.transaction(group, asked), tick_ms)
        self.expect_written(model, outcome, applied(model.rows, asked))

    @rule(group=groups, asked=changes, place=places, off=st.sampled_from([0, 0, 0, 1, -1]))
    def write_expecting(self, group: str, asked: list[Any], place: tuple[str, str], off: int) -> None:
        model = self.models[group]
        known = model.changed[-1].get(place, 0) if model.states[-1] is not None else 0
        if known + off < 0:
            return
        outcome = self.decide(self.transaction(group, asked).expect(*place, known + off))
        if off:
            assert outcome.code == "version-mismatch"
            assert (outcome.facts["expected"], outcome.facts["found"]) == (known + off, known)
        else:
            self.expect_written(model, outcome, applied(model.rows, asked))

    @rule(group=groups, asked=changes, off=st.sampled_from([0, 0, 1]))
    def write_expecting_head(self, group: str, asked: list[Any], off: int) -> None:
        model = self.models[group]
        head = model.heads[-1] if model.states[-1] is not None else 0
        outcome = self.decide(self.transaction(group, asked).expect_head(head + off))
        if off:
            assert outcome.code == "head-mismatch"
        else:
            self.expect_written(model, outcome, applied(model.rows, asked))

    @rule(asked=changes, other=changes)
    def write_both_groups(self, asked: list[Any], other: list[Any]) -> None:
        first, second = GROUPS
        tx = self.transaction(first, asked)
        self.add_changes(tx.group(second), other)
        outcome = self.decide(tx)
        after = applied(self.models[first].rows, asked), applied(self.models[second].rows, other)
        if None in after:
            assert not outcome.committed
        else:
            for group, rows in zip(GROUPS, after, strict=True):
                self.expect_written(self.models[group], outcome, rows)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 1_000))
    def retry(self, which: int) -> None:
        tx, first = self.sent[which % len(self.sent)]
        again = self.engine.decide(tx)
        assert again.repeated
        assert again.outcome == first
        assert not again.commits

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 1_000), asked=changes)
    def reuse_id(self, which: int, asked: list[Any]) -> None:
        tx, _ = self.sent[which % len(self.sent)]
        other = Transaction(tx.home, id=tx.id, message="another content")
        self.add_changes(other, asked)
        assert self.outcome_of(self.engine.decide(other).outcome).code == "id-reused"

    # Version control

    @rule(group=groups, name=st.sampled_from(["release", "backup"]), data=st.data())
    def tag(self, group: str, name: str, data: st.DataObject) -> None:
        model = self.models[group]
        at = data.draw(st.integers(1, model.version + 1))
        outcome = self.decide(Transaction(group).operation("tag", name=name, at=str(at), move=True))
        gone = model.states[-1] is None
        if gone or at > model.version or model.states[at] is None:
            assert not outcome.committed
        else:
            assert outcome.committed, outcome.detail
            model.tags[name] = at
            model.advance(model.states[-1], set(), head=model.heads[-1])

    @rule(group=groups, data=st.data())
    def roll_back(self, group: str, data: st.DataObject) -> None:
        model = self.models[group]
        to = data.draw(st.integers(1, model.version + 1) | st.sampled_from(["release", "backup"]))
        outcome = self.decide(Transaction(group).operation("rollback", to=str(to)))
        version = model.tags.get(to) if isinstance(to, str) else to
        alive = model.states[-1] is not None
        if not alive or version is None or version > model.version or model.states[version] is None:
            assert not outcome.committed
        else:
            assert outcome.committed, outcome.detail
            before, after = model.rows, copy.deepcopy(model.states[version] or {})
            moved = {place for place in before.keys() | after.keys() if before.get(place) != after.get(place)}
            model.advance(after, moved)

    @rule(group=groups)
    def drop(self, group: str) -> None:
        model = self.models[group]
        outcome = self.decide(Transaction(group).operation("drop-group"))
        assert outcome.committed == (model.states[-1] is not None)
        if outcome.committed:
            model.tags.clear()
            model.advance(None, set())

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

    @rule()
    def fold_the_log_again(self) -> None:
        self.engine.flush()
        self.engine.fold_log(self.engine.store)

    @invariant()
    def deciding_sees_the_newest(self) -> None:
        for group, model in self.models.items():
            head = self.engine.overlay.head(group)
            assert (head.version if head else 0) == model.version
            if model.states[-1] is not None:
                assert self.rows_at(self.engine.overlay, group, None) == self.expected(model, model.version)
                assert self.engine.overlay.tags(group) == dict(sorted(model.tags.items()))

    # How it is looked at

    def transaction(self, group: str, asked: list[Any]) -> Transaction:
        tx = Transaction(group, author="a", message="m")
        self.add_changes(tx, asked)
        return tx

    @staticmethod
    def add_changes(part: Any, asked: list[Any]) -> None:
        for op, (table, key), argument in asked:
            getattr(part, op)(table, key, *([] if op == "delete" else [argument]))

    def decide(self, tx: Transaction, tick_ms: int = 1) -> Outcome:
        decision = self.engine.decide(tx, tick_ms=max(tick_ms, 0))
        self.sent.append((tx, decision.outcome))
        return self.outcome_of(decision.outcome)

    @staticmethod
    def outcome_of(body: bytes) -> Outcome:
        return Outcome.from_avro(avro.decode(OUTCOME, body))

    @staticmethod
    def expect_written(model: Model, outcome: Outcome, after: tuple[Rows, set[tuple[str, str]]] | None) -> None:
        if after is None:
            assert outcome.code in ("not-a-number", "overflow")
            return
        assert outcome.committed, outcome.detail
        rows, touched = after
        model.advance(rows, touched)

    @staticmethod
    def expected(model: Model, version: int) -> dict[tuple[str, str], tuple[int, Any]]:
        rows = model.states[version]
        assert rows is not None
        return {place: (model.changed[version][place], row) for place, row in rows.items()}

    @staticmethod
    def rows_at(state: Any, group: str, at: str | None) -> dict[tuple[str, str], tuple[int, Any]]:
        way: list[Level] = levels_at(state, resolve(state, group, at))
        found = {(table, key): row_at(state, group, way, table, key) for table in TABLES for key in KEYS}
        return {place: (row.version, from_text(row.text or b"")) for place, row in found.items() if row is not None}

    def check_every_version(self, store: Store, group: str, model: Model) -> None:
        for version in range(1, model.version + 1):
            if model.states[version] is not None:
                assert self.rows_at(store, group, str(version)) == self.expected(model, version), version


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
