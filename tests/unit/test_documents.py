"""Rows as JSON text: one spelling for each document, and no number changed on the way."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import documents
from versolog.schemas.documents import (
    DEPTH_MAX,
    check_amounts,
    from_text,
    merge_patch,
    row_from_text,
    to_bytes,
    to_text,
)
from versolog.schemas.errors import Invalid, Malformed, VersologError

INTEGERS = st.integers(-(2**63), 2**64 - 1)
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.sampled_from("abcd")
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
OBJECTS = st.dictionaries(NAMES, JSON, max_size=4)


@dataclass
class Seat:
    row: int = 3


@given(JSON)
def test_a_document_survives_its_text(document: Any) -> None:
    assert from_text(to_text(document)) == document


@given(OBJECTS)
def test_a_document_has_one_spelling(document: dict[str, Any]) -> None:
    backwards = dict(reversed(document.items()))
    assert to_bytes(document) == to_bytes(backwards)
    assert to_bytes(from_text(to_bytes(document))) == to_bytes(document)


def test_keys_are_sorted_at_every_depth() -> None:
    assert to_text({"b": {"d": 1, "c": [{"f": 1, "e": 2}]}, "a": None}) == '{"a":null,"b":{"c":[{"e":2,"f":1}],"d":1}}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [lambda n: n, lambda n: {"a": n}, lambda n: {"a": [None, {"b": (1, n)}]}])
def test_what_is_not_a_number_is_refused_and_not_made_null(number: float, place: Any) -> None:
    with pytest.raises(Invalid, match="JSON has no"):
        to_text(place(number))


@pytest.mark.parametrize(
    "document",
    [
        {"a": 2**64}, {"a": -(2**63) - 1}, {1: "a"}, {"a": b"bytes"}, {"a": {1, 2}}, {"a": object()}, {"a": "\ud800"},
        {"a": Seat()}, {"at": datetime(2013, 1, 1, tzinfo=UTC)},
    ],
)  # fmt: skip
def test_what_json_can_t_say_is_refused(document: Any) -> None:
    with pytest.raises(Invalid, match="can't be written as JSON"):
        to_text(document)


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b"nul", b"NaN", b"[1,]", b"{'a':1}", b"\xff", b'"\xed\xa0\x80"', '"\ud800"', b'"\\ud800"',
        b"1e400",
    ],
)  # fmt: skip
def test_what_is_not_json_is_malformed(text: str | bytes) -> None:
    with pytest.raises(Malformed, match="not JSON"):
        from_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "9223372036854775807", "-9223372036854775808", "18446744073709551615", "0.1", "0.30000000000000004", "1e300",
        "0.10000000000000001", "123456789012345.67", "5e-324", "100000000000000000000.0", "1.10000000000000000000",
        "0.000000000931322574615478515625", "0.00000000000000000000", "0e-999",
    ],
)  # fmt: skip
def test_a_number_that_keeps_its_value_is_read(text: str) -> None:
    """Also one of 17 digits, the most that a program which writes its doubles exactly will send."""
    assert from_text(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "18446744073709551616", "-9223372036854775809", "123456789012345678901234567890", "1e-400", "-1.5e-324",
        "0.1234567890123456789", "12345678901234567.89", "1234567890.1234567890e5", "1e-99999999999999999999",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["{}", '{{"a":[1,{}]}}'])
def test_a_number_that_would_change_is_malformed(text: str, place: str) -> None:
    with pytest.raises(Malformed, match="as a string to keep every digit"):
        from_text(place.format(text))


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?", fullmatch=True))
def test_a_number_is_exact_or_refused_or_the_nearest_of_17_digits(text: str) -> None:
    try:
        number = from_text(text)
    except VersologError:
        return
    significant = text.lower().partition("e")[0].lstrip("-").replace(".", "").lstrip("0")
    assert number == float(text) or number == int(text)
    if isinstance(number, int):
        assert number == int(text)
    elif len(significant) <= 15:
        assert number != 0.0 or not significant.strip("0")


def test_long_digits_inside_strings_are_text() -> None:
    assert from_text('{"card":"12345678901234567890.123456789012345"}') == {
        "card": "12345678901234567890.123456789012345"
    }


def test_a_number_with_thousands_of_digits_is_malformed() -> None:
    with pytest.raises(Malformed):
        from_text(b"1" * 5_000)
    with pytest.raises(Malformed):
        from_text(b"0." + b"1" * 5_000)


@pytest.mark.parametrize("document", [[], "text", 7, 1.5, True, None])
def test_a_row_is_an_object(document: Any) -> None:
    with pytest.raises(Invalid, match="a row is a JSON object, not"):
        row_from_text(json.dumps(document))


@pytest.mark.parametrize("opening_closing", [("[", "]"), ('{"a":', "}")])
def test_a_document_is_as_deep_as_its_readers_can_walk(opening_closing: tuple[str, str]) -> None:
    opening, closing = opening_closing
    fits, over = (opening * depth + "1" + closing * depth for depth in (DEPTH_MAX, DEPTH_MAX + 1))
    assert to_text(from_text(fits)) == fits
    with pytest.raises(Invalid, match="deep"):
        from_text(over)
    with pytest.raises(Invalid, match="deep"):
        to_text(json.loads(over))
    with pytest.raises(VersologError):
        from_text(opening * 100_000 + "1" + closing * 100_000)


def test_many_small_objects_are_not_deep() -> None:
    document = {"seats": [{"row": number, "free": "[{"} for number in range(1_000)]}
    assert from_text(to_text(document)) == document


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_by_the_examples_of_rfc_7396(target: Any, patch: Any, merged: Any) -> None:
    before = to_bytes(target)
    assert merge_patch(target, patch) == merged
    assert to_bytes(target) == before


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_applied_twice_is_applied_once(target: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@pytest.mark.parametrize("amounts", [{"a": 1}, {"a": -(2**63)}, {"a": "12.50"}, {"a": {"b": "-0.1", "c": 3}}, {"": 1}])
def test_add_takes_integers_and_decimals(amounts: dict[str, Any]) -> None:
    check_amounts(amounts)


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        (1.5, "exact"), (True, "a boolean"), (None, "null"), ([1], "an array"), (2**63, "64-bit"), ("", "decimal"),
        ("1e5", "decimal"), ("١٢", "decimal"), ("1.", "decimal"), (".5", "decimal"), ("+1", "decimal"),
        ("1\n", "decimal"), ("1" * 61, "decimal"), ({"deeper": 0.1}, "exact"),
    ],
)  # fmt: skip
def test_add_takes_nothing_that_rounds(amount: Any, reason: str) -> None:
    with pytest.raises(Invalid, match=reason) as refused:
        check_amounts({"a": {"b": amount}})
    assert refused.value.facts["path"].startswith("/a/b")


def test_kinds_are_named_as_json_names_them() -> None:
    values = [{}, [], "", True, 1, 1.0, None, b""]
    named = [documents.kind_of(value) for value in values]
    assert named == ["an object", "an array", "a string", "a boolean", "a number", "a number", "null", "a bytes"]
