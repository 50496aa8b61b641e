"""The store and its views against a plain model: for each version a copy of the rows of its branch."""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.scribe import START_MS, Scribe, codec, fold, ref
from versolog.projections.digest import group_digest, rows_digest, store_digest
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.errors import NotFound
from versolog.schemas.times import millis_to_text
from versolog.streams.state import Row
from versolog.streams.versions import At

GROUPS = ("g", "g\0h", "é")
TABLES = ("t", "t\0u", "$tables")
KEYS = ("a", "a\0", "a\0b", "ab", "\0", "ключ/", "\U00010000")
NAMES = ("plan", "plan\0b", "main")
PREFIXES = (None, "a", "a\0", "\0", "x", "\U00010000")

Rows = dict[tuple[str, str], Row]

KINDS = ("write",) * 8 + ("branch",) * 3 + ("delete", "tag", "drop")

groups = st.sampled_from(GROUPS)
places = st.tuples(st.sampled_from(TABLES), st.sampled_from(KEYS))
texts = st.none() | st.integers(0, 9).map(lambda number: f'{{"n":{number}}}')
changes = st.dictionaries(places, texts, max_size=5)


@dataclass
class Line:
    """A branch, with all its rows: the model copies on branching, so that the store's levels have a judge."""

    id: int
    name: str
    head: int
    tip: int
    """The newest version that names it."""
    rows: Rows = field(default_factory=dict)


class Moment(NamedTuple):
    """What stood after one version."""

    at_ms: int
    line: Line | None
    """The branch that the version names; None where it dropped the group."""
    lines: dict[str, Line]
    tags: dict[str, int]


class Model:
    """A group."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.lines: dict[str, Line] = {}
        self.tags: dict[str, int] = {}

    @property
    def version(self) -> int:
        return len(self.moments)

    def readable(self) -> list[int]:
        """The versions that can be read: all but those that dropped the group."""
        return [version for version, moment in enumerate(self.moments, 1) if moment.line is not None]

    def advance(self, at_ms: int, line: Line | None) -> None:
        if line is not None:
            line.tip = self.version + 1
        now = copy.deepcopy((line, self.lines))
        named = now[0] if line is None or line.name not in now[1] else now[1][line.name]
        self.moments.append(Moment(at_ms, named, now[1], dict(self.tags)))


class StoreAtVersions(RuleBasedStateMachine):
    """Commits go into a scribe's log and the model at once, and into the store when it's folded."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="versolog-store-"))
        self.codec = codec()
        self.scribe = Scribe()
        self.models = {group: Model() for group in GROUPS}
        self.seen = dict.fromkeys(GROUPS, 0)
        self.folded = 0
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.directory / "store", partition=3, codec=self.codec, identity="log")
        self.view = View(self.store)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)

    # What is written

    @rule(group=groups, data=st.data(), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    def happen(self, group: str, data: st.DataObject, kinds: list[str]) -> None:
        for kind in kinds:
            model = self.models[group]
            if kind == "write" or not model.lines:
                self.write(group, model, data)
            elif kind == "branch":
                self.create_branch(group, model, data)
            elif kind == "delete" and len(model.lines) > 1:
                self.delete_branch(group, model, data)
            elif kind == "tag":
                self.tag(group, model, data)
            elif kind == "drop":
                self.drop_group(group, model)

    def write(self, group: str, model: Model, data: st.DataObject) -> None:
        rows = data.draw(changes)
        version = model.version + 1
        line = data.draw(st.sampled_from(list(model.lines.values()))) if model.lines else None
        parents = [line.head] if line else []
        if line is None:
            line = model.lines["main"] = Line(version, "main", version, version)
        self.scribe.write(
            group, rows, branch=line.name, branch_id=line.id, parents=parents,
            pieces=data.draw(st.sampled_from([1, 1, 1, 2, 3])), later_ms=data.draw(st.integers(0, 2)),
        )  # fmt: skip
        line.head = version
        for place, text in rows.items():
            line.rows[place] = Row(version, self.scribe.clock, None if text is None else text.encode())
        model.advance(self.scribe.clock, line)

    def create_branch(self, group: str, model: Model, data: st.DataObject) -> None:
        """From any version ever, that of a deleted branch too; its commit may name the new branch or another."""
        free = [name for name in NAMES if name not in model.lines and name not in model.tags]
        if not free:
            return
        name = data.draw(st.sampled_from(free))
        fork = data.draw(st.sampled_from([*model.readable(), *(line.head for line in model.lines.values())]))
        parent = model.moments[fork - 1].line
        assert parent is not None
        version = model.version + 1
        made = Line(version, name, fork, fork, dict(parent.rows))
        named = made if data.draw(st.booleans()) else next(iter(model.lines.values()))
        change = ref("branch", name, fork, parent.id)
        self.scribe.refs(group, change, branch=named.name, branch_id=named.id, operation="create-branch")
        model.lines[name] = made
        model.advance(self.scribe.clock, named)

    def delete_branch(self, group: str, model: Model, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(model.lines)))
        line = model.lines.pop(name)
        self.scribe.refs(group, ref("branch", name, None), branch=name, branch_id=line.id, operation="delete-branch")
        model.advance(self.scribe.clock, line)

    def tag(self, group: str, model: Model, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name in ("v1", "plan") if name not in model.lines]))
        target = None if name in model.tags else data.draw(st.sampled_from(model.readable()))
        line = next(iter(model.lines.values()))
        self.scribe.refs(group, ref("tag", name, target), branch=line.name, branch_id=line.id, operation="tag")
        if target is None:
            del model.tags[name]
        else:
            model.tags[name] = target
        model.advance(self.scribe.clock, line)

    def drop_group(self, group: str, model: Model) -> None:
        line = next(iter(model.lines.values()))
        gone = [ref("branch", name, None) for name in model.lines] + [ref("tag", name, None) for name in model.tags]
        self.scribe.refs(group, *gone, branch=line.name, branch_id=line.id, operation="drop-group")
        model.lines, model.tags = {}, {}
        model.advance(self.scribe.clock, None)

    # What is done with the store

    @rule(count=st.integers(1, 30) | st.just(1_000), again=st.integers(0, 5))
    def fold(self, count: int, again: int) -> None:
        """Also in the middle of a commit in pieces, and with records that it has already."""
        start = max(self.folded - again, 0)
        known, self.folded = self.folded, min(self.folded + count, len(self.scribe.records))
        taken = fold(self.store, self.scribe.records[start : self.folded])
        assert taken == [start + index >= known for index in range(self.folded - start)]
        for written in self.scribe.records[known : self.folded]:
            record = written.record
            if record["piece"] == record["pieces"]:
                self.seen[record["group"]] = record["version"]

    @precondition(lambda self: self.folded)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @precondition(lambda self: self.folded)
    @rule()
    def flush(self) -> None:
        """Rows in files are met in other ways than those in memory."""
        self.store.flush()

    @precondition(lambda self: self.folded)
    @rule()
    def made_again_it_is_the_same(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            other = Store.open(Path(directory) / "other", partition=3, codec=self.codec)
            fold(other, self.scribe.records[: self.folded])
            assert store_digest([other]) == store_digest([self.store])
            other.close()

    # What must hold

    @invariant()
    def heads_and_refs_are_those_of_the_last_fold(self) -> None:
        if not hasattr(self, "store"):
            return
        live = []
        for group, model in self.models.items():
            head, seen = self.store.head(group), self.seen[group]
            assert (head.version if head else 0) == seen
            moment = model.moments[seen - 1] if seen else Moment(0, None, {}, {})
            found = {branch.name: (branch.id, branch.head) for branch in self.store.branches(group)}
            assert found == {name: (line.id, line.head) for name, line in moment.lines.items()}
            assert self.store.tags(group) == moment.tags
            live += [group] if moment.lines else []
        assert self.store.groups(limit=10) == sorted(live)
        assert self.store.groups(start="g\0", limit=1) == [group for group in sorted(live) if group >= "g\0"][:1]

    @precondition(lambda self: any(self.seen.values()))
    @rule(data=st.data(), limit=st.integers(1, 4))
    def read_at_a_version(self, data: st.DataObject, limit: int) -> None:
        group = data.draw(st.sampled_from([group for group, seen in self.seen.items() if seen]))
        for version in data.draw(st.lists(st.integers(1, self.seen[group]), min_size=1, max_size=4, unique=True)):
            self.read_at(group, version, limit, data)

    def read_at(self, group: str, version: int, limit: int, data: st.DataObject) -> None:
        line = self.models[group].moments[version - 1].line
        if line is None:
            with pytest.raises(NotFound) as raised:
                self.view.resolve(group, str(version))
            assert raised.value.facts["dropped_at"] == version
            return
        at = self.view.resolve(group, str(version))
        assert at == At(group, line.name, line.id, version)
        self.rows_are(at, line.rows, data.draw(st.sampled_from(PREFIXES)), limit)
        for table in TABLES:
            for key in KEYS:
                self.history_is(at, (table, key), limit)

    @precondition(lambda self: any(self.seen.values()))
    @rule(data=st.data(), name=st.sampled_from(NAMES), later_ms=st.integers(-1, 40))
    def read_at_a_time(self, data: st.DataObject, name: str, later_ms: int) -> None:
        group = data.draw(st.sampled_from([group for group, seen in self.seen.items() if seen]))
        moments = self.models[group].moments[: self.seen[group]]
        version = sum(moment.at_ms <= START_MS + later_ms for moment in moments)
        assert self.store.version_at(group, START_MS + later_ms) == version
        line = moments[version - 1].lines.get(name) if version else None
        time = millis_to_text(START_MS + later_ms)
        if line is None:
            with pytest.raises(NotFound):
                self.view.resolve(group, time, name)
            return
        at = self.view.resolve(group, time, name)
        assert at == At(group, name, line.id, line.tip)
        assert at.version <= version
        self.rows_are(at, line.rows, None, 3)

    @precondition(lambda self: any(self.seen.values()))
    @rule(data=st.data())
    def compare_two_versions(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([group for group, seen in self.seen.items() if seen]))
        moments = self.models[group].moments[: self.seen[group]]
        readable = [version for version in self.models[group].readable() if version <= self.seen[group]]
        one, other = data.draw(st.sampled_from(readable)), data.draw(st.sampled_from(readable))
        before, after = self.view.resolve(group, str(one)), self.view.resolve(group, str(other))
        old, new = (_present(moments[version - 1].line) for version in (one, other))
        wanted = sorted(place for place in {*old, *new} if _text(old.get(place)) != _text(new.get(place)))
        wanted = [place for place in wanted if place[0] != "$tables"]
        found, cursor = [], None
        while True:
            page = self.view.diff(before, after, limit=2, cursor=cursor)
            found += page.rows
            cursor = page.cursor
            if cursor is None:
                break
        assert [(row.table, row.key) for row in found] == wanted
        assert [(row.before, row.after) for row in found] == [(old.get(place), new.get(place)) for place in wanted]
        if wanted or old.keys() != new.keys():
            assert rows_digest(self.view, before) != rows_digest(self.view, after)

    def rows_are(self, at: At, rows: Rows, prefix: str | None, limit: int) -> None:
        present = {place: row for place, row in rows.items() if row.text is not None}
        asked = [(table, key) for table in TABLES for key in KEYS]
        assert self.view.rows(at, asked) == [present.get(place) for place in asked]
        assert [self.view.row(at, *place) for place in asked] == [present.get(place) for place in asked]
        assert self.view.tables(at, system=True) == sorted({table for table, _ in present})
        for table in TABLES:
            wanted = [(key, row) for (of_table, key), row in sorted(present.items()) if of_table == table]
            assert self.scan(at, table, limit) == wanted
            within = [item for item in wanted if item[0].startswith(prefix or "") and "a" <= item[0] < "ключ"]
            assert self.scan(at, table, limit, prefix=prefix, start="a", end="ключ") == within

    def scan(self, at: At, table: str, limit: int, **bounds: str | None) -> list[tuple[str, Row]]:
        rows: list[tuple[str, Row]] = []
        after = None
        while True:
            page = self.view.scan(at, table, **bounds, after=after, limit=limit)
            assert len(page.rows) <= limit
            rows += page.rows
            after = page.cursor
            if after is None:
                return rows

    def history_is(self, at: At, place: tuple[str, str], limit: int) -> None:
        """Newest first: each state on the way down from the version, by the parents."""
        moments = self.models[at.group].moments
        wanted: list[Row] = []
        for version in range(at.version, 0, -1):
            line = moments[version - 1].line
            row = line.rows.get(place) if line is not None else None
            if row is not None and row.version == version and self.leads_to(at, version):
                wanted.append(row)
        found: list[Row] = []
        before = None
        while True:
            page = self.view.history(at, *place, limit=limit, before=before)
            found += [past.row for past in page.changes]
            before = page.before
            if before is None:
                break
        assert found == wanted

    def leads_to(self, at: At, version: int) -> bool:
        """Whether the commit is on the way that a read at `at` takes."""
        branch, upto = self.store.branch_by_id(at.group, at.branch_id), at.version
        line = self.models[at.group].moments[version - 1].line
        while branch is not None and line is not None:
            if line.id == branch.id:
                return version <= upto
            upto = min(upto, branch.fork)
            branch = None if branch.parent is None else self.store.branch_by_id(at.group, branch.parent)
        return False

    @precondition(lambda self: any(self.seen.values()))
    @rule(data=st.data())
    def what_was_is_as_it_was(self, data: st.DataObject) -> None:
        """A store that holds all has, for an earlier version, the digest of a store that ends there."""
        group = data.draw(st.sampled_from([group for group, seen in self.seen.items() if seen]))
        version = data.draw(st.integers(1, self.seen[group]))
        upto = [written for written in self.scribe.records if written.record["version"] <= version]
        with tempfile.TemporaryDirectory() as directory:
            earlier = Store.open(Path(directory) / "earlier", partition=3, codec=self.codec)
            fold(earlier, [written for written in upto if written.record["group"] == group])
            assert group_digest(earlier, group) == group_digest(self.store, group, version)
            earlier.close()


def _present(line: Line | None) -> Rows:
    return {} if line is None else {place: row for place, row in line.rows.items() if row.text is not None}


def _text(row: Row | None) -> bytes | None:
    return None if row is None else row.text


TestStoreAtVersions = StoreAtVersions.TestCase
# A step does a lot here, and opening stores takes its time: half of what a profile asks for.
TestStoreAtVersions.settings = settings(
    max_examples=settings().max_examples // 2, stateful_step_count=settings().stateful_step_count // 2
)
