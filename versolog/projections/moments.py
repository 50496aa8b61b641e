"""Moments: times at which all groups are read together, and the store-wide tags that name them.

A moment is closed: nothing more is committed at it or before it. A transaction has one committed_at, on whatever
partitions it is, so what stands at a moment shows it whole or not at all, wherever and whenever it is asked for.

A store-wide tag is a row like any other, of a group that is set apart for it: it has an author and a history, and
follows from the log like all else. What it names is the time that its commit has, or an earlier one that it says.
"""

from __future__ import annotations

import orjson

from versolog.schemas.errors import VersologError, refusal
from versolog.schemas.times import looks_like_time, micros_from_text
from versolog.streams.state import Row


def tagged_ms(row: Row) -> int | None:
    """The moment that a store-wide tag names, in milliseconds; None where the row is gone or does not say one."""
    if row.text is None:
        return None
    said = orjson.loads(row.text).get("at")
    if said is None:
        return row.committed_at
    return micros_from_text(said) // 1000 if isinstance(said, str) and looks_like_time(said) else None


def unknown_tag(name: str) -> VersologError:
    """What asking for a moment by a name that names none ends in."""
    return refusal("unknown-ref", f"{name!r} is no RFC 3339 time, and no tag of the whole store", ref=name)
