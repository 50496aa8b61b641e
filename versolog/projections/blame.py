"""Who set each field of a row to what it is: the commit that did, not the merges that brought it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from versolog.projections.views import View
from versolog.schemas.codec import Record
from versolog.schemas.documents import Document
from versolog.streams.state import Row
from versolog.streams.versions import At, joined_at

Path = tuple[str, ...]

_DELETED = object()


class Blame(NamedTuple):
    """Who set one field of a row to what it is."""

    path: Path
    """Empty for a row without fields."""
    value: Any
    version: int
    heading: Record


def blame(view: View, at: At, table: str, key: str) -> list[Blame]:
    """For each field of the row the commit that set it to what it is, by path; nothing for an absent row.

    Maps are taken apart, lists and other values are whole. A value that a merge took from the side it merged is
    followed there, where its first parent had another. Costs the row's versions back to the oldest of these.
    """
    row = view.row(at, table, key)
    fields = _leaves(row)
    found: dict[Path, int] = {}
    open_ = [(at, fields)] if row is not None else []
    while open_:
        place, wanted = open_.pop()
        for version, paths in _changed_at(view, place, table, key, wanted).items():
            values = {path: fields[path] for path in paths}
            followed = _followed(view, at.group, version, table, key, values)
            if followed is not None:
                open_.append(followed)
            taken = () if followed is None else followed[1]
            found.update((path, version) for path in paths if path not in taken)
    headings = {version: view.heading(at.group, version) for version in set(found.values())}
    return [Blame(path, fields[path], found[path], headings[found[path]]) for path in sorted(found)]


def _changed_at(view: View, at: At, table: str, key: str, wanted: Mapping[Path, Any]) -> dict[int, list[Path]]:
    """By version, which of the values, all of which the row has at `at`, came with it on the way of that read."""
    found: dict[int, list[Path]] = {}
    states = view.states(at, table, key)
    newest, open_ = next(states), set(wanted)
    version = newest.version
    for state in states:
        earlier = _leaves(state)
        came = {path for path in open_ if not _same(earlier.get(path, _DELETED), wanted[path])}
        if came:
            found[version] = sorted(came)
            open_ -= came
        if not open_:
            return found
        version = state.version
    found[version] = sorted(open_)
    return found


def _followed(
    view: View, group: str, version: int, table: str, key: str, values: Mapping[Path, Any]
) -> tuple[At, dict[Path, Any]] | None:
    """The other side of a merge, and which of the values stood there; None where there is no such side, or value."""
    step = view.store.step(group, version)
    other = None if step is None else joined_at(step)
    if other is None:
        return None
    there = view.resolve(group, str(other))
    leaves = _leaves(view.row(there, table, key))
    taken = {path: value for path, value in values.items() if _same(leaves.get(path, _DELETED), value)}
    return (there, taken) if taken else None


def _leaves(row: Row | None) -> dict[Path, Any]:
    """The values of a row by path, maps taken apart; an empty map is a value. Nothing for a row that is absent."""
    if row is None or row.text is None:
        return {}
    document: Document = orjson.loads(row.text)
    leaves: dict[Path, Any] = {}
    open_: list[tuple[Path, Any]] = [((), document)]
    while open_:
        path, value = open_.pop()
        if isinstance(value, dict) and value:
            open_ += [((*path, name), item) for name, item in value.items()]
        else:
            leaves[path] = value
    return leaves


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; unlike Python, JSON tells true from 1, and 1 from 1.0."""
    return one is not _DELETED and orjson.dumps(one) == orjson.dumps(other)
