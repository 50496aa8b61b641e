"""A table's schema: what rows it takes, which may follow which, and that no schema makes either take for ever."""

from __future__ import annotations

import json
from typing import Any

import pytest

from versolog.schemas import tables
from versolog.schemas.errors import TooLarge
from versolog.schemas.tables import TableSchema, incompatibility, misfit, table_schema


def record(name: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()], **more}


def made(definition: Any) -> TableSchema:
    return table_schema(json.dumps(definition).encode())


def deep(levels: int, end: Any) -> dict[str, Any]:
    return {"n": deep(levels - 1, end)} if levels else {"n": end}


def test_types_that_refer_to_themselves_are_held_against_a_row_once_for_each_place() -> None:
    """Each level of the row fits either record, or neither, as its end does."""
    one, other = (
        record("One", {"n": ["null", "One", "Other", "int"]}),
        record("Other", {"n": ["null", "One", "Other", "int"]}),
    )
    one["fields"][0]["type"] = ["null", "One", other, "int"]
    schema = made(record("R", {"n": ["null", one, "Other", "int"]}))
    assert misfit(schema, deep(100, 7)) is None
    assert misfit(schema, deep(100, None)) is None
    assert misfit(schema, deep(100, "no number")) is not None


def all_of_all(count: int, doc: str = "") -> dict[str, Any]:
    """Records that each have a field of every one."""
    names = [f"R{number}" for number in range(count)]
    records = [record(name, {other.lower(): ["null", other] for other in names}) for name in names]
    for number in range(count - 1):  # each next one is written out where it is first used
        records[-2 - number]["fields"][count - 1 - number]["type"] = ["null", records[-1 - number]]
    return records[0] | {"doc": doc}


def test_types_that_refer_to_each_other_are_compared_once_for_each_pair() -> None:
    assert incompatibility(made(all_of_all(20, "new")), made(all_of_all(20))) is None
    narrower = all_of_all(20, "narrower")
    deepest = narrower
    for number in range(1, 20):
        deepest = deepest["fields"][number]["type"][1]
    deepest["fields"][3]["type"] = "null"
    assert incompatibility(made(narrower), made(all_of_all(20))) is not None
    assert incompatibility(made(all_of_all(20)), made(narrower)) is None


def test_what_was_taken_for_granted_of_a_pair_is_looked_at_again() -> None:
    """`b` takes Old only if Old takes itself, and that turns out wrong after `a` was content with it."""
    old = made(record("Top", {"a": record("Old", {"self": ["null", "Old"], "gone": "int"})}))
    new = record("New", {"self": ["null", "New"], "gone": "string"})
    wide = record("Wide", {"self": ["null", "Wide"], "gone": "int"})
    assert incompatibility(made(record("Top", {"a": [new, wide]})), old) is None
    assert (
        incompatibility(made(record("Top", {"a": [new, record("Also", {"self": "null", "gone": "int"})]})), old)
        is not None
    )


def test_what_would_take_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "STEPS_MAX", 50)
    schema = made(record("R", {"list": {"type": "array", "items": "int"}}))
    assert misfit(schema, {"list": [1] * 40}) is None
    with pytest.raises(TooLarge, match="50 steps"):
        misfit(schema, {"list": [1] * 60})
    with pytest.raises(TooLarge, match="50 steps"):
        incompatibility(made(all_of_all(9, "new")), made(all_of_all(9)))


def test_names_are_read_in_their_namespace() -> None:
    schema = made(
        record("a.Node", {"next": ["null", "Node"], "kind": {"type": "enum", "name": "Kind", "symbols": ["x"]}})
    )
    assert misfit(schema, {"kind": "x", "next": {"kind": "x", "next": None}}) is None
    assert misfit(schema, {"kind": "x", "next": {"kind": "y", "next": None}}) is not None
    one = record("a.X", {"again": ["null", "X"], "f": "string"})
    other = record("b.X", {"again": ["null", "X"], "f": "int"})
    schema = made(record("R", {"x": one, "y": other}))
    assert misfit(schema, {"x": {"f": "1", "again": {"f": "2", "again": None}}, "y": {"f": 1, "again": None}}) is None
    assert misfit(schema, {"x": {"f": "1", "again": {"f": 2, "again": None}}, "y": {"f": 1, "again": None}}) is not None


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("string", "bytes", "\u65e5"),
        (
            {"type": "enum", "name": "E", "symbols": ["x", "y"]},
            {"type": "enum", "name": "E", "symbols": ["x"], "default": "x"},
            "y",
        ),
    ],
)
def test_a_schema_may_follow_only_where_all_rows_still_fit(old: Any, new: Any, value: str) -> None:
    before, after = made(record("R", {"v": old})), made(record("R", {"v": new}))
    assert misfit(before, {"v": value}) is None
    assert misfit(after, {"v": value}) is not None
    assert incompatibility(after, before) is not None


def test_text_may_follow_on_bytes() -> None:
    assert incompatibility(made(record("R", {"v": "string"})), made(record("R", {"v": "bytes"}))) is None


def test_an_error_is_a_record() -> None:
    schema = made(record("R", {"e": {"type": "error", "name": "E", "fields": [{"name": "why", "type": "string"}]}}))
    assert misfit(schema, {"e": {"why": "so"}}) is None
    assert misfit(schema, {"e": {"why": 1}}) is not None
    assert incompatibility(schema, schema) is None
