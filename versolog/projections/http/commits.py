"""Commits and differences as documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from versolog.projections.logs import graph_places
from versolog.projections.store import Store
from versolog.schemas.codec import Record
from versolog.schemas.documents import Document
from versolog.schemas.times import micros_to_text, millis_to_text
from versolog.streams.state import Row
from versolog.streams.versions import Difference

Json = dict[str, Any]


def about(record: Record) -> Json:
    """Who, when, why: what every mention of a commit says."""
    occurred_at = record["occurred_at"]
    return {
        "version": record["version"],
        "branch": record["branch"],
        "committed_at": millis_to_text(record["committed_at"]),
        "occurred_at": None if occurred_at is None else micros_to_text(occurred_at),
        "author": record["author"],
        "message": record["message"],
        "type": record["type"],
        "operation": record["operation"],
        "transaction_id": record["transaction_id"],
    }


def heading(store: Store, record: Record) -> Json:
    """A commit without its changes, as logs list it."""
    step = store.commit_entry(record["group"], record["version"])
    assert step is not None, "what is listed is in the index"
    arguments = record["arguments"]
    return {
        **about(record),
        "parents": record["parents"],
        "hash": step.hash.hex(),
        "previous_hash": record["previous_hash"].hex(),
        "arguments": orjson.loads(arguments) if arguments else None,
    }


def graphed(store: Store, group: str, records: list[Record]) -> list[Json]:
    """Commits as logs list them, each with its place in the drawn graph."""
    places = graph_places(store, group, records)
    return [
        {**heading(store, record), "graph": place._asdict()} for record, place in zip(records, places, strict=True)
    ]


def whole(store: Store, record: Record) -> Json:
    """A commit with all that it changed. Rows are put in as the text that they are."""
    entry = store.commit_entry(record["group"], record["version"])
    assert entry is not None, "the commit was read from there"
    return {
        "group": record["group"],
        **heading(store, record),
        "branch_id": record["branch_id"],
        "intent_hash": record["intent_hash"].hex(),
        "transaction_offset": record["transaction_offset"],
        "offset": entry.offset,
        "pieces": len(entry.pieces),
        "others": record["others"],
        "changes": [
            {"table": change["table"], "key": change["key"], "row": _row_text(change["row"])}
            for change in record["changes"]
        ],
        "refs": record["refs"],
        "schemas": [{"table": met["table"], "fingerprint": met["fingerprint"].hex()} for met in record["schemas"]],
    }


def difference(found: Difference) -> Json:
    """A row that differs, with the fields that do."""
    before, after = found.before, found.after
    return {
        "table": found.table,
        "key": found.key,
        "change": change_of(found),
        "before": None if before is None else _state(before),
        "after": None if after is None else _state(after),
        "fields": list(fields(_document(before), _document(after))),
    }


def change_of(found: Difference) -> str:
    """added, removed or changed."""
    if found.before is None:
        return "added"
    return "removed" if found.after is None else "changed"


def fields(before: Document, after: Document, path: tuple[str, ...] = ()) -> Iterator[Json]:
    """The fields that differ, by path: maps are gone into, lists are whole. A field that is absent has no member."""
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name, _ABSENT), after.get(name, _ABSENT)
        where = (*path, name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from fields(one, other, where)
        elif not _same(one, other):
            told: Json = {"path": where}
            if one is not _ABSENT:
                told["before"] = one
            if other is not _ABSENT:
                told["after"] = other
            yield told


_ABSENT: Any = object()


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: to Python 1, 1.0 and true are equal too."""
    if one is _ABSENT or other is _ABSENT:
        return False
    return one == other and orjson.dumps(one, option=_SORTED) == orjson.dumps(other, option=_SORTED)


_SORTED = orjson.OPT_SORT_KEYS


def _state(row: Row) -> Json:
    return {
        "version": row.version,
        "committed_at": millis_to_text(row.committed_at),
        "row": orjson.Fragment(row.text or b"null"),
    }


def _document(row: Row | None) -> Document:
    document: Document = {} if row is None or row.text is None else orjson.loads(row.text)
    return document


def _row_text(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)
