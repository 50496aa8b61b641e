"""Writes down commits that follow on each other, without deciding anything: what the log would hold of some groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.engine import MemoryIds
from versolog.projections.store import Store
from versolog.schemas.codec import Codec, Record, encode, frame, schema
from versolog.streams.chain import commit_hash
from versolog.streams.state import NO_HASH

COMMIT = schema("Commit")
START_MS = 1_767_225_600_000

Changes = Mapping[tuple[str, str], str | None]
"""By table and key, the row as JSON; None where it's deleted."""


class Written(NamedTuple):
    """A record of the commits topic, as `Fold.commit` takes it."""

    offset: int
    value: bytes
    record: Record
    hash: bytes


@dataclass(slots=True)
class _Chain:
    version: int = 0
    hash: bytes = NO_HASH


def codec() -> Codec:
    """A codec for the records of scribes."""
    codec = Codec(MemoryIds())
    codec.id_of(COMMIT)
    return codec


def ref(kind: str, name: str, version: int | None, parent: int | None = None) -> Record:
    """A ref change."""
    return {"kind": kind, "name": name, "version": version, "parent": parent}


class Scribe:
    """The commits of one partition, in the order they're written."""

    def __init__(self) -> None:
        self.records: list[Written] = []
        self.clock = START_MS
        self._chains: dict[str, _Chain] = {}
        self._codec = codec()

    def version(self, group: str) -> int:
        """The newest version of the group."""
        return self._chain(group).version

    def write(
        self, group: str, changes: Changes, *, branch: str = "main", branch_id: int = 1,
        parents: Sequence[int] | None = None, pieces: int = 1, later_ms: int = 1, **fields: Any,
    ) -> list[Written]:  # fmt: skip
        """A commit of `changes` upon the version before; its records, one for each piece."""
        chain = self._chain(group)
        if parents is None:
            parents = [chain.version] if chain.version else []
        self.clock += later_ms
        chain.version += 1
        rows = [{"table": table, "key": key, "row": row} for (table, key), row in changes.items()]
        cuts = [rows[piece::pieces] for piece in range(pieces)]
        return [
            self._append(group, {
                "version": chain.version, "branch": branch, "branch_id": branch_id, "parents": list(parents),
                "committed_at": self.clock, "changes": cut, "piece": piece, "pieces": pieces,
                "refs": fields.get("refs", []) if piece == pieces else [],
                **{name: value for name, value in fields.items() if name != "refs"},
            })
            for piece, cut in enumerate(cuts, 1)
        ]  # fmt: skip

    def refs(self, group: str, *refs: Record, branch: str = "main", branch_id: int = 1, **fields: Any) -> list[Written]:
        """An operation on refs."""
        return self.write(group, {}, branch=branch, branch_id=branch_id, parents=[], refs=list(refs), **fields)

    def _chain(self, group: str) -> _Chain:
        return self._chains.setdefault(group, _Chain())

    def _append(self, group: str, fields: dict[str, Any]) -> Written:
        chain, offset = self._chain(group), 2 * len(self.records)  # offsets have gaps, as transactions leave them
        record: Record = {
            "group": group, "previous_hash": chain.hash, "transaction_id": f"tx-{offset}", "intent_hash": NO_HASH,
            "transaction_offset": offset, "sequence_offset": None, "others": [], "author": "ada", "message": "",
            "type": "", "occurred_at": None, "operation": "write", "arguments": "", "schemas": [], **fields,
        }  # fmt: skip
        if record["piece"] > 1:
            record["transaction_offset"] = self.records[-1].record["transaction_offset"]
        body = encode(COMMIT, record)
        chain.hash = commit_hash(COMMIT.fingerprint, body)
        written = Written(offset, frame(self._codec.id_of(COMMIT), body), record, chain.hash)
        self.records.append(written)
        return written


def fold(store: Store, records: Sequence[Written]) -> list[bool]:
    """Fold the records in one write; for each whether it was new."""
    making = store.fold()
    taken = [making.commit(offset=w.offset, value=w.value, record=w.record, hash=w.hash) for w in records]
    if records:
        making.offsets(commits=records[-1].offset + 1)
    making.write()
    return taken
