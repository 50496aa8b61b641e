"""Checks beside a plain model: whatever changes rows, on whatever branch, is refused exactly where the rows that it
would leave, all of them looked at again, break a check of that branch. A replay has the same digest."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.engine import Engine
from versolog.projections.digest import group_digest
from versolog.projections.store import Store
from versolog.schemas import codec as avro
from versolog.schemas.documents import DECIMAL
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME
from versolog.streams.graph import is_fast_forward, merge_bases, node
from versolog.streams.state import MAIN
from versolog.streams.transaction import Transaction
from versolog.streams.versions import first_parent, levels_at, resolve, row_at

GROUP, TABLE = "g", "t"
NAMES = (MAIN, "plan", "fix")
RULES: list[dict[str, Any]] = [
    {"required": ["n"]},
    {"range": "n", "min": -3, "max": "6.5"},
    {"unique": "u"},
    {"unique": ["u", "n"]},
    {"sum": "n", "min": -1},
    {"sum": "n", "max": "7.5"},
    {"sum": "n", "constant": True},
]
ABSENT = object()

Rows = dict[str, dict[str, Any]]
Checks = dict[str, dict[str, Any]]

names = st.sampled_from(NAMES)
keys = st.sampled_from("abcde")
documents = st.fixed_dictionaries(
    {},
    optional={
        "u": st.sampled_from([None, 1, "1", "x", 2, 3]),
        "n": st.sampled_from([None, 0, 1, 2, -1, -2, "0.5", "-2.50", 4, 1.5, "one"]),
    },
)
changes = st.lists(st.tuples(keys, documents | st.none()), min_size=1, max_size=3)
versions = st.integers(1, 40)
checks = st.fixed_dictionaries({}, optional={name: st.sampled_from(RULES) for name in ("first", "second", "third")})


@dataclass(frozen=True)
class Version:
    """The rows of the one table, and what they are held to."""

    rows: Rows
    checks: Checks


# What a check means


def number(value: Any, *, exact: bool) -> Fraction | None:
    if isinstance(value, bool) or (exact and isinstance(value, float)):
        return None
    if isinstance(value, str) and not DECIMAL.fullmatch(value):
        return None
    return Fraction(str(value)) if isinstance(value, int | float | str) else None


def total(field: str, rows: Rows) -> Fraction | None:
    """The sum; None where there is none."""
    amounts = [number(row.get(field) or 0, exact=True) for row in rows.values()]
    return None if None in amounts else sum((amount for amount in amounts if amount is not None), Fraction(0))


def within(value: Fraction | None, check: dict[str, Any]) -> bool:
    if value is None or ("equals" in check and value != Fraction(str(check["equals"]))):
        return False
    least, most = check.get("min", "-1000"), check.get("max", "1000")
    return Fraction(str(least)) <= value <= Fraction(str(most))


def spelled(row: dict[str, Any], fields: list[str] | str) -> str | None:
    values = [row.get(field) for field in ([fields] if isinstance(fields, str) else fields)]
    return None if None in values else json.dumps(values)


def row_holds(check: dict[str, Any], row: dict[str, Any]) -> bool:
    if "required" in check:
        return all(row.get(field) is not None for field in check["required"])
    value = row.get(check["range"])
    return value is None or within(number(value, exact=False), check)


def holds(check: dict[str, Any], rows: Rows) -> bool:
    if "unique" in check:
        values = [value for row in rows.values() if (value := spelled(row, check["unique"])) is not None]
        return len(set(values)) == len(values)
    if "sum" in check:
        return within(total(check["sum"], rows), check)
    return all(row_holds(check, row) for row in rows.values())


# What a merge means, where theirs is taken if both sides changed a thing


def merged(base: Any, ours: Any, theirs: Any, depth: int) -> Any:
    if alike(base, theirs) or alike(ours, theirs):
        return ours
    if alike(base, ours) or not depth or not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return theirs
    before = base if isinstance(base, dict) else {}
    fields = {
        name: merged(before.get(name, ABSENT), ours.get(name, ABSENT), theirs.get(name, ABSENT), depth - 1)
        for name in sorted(before.keys() | ours.keys() | theirs.keys())
    }
    return {name: value for name, value in fields.items() if value is not ABSENT}


def alike(one: Any, other: Any) -> bool:
    if one is ABSENT or other is ABSENT:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def merged_version(base: Version, ours: Version, theirs: Version) -> Version:
    rows = merged(base.rows, ours.rows, theirs.rows, depth=1)
    # Of settings the row stands whether there are checks or not; with the last one the field that holds them goes.
    settings = merged(*({"checks": side.checks} if side.checks else {} for side in (base, ours, theirs)), depth=2)
    return Version(rows, settings.get("checks", {}))


class Checked(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="versolog-checks-"))
        self.engine = Engine(self.directory / "store")
        self.versions: list[Version] = [Version({}, {})]
        self.heads: dict[str, int] = {}

    def teardown(self) -> None:
        self.engine.flush()
        replayed = Store.open(self.directory / "replayed", partition=0, codec=self.engine.codec, identity="test")
        self.engine.fold_log(replayed)
        assert group_digest(self.engine.store, GROUP) == group_digest(replayed, GROUP)
        replayed.close()
        self.engine.store.close()
        shutil.rmtree(self.directory)

    @initialize()
    def begin(self) -> None:
        """Of rows that both sides changed, theirs is taken."""
        first = Transaction(GROUP).put("another", "k", {})
        assert self.end(first, MAIN, Version({}, {}))
        assert self.end(Transaction(GROUP).operation("set-merge", table=TABLE, row="theirs"), MAIN, Version({}, {}))

    # What services do

    @rule(branch=names, asked=changes)
    def write(self, branch: str, asked: list[tuple[str, dict[str, Any] | None]]) -> None:
        if branch not in self.heads:
            return
        tx, now = Transaction(GROUP, branch=branch), self.versions[self.heads[branch]]
        rows = dict(now.rows)
        for key, row in asked:
            tx.delete(TABLE, key) if row is None else tx.put(TABLE, key, row)
            rows.pop(key, None)
            rows |= {} if row is None else {key: row}
        self.end(tx, branch, Version(rows, now.checks))

    @rule(branch=names, given=checks)
    def declare(self, branch: str, given: Checks) -> None:
        if branch not in self.heads:
            return
        rows = self.versions[self.heads[branch]].rows
        kept = {name: self.kept(check, rows) for name, check in given.items()}
        tx = Transaction(GROUP, branch=branch).operation("set-checks", table=TABLE, checks=given)
        self.end(tx, branch, Version(rows, kept))

    @staticmethod
    def kept(check: dict[str, Any], rows: Rows) -> dict[str, Any]:
        if "constant" not in check:
            return check
        now = total(check["sum"], rows)
        return {"sum": check["sum"], "equals": "0" if now is None else f"{float(now):g}"}

    @rule(name=st.sampled_from(NAMES[1:]), from_=names)
    def create_branch(self, name: str, from_: str) -> None:
        if name in self.heads or from_ not in self.heads:
            return
        outcome = self.decide(Transaction(GROUP).operation("create-branch", name=name, **{"from": from_}))
        assert outcome.committed, outcome.detail
        self.heads[name] = self.heads[from_]
        self.versions.append(self.versions[self.heads[name]])

    @rule(into=names, source=names)
    def merge(self, into: str, source: str) -> None:
        if into not in self.heads or source not in self.heads:
            return
        state = self.engine.overlay
        ours, theirs = self.heads[into], self.heads[source]
        bases = merge_bases(state, GROUP, [ours], theirs)
        tip = node(state, GROUP, theirs)
        if len(bases) > 1:
            return  # what a base of merges that crossed is, other tests know
        tx = Transaction(GROUP, branch=into).operation("merge", source=source, policy="theirs")
        if tip is None or bases == [tip.version]:
            assert self.decide(tx).code == "nothing-to-merge"
            return
        base = self.versions[bases[0] if bases else 0]
        self.end(tx, into, merged_version(base, self.versions[ours], self.versions[theirs]))

    @rule(branch=names, version=versions, undo=st.booleans())
    def revert_or_cherry_pick(self, branch: str, version: int, undo: bool) -> None:
        state = self.engine.overlay
        step = state.step(GROUP, version) if version < len(self.versions) else None
        if step is None or branch not in self.heads or step.tip != version or version <= 2:
            return  # the second says how rows are merged
        if len(step.parents) > 1 or is_fast_forward(step):
            return
        before = first_parent(state, GROUP, step)
        parent, commit = self.versions[before.version if before else 0], self.versions[version]
        base, theirs = (commit, parent) if undo else (parent, commit)
        kind = "revert" if undo else "cherry-pick"
        tx = Transaction(GROUP, branch=branch).operation(kind, versions=[version], policy="theirs")
        self.end(tx, branch, merged_version(base, self.versions[self.heads[branch]], theirs))

    @rule(branch=names, to=st.integers(2, 40), what=st.sampled_from([None, TABLE, "$tables", "$sums"]), key=keys)
    def roll_back(self, branch: str, to: int, what: str | None, key: str) -> None:
        if branch not in self.heads or to >= len(self.versions):
            return
        now, then = self.versions[self.heads[branch]], self.versions[to]
        arguments: dict[str, Any] = {"to": str(to), "table": what}
        rows, kept = now.rows, now.checks
        if what is None:
            rows, kept = then.rows, then.checks
        elif what == "$tables":
            kept = then.checks
        elif what == TABLE:
            arguments["key"] = key
            rows = {other: row for other, row in now.rows.items() if other != key}
            rows |= {key: then.rows[key]} if key in then.rows else {}
        self.end(Transaction(GROUP, branch=branch).operation("rollback", **arguments), branch, Version(rows, kept))

    # What happens on the way

    @rule()
    def commit_without_writing_the_store(self) -> None:
        self.engine.cut_batch()

    @rule()
    def write_the_store(self) -> None:
        self.engine.flush()

    @rule()
    def restart_from_the_log(self) -> None:
        self.engine.restart()

    @invariant()
    def every_branch_keeps_its_checks(self) -> None:
        state = self.engine.overlay
        for name, head in self.heads.items():
            version, way = self.versions[head], levels_at(state, resolve(state, GROUP, name))
            found = {key: row_at(state, GROUP, way, TABLE, key) for key in "abcde"}
            rows = {key: json.loads(row.text) for key, row in found.items() if row is not None and row.text is not None}
            assert rows == version.rows
            settings = row_at(state, GROUP, way, "$tables", TABLE)
            assert settings is not None
            assert settings.text is not None
            assert json.loads(settings.text).get("checks", {}) == version.checks
            assert all(holds(check, rows) for check in version.checks.values())
            for check_name, check in version.checks.items():
                kept = row_at(state, GROUP, way, "$sums", json.dumps([TABLE, check_name], separators=(",", ":")))
                text = None if kept is None else kept.text
                if "sum" not in check:
                    assert text is None
                else:
                    assert text is not None
                    assert Fraction(json.loads(text)["sum"]) == total(check["sum"], rows)

    # How it ends

    def decide(self, tx: Transaction) -> Outcome:
        return Outcome.from_avro(avro.decode(OUTCOME, self.engine.decide(tx).outcome))

    def end(self, tx: Transaction, branch: str, after: Version) -> bool:
        """Committed where the rows of `after` hold its checks, and else refused with a row that breaks one."""
        outcome = self.decide(tx)
        broken = {name for name, check in after.checks.items() if not holds(check, after.rows)}
        if not broken:
            assert outcome.committed, outcome.detail
            self.heads[branch] = len(self.versions)
            self.versions.append(after)
            return True
        assert outcome.code == "check-failed", (outcome, after)
        facts = outcome.facts
        assert facts["check"] in broken
        check, named = after.checks[facts["check"]], after.rows.get(facts.get("key", ""), {})
        if "unique" in check:
            other = after.rows[facts["other"]]
            assert facts["key"] != facts["other"]
            assert spelled(named, check["unique"]) == spelled(other, check["unique"]) is not None
        elif "sum" in check and "sum" in facts:
            assert Fraction(facts["sum"]) == total(check["sum"], after.rows)
        elif "sum" in check:
            assert number(named["n"], exact=True) is None
        else:
            assert not row_holds(check, named)
        return False


TestChecked = Checked.TestCase
TestChecked.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
