"""Folding decided facts into a store: what each commit, outcome and checkpoint changes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from versolog.projections import keys, layout
from versolog.projections.layout import GroupState, Pending, Piece
from versolog.schemas.codec import Record
from versolog.schemas.errors import BrokenLog
from versolog.streams.state import NO_HASH, Branch, Head
from versolog.streams.versions import DROP_GROUP, branches_after, joined


class Batch(Protocol):
    """Writes that become visible together."""

    def put(self, key: bytes, value: bytes, column_family: Any) -> None: ...
    def delete(self, key: bytes, column_family: Any) -> None: ...


class Target(Protocol):
    """The store that is folded into, as it stands before the fold."""

    @property
    def partition(self) -> int: ...
    @property
    def next_commit_offset(self) -> int: ...
    @property
    def next_outcome_offset(self) -> int: ...
    def group_state(self, group: str) -> GroupState | None: ...
    def branch(self, group: str, name: str) -> Branch | None: ...
    def branch_by_id(self, group: str, branch_id: int) -> Branch | None: ...
    def pending(self, group: str) -> Pending | None: ...
    def piece(self, group: str, version: int, piece: int) -> Piece | None:
        """The offset and hash (and, where it stands apart, the value) of a record of a commit."""

    def decided(self, transaction_ids: Sequence[str]) -> list[bool]:
        """For each id whether it has an outcome."""

    def schema_text(self, schema_id: int) -> str | None:
        """The text to keep for a schema id; None where it is kept already."""

    def apply(self, fold: Fold) -> None:
        """Make the fold's batch, and with it what the fold holds, the state of the store."""


@dataclass(slots=True)
class Families:
    """Handles of the column families that a batch writes to; they keep the database open."""

    rows: Any
    latest: Any
    commits: Any
    refs: Any
    transactions: Any
    meta: Any

    def clear(self) -> None:
        """Let go of the database."""
        self.rows = self.latest = self.commits = self.refs = self.transactions = self.meta = None


class _Line:
    """A group on the way through a fold."""

    __slots__ = (
        "branch", "committed_at", "hash", "key", "live", "pending", "prefixes", "settings", "transaction_offset",
        "version",
    )  # fmt: skip

    def __init__(self, group: str, state: GroupState | None, pending: Pending | None) -> None:
        head = state.head if state is not None else Head(0, NO_HASH, 0, 0)
        self.version, self.hash, self.committed_at, self.settings = head
        self.branch = state.branch if state is not None else 0
        self.transaction_offset = state.transaction_offset if state is not None else 0
        self.live = state.live if state is not None else False
        self.pending = pending
        self.key = keys.text(group)
        self.prefixes: dict[tuple[int, str], bytes] = {}
        """The row prefixes by branch and table."""

    def state(self) -> GroupState:
        head = Head(self.version, self.hash, self.committed_at, self.settings)
        return GroupState(head, self.branch, self.transaction_offset, self.live)


class Fold:
    """One write to the store in the making. Facts come in the order of the log; nothing is visible before `write`.

    A fold that raised is of no use any more: drop it, and the store is as it was. Measured on two cores, 2,000 commits
    of one small change with their outcomes take 14 ms (140,000/s) over 16 groups and 25 ms over 1,000, with the write.
    """

    def __init__(self, target: Target, batch: Batch, families: Families) -> None:
        self._target = target
        self.batch = batch
        self._put = batch.put
        self._families = families
        self._lines: dict[str, _Line] = {}
        self._schema_ids: set[bytes] = set()
        self._hashes: dict[int, bytes] = {}
        self._heads: dict[tuple[str, int], int] = {}
        """The heads of branches that plain commits moved."""
        self._outcomes: dict[str, bytes] = {}
        self.branches: dict[tuple[str, int], Branch] = {}
        self.names: dict[tuple[str, str], int | None] = {}
        """The ids of live branches by name; None where a branch was deleted."""
        self.groups: dict[str, GroupState] = {}
        self.pending: dict[str, Pending | None] = {}
        self.next_commit_offset = target.next_commit_offset
        self.next_outcome_offset = target.next_outcome_offset
        self.checkpoint_record: Record | None = None
        self._checkpoint_body = b""

    # Facts

    def commit(self, *, offset: int, value: bytes, record: Record, hash: bytes) -> bool:
        """Add a commit, or a piece of one: `value` as in Kafka at `offset`, `record` what it says, `hash` its own hash.

        False for one that is known already. Raises BrokenLog where it doesn't follow on what is known.
        """
        group: str = record["group"]
        version: int = record["version"]
        line = self._lines.get(group) or self._line(group)
        if line.pending is not None or record["pieces"] != 1:
            return self._piece(line, offset, value, record, hash)
        if version <= line.version:
            return self._duplicate(line, offset, record, hash)
        if version != line.version + 1 or not _follows(line, line.hash, record):
            raise self._broken(line, offset, record)
        self._keep_schema(value[1:5])
        self._rows(line, record)
        inline = len(value) <= layout.INLINE_BYTES_MAX
        if not inline:
            self._put_apart(line, record, Piece(offset, hash, value))
        self._finish(line, offset, record, hash, value if inline else b"")
        return True

    def outcome(self, body: bytes, transaction_id: str) -> None:
        """Add the outcome of a transaction, as its Avro body. An id that has one keeps it."""
        self._outcomes.setdefault(transaction_id, body)

    def checkpoint(self, record: Record, body: bytes) -> None:
        """Set the checkpoint that the next owner goes on from; `body` is its Avro body."""
        self.checkpoint_record, self._checkpoint_body = record, body

    def offsets(self, *, commits: int | None = None, outcomes: int | None = None) -> None:
        """Set the next offsets to read of the commits and outcomes topics; they never go back."""
        if commits is not None:
            self.next_commit_offset = max(commits, self.next_commit_offset)
        if outcomes is not None:
            self.next_outcome_offset = max(outcomes, self.next_outcome_offset)

    def write(self) -> None:
        """Make all of it visible, in one durable step. Call it once."""
        self._put_groups()
        self._put_outcomes()
        self._put_meta()
        self._target.apply(self)

    def _put_groups(self) -> None:
        put, refs = self._put, self._families.refs
        for group, branch_id in self._heads:
            branch = self.branch_by_id(group, branch_id)
            assert branch is not None, f"a commit of {group!r} is on branch {branch_id}, which was never created"
            self.branches[group, branch_id] = branch
        for (group, branch_id), branch in self.branches.items():
            put(layout.branch_key(self._lines[group].key, branch_id), layout.branch_value(branch), refs)
        for group, line in self._lines.items():
            if line.version:
                self.groups[group] = state = line.state()
                put(layout.head_key(line.key), layout.head_value(state), refs)

    def _put_outcomes(self) -> None:
        ids = list(self._outcomes)
        for transaction_id, known in zip(ids, self._target.decided(ids), strict=True):
            if not known:
                self._put(transaction_id.encode(), self._outcomes[transaction_id], self._families.transactions)

    def _put_meta(self) -> None:
        meta = self._families.meta
        self._put(layout.COMMITS_KEY, keys.number(self.next_commit_offset), meta)
        self._put(layout.OUTCOMES_KEY, keys.number(self.next_outcome_offset), meta)
        if self.checkpoint_record is not None:
            self._put(layout.CHECKPOINT_KEY, self._checkpoint_body, meta)

    # The branches as they stand within the fold

    def branch(self, group: str, name: str) -> Branch | None:
        """The live branch of that name."""
        if (group, name) in self.names:
            branch_id = self.names[group, name]
            return None if branch_id is None else self.branch_by_id(group, branch_id)
        stored = self._target.branch(group, name)
        return None if stored is None else self.branch_by_id(group, stored.id)

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        """The branch, deleted or not."""
        branch = self.branches.get((group, branch_id)) or self._target.branch_by_id(group, branch_id)
        head = self._heads.get((group, branch_id))
        return branch if branch is None or head is None else branch.at_head(head)

    # What a commit changes

    def _line(self, group: str) -> _Line:
        line = _Line(group, self._target.group_state(group), self._target.pending(group))
        self._lines[group] = line
        return line

    def _rows(self, line: _Line, record: Record) -> None:
        put, rows, latest = self._put, self._families.rows, self._families.latest
        version, branch_id = record["version"], record["branch_id"]
        stamp = layout.row_value(version, record["committed_at"], b"")
        place, when = keys.descending(version), stamp[8:]
        for change in record["changes"]:
            table, row = change["table"], change["row"]
            if table[:1] == "$":
                line.settings = version
            prefix = line.prefixes.get((branch_id, table))
            if prefix is None:
                prefix = line.prefixes[branch_id, table] = line.key + keys.number(branch_id) + keys.text(table)
            key = prefix + keys.text(change["key"])
            text = row.encode() if row is not None else b""
            put(key + place, when + text, rows)
            put(key, stamp + text, latest)

    def _finish(self, line: _Line, offset: int, record: Record, hash_: bytes, value: bytes) -> None:
        """The commit is whole: index it and move the group on."""
        version, branch_id, parents = record["version"], record["branch_id"], record["parents"]
        if record["refs"] or not parents:
            tip = self._change_refs(line, record)
        else:
            tip = self._heads[record["group"], branch_id] = version
        entry = layout.entry_value(
            branch_id, parents, tip, record["committed_at"], record["operation"], hash_, offset, record["pieces"], value
        )
        self._put(line.key + keys.number(version), entry, self._families.commits)
        if branch_id != line.branch:
            self._change_runs(line, record["group"], branch_id, version)
        if (other := joined(record)) is not None:
            self._put(layout.join_key(record["group"], branch_id, version), keys.number(other), self._families.refs)
        self._hashes[offset] = hash_
        line.version, line.hash = version, hash_
        line.committed_at, line.transaction_offset = record["committed_at"], record["transaction_offset"]

    def _change_refs(self, line: _Line, record: Record) -> int:
        """Apply the commit to branches and tags; answers the head of the branch it names, as it stands then."""
        group, version, refs = record["group"], record["version"], self._families.refs
        for branch in branches_after(self, record):
            self._heads.pop((group, branch.id), None)
            self.branches[group, branch.id] = branch
            if not branch.live:
                self.names[group, branch.name] = None
                self.batch.delete(layout.live_key(group, branch.name), refs)
                self._name(group, branch.name, version, "branch", 0)
            elif branch.id == version:
                line.live = True
                self.names[group, branch.name] = version
                self._put(layout.live_key(group, branch.name), keys.number(version), refs)
                self._name(group, branch.name, version, "branch", version)
        for ref in record["refs"]:
            if ref["kind"] != "tag":
                continue
            if ref["version"] is None:
                self.batch.delete(layout.tag_key(group, ref["name"]), refs)
            else:
                self._put(layout.tag_key(group, ref["name"]), keys.number(ref["version"]), refs)
            self._name(group, ref["name"], version, "tag", ref["version"] or 0)
        if record["operation"] == DROP_GROUP:
            line.live = False
        named = self.branch_by_id(group, record["branch_id"])
        return named.head if named is not None else 0

    def _name(self, group: str, name: str, version: int, kind: str, target: int) -> None:
        key = layout.name_prefix(group, name) + keys.descending(version)
        self._put(key, layout.name_value(kind, target), self._families.refs)

    def _change_runs(self, line: _Line, group: str, branch_id: int, version: int) -> None:
        """Note where versions change from one branch to another, so that a branch's newest version is found at once."""
        if line.branch:
            self._put(layout.run_key(group, line.branch, line.version), layout.RUN_ENDS, self._families.refs)
        self._put(layout.run_key(group, branch_id, version), layout.RUN_BEGINS, self._families.refs)
        line.branch = branch_id

    # Commits in pieces, and what does not follow

    def _piece(self, line: _Line, offset: int, value: bytes, record: Record, hash_: bytes) -> bool:
        """As `commit`, for a commit in pieces. Its rows are written as they come: nobody reads at a version above the
        head, and the head moves with the last piece."""
        version, piece = record["version"], record["piece"]
        pending = line.pending or Pending(line.version + 1, 0, line.hash, [])
        if version <= line.version or (version == pending.version and piece <= pending.piece):
            return self._duplicate(line, offset, record, hash_)
        if (version, piece) != (pending.version, pending.piece + 1) or not _follows(line, pending.hash, record):
            raise self._broken(line, offset, record)
        self._keep_schema(value[1:5])
        self._rows(line, record)
        self._put_apart(line, record, Piece(offset, hash_, value))
        refs = pending.refs + record["refs"]
        group = record["group"]
        if piece < record["pieces"]:
            line.pending = self.pending[group] = Pending(version, piece, hash_, refs)
            self._put(layout.pending_key(group), layout.pending_value(line.pending), self._families.refs)
            self._hashes[offset] = hash_
        else:
            line.pending = self.pending[group] = None
            self.batch.delete(layout.pending_key(group), self._families.refs)
            self._finish(line, offset, {**record, "refs": refs}, hash_, b"")
        return True

    def _put_apart(self, line: _Line, record: Record, piece: Piece) -> None:
        key = layout.piece_key(record["group"], record["version"], record["piece"])
        self._put(key, layout.piece_value(piece), self._families.commits)

    def _keep_schema(self, schema_id: bytes) -> None:
        if schema_id in self._schema_ids:
            return
        self._schema_ids.add(schema_id)
        number = int.from_bytes(schema_id, "big")
        text = self._target.schema_text(number)
        if text is not None:
            self._put(layout.schema_key(number), text.encode(), self._families.meta)

    def _duplicate(self, line: _Line, offset: int, record: Record, hash_: bytes) -> bool:
        if self._hashes.get(offset) == hash_:
            return False
        known = self._target.piece(record["group"], record["version"], record["piece"])
        if known is not None and known.offset == offset and known.hash == hash_:
            return False
        found = f"another one, at offset {known.offset}" if known is not None else "it is not there"
        raise self._broken(line, offset, record, f"that version is known, and {found}")

    def _broken(self, line: _Line, offset: int, record: Record, why: str = "") -> BrokenLog:
        pending = line.pending
        expected = {
            "version": pending.version if pending else line.version + 1,
            "piece": pending.piece + 1 if pending else 1,
            "previous_hash": (pending.hash if pending else line.hash).hex(),
            "committed_at": line.committed_at,
            "transaction_offset": line.transaction_offset,
        }
        found = {name: record[name] for name in expected}
        found["previous_hash"] = record["previous_hash"].hex()
        wrong = why or "; ".join(
            f"{name} is {found[name]}, {'at least ' if name in _RISING else ''}{value} was expected"
            for name, value in expected.items()
            if (found[name] < value if name in _RISING else found[name] != value)
        )
        return BrokenLog(
            f"the commit at offset {offset} of partition {self._target.partition} does not follow on what is known of "
            f"group {record['group']!r}: {wrong}",
            partition=self._target.partition,
            offset=offset,
            group=record["group"],
            version=record["version"],
            expected=expected,
            found=found,
        )


_RISING = ("committed_at", "transaction_offset")


def _follows(line: _Line, previous_hash: bytes, record: Record) -> bool:
    return bool(
        record["previous_hash"] == previous_hash
        and record["committed_at"] >= line.committed_at
        and record["transaction_offset"] >= line.transaction_offset
    )
