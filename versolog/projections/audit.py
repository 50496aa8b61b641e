"""Auditing: what a store holds, compared byte for byte with what folding the log again would put there.

The fold is the very one that made the store. It writes into a comparison instead of a database, so whatever a fold
writes is compared, and a family of keys that is added later is too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from versolog.projections import keys, layout
from versolog.projections.evolve import Families, Fold
from versolog.projections.layout import GroupState, Pending, Piece
from versolog.projections.store import Store
from versolog.schemas.codec import Record
from versolog.schemas.errors import BrokenLog
from versolog.streams.state import Branch

SHOWN_BYTES = 200
_NAMES = Families(*layout.FAMILIES)


class Found(Protocol):
    """Told of each difference."""

    def __call__(
        self, offset: int, group: str | None, version: int | None, detail: str,
        expected: str | None = None, found: str | None = None,
    ) -> None: ...  # fmt: skip


class StoreAudit:
    """Compares one store with the log, as far as the store had come when the audit began; it may move on meanwhile."""

    def __init__(self, store: Store, found: Found) -> None:
        self._store, self._found = store, found
        self._commits_upto, self._outcomes_upto = store.next_commit_offset, store.next_outcome_offset
        self._shadow = _Shadow(store.partition)
        self._rows: dict[str, int] = {}
        """By group, the row states that the log wrote."""
        self._names: dict[str, dict[bytes, bytes | None]] = {}
        """By group, what its entries in `refs` must be in the end; None for one that must be gone."""
        self._wrong_latest: set[tuple[str, bytes]] = set()
        """The rows, by group and place, whose newest state was found to be another already."""
        self._given_up: set[str] = set()
        """Groups whose chain is broken, or goes on after what the store has."""
        self.rows = 0

    def commit(self, offset: int, record: Record, value: bytes, hash_: bytes) -> None:
        """Compare what one record of commits, the next of its group, left in the store."""
        group, version = record["group"], record["version"]
        if offset >= self._commits_upto:
            self._given_up.add(group)
        if group in self._given_up:
            return
        writes = _Writes()
        fold = Fold(self._shadow, writes, _NAMES)
        try:
            fold.commit(offset=offset, value=value, record=record, hash=hash_)
            fold.write()
        except (BrokenLog, AssertionError):  # what a committer wrote can be folded; what somebody else wrote need not
            self._given_up.add(group)
            self._found(offset, group, version, "the commit can't be folded, nor can those of its group after it")
            return
        names = self._names.setdefault(group, {})
        for (family, key), wanted in writes.made.items():
            match family:
                case layout.REFS:
                    names[key] = wanted
                case layout.ROWS | layout.COMMITS:
                    self._compare(family, key, wanted, offset, group, version)
                case layout.LATEST:
                    self._compare_latest(key, wanted or b"", offset, group, version)
        self._rows[group] = self._rows.get(group, 0) + len(record["changes"])
        self.rows += len(record["changes"])

    def outcomes(self, offset: int, bodies: Sequence[tuple[str, bytes]], checkpoint: Record | None) -> None:
        """Compare the outcomes (id and Avro body) that one record of outcomes told, and the checkpoint it is the last
        to tell."""
        if offset >= self._outcomes_upto:
            return
        stored = self._store.outcomes([transaction_id for transaction_id, _ in bodies])
        for (transaction_id, body), found in zip(bodies, stored, strict=True):
            if found != body:
                self._found(offset, None, None, f"the outcome of {transaction_id!r} is another", _shown(body),
                            _shown(found))  # fmt: skip
        store = self._store
        last = offset == self._outcomes_upto - 1 == store.next_outcome_offset - 1
        if last and checkpoint is not None and store.checkpoint != checkpoint:
            self._found(offset, None, None, "the checkpoint is another", str(checkpoint), str(store.checkpoint))

    def log_ends(self, commits: int, outcomes: int) -> None:
        """Compare where the log ends, asked after the audit began, with where the store stood then."""
        for topic, upto, end in (("commits", self._commits_upto, commits), ("outcomes", self._outcomes_upto, outcomes)):
            if upto > end:
                self._found(end, None, None, f"the log has lost records of {topic} that the store has", str(upto), str(end))

    def end(self, only: str | None) -> None:
        """After the last record: compare the groups' heads and refs, and look for what the log never wrote. With
        `only`, in that group."""
        for group, names in self._names.items():
            if (state := self._shadow.groups.get(group)) is None or group in self._given_up:
                continue
            version, head = state.head.version, self._store.head(group)
            if head is None or head.version == version:
                self._compare_refs(group, version, names)
                self._count_rows(group, version)
        for group, _ in self._store.all_groups():
            if only in (None, group) and group not in self._names and group not in self._given_up and self._is_old(group):
                self._found(-1, group, None, "the store holds a group that the log does not")
        self._find_surplus_refs(only)

    def _is_old(self, group: str) -> bool:
        """Whether a group that the log does not have was there when the audit began."""
        first = self._store.commit_entry(group, 1)
        return first is None or not first.pieces or first.offset < self._commits_upto

    def _find_surplus_refs(self, only: str | None) -> None:
        """Look for names, runs and merges that no commit made."""
        for key in self._store.ref_keys():
            group = keys.read_text(key, 1)[0]
            if only not in (None, group) or group in self._given_up:
                continue
            names, state = self._names.get(group), self._shadow.groups.get(group)
            if names is None or state is None:
                surplus = key[:1] != layout.HEADS and self._is_old(group)
            else:
                head = self._store.head(group)  # after the key was read: if the store has moved on, that may be why
                surplus = key not in names and head is not None and head.version == state.head.version
            if surplus:
                self._found(-1, group, None, f"refs: {_shown(key)} is of no commit")

    def _compare_refs(self, group: str, version: int, names: dict[bytes, bytes | None]) -> None:
        for key, wanted in names.items():
            self._compare(layout.REFS, key, wanted, -1, group, version)

    def _compare_latest(self, key: bytes, wanted: bytes, offset: int, group: str, version: int) -> None:
        """The newest state of a row is this one, or one that a later version wrote and that is compared then."""
        found = self._store.stored(layout.LATEST, key)
        if found == wanted or (found is not None and layout.read_latest(found).version > version):
            return
        self._wrong_latest.add((group, key[len(keys.text(group)) :]))
        self._found(offset, group, version, f"latest: {_shown(key)} is not as written", _shown(wanted), _shown(found))

    def _compare(self, family: str, key: bytes, wanted: bytes | None, offset: int, group: str, version: int) -> None:
        found = self._store.stored(family, key)
        if found != wanted:
            self._found(offset, group, version, f"{family}: {_shown(key)} is not as written", _shown(wanted),
                        _shown(found))  # fmt: skip

    def _count_rows(self, group: str, version: int) -> None:
        """Look for row states that no commit wrote, and for newest ones that are not the newest of their row."""
        states, last = 0, None
        newest, told = self._store.newest(group), self._wrong_latest
        wrong: bytes | None = None
        for place, row in self._store.history(group, version):
            states += 1
            if place != last and wrong is None:
                found = next(newest, None)
                if found is None or found[0] != place or (found[1] != row and (group, place) not in told):
                    wrong = place
            last = place
        if wrong is None and (more := next(newest, None)) is not None:
            wrong = more[0]
        head = self._store.head(group)
        if head is None or head.version != version:
            return  # the store moved on
        if self._rows[group] != states:
            self._found(-1, group, version, "the store holds row states that the log does not, or lacks some",
                        str(self._rows[group]), str(states))  # fmt: skip
        if wrong is not None:
            self._found(-1, group, version, f"latest: of {_shown(wrong)} it is not the newest state that stands there, "
                        "or one too many, or none")  # fmt: skip


class _Shadow:
    """A store in memory of what the fold asks it for, and nothing else."""

    next_commit_offset = next_outcome_offset = 0

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.groups: dict[str, GroupState] = {}
        self._branches: dict[tuple[str, int], Branch] = {}
        self._names: dict[tuple[str, str], int | None] = {}
        self._pending: dict[str, Pending | None] = {}

    def group_state(self, group: str) -> GroupState | None:
        return self.groups.get(group)

    def branch(self, group: str, name: str) -> Branch | None:
        branch_id = self._names.get((group, name))
        return None if branch_id is None else self.branch_by_id(group, branch_id)

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        return self._branches.get((group, branch_id))

    def pending(self, group: str) -> Pending | None:
        return self._pending.get(group)

    def piece(self, group: str, version: int, piece: int) -> Piece | None:
        return None

    def decided(self, transaction_ids: Sequence[str]) -> list[bool]:
        return [False] * len(transaction_ids)

    def schema_text(self, schema_id: int) -> str | None:
        return None

    def apply(self, fold: Fold) -> None:
        self.groups.update(fold.groups)
        self._branches.update(fold.branches)
        self._names.update(fold.names)
        self._pending.update(fold.pending)


class _Writes:
    """A batch that is not written anywhere."""

    def __init__(self) -> None:
        self.made: dict[tuple[str, bytes], bytes | None] = {}

    def put(self, key: bytes, value: bytes, column_family: Any) -> None:
        self.made[column_family, key] = value

    def delete(self, key: bytes, column_family: Any) -> None:
        self.made[column_family, key] = None


def _shown(value: bytes | None) -> str:
    return "nothing" if value is None else repr(value[:SHOWN_BYTES])
