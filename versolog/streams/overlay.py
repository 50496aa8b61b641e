"""The state as of the newest decided transaction: the store, and above it what is decided and not yet stored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from versolog.schemas.codec import Record
from versolog.streams.state import Branch, Head, Join, Level, Row, State, Step
from versolog.streams.turns import ITEMS_A_TURN, give_way
from versolog.streams.versions import branches_after, joined, moves_head

_version_of = itemgetter(0)


Rows = dict[tuple[str, int, str, str], list[Row]]
"""By group, branch, table and key: the states in order of version."""


@dataclass(slots=True, eq=False)
class Layer:
    """What the transactions of one batch changed."""

    heads: dict[str, Head] = field(default_factory=dict)
    branches: dict[tuple[str, int], Branch] = field(default_factory=dict)
    branch_names: dict[tuple[str, str], int | None] = field(default_factory=dict)
    """Of what was created, deleted or written to, the id; None where it was deleted."""
    tags: dict[tuple[str, str], int | None] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    commits: dict[str, list[Record]] = field(default_factory=dict)
    joins: dict[tuple[str, int], list[Join]] = field(default_factory=dict)
    """By group and branch, the merges into it in order of version."""
    tips: dict[tuple[str, int], int] = field(default_factory=dict)
    """For an operation on refs, the head that it left its branch at."""
    outcomes: dict[str, bytes] = field(default_factory=dict)


def rows_of(commit: Record) -> Rows:
    """What a layer holds of the rows that a commit (whole, not in pieces) changed."""
    group, branch_id, version, committed_at = (
        commit["group"], commit["branch_id"], commit["version"], commit["committed_at"],
    )  # fmt: skip
    rows: Rows = {}
    for number, change in enumerate(commit["changes"]):
        if number % ITEMS_A_TURN == 0:
            give_way()
        row = change["row"]
        state = Row(version, committed_at, None if row is None else row.encode())
        rows[group, branch_id, change["table"], change["key"]] = [state]
    return rows


class Overlay:
    """A State over `base`: layers are added on top as batches are decided and taken off the bottom once stored."""

    def __init__(self, base: State, layers: Sequence[Layer] = ()) -> None:
        """`layers` are those that stand above the base already, the newest first."""
        self._base = base
        self._layers: tuple[Layer, ...] = (Layer(), *layers)
        """The newest first; only that one changes."""
        self._prefetched: dict[str, bytes | None] = {}

    @property
    def top(self) -> Layer:
        """The layer that decisions go into."""
        return self._layers[0]

    def push(self) -> Layer:
        """Close the top layer and open another above it; returns the closed one."""
        closed = self.top
        self._layers = (Layer(), *self._layers)
        return closed

    def drop(self, layer: Layer) -> None:
        """Take off the layers from the bottom to this one, whose content the store holds now."""
        self._layers = self._layers[: self._layers.index(layer)]

    def changed(self, group: str, layer: Layer) -> bool:
        """Whether this layer or one below it, down to the store, changes `group`."""
        return any(group in one.heads for one in self._layers[self._layers.index(layer) :])

    def decided(self, transaction_id: str, layer: Layer) -> bool:
        """Whether this layer or one below it, down to the store, holds the outcome of that transaction."""
        return any(transaction_id in one.outcomes for one in self._layers[self._layers.index(layer) :])

    def snapshot(self) -> Overlay:
        """The state as it is now, for another thread to ask while this one goes on. It does not follow the changes of
        what is not held."""
        self.push()
        return Overlay(self._base, self._layers[1:])

    def prefetch(self, transaction_ids: Sequence[str], outcomes: Sequence[bytes | None]) -> None:
        """Take the store's answers for the ids that are decided next, in place of the former ones."""
        self._prefetched = dict(zip(transaction_ids, outcomes, strict=True))

    def remember(self, transaction_id: str, outcome: bytes) -> None:
        """Add the outcome of a decided transaction."""
        self.top.outcomes[transaction_id] = outcome

    def apply(self, commit: Record, commit_hash: bytes, rows: Rows | None = None) -> None:
        """Fold one decided commit (whole, not in pieces) into the top layer. `rows` are its rows, where they were made
        ahead; the layer takes them."""
        layer = self.top
        group, version, branch_id = commit["group"], commit["version"], commit["branch_id"]
        previous = self.head(group)
        changes = commit["changes"]
        committed_at = commit["committed_at"]
        settings = previous.settings if previous is not None else 0
        taken = rows is not None and layer.rows.keys().isdisjoint(rows.keys())
        if taken and rows is not None:
            layer.rows.update(rows)
        for change in changes:
            table, row = change["table"], change["row"]
            if table.startswith("$"):
                settings = version
            if taken:
                continue
            state = Row(version, committed_at, None if row is None else row.encode())
            key = (group, branch_id, table, change["key"])
            found = layer.rows.get(key)
            if found is None:
                layer.rows[key] = [state]
            else:
                found.append(state)
        if (other := joined(commit)) is not None:
            layer.joins.setdefault((group, branch_id), []).append(Join(version, other))
        self._apply_refs(layer, commit)
        layer.heads[group] = Head(version, commit_hash, committed_at, settings)
        layer.commits.setdefault(group, []).append(commit)

    def _apply_refs(self, layer: Layer, commit: Record) -> None:
        group, branch_id, version = commit["group"], commit["branch_id"], commit["version"]
        if not commit["refs"] and commit["parents"]:
            branch = self.branch_by_id(group, branch_id)
            assert branch is not None, f"a commit on branch {branch_id} of {group}, which does not exist"
            layer.branches[group, branch_id] = branch.at_head(version)
            if branch.live:
                layer.branch_names[group, branch.name] = branch_id  # so that the next need not ask the store
            return
        for branch in branches_after(self, commit):
            layer.branches[group, branch.id] = branch
            layer.branch_names[group, branch.name] = branch.id if branch.live else None
        for ref in commit["refs"]:
            if ref["kind"] == "tag":
                layer.tags[group, ref["name"]] = ref["version"]
        if not moves_head(commit):
            named = self.branch_by_id(group, branch_id)
            layer.tips[group, version] = named.head if named is not None else 0

    # The questions of State, each asked of the layers from the newest down and then of the store.

    def head(self, group: str) -> Head | None:
        for layer in self._layers:
            if (found := layer.heads.get(group)) is not None:
                return found
        return self._base.head(group)

    def branch(self, group: str, name: str) -> Branch | None:
        for layer in self._layers:
            if (group, name) in layer.branch_names:
                branch_id = layer.branch_names[group, name]
                return None if branch_id is None else self.branch_by_id(group, branch_id)
        stored = self._base.branch(group, name)
        return None if stored is None else self.branch_by_id(group, stored.id)

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        for layer in self._layers:
            if (found := layer.branches.get((group, branch_id))) is not None:
                return found
        return self._base.branch_by_id(group, branch_id)

    def branches(self, group: str) -> list[Branch]:
        names = {branch.name for branch in self._base.branches(group)}
        names.update(name for layer in self._layers for of_group, name in layer.branch_names if of_group == group)
        found = (self.branch(group, name) for name in sorted(names))
        return [branch for branch in found if branch is not None]

    def tag(self, group: str, name: str) -> int | None:
        for layer in self._layers:
            if (group, name) in layer.tags:
                return layer.tags[group, name]
        return self._base.tag(group, name)

    def tags(self, group: str) -> dict[str, int]:
        tags: dict[str, int | None] = dict(self._base.tags(group))
        for layer in reversed(self._layers):
            tags.update({name: version for (of_group, name), version in layer.tags.items() if of_group == group})
        return {name: version for name, version in sorted(tags.items()) if version is not None}

    def row(self, group: str, level: Level, table: str, key: str) -> Row | None:
        branch_id, upto = level
        for layer in self._layers:
            states = layer.rows.get((group, branch_id, table, key))
            if states is not None:
                if states[-1].version <= upto:
                    return states[-1]
                if before := bisect_right(states, upto, key=_version_of):
                    return states[before - 1]
        return self._base.row(group, level, table, key)

    def rows(self, group: str, level: Level, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        layers = [layer.rows for layer in self._layers if layer.rows]
        if not layers:
            return self._base.rows(group, level, places)
        decided = {
            place: self.row(group, level, *place)
            for place in places
            if any((group, level.branch, *place) in rows for rows in layers)
        }
        stored = iter(self._base.rows(group, level, [place for place in places if place not in decided]))
        return [decided[place] if place in decided else next(stored) for place in places]

    def table_rows(self, group: str, level: Level, table: str) -> Iterator[tuple[str, Row]]:
        place = (group, level.branch, table)
        decided = {row_place[3] for layer in self._layers for row_place in layer.rows if row_place[:3] == place}
        for key, row in self._base.table_rows(group, level, table):
            if key not in decided:
                yield key, row
        for key in sorted(decided):
            if (found := self.row(group, level, table, key)) is not None:
                yield key, found

    def commit(self, group: str, version: int) -> dict[str, Any] | None:
        for layer in self._layers:
            commits = layer.commits.get(group)
            if commits and version >= commits[0]["version"]:
                index = version - commits[0]["version"]
                return commits[index] if index < len(commits) else None
        return self._base.commit(group, version)

    def step(self, group: str, version: int) -> Step | None:
        for layer in self._layers:
            commits = layer.commits.get(group)
            if commits and version >= commits[0]["version"]:
                commit = self.commit(group, version)
                return None if commit is None else _step(commit, layer.tips.get((group, version), version))
        return self._base.step(group, version)

    def line(self, group: str, name: str, upto: int) -> Level | None:
        stored = self._base.head(group)
        level = None if stored is None else self._base.line(group, name, min(upto, stored.version))
        for layer in reversed(self._layers):
            for commit in layer.commits.get(group, ()):
                if commit["version"] > upto:
                    break
                level = _line_after(level, name, commit)
        return level

    def joins(self, group: str, level: Level) -> Iterator[Join]:
        upto = level.upto
        for layer in self._layers:
            for join in reversed(layer.joins.get((group, level.branch), ())):
                if join.version <= upto:
                    upto = join.version - 1
                    yield join
        # Of a snapshot the store may have got, meanwhile, what stands in the layers: each is told once.
        yield from self._base.joins(group, Level(level.branch, upto))

    def version_at(self, group: str, time_ms: int) -> int:
        for layer in self._layers:
            commits = layer.commits.get(group)
            if commits and commits[0]["committed_at"] <= time_ms:
                after = bisect_right(commits, time_ms, key=lambda commit: commit["committed_at"])
                return int(commits[after - 1]["version"])
        return self._base.version_at(group, time_ms)

    def outcome(self, transaction_id: str) -> bytes | None:
        for layer in self._layers:
            if (found := layer.outcomes.get(transaction_id)) is not None:
                return found
        if transaction_id in self._prefetched:
            return self._prefetched[transaction_id]
        return self._base.outcome(transaction_id)


def _step(commit: Record, tip: int) -> Step:
    parents, committed_at = tuple(commit["parents"]), commit["committed_at"]
    return Step(commit["version"], commit["branch_id"], parents, tip, committed_at, commit["operation"])


def _line_after(level: Level | None, name: str, commit: Record) -> Level | None:
    """Where the branch of that name stands after `commit`, having stood at `level` before it."""
    version = commit["version"]
    for ref in commit["refs"]:
        if ref["kind"] == "branch" and ref["name"] == name:
            level = None if ref["version"] is None else Level(version, ref["version"])
    if level is None and commit["branch"] == name and commit["branch_id"] == version and moves_head(commit):
        return Level(version, version)
    if level is not None and level.branch == commit["branch_id"]:
        return Level(level.branch, version)
    return level
