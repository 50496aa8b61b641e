"""One partition's state in RocksDB: every row at every version, commits, refs and outcomes, and how far it has come.

Any thread may read at any time. One thread at a time may fold; what it writes becomes visible in one step, rows before
heads. Rows at a version never change, so whoever has resolved a version reads the same however long that takes, and
needs no snapshot.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from versolog.projections import keys, layout
from versolog.projections.evolve import Fold
from versolog.projections.headings import Headings
from versolog.projections.layout import Entry, GroupState, Pending, Piece
from versolog.projections.recent import Recent
from versolog.projections.rocks import Cursor, Memory, Rocks, StoreUnusable, unusable
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import Malformed, Misconfigured
from versolog.streams.state import Branch, Head, Join, Level, Row, Step

GROUPS_CACHED_MAX = 16_384
BRANCHES_CACHED_MAX = 16_384
STEPS_CACHED_MAX = 1_024
CHECKPOINTS_AHEAD_MAX = 1_000

_COMMIT = avro.schema("Commit")
_CHECKPOINT = avro.schema("Checkpoint")
# Outcomes and the checkpoint stand in the store without the id of their schema, so another schema is another format.
_FORMAT = "1 " + avro.schema("Outcome").fingerprint.hex() + " " + _CHECKPOINT.fingerprint.hex()


class CommitEntry(NamedTuple):
    """A commit as it came: its place in the graph, its hash, and its records, one but for large ones."""

    step: Step
    hash: bytes
    pieces: list[Piece]

    @property
    def offset(self) -> int:
        """Where its first record stands in the commits topic."""
        return self.pieces[0].offset


class Store:
    """The state of one partition: `State` for deciding, and what reading at a version needs besides."""

    def __init__(self, rocks: Rocks, codec: Codec | None) -> None:
        """Use `open`."""
        self._rocks = rocks
        self.path = rocks.path
        kept = _KeptSchemas(rocks)
        self.codec = codec if codec is not None else Codec(kept)
        for schema_id, text in kept.all():
            self.codec.learn(schema_id, text)
        self._headings = Headings(self.codec)
        self._groups: Recent[str, GroupState] = Recent(GROUPS_CACHED_MAX)
        self._branches: Recent[tuple[str, int], Branch] = Recent(BRANCHES_CACHED_MAX)
        self._names: Recent[tuple[str, str], int] = Recent(BRANCHES_CACHED_MAX)
        self._steps: Recent[tuple[str, int], Step] = Recent(STEPS_CACHED_MAX)  # many rows are read at one old version
        self._pending = _unfinished(rocks)
        self._kept_schemas: set[int] = set()
        meta = layout.META
        self.partition = _number(rocks.get(meta, layout.PARTITION_KEY))
        self.identity = _text(rocks.get(meta, layout.IDENTITY_KEY))
        self.next_commit_offset = _number(rocks.get(meta, layout.COMMITS_KEY))
        self.next_outcome_offset = _number(rocks.get(meta, layout.OUTCOMES_KEY))
        checkpoint = rocks.get(meta, layout.CHECKPOINT_KEY)
        self.checkpoint: Record | None = None if checkpoint is None else avro.decode(_CHECKPOINT, checkpoint)
        self.covered_checkpoint: Record | None = None
        """The newest one before which all commits are here: of the two topics, outcomes can be read further than commits."""
        self._ahead: deque[Record] = deque()
        """The checkpoints after it, in order."""
        self._reached(self.checkpoint)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        partition: int | None = None,
        codec: Codec | None = None,
        memory: Memory | None = None,
        identity: str | None = None,
        read_only: bool = False,
        write_ahead: bool = True,
    ) -> Self:
        """The store in the directory `path`, made if it isn't there.

        A store belongs to one `partition` of one log, the `identity`, which it keeps when it's first opened with them.
        `codec` reads the commits; without one the schemas kept in the store serve, which is enough to read it.
        Without `write_ahead` folds are quicker, and none is kept before `flush`: for a store that is made again, and not
        gone on with, if its making ends early.
        Raises StoreLocked, StoreUnusable where it must be made again, and Misconfigured.
        """
        rocks = Rocks(path, memory or Memory(), read_only=read_only, write_ahead=write_ahead)
        try:
            _check_meta(rocks, layout.FORMAT_KEY, "format", _FORMAT.encode())
            if partition is not None:
                _check_meta(rocks, layout.PARTITION_KEY, "partition", keys.number(partition))
            if identity is not None:
                _check_meta(rocks, layout.IDENTITY_KEY, "log", identity.encode())
            return cls(rocks, codec)
        except BaseException:
            rocks.close()
            raise

    def close(self) -> None:
        """Let go of the directory. Reads under way end with Unavailable; closing twice is harmless."""
        self._rocks.close()

    @property
    def closed(self) -> bool:
        return self._rocks.closed

    @property
    def read_only(self) -> bool:
        return self._rocks.read_only

    # State

    def head(self, group: str) -> Head | None:
        state = self.group_state(group)
        return None if state is None else state.head

    def branch(self, group: str, name: str) -> Branch | None:
        branch_id = self._names.get((group, name))
        if branch_id is None:
            since = self._names.changes
            value = self._rocks.get(layout.REFS, layout.live_key(group, name))
            if value is None:
                return None
            branch_id = keys.read_number(value)
            self._names.add((group, name), branch_id, since)
        return self.branch_by_id(group, branch_id)

    def branch_by_id(self, group: str, branch_id: int) -> Branch | None:
        branch = self._branches.get((group, branch_id))
        if branch is None:
            since = self._branches.changes
            value = self._rocks.get(layout.REFS, layout.branch_key(keys.text(group), branch_id))
            if value is None:
                return None
            branch = layout.read_branch(branch_id, value)
            self._branches.add((group, branch_id), branch, since)
        return branch

    def branches(self, group: str) -> list[Branch]:
        prefix = layout.live_key(group)
        ids = [keys.read_number(value) for _, value in self._rocks.starting(layout.REFS, prefix)]
        found = (self.branch_by_id(group, branch_id) for branch_id in ids)
        return [branch for branch in found if branch is not None]

    def tag(self, group: str, name: str) -> int | None:
        value = self._rocks.get(layout.REFS, layout.tag_key(group, name))
        return None if value is None else keys.read_number(value)

    def tags(self, group: str) -> dict[str, int]:
        prefix = layout.tag_key(group)
        found = self._rocks.starting(layout.REFS, prefix)
        return {keys.read_text(key, len(prefix))[0]: keys.read_number(value) for key, value in found}

    def row(self, group: str, level: Level, table: str, key: str) -> Row | None:
        place = layout.row_prefix(group, level.branch, table) + keys.text(key)
        value = self._rocks.get(layout.LATEST, place)
        return None if value is None else self._as_of(place, value, level.upto)

    def commit(self, group: str, version: int) -> dict[str, Any] | None:
        entry = self.commit_entry(group, version)
        if entry is None:
            return None
        try:
            _, record = self.codec.read(entry.pieces[0].value, _COMMIT)
            for piece in entry.pieces[1:]:
                _, more = self.codec.read(piece.value, _COMMIT)
                for part in ("changes", "refs", "schemas"):
                    record[part] += more[part]
        except Malformed as error:
            raise StoreUnusable(f"version {version} of {group!r} can't be read: {error.detail}") from error
        return record

    def step(self, group: str, version: int) -> Step | None:
        step = self._steps.get((group, version))
        if step is None and (entry := self._entry(group, version)) is not None:
            step = entry.step
            self._steps.add((group, version), step, self._steps.changes)  # it stays as it is
        return step

    def line(self, group: str, name: str, upto: int) -> Level | None:
        prefix = layout.name_prefix(group, name)
        found = self._rocks.first(layout.REFS, prefix + keys.descending(upto), keys.end(prefix))
        kind, branch_id = layout.read_name(found[1]) if found is not None else ("branch", 0)
        if kind != "branch" or not branch_id:
            return None
        runs = layout.run_prefix(group, branch_id)
        run = self._rocks.first(layout.REFS, runs + keys.descending(upto), keys.end(runs))
        if run is not None:
            key, mark = run
            return Level(branch_id, upto if mark == layout.RUN_BEGINS else keys.read_descending(key, len(runs)))
        branch = self.branch_by_id(group, branch_id)
        assert branch is not None, (
            f"the name {name!r} of {group!r} was a branch {branch_id} that the store doesn't know"
        )
        return Level(branch_id, branch.fork)

    def joins(self, group: str, level: Level) -> Iterator[Join]:
        prefix = layout.join_prefix(group, level.branch)
        lower = prefix + keys.descending(level.upto)
        for key, value in self._rocks.between(layout.REFS, lower, keys.end(prefix)):
            yield Join(keys.read_descending(key, len(prefix)), keys.read_number(value))

    def version_at(self, group: str, time_ms: int) -> int:
        head = self.head(group)
        if head is None or head.committed_at <= time_ms:
            return 0 if head is None else head.version
        low, high = 0, head.version  # the answer is in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            value = self._rocks.get(layout.COMMITS, layout.commit_key(group, middle))
            assert value is not None, f"version {middle} of {group!r} is not in the commit index"
            if layout.read_committed_at(value) <= time_ms:
                low = middle
            else:
                high = middle
        return low

    def outcome(self, transaction_id: str) -> bytes | None:
        return self._rocks.get(layout.TRANSACTIONS, _id(transaction_id))

    # What reading needs besides

    def outcomes(self, transaction_ids: Sequence[str]) -> list[bytes | None]:
        """The Avro body of each transaction's outcome, None where it isn't decided."""
        return self._rocks.get_all(layout.TRANSACTIONS, [_id(transaction_id) for transaction_id in transaction_ids])

    def rows(self, group: str, level: Level, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        """As `row`, for many (table, key) at once."""
        prefixes = {table: layout.row_prefix(group, level.branch, table) for table in {table for table, _ in places}}
        wanted = [prefixes[table] + keys.text(key) for table, key in places]
        values = self._rocks.get_all(layout.LATEST, wanted)
        found = [None if value is None else layout.read_latest(value) for value in values]
        later = [index for index, row in enumerate(found) if row is not None and row.version > level.upto]
        if later:
            later.sort(key=wanted.__getitem__)
            past = self._rocks.cursor(layout.ROWS, keys.end(wanted[later[-1]]))
            for index in later:
                found[index] = _past_state(past, wanted[index], level.upto)
        return found

    def scan(self, group: str, level: Level, table: str, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, Row]]:
        """The rows at one level from key `lower` up to, not including, key `upper` (as bytes of a key), in order.

        Deleted rows are among them, with no text. A key's cost does not grow with its history.
        """
        prefix = layout.row_prefix(group, level.branch, table)
        size, upto = len(prefix), level.upto
        past: Cursor | None = None
        for key, value in self._rocks.between(layout.LATEST, prefix + lower, prefix + upper):
            row = layout.read_latest(value)
            if row.version > upto:
                past = past or self._rocks.cursor(layout.ROWS, prefix + upper)
                earlier = _past_state(past, key, upto)
                if earlier is None:
                    continue  # it came later
                row = earlier
            yield key[size:], row

    def table_rows(self, group: str, level: Level, table: str) -> Iterator[tuple[str, Row]]:
        """As `scan`, of all keys."""
        for place, row in self.scan(group, level, table, b"", keys.end(b"")):
            yield keys.only_text(place), row

    def versions(self, group: str, level: Level, table: str, key: str) -> Iterator[Row]:
        """What one level did to a row, the newest first: as many steps as there were changes."""
        prefix = layout.row_prefix(group, level.branch, table) + keys.text(key)
        lower = prefix + keys.descending(level.upto)
        for place, value in self._rocks.between(layout.ROWS, lower, keys.end(prefix)):
            yield layout.read_row(keys.read_descending(place, len(prefix)), value)

    def versions_anywhere(self, group: str, upto: int, table: str, key: str) -> Iterator[Row]:
        """What all branches that ever were did to a row up to version `upto`, the newest first. Costs a look-up for
        each branch, and what is taken."""
        prefix = layout.branch_prefix(keys.text(group))
        ids = [keys.read_number(found, len(prefix)) for found, _ in self._rocks.starting(layout.REFS, prefix)]
        row = keys.text(key)
        known = self._rocks.get_all(layout.LATEST, [layout.row_prefix(group, id_, table) + row for id_ in ids])
        levels = [Level(id_, upto) for id_, value in zip(ids, known, strict=True) if value is not None]
        return heapq.merge(*(self.versions(group, level, table, key) for level in levels), key=_age)

    def tables(self, group: str, branch: int) -> Iterator[str]:
        """The tables that the branch ever changed, one seek each."""
        prefix = keys.text(group) + keys.number(branch)
        lower, upper = prefix, keys.end(prefix)
        while (found := self._rocks.first(layout.LATEST, lower, upper)) is not None:
            table, end = keys.read_text(found[0], len(prefix))
            yield table
            lower = keys.end(found[0][:end])

    def name_at(self, group: str, name: str, upto: int) -> tuple[str, int] | None:
        """What a name was as of version `upto`, as `names_at` has it; None where it was nothing."""
        prefix = layout.name_prefix(group, name)
        then = self._rocks.first(layout.REFS, prefix + keys.descending(upto), keys.end(prefix))
        kind, target = layout.read_name(then[1]) if then is not None else ("", 0)
        return (kind, target) if target else None

    def names_at(self, group: str, upto: int) -> Iterator[tuple[str, str, int]]:
        """The branches and tags as of version `upto`: name, kind and the branch's id or the tag's version, by name."""
        prefix = layout.name_prefix(group)
        lower, upper = prefix, keys.end(prefix)
        while (found := self._rocks.first(layout.REFS, lower, upper)) is not None:
            name, end = keys.read_text(found[0], len(prefix))
            of_name = found[0][:end]
            lower = keys.end(of_name)
            then = self._rocks.first(layout.REFS, of_name + keys.descending(upto), lower)
            kind, target = layout.read_name(then[1]) if then is not None else ("", 0)
            if target:
                yield name, kind, target

    def history(self, group: str, upto: int) -> Iterator[tuple[bytes, Row]]:
        """Every row state that versions up to `upto` wrote, on all branches, with its key: what all reads stand on."""
        prefix = keys.text(group)
        for key, value in self._rocks.starting(layout.ROWS, prefix):
            version = keys.read_descending(key, len(key) - 8)
            if version <= upto:
                yield key[len(prefix) : -8], layout.read_row(version, value)

    def newest(self, group: str) -> Iterator[tuple[bytes, Row]]:
        """The newest state of every row, in the order and with the keys of `history`."""
        prefix = keys.text(group)
        for key, value in self._rocks.starting(layout.LATEST, prefix):
            yield key[len(prefix) :], layout.read_latest(value)

    def commit_entry(self, group: str, version: int) -> CommitEntry | None:
        """The commit with its records as they came."""
        entry = self._entry(group, version)
        if entry is None:
            return None
        pieces = (self.piece(group, version, piece, entry) for piece in range(1, entry.pieces + 1))
        return CommitEntry(entry.step, entry.hash, [piece for piece in pieces if piece is not None])

    def heading(self, group: str, version: int) -> Record | None:
        """The commit without its changes and what comes after them, so that its cost doesn't grow with them."""
        entry = self._entry(group, version)
        piece = None if entry is None else self.piece(group, version, 1, entry)
        return None if piece is None else self._headings.read(piece.value)

    def groups(self, *, start: str = "", limit: int) -> list[str]:
        """The names of up to `limit` groups from `start` on, by code point, without the dropped ones."""
        names: list[str] = []
        for key, value in self._rocks.between(layout.REFS, layout.groups_from(start), b"i"):
            if layout.read_head(value).live:
                names.append(keys.read_text(key, 1)[0])
                if len(names) == limit:
                    break
        return names

    def all_groups(self) -> Iterator[tuple[str, Head]]:
        """Every group there ever was, the dropped ones too, with its head."""
        for key, value in self._rocks.starting(layout.REFS, layout.HEADS):
            yield keys.read_text(key, 1)[0], layout.read_head(value).head

    def ref_keys(self) -> Iterator[bytes]:
        """Every key of `refs`: for who looks for what should not be there."""
        for key, _ in self._rocks.starting(layout.REFS, b""):
            yield key

    def stored(self, family: str, key: bytes) -> bytes | None:
        """What stands under a key of `layout`, past all caches: for who compares it with what should be there."""
        return self._rocks.get(family, key)

    def disk_bytes(self) -> int:
        """What the store's files take."""
        total = 0
        with suppress(FileNotFoundError):  # the directory goes while a store is made anew
            for file in self.path.iterdir():
                with suppress(FileNotFoundError):  # files come and go while it is written
                    total += file.stat().st_size
        return total

    # Writing

    def fold(self) -> Fold:
        """A write in the making; one at a time."""
        if self.read_only:
            raise Misconfigured(f"the store in {self.path} was opened for reading only", path=str(self.path))
        return Fold(self, self._rocks.batch(), self._rocks.handles)

    def flush(self) -> None:
        """Put what was folded into files."""
        self._rocks.flush()

    # What a fold asks of its target

    def group_state(self, group: str) -> GroupState | None:
        state = self._groups.get(group)
        if state is None:
            since = self._groups.changes
            value = self._rocks.get(layout.REFS, layout.head_key(keys.text(group)))
            if value is None:
                return None
            state = layout.read_head(value)
            self._groups.add(group, state, since)
        return state

    def pending(self, group: str) -> Pending | None:
        return self._pending.get(group)

    def piece(self, group: str, version: int, piece: int, entry: Entry | None = None) -> Piece | None:
        if entry is None:
            entry = self._entry(group, version)
        if entry is not None and entry.value:
            return Piece(entry.offset, entry.hash, entry.value) if piece == 1 else None
        value = self._rocks.get(layout.COMMITS, layout.piece_key(group, version, piece))
        return None if value is None else layout.read_piece(value)

    def decided(self, transaction_ids: Sequence[str]) -> list[bool]:
        return [outcome is not None for outcome in self.outcomes(transaction_ids)]

    def schema_text(self, schema_id: int) -> str | None:
        if schema_id in self._kept_schemas:
            return None
        if self._rocks.get(layout.META, layout.schema_key(schema_id)) is not None:
            self._kept_schemas.add(schema_id)
            return None
        return self.codec.schema_of(schema_id).text

    def apply(self, fold: Fold) -> None:
        self._branches.begin(fold.branches)
        self._names.begin(fold.names)
        self._rocks.write(fold.batch)
        for group, pending in fold.pending.items():
            if pending is None:
                self._pending.pop(group, None)
            else:
                self._pending[group] = pending
        # Who sees a group's new head must see its branches there, and who sees the clock move on, the heads.
        self._branches.update(fold.branches)
        self._names.update(fold.names)
        self._groups.update(fold.groups)
        self.next_commit_offset, self.next_outcome_offset = fold.next_commit_offset, fold.next_outcome_offset
        if fold.checkpoint_record is not None:
            self.checkpoint = fold.checkpoint_record
        self._reached(fold.checkpoint_record)

    def _reached(self, checkpoint: Record | None) -> None:
        """Take in where the store has come to."""
        ahead = self._ahead
        if checkpoint is not None:
            if len(ahead) == CHECKPOINTS_AHEAD_MAX:
                ahead.pop()  # far behind: who waits for it needs no steps on the way
            ahead.append(checkpoint)
        while ahead and ahead[0].get("commits_offset", 0) <= self.next_commit_offset:
            self.covered_checkpoint = ahead.popleft()

    def _entry(self, group: str, version: int) -> Entry | None:
        if not 0 < version <= keys.NUMBER_MAX:
            return None
        value = self._rocks.get(layout.COMMITS, layout.commit_key(group, version))
        return None if value is None else layout.read_entry(version, value)

    def _as_of(self, place: bytes, latest: bytes, upto: int) -> Row | None:
        """The row as of a version: its newest state where that is old enough, the one found by a seek otherwise."""
        row = layout.read_latest(latest)
        if row.version <= upto:
            return row
        found = self._rocks.first(layout.ROWS, place + keys.descending(upto), keys.end(place))
        if found is None:
            return None
        return layout.read_row(keys.read_descending(found[0], len(place)), found[1])


class _KeptSchemas:
    """The schemas that a store's records were written with, for reading it without the log."""

    def __init__(self, rocks: Rocks) -> None:
        self._rocks = rocks

    def id_of(self, schema: avro.Schema) -> int:
        raise Misconfigured(f"the schema {schema.name} can't be registered: the store was opened without a registry")

    def all(self) -> Iterator[tuple[int, str]]:
        prefix = layout.SCHEMA_PREFIX
        for key, text in self._rocks.starting(layout.META, prefix):
            yield int.from_bytes(key[len(prefix) :], "big"), text.decode()

    def text_of(self, schema_id: int) -> str:
        value = self._rocks.get(layout.META, layout.schema_key(schema_id))
        if value is None:
            raise Malformed(f"the store in {self._rocks.path} keeps no schema with id {schema_id}")
        return value.decode()


def _age(row: Row) -> int:
    """Sorts the newest first."""
    return -row.version


def _past_state(past: Cursor, place: bytes, upto: int) -> Row | None:
    """The state of the row at `place` as of a version; None where it came later."""
    found = past.at_or_after(place + keys.descending(upto))
    if found is None or found[0][:-8] != place:
        return None
    return layout.read_row(keys.read_descending(found[0], len(place)), found[1])


def _check_meta(rocks: Rocks, key: bytes, what: str, expected: bytes) -> None:
    found = rocks.get(layout.META, key)
    if found == expected:
        return
    if found is not None:
        raise unusable(rocks.path, f"it is of another {what}, {found!r} and not {expected!r}", what)
    if rocks.read_only:
        raise unusable(rocks.path, f"it does not say its {what}", what)
    rocks.put(layout.META, key, expected)


def _unfinished(rocks: Rocks) -> dict[str, Pending]:
    found = rocks.starting(layout.REFS, b"p")
    return {keys.read_text(key, 1)[0]: layout.read_pending(value) for key, value in found}


def _id(transaction_id: str) -> bytes:
    return transaction_id.encode(errors="surrogatepass")  # half a surrogate pair is in no id, and must not fail here


def _number(value: bytes | None) -> int:
    return 0 if value is None else keys.read_number(value)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
