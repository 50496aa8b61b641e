"""Reading at a version: rows, ranges, histories and differences, as they stood at one exact place.

Every read takes an `At`, which `resolve` makes from what a caller says. What it answers at one `At` is the same for
ever, whatever is written meanwhile. Costs are in rows and commits answered, never in the length of the log.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from versolog.projections import keys
from versolog.projections.queries import Predicate
from versolog.projections.recent import Recent
from versolog.projections.store import Store
from versolog.schemas.codec import Record
from versolog.streams import graph, versions
from versolog.streams.state import Level, Row
from versolog.streams.versions import At, Difference, Touched

SCANNED_MAX = 2_000
SCANNED_BYTES_MAX = 4 * 1024 * 1024
"""Rows that one call looks at beyond its limit, some milliseconds, so that a `where` few rows fit holds up nobody."""
DIFF_CHANGES_MAX = 20_000
"""Changes between two places up to which the rows they name are compared; beyond it, whole tables are, side by side."""
WALKS_KEPT_MAX = 4
"""Differences, and commits, whose candidate rows are kept from one page to the next."""
COMPARED_AT_ONCE = 500

_EVERYTHING = b"\xff"


class Page(NamedTuple):
    """Rows in the order of their keys, deleted ones left out."""

    rows: list[tuple[str, Row]]
    cursor: str | None
    """The key to go on after; None at the end. There can be a cursor with fewer rows than the limit, or none."""
    scanned: int
    """How many rows were looked at."""


class Past(NamedTuple):
    """What one commit did to a row; the text is None where it was deleted."""

    row: Row
    heading: Record
    """The commit without its changes."""


class Pasts(NamedTuple):
    """The history of a row, the newest first."""

    changes: list[Past]
    before: int | None
    """The version to go on below; None at the end."""


class Differences(NamedTuple):
    """Rows that differ, by table and key."""

    rows: list[Difference]
    cursor: tuple[str, str] | None
    """The table and key to go on after; None at the end. There can be one with fewer rows than the limit, or none."""


class View:
    """Reads one store at a version. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._walks: Recent[tuple[str, int, int], Touched] = Recent(WALKS_KEPT_MAX)
        self._commits: Recent[tuple[str, int], list[tuple[str, str]]] = Recent(WALKS_KEPT_MAX)

    def resolve(self, group: str, at: str | None = None, branch: str | None = None) -> At:
        """The exact place that `at` names; see `versions.resolve`, whose errors it raises."""
        return versions.resolve(self.store, group, at, branch)

    def committed_at(self, at: At) -> int:
        """When the version that is read there was committed, in milliseconds."""
        step = self.store.step(at.group, at.version)
        return 0 if step is None else step.committed_at

    # Rows

    def row(self, at: At, table: str, key: str) -> Row | None:
        """The row; None where it's absent or deleted."""
        return versions.row_at(self.store, at.group, versions.levels_at(self.store, at), table, key)

    def rows(self, at: At, places: Sequence[tuple[str, str]]) -> list[Row | None]:
        """As `row`, for many (table, key) at once."""
        way = versions.levels_at(self.store, at)
        found = self.store.rows(at.group, way[0], places)
        for level in way[1:]:
            open_ = [index for index, row in enumerate(found) if row is None]
            below = self.store.rows(at.group, level, [places[index] for index in open_])
            for index, row in zip(open_, below, strict=True):
                found[index] = row
        return [None if row is None or row.text is None else row for row in found]

    def scan(
        self,
        at: At,
        table: str,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        after: str | None = None,
        limit: int,
        where: Predicate | None = None,
    ) -> Page:
        """Up to `limit` rows (at least 1), by key in code point order.

        Those whose keys begin with `prefix`, from `start` up to, not including, `end`. `after` is the cursor of the
        page before. `where` sees the row as a document.
        """
        rows: list[tuple[str, Row]] = []
        scanned, size, last = 0, 0, b""
        for place, row in self._scan(at, table, *_bounds(prefix, start, end, after)):
            if len(rows) == limit or scanned == limit + SCANNED_MAX or size >= SCANNED_BYTES_MAX:
                return Page(rows, keys.only_text(last), scanned)
            scanned, size, last = scanned + 1, size + len(row.text or b""), place
            if row.text is not None and (where is None or where(orjson.loads(row.text))):
                rows.append((keys.only_text(place), row))
        return Page(rows, None, scanned)

    def tables(self, at: At, *, system: bool = False) -> list[str]:
        """The tables that hold rows, by name; the system's own (`$…`) only where they're asked for."""
        way = versions.levels_at(self.store, at)
        names = sorted({name for level in way for name in self.store.tables(at.group, level.branch)})
        return [
            name
            for name in names
            if (system or not name.startswith("$")) and any(row.text is not None for _, row in self.all_rows(at, name))
        ]

    def all_rows(self, at: At, table: str) -> Iterator[tuple[bytes, Row]]:
        """Every row of a table by the bytes of its key, deleted ones too, without paging."""
        return self._scan(at, table, b"", _EVERYTHING)

    def _scan(self, at: At, table: str, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, Row]]:
        """The rows by the bytes of their keys, with those deleted at the level nearest to the branch."""
        way = versions.levels_at(self.store, at)
        if len(way) == 1:
            return self.store.scan(at.group, way[0], table, lower, upper)
        return _merged([self.store.scan(at.group, level, table, lower, upper) for level in way])

    # The past of a row

    def history(self, at: At, table: str, key: str, *, limit: int, before: int | None = None) -> Pasts:
        """What the commits up to `at` did to the row. Costs the versions of that row that it answers."""
        states = list(islice(self.states(at, table, key, before), limit + 1))
        changes = [Past(row, self.heading(at.group, row.version)) for row in states[:limit]]
        return Pasts(changes, states[limit - 1].version if len(states) > limit else None)

    def states(self, at: At, table: str, key: str, before: int | None = None) -> Iterator[Row]:
        """The row's states along the way of a read, the newest first, below version `before`."""
        for level in versions.levels_at(self.store, at):
            upto = level.upto if before is None else min(level.upto, before - 1)
            if upto > 0:
                yield from self.store.versions(at.group, Level(level.branch, upto), table, key)

    def heading(self, group: str, version: int) -> Record:
        """A commit that there is, without its changes."""
        heading = self.store.heading(group, version)
        assert heading is not None, f"version {version} of {group!r} is not in the commit index"
        return heading

    # Differences

    def diff(
        self,
        before: At,
        after: At,
        *,
        table: str | None = None,
        prefix: str | None = None,
        limit: int,
        cursor: tuple[str, str] | None = None,
    ) -> Differences:
        """The rows that differ between two places of one group; of one table, or with a key prefix, if they are given.

        Costs the changes since the places parted, or the rows of both where the changes are too many to go through.
        The system's own tables are left out, unless `table` names one.
        """
        walk = self._touched(before.group, before.version, after.version)
        if not walk.complete:
            return self._diff_by_scan(before, after, table, prefix, limit, cursor)
        return self._diff_of(before, after, sorted(walk.rows), table, prefix, limit, cursor)

    def changes(
        self,
        group: str,
        version: int,
        *,
        table: str | None = None,
        prefix: str | None = None,
        limit: int,
        cursor: tuple[str, str] | None = None,
    ) -> Differences:
        """The rows that a commit changed on its branch, as `diff` tells them; system tables' too. Costs its changes."""
        before, after = self.around(group, version)
        key = group, version
        candidates = self._commits.get(key)
        if candidates is None:
            record = self.store.commit(group, version)
            assert record is not None, f"version {version} of {group!r} is not in the commit index"
            candidates = sorted((change["table"], change["key"]) for change in record["changes"])
            self._commits.add(key, candidates, self._commits.changes)
        return self._diff_of(before, after, candidates, table, prefix, limit, cursor, system=True)

    def around(self, group: str, version: int) -> tuple[At, At]:
        """The place that a commit found and the one that it left; the first is version 0 where there was nothing."""
        step = self.store.step(group, version)
        assert step is not None, f"version {version} of {group!r} is not in the commit index"
        branch = self.store.branch_by_id(group, step.branch)
        assert branch is not None, f"version {version} of {group!r} is on a branch that the store doesn't know"
        after = At(group, branch.name, branch.id, version)
        if step.tip != version:
            return after, after  # an operation on refs changes no rows
        found = graph.found_by(self.store, group, step)
        return (after._replace(version=0) if found is None else self.resolve(group, str(found.version))), after

    def _diff_of(
        self, before: At, after: At, candidates: list[tuple[str, str]], table: str | None, prefix: str | None,
        limit: int, cursor: tuple[str, str] | None, *, system: bool = False,
    ) -> Differences:  # fmt: skip
        """Those of `candidates`, which are sorted, that differ."""
        rest = candidates if cursor is None else candidates[bisect_right(candidates, cursor) :]
        chosen = [
            row
            for row in rest
            if (row[0] == table if table is not None else system or not row[0].startswith("$"))
            and (prefix is None or row[1].startswith(prefix))
        ]
        found: list[Difference] = []
        for start in range(0, len(chosen), COMPARED_AT_ONCE):
            found += versions.diff(self.store, before, after, chosen[start : start + COMPARED_AT_ONCE])
            if len(found) > limit:
                page = found[:limit]
                return Differences(page, (page[-1].table, page[-1].key))
        return Differences(found, None)

    def _touched(self, group: str, before: int, after: int) -> Touched:
        """The rows that can differ. Kept for the next pages: between two versions it's the same for ever."""
        key = group, before, after
        walk = self._walks.get(key)
        if walk is None:
            walk = graph.differing(self.store, group, before, after, changes_max=DIFF_CHANGES_MAX)
            walk = walk if walk.complete else Touched(set(), complete=False)
            self._walks.add(key, walk, self._walks.changes)
        return walk

    def _diff_by_scan(
        self, before: At, after: At, table: str | None, prefix: str | None, limit: int, cursor: tuple[str, str] | None
    ) -> Differences:
        tables = [table] if table is not None else sorted({*self.tables(before), *self.tables(after)})
        found: list[Difference] = []
        scanned, last = 0, cursor or ("", "")
        for name in tables:
            if cursor is not None and name < cursor[0]:
                continue
            bounds = _bounds(prefix, None, None, cursor[1] if cursor is not None and name == cursor[0] else None)
            old, new = self._scan(before, name, *bounds), self._scan(after, name, *bounds)
            for place, one, other in _side_by_side(old, new):
                if len(found) == limit or scanned == limit + SCANNED_MAX:
                    return Differences(found, last)
                scanned, last = scanned + 1, (name, keys.only_text(place))
                if (one and one.text) != (other and other.text):
                    found.append(Difference(*last, _present(one), _present(other)))
        return Differences(found, None)


def _bounds(prefix: str | None, start: str | None, end: str | None, after: str | None) -> tuple[bytes, bytes]:
    """The range of a scan as bytes of keys: from the first up to, not including, the second."""
    lower = max(keys.beginning(prefix or ""), keys.text(start) if start is not None else b"")
    if after is not None:
        lower = max(lower, keys.text(after) + b"\0")
    upper = keys.end_of_beginning(keys.beginning(prefix)) if prefix else _EVERYTHING
    return lower, min(upper, keys.text(end)) if end is not None else upper


def _merged(levels: Iterable[Iterator[tuple[bytes, Row]]]) -> Iterator[tuple[bytes, Row]]:
    """The rows of several levels in order, each from the first level that knows it."""
    ranked = [_ranked(rank, level) for rank, level in enumerate(levels)]
    previous = None
    for place, _, row in heapq.merge(*ranked, key=itemgetter(0, 1)):
        if place != previous:
            previous = place
            yield place, row


def _ranked(rank: int, level: Iterator[tuple[bytes, Row]]) -> Iterator[tuple[bytes, int, Row]]:
    for place, row in level:
        yield place, rank, row


def _side_by_side(
    old: Iterator[tuple[bytes, Row]], new: Iterator[tuple[bytes, Row]]
) -> Iterator[tuple[bytes, Row | None, Row | None]]:
    """Each key of either, with its row in both."""
    one, other = next(old, None), next(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[0], one[1], None
            one = next(old, None)
        elif one is None or other[0] < one[0]:
            yield other[0], None, other[1]
            other = next(new, None)
        else:
            yield one[0], one[1], other[1]
            one, other = next(old, None), next(new, None)


def _present(row: Row | None) -> Row | None:
    return None if row is None or row.text is None else row
