"""Keeping a table's checks: what a transaction changes is held against them before it is committed.

What a check needs to know of all other rows stands in system tables: who has each unique value, and each sum. Their rows
are changes of the commit like any other, so they are versioned, differ between branches and are replayed. They are
never merged, reverted or rolled back themselves: whatever changes rows, they follow from the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

import orjson

from versolog.schemas.documents import Document, to_bytes, to_text
from versolog.schemas.errors import VersologError, refusal
from versolog.streams.changes import Line
from versolog.streams.checks import Check, Range, Required, Sum, Unique, read_checks, spelled, total
from versolog.streams.fields import EXACT
from versolog.streams.state import SETTINGS_TABLE, SUMS_TABLE, UNIQUE_TABLE

ROWS_MAX = 100_000
"""In a table when it is given a check, deleted ones counted: all of them are looked at at once."""


class Changed(NamedTuple):
    """A row before and after the transaction; None where there is none."""

    before: Document | None
    after: Document | None


Rows = Mapping[str, Changed]
"""By key."""


def keep_checks(line: Line) -> None:
    """Refuse as `check-failed` what breaks a check of a changed table, and have the system tables follow the rows.

    Costs the rows that were changed; where a check is new to the line, the rows of its table.
    """
    if not line.has_settings:
        return
    keys: dict[str, list[str]] = {}
    for table, key in line.changed:
        keys.setdefault(table, []).append(key)
    given = keys.pop(SETTINGS_TABLE, [])
    for table in sorted({*keys, *given}):
        after = _checks(line.text(SETTINGS_TABLE, table))
        before = _checks(line.text_before(SETTINGS_TABLE, table)) if table in given else after
        if before or after:
            _Keeping(line, table, keys.get(table, [])).keep(before, after)


def sums_now(line: Line, table: str, checks: Mapping[str, Check]) -> dict[str, str]:
    """What the field of each sum adds up to in all rows. Raises the refusal of a row whose value can't be added."""
    keeping = _Keeping(line, table, [])
    return {
        name: plain(total(keeping.deltas(name, check, keeping.whole_table()).values()))
        for name, check in checks.items()
        if isinstance(check, Sum)
    }


class _Keeping:
    """One table's checks, and the rows of it that were changed."""

    def __init__(self, line: Line, table: str, keys: list[str]) -> None:
        self._line, self._table, self._keys = line, table, keys
        self._changed: Rows | None = None
        self._whole: Rows | None = None

    def keep(self, before: Mapping[str, Check], after: Mapping[str, Check]) -> None:
        """Hold the rows to `after`; those that stand are as `before` had them."""
        for name, check in before.items():
            if isinstance(check, Sum) and after.get(name) != check:
                self._line.derived[SUMS_TABLE, self._sum_entry(name)] = None
        for name, check in after.items():
            lasts = before.get(name) == check
            rows = self.changed_rows() if lasts else self.whole_table()
            match check:
                case Required() | Range():
                    self._check_rows(name, check, rows)
                case Unique():
                    self._keep_unique(name, check, rows)
                case Sum():
                    self._keep_sum(name, check, rows, lasts=lasts)

    # Rows

    def changed_rows(self) -> Rows:
        """The rows that the transaction changes."""
        if self._changed is None:
            places = [(self._table, key) for key in self._keys]
            before = self._line.texts_before(places)
            self._changed = {
                key: Changed(_document(text), _document(self._line.changed[self._table, key]))
                for key, text in zip(self._keys, before, strict=True)
            }
        return self._changed

    def whole_table(self) -> Rows:
        """Every row as it will stand, as if none had been there before."""
        if self._whole is None:
            rows = self._line.rows(self._table, ROWS_MAX)
            if rows is None:
                raise refusal(
                    "too-large", f"{self._table!r} has over {ROWS_MAX:,} rows, deleted ones counted: too many to be "
                    "given a check", group=self._line.group, table=self._table, limit=ROWS_MAX,
                )  # fmt: skip
            self._whole = {key: Changed(None, orjson.loads(text)) for key, text in rows.items()}
        return self._whole

    def _check_rows(self, name: str, check: Required | Range, rows: Rows) -> None:
        for key, row in rows.items():
            if row.after is not None and (fault := check.fault(row.after)) is not None:
                raise self._failed(name, key, fault)

    # What is unique

    def _keep_unique(self, name: str, check: Unique, rows: Rows) -> None:
        left: set[str] = set()
        taken: dict[str, str] = {}
        for key, row in rows.items():
            before, after = (None if side is None else check.value_of(side) for side in row)
            if before == after:
                continue
            if before is not None:
                left.add(before)
            if after is not None and taken.setdefault(after, key) != key:
                raise self._twice(name, check, key, taken[after])
        entries = {value: (UNIQUE_TABLE, self._unique_entry(name, value)) for value in taken}
        owners = self._line.texts_before(list(entries.values()))
        for (value, key), owner in zip(taken.items(), owners, strict=True):
            other = None if owner is None else orjson.loads(owner)["key"]
            if other == key:
                continue
            if other is not None and self._has(other, check, value):
                raise self._twice(name, check, key, other)
            self._line.derived[entries[value]] = to_bytes({"key": key})
        for value in sorted(left - taken.keys()):
            self._line.derived[UNIQUE_TABLE, self._unique_entry(name, value)] = None

    def _has(self, key: str, check: Unique, value: str) -> bool:
        """Whether the row has the value after all. An entry may be left from a check that was taken away, or the row
        have another value by now: what the rows say goes."""
        text = self._line.text(self._table, key)
        return text is not None and check.value_of(orjson.loads(text)) == value

    def _twice(self, name: str, check: Unique, key: str, other: str) -> VersologError:
        fields = ", ".join(map(spelled, check.fields))
        verb = "is" if len(check.fields) == 1 else "are"
        return self._failed(name, key, f"{fields} {verb} the same as in the row {other!r}", other=other)

    def _unique_entry(self, name: str, value: str) -> str:
        return to_text([self._table, name, value])

    # What adds up

    def _keep_sum(self, name: str, check: Sum, rows: Rows, *, lasts: bool) -> None:
        place = (SUMS_TABLE, self._sum_entry(name))
        before = Decimal(0)
        if lasts:
            stored = self._line.text_before(*place)
            assert stored is not None, f"the sum {name!r} of {self._table!r} is not where it was kept"
            before = Decimal(orjson.loads(stored)["sum"])
        deltas = self.deltas(name, check, rows)
        after = EXACT.add(before, total(deltas.values()))
        if not check.bounds.hold(after):
            raise self._beyond(name, check, after, deltas)
        if not lasts or after != before:
            self._line.derived[place] = to_bytes({"sum": plain(after)})

    def _beyond(self, name: str, check: Sum, after: Decimal, deltas: Mapping[str, Decimal]) -> VersologError:
        """The refusal, which names the row that did the most for it."""
        most = check.bounds.most
        choose = max if most is not None and after > most else min
        key = choose(deltas, key=lambda key: (deltas[key], key), default=None)
        why = f"{spelled(check.path)} of all rows would be {plain(after)}, not {check.bounds}"
        return self._failed(name, key, why, sum=plain(after))

    def deltas(self, name: str, check: Sum, rows: Rows) -> dict[str, Decimal]:
        """By key, what each row adds to the sum beyond what it added before."""
        deltas = {}
        for key, row in rows.items():
            before, after = (Decimal(0) if side is None else check.amount_of(side) for side in row)
            if after is None:
                what = f"{spelled(check.path)} can't be added: it is neither an integer nor a decimal in a string"
                raise self._failed(name, key, what)
            assert before is not None, "what stands was checked when it came"
            deltas[key] = EXACT.subtract(after, before)
        return deltas

    def _sum_entry(self, name: str) -> str:
        return to_text([self._table, name])

    # What is not kept

    def _failed(self, name: str, key: str | None, why: str, **facts: str) -> VersologError:
        facts = {"group": self._line.group, "table": self._table, "check": name, **facts}
        if key is None:
            return refusal("check-failed", f"{self._table!r} breaks its check {name!r}: {why}", **facts)
        detail = f"the row {key!r} of {self._table!r} breaks the check {name!r}: {why}"
        return refusal("check-failed", detail, key=key, **facts)


def plain(number: Decimal) -> str:
    """The number in digits, the same for equal ones."""
    return f"{number.normalize(EXACT):f}"


def _document(text: bytes | None) -> Document | None:
    return None if text is None else orjson.loads(text)


@lru_cache(maxsize=4_096)
def _checks(settings: bytes | None) -> Mapping[str, Check]:
    return {} if settings is None else read_checks(orjson.loads(settings))
