"""What stands where in a store: its column families, their keys (see `keys`) and their values.

| family | key | value |
| --- | --- | --- |
| rows | group, branch id, table, key, ~version | committed_at, JSON (nothing where the row was deleted) |
| latest | group, branch id, table, key | version, committed_at, JSON: the newest of `rows` |
| commits | group, version | entry, and the framed record where it is small |
| commits | group, version, piece | offset, hash, framed record: large ones and those in pieces |
| refs | h, group | head |
| refs | b, group, branch id | branch, deleted ones too |
| refs | l, group, name | branch id: the live branches |
| refs | t, group, name | version: the tags |
| refs | n, group, name, ~version | what the name became at that version |
| refs | r, group, branch id, ~version | a run of versions on that branch begins, or ends, here |
| refs | j, group, branch id, ~version | the version that was merged into the branch there |
| refs | p, group | the commit of which only the first pieces have come |
| transactions | transaction id | Avro body of its outcome |
| meta | a word | format, identity, offsets, checkpoint, schemas |

`~` is descending: the newest comes first, so that what stood at a version is the first key at or after it. `latest` is
there because most reads want the newest state: a look-up with a Bloom filter in place of a seek, and a scan that never
meets old versions. Measured over 10,000 rows and a million commits: a look-up takes 3 to 7 µs, 2.5 where there is no
row, a seek 5 to 17; a scan 1 to 3 µs a row at the head, and 7 at a version in the middle. It costs 0.6 µs a change.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from versolog.projections.keys import beginning, descending, number, text
from versolog.schemas.codec import Record
from versolog.streams.state import Branch, Head, Row, Step

ROWS, LATEST, COMMITS, REFS, TRANSACTIONS, META = FAMILIES = (
    "rows",
    "latest",
    "commits",
    "refs",
    "transactions",
    "meta",
)

HEADS = b"h"
"""What the keys of groups' heads start with, in `refs`."""
INLINE_BYTES_MAX = 4_096
"""A record up to this size stands in the commit's entry; larger ones apart, so that searching entries stays quick."""


class GroupState(NamedTuple):
    """A group as it stands, with what folding its next commit must know."""

    head: Head
    branch: int
    """The id of the branch that the newest commit names."""
    transaction_offset: int
    live: bool
    """False while the group is dropped."""


class Pending(NamedTuple):
    """A commit of which only the first pieces have come."""

    version: int
    piece: int
    hash: bytes
    refs: list[Record]
    """The ref changes of these pieces."""


class Entry(NamedTuple):
    """A commit in the index."""

    step: Step
    hash: bytes
    offset: int
    """In the commits topic; of its last piece, as the hash is."""
    pieces: int
    value: bytes
    """The framed record; empty where it stands apart."""


class Piece(NamedTuple):
    """One record of a commit, as it stands in the commits topic."""

    offset: int
    hash: bytes
    value: bytes


# Rows


def row_prefix(group: str, branch: int, table: str) -> bytes:
    """What the keys of a table on one branch start with, in `rows` and in `latest`."""
    return text(group) + number(branch) + text(table)


def row_value(version: int, committed_at: int, row: bytes) -> bytes:
    """A value of `latest`; without its first 8 bytes, one of `rows`."""
    return _LATEST.pack(version, committed_at) + row


def read_latest(value: bytes) -> Row:
    """The row in a value of `latest`."""
    version, committed_at = _LATEST.unpack_from(value)
    return Row(version, committed_at, value[16:] or None)


def read_row(version: int, value: bytes) -> Row:
    """The row in a value of `rows`."""
    return Row(version, int.from_bytes(value[:8], "big"), value[8:] or None)


# Commits


def commit_key(group: str, version: int) -> bytes:
    """The key of a commit's entry."""
    return text(group) + number(version)


def piece_key(group: str, version: int, piece: int) -> bytes:
    """The key of a record that stands apart from its entry."""
    return text(group) + number(version) + piece.to_bytes(4, "big")


def entry_value(
    branch: int, parents: Sequence[int], tip: int, committed_at: int, operation: str,
    hash_: bytes, offset: int, pieces: int, value: bytes,
) -> bytes:  # fmt: skip
    """A commit's entry; the first five are its `Step`, which folding has no other use for."""
    name = operation.encode()
    head = _ENTRY.pack(hash_, offset, branch, tip, committed_at, pieces, len(parents), len(name))
    before = number(parents[0]) if len(parents) == 1 else b"".join(map(number, parents))
    return head + before + name + value


def read_entry(version: int, value: bytes) -> Entry:
    """The entry in a value of `commits`."""
    hash_, offset, branch, tip, committed_at, pieces, parents_count, operation_size = _ENTRY.unpack_from(value)
    start = _ENTRY.size
    end = start + 8 * parents_count
    parents = struct.unpack_from(f">{parents_count}q", value, start) if parents_count else ()
    operation = value[end : end + operation_size].decode()
    step = Step(version, branch, parents, tip, committed_at, operation)
    return Entry(step, hash_, offset, pieces, value[end + operation_size :])


def read_committed_at(value: bytes) -> int:
    """The committed_at in a value of `commits`, without reading the rest."""
    return int.from_bytes(value[56:64], "big")


def piece_value(piece: Piece) -> bytes:
    """A record that stands apart."""
    return _PIECE.pack(piece.offset, piece.hash) + piece.value


def read_piece(value: bytes) -> Piece:
    """The record in a value of `commits` under a piece's key."""
    offset, hash_ = _PIECE.unpack_from(value)
    return Piece(offset, hash_, value[_PIECE.size :])


# Refs


def head_key(group: bytes) -> bytes:
    """The key of the head of a group, which is given as the element of a key."""
    return HEADS + group


def head_value(state: GroupState) -> bytes:
    """A group's state."""
    head = state.head
    return _HEAD.pack(
        head.version, head.hash, head.committed_at, head.settings, state.branch, state.transaction_offset, state.live
    )


def read_head(value: bytes) -> GroupState:
    """The state in a head's value."""
    version, hash_, committed_at, settings, branch, transaction_offset, live = _HEAD.unpack(value)
    return GroupState(Head(version, hash_, committed_at, settings), branch, transaction_offset, live)


def branch_key(group: bytes, branch: int) -> bytes:
    """The key of a branch by its id; the group is given as the element of a key."""
    return branch_prefix(group) + number(branch)


def branch_prefix(group: bytes) -> bytes:
    """What the keys of all branches of a group start with."""
    return b"b" + group


def branch_value(branch: Branch) -> bytes:
    """A branch, but for its id."""
    return _BRANCH.pack(branch.head, branch.parent or 0, branch.fork, branch.live) + branch.name.encode()


def read_branch(branch_id: int, value: bytes) -> Branch:
    """The branch in a value; ids begin at 1, so 0 is no parent."""
    head, parent, fork, live = _BRANCH.unpack_from(value)
    return Branch(branch_id, value[_BRANCH.size :].decode(), head, parent or None, fork, live)


def live_key(group: str, name: str = "") -> bytes:
    """The key of a live branch by name; without a name, what all those of the group start with."""
    return b"l" + text(group) + (text(name) if name else b"")


def tag_key(group: str, name: str = "") -> bytes:
    """The key of a tag; without a name, what all those of the group start with."""
    return b"t" + text(group) + (text(name) if name else b"")


def name_prefix(group: str, name: str = "") -> bytes:
    """What the keys of a name's history start with; without a name, those of all names of the group."""
    return b"n" + text(group) + (text(name) if name else b"")


def name_value(kind: str, target: int) -> bytes:
    """What a name became: a branch's id or a tag's version, 0 where it was deleted."""
    return kind[:1].encode() + number(target)


def read_name(value: bytes) -> tuple[str, int]:
    """The kind (branch or tag) and the target in a value of a name's history."""
    return "branch" if value[:1] == b"b" else "tag", int.from_bytes(value[1:], "big")


def run_prefix(group: str, branch: int) -> bytes:
    """What the keys of the runs of a branch start with."""
    return b"r" + text(group) + number(branch)


def run_key(group: str, branch: int, version: int) -> bytes:
    """The key of the beginning, or the end, of a run of versions that name the branch."""
    return run_prefix(group, branch) + descending(version)


RUN_BEGINS, RUN_ENDS = b"b", b"e"


def join_prefix(group: str, branch: int) -> bytes:
    """What the keys of the merges into a branch start with."""
    return b"j" + text(group) + number(branch)


def join_key(group: str, branch: int, version: int) -> bytes:
    """The key of a merge into a branch; its value is the other version, as a number."""
    return join_prefix(group, branch) + descending(version)


def pending_key(group: str) -> bytes:
    """The key of a group's unfinished commit."""
    return b"p" + text(group)


def pending_value(pending: Pending) -> bytes:
    """An unfinished commit."""
    return _PENDING.pack(pending.version, pending.piece, pending.hash) + orjson.dumps(pending.refs)


def read_pending(value: bytes) -> Pending:
    """The unfinished commit in a value."""
    version, piece, hash_ = _PENDING.unpack_from(value)
    return Pending(version, piece, hash_, orjson.loads(value[_PENDING.size :]))


# Meta

FORMAT_KEY = b"format"
IDENTITY_KEY = b"identity"
PARTITION_KEY = b"partition"
COMMITS_KEY = b"next-commit-offset"
OUTCOMES_KEY = b"next-outcome-offset"
CHECKPOINT_KEY = b"checkpoint"
SCHEMA_PREFIX = b"schema"


def schema_key(schema_id: int) -> bytes:
    """The key of the text of a schema that records in `commits` are written with."""
    return SCHEMA_PREFIX + schema_id.to_bytes(4, "big")


def groups_from(start: str) -> bytes:
    """Where the heads of the groups from `start` on begin."""
    return HEADS + beginning(start)


_LATEST = struct.Struct(">qq")
_ENTRY = struct.Struct(">32sqqqqIBH")
_PIECE = struct.Struct(">q32s")
_HEAD = struct.Struct(">q32sqqqq?")
_BRANCH = struct.Struct(">qqq?")
_PENDING = struct.Struct(">qI32s")
