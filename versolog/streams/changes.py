"""What becomes of the changes that a transaction asks for: each row as it will stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

from versolog.schemas.codec import Record
from versolog.schemas.documents import (
    DECIMAL,
    INT64_MAX,
    INT64_MIN,
    Document,
    from_text,
    merge_patch,
    respelled,
    row_from_text,
    to_bytes,
)
from versolog.schemas.errors import NOT_OF_THE_TRANSACTION, VersologError, refusal
from versolog.schemas.limits import ROW_BYTES_MAX
from versolog.schemas.tables import TableSchema, misfit, table_schema
from versolog.streams.fields import EXACT
from versolog.streams.state import SETTINGS_TABLE, Level, State
from versolog.streams.versions import row_at, rows_at

class Line:
    """A branch of one group as the transaction at hand sees it: what stands there, and above it what it changes."""

    def __init__(self, state: State, group: str, levels: list[Level], *, has_settings: bool) -> None:
        self._state = state
        self.group = group
        self.levels = levels
        self.has_settings = has_settings
        """False where no table of the group was ever given anything, so that nobody need look."""
        self.changed: dict[tuple[str, str], bytes | None] = {}
        """The rows as they will stand, by table and key, in the order they were first changed; None is deleted."""
        self.derived: dict[tuple[str, str], bytes | None] = {}
        """The rows of system tables that follow from these, where the tables have checks."""

    def text(self, table: str, key: str) -> bytes | None:
        """The row's JSON, the transaction's own changes included; None where it is absent."""
        if (table, key) in self.changed:
            return self.changed[table, key]
        row = row_at(self._state, self.group, self.levels, table, key)
        return None if row is None else row.text

    def texts(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """As `text`, for many (table, key) at once."""
        rows = rows_at(self._state, self.group, self.levels, places)
        changed = self.changed
        return [changed.get(place, None if row is None else row.text) for place, row in zip(places, rows, strict=True)]

    def text_before(self, table: str, key: str) -> bytes | None:
        """The row's JSON without the transaction's own changes."""
        row = row_at(self._state, self.group, self.levels, table, key)
        return None if row is None else row.text

    def texts_before(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """As `text_before`, for many (table, key) at once."""
        rows = rows_at(self._state, self.group, self.levels, places) if places else []
        return [None if row is None else row.text for row in rows]

    def rows(self, table: str, rows_max: int) -> dict[str, bytes] | None:
        """Every row of a table by key, the transaction's own changes included; None where there are over `rows_max`,
        deleted ones counted."""
        found = {key: text for (of, key), text in self.changed.items() if of == table}
        for level in self.levels:
            for key, row in self._state.table_rows(self.group, level, table):
                found.setdefault(key, row.text)
                if len(found) > rows_max:
                    return None
        return {key: text for key, text in sorted(found.items()) if text is not None}

    def version(self, table: str, key: str) -> int:
        """The version that last changed the row, before this transaction; 0 where it is absent."""
        row = row_at(self._state, self.group, self.levels, table, key)
        return 0 if row is None or row.text is None else row.version

    def last_changed(self, place: tuple[str, str]) -> int:
        """The version that last changed the row before this transaction, by deleting it too; 0 where none ever did."""
        found = (self._state.row(self.group, level, *place) for level in self.levels)
        return next((row.version for row in found if row is not None), 0)

    def settings(self, table: str) -> Document:
        """What the table was given: a schema, merge functions, checks."""
        text = self.text(SETTINGS_TABLE, table) if self.has_settings else None
        return {} if text is None else row_from_text(text)

    def give(self, table: str, settings: Document) -> None:
        """Let the table have these settings. Raises TooLarge."""
        text = to_bytes(settings) if settings else None
        if text is not None and len(text) > ROW_BYTES_MAX:
            raise refusal(
                "too-large", f"what {table!r} is given has {len(text):,} bytes; the limit is {ROW_BYTES_MAX:,}",
                table=table, limit=ROW_BYTES_MAX,
            )  # fmt: skip
        self.changed[SETTINGS_TABLE, table] = text
        self.has_settings = True

    def schema(self, table: str) -> TableSchema | None:
        """The schema that the table's rows must fit."""
        text = self.text(SETTINGS_TABLE, table) if self.has_settings else None
        return None if text is None else _schema_in(text)

    def change(self, requested: Iterable[Record]) -> None:
        """Apply the requested changes in order. Raises the refusal of the first that can't be."""
        for request in requested:
            self._change(request["op"], request["table"], request["key"], request["row"])

    def check_schemas(self) -> list[Record]:
        """Refuse a changed row that does not fit its table's schema; answers the schemas that were met."""
        if not self.has_settings:
            return []
        met: dict[str, TableSchema] = {}
        for (table, key), text in self.changed.items():
            schema = met.get(table) or self.schema(table)
            if schema is None:
                continue
            met[table] = schema
            if text is not None and (found := misfit(schema, row_from_text(text))) is not None:
                path, reason = found
                raise refusal(
                    "schema-mismatch",
                    f"the row {key!r} does not fit the schema of {table!r} at {path or '/'}: {reason}",
                    group=self.group, table=table, key=key, path=path,
                )  # fmt: skip
        return [{"table": table, "fingerprint": schema.fingerprint} for table, schema in met.items()]

    def _change(self, op: str, table: str, key: str, argument: str | None) -> None:
        try:
            if op == "delete":
                if self.text(table, key) is not None:
                    self.changed[table, key] = None
                return
            if argument is None:
                raise refusal("malformed", f"{op} needs a row")
            if op == "put":
                text = respelled(argument)
            elif op == "patch":
                text = to_bytes(merge_patch(self._document(table, key), row_from_text(argument)))
            else:
                text = to_bytes(_sum(self._document(table, key), row_from_text(argument), ""))
        except NOT_OF_THE_TRANSACTION:
            raise
        except VersologError as error:
            facts = {"group": self.group, "table": table, "key": key, **error.facts}
            raise refusal(error.code, f"{op} of {key!r} in {table!r}: {error.detail}", **facts) from error
        if len(text) > ROW_BYTES_MAX:
            raise refusal(
                "too-large", f"the row {key!r} of {table!r} has {len(text):,} bytes; the limit is {ROW_BYTES_MAX:,}",
                group=self.group, table=table, key=key, limit=ROW_BYTES_MAX,
            )  # fmt: skip
        self.changed[table, key] = text

    def _document(self, table: str, key: str) -> Document:
        text = self.text(table, key)
        return {} if text is None else row_from_text(text)


@lru_cache(maxsize=4_096)
def _schema_in(settings: bytes) -> TableSchema | None:
    definition = from_text(settings).get("schema")
    return None if definition is None else table_schema(to_bytes(definition))


def _sum(base: Document, delta: Document, path: str) -> Document:
    """`base` with the numbers of `delta` added, field by field and recursively in objects."""
    total = dict(base)
    for name, amount in delta.items():
        total[name] = _added(base.get(name), amount, f"{path}/{name}")
    return total


def _added(base: Any, amount: Any, path: str) -> Any:
    if isinstance(amount, dict):
        if base is not None and not isinstance(base, dict):
            raise refusal("not-a-number", f"{path} is not an object", path=path)
        return _sum(base or {}, amount, path)
    if _is_int(amount) and (base is None or _is_int(base)):
        total = (base or 0) + amount
        if not INT64_MIN <= total <= INT64_MAX:
            raise refusal("overflow", f"{path} would be {total}, which does not fit 64 bits", path=path)
        return total
    exact = EXACT.add(_decimal(0 if base is None else base, path), _decimal(amount, path))
    text = format(exact, "f")
    if not DECIMAL.fullmatch(text):
        raise refusal("overflow", f"{path} would have more than 60 digits on a side of the point", path=path)
    return text


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _decimal(value: Any, path: str) -> Decimal:
    if _is_int(value):
        return Decimal(value)
    if isinstance(value, str) and DECIMAL.fullmatch(value):
        return Decimal(value)
    raise refusal(
        "not-a-number",
        f"{path} is {str(value)[:60]!r}; add is exact and takes 64-bit integers and decimal strings",
        path=path,
    )
