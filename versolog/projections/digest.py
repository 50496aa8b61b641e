"""Digests that prove what a store holds: the same for a live store and for one rebuilt from the log.

All are SHA-256 over encodings that can be read in one way only. Rows alone make `rows_digest`, so that two places with
the same rows have the same one, whatever their history: a branch and what it was rolled back to. `group_digest` adds
all history: every state of every row on every branch, the refs, and the head of the hash chain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from versolog.projections import keys
from versolog.projections.rocks import unusable
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.streams.state import Row
from versolog.streams.versions import At, TimeRef, parse_ref, resolve_ref

_ENTRIES_AT_ONCE = 512


def rows_digest(view: View, at: At) -> bytes:
    """The digest of the rows at one place, table settings included: table, key and JSON of each, in order."""
    digest = _Digest(b"versolog rows 1")
    for table in view.tables(at, system=True):
        name = keys.text(table)
        for place, row in view.all_rows(at, table):
            if row.text is not None:
                digest.add(name + place, row.text)
    return digest.end()


def group_digest(store: Store, group: str, version: int | None = None) -> bytes:
    """The digest of a group up to `version` (default: its head; 0 where it did not exist yet).

    Raises StoreUnusable where what is read at the head is not the newest of the history.
    """
    head = store.head(group)
    upto = version if version is not None else head.version if head is not None else 0
    digest = _Digest(b"versolog group 1")
    digest.add(keys.text(group), keys.number(upto))
    entry = store.commit_entry(group, upto)
    digest.add(b"hash", b"" if entry is None else entry.hash)
    for name, kind, target in store.names_at(group, upto):
        digest.add(keys.text(kind) + keys.text(name), keys.number(target))
    for place, row in _checked(store, group, upto):
        digest.add(place, keys.number(row.version) + keys.number(row.committed_at) + (row.text or b""))
    return digest.end()


def store_digest(stores: Iterable[Store], *, time_ms: int | None = None) -> bytes:
    """The digest of all groups of all `stores`, as of a time (default: their heads), however they are spread."""
    return combined(
        (group, group_digest(store, group, version)) for store in stores for group, version in standing(store, time_ms)
    )


def combined(groups: Iterable[tuple[str, bytes]]) -> bytes:
    """One digest of the digests of groups, which may come in any order, from any number of workers."""
    digest = _Digest(b"versolog store 1")
    for name, of_group in sorted((keys.text(group), of_group) for group, of_group in groups):
        digest.add(name, of_group)
    return digest.end()


def version_named(store: Store, group: str, at: str | None, branch: str | None = None) -> int:
    """The version that `group_digest` takes for a reference: all there is without one, all up to a time.

    Raises what resolving `at` raises.
    """
    ref = None if at is None else parse_ref(at)
    place = resolve_ref(store, group, ref, branch)
    if isinstance(ref, TimeRef):
        return store.version_at(group, ref.time_ms)
    head = store.head(group)
    return head.version if ref is None and head is not None else place.version


def standing(store: Store, time_ms: int | None) -> Iterator[tuple[str, int]]:
    """The groups that existed then, with the version they were at."""
    for group, head in store.all_groups():
        version = head.version if time_ms is None else store.version_at(group, time_ms)
        if version:
            yield group, version


def _checked(store: Store, group: str, upto: int) -> Iterator[tuple[bytes, Row]]:
    """The history of a group, once it is seen that the newest state of each row is the one that reads get."""
    newest = store.newest(group)
    previous = None
    for place, row in store.history(group, upto):
        if place != previous:
            previous = place
            found = None
            for key, state in newest:
                if key == place:
                    found = state
                    break
                _refuse_without_history(store, group, state, upto)
            if found is None or found.version < row.version or (found.version <= upto and found != row):
                raise unusable(
                    store.path,
                    f"a row of group {group!r} was last changed by version {row.version}, and reads get "
                    + ("nothing" if found is None else f"what version {found.version} says"),
                    "damaged",
                )
        yield place, row
    for _, state in newest:
        _refuse_without_history(store, group, state, upto)


def _refuse_without_history(store: Store, group: str, state: Row, upto: int) -> None:
    """A newest state that no version up to `upto` wrote is of a later one, or of none."""
    if state.version <= upto:
        raise unusable(
            store.path,
            f"reads get a row of group {group!r} that version {state.version} is said to have written, and it has not",
            "damaged",
        )


class _Digest:
    """SHA-256 of a sequence of named values."""

    def __init__(self, domain: bytes) -> None:
        self._hash: Any = hashlib.sha256(domain + b"\0")
        self._parts: list[bytes] = []

    def add(self, name: bytes, value: bytes) -> None:
        """Each part is preceded by its length, so no two sequences look alike."""
        self._parts += (len(name).to_bytes(4, "big"), name, len(value).to_bytes(4, "big"), value)
        if len(self._parts) >= 4 * _ENTRIES_AT_ONCE:
            self._flush()

    def end(self) -> bytes:
        self._flush()
        result: bytes = self._hash.digest()
        return result

    def _flush(self) -> None:
        self._hash.update(b"".join(self._parts))
        self._parts.clear()
