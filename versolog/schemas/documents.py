"""Rows as JSON text: one spelling for each document, and no number silently changed on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import orjson

from versolog.schemas.errors import Invalid, Malformed

Document = dict[str, Any]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DECIMAL = re.compile(r"-?[0-9]{1,60}(\.[0-9]{1,60})?")
"""A decimal number as a string, the form in which `add` counts without rounding."""
DEPTH_MAX = 128
"""How deep arrays and objects may stand in each other."""

_LOSES_DIGITS_MAYBE = re.compile(rb"[0-9][0-9.]{17}|[0-9][eE]-[0-9]{3}")
_STRICT = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def to_text(document: object) -> str:
    """`document` as JSON with sorted keys, its spelling on the wire. Raises Invalid for what JSON can't say."""
    return to_bytes(document).decode()


def to_bytes(document: object) -> bytes:
    """As `to_text`, in UTF-8."""
    try:
        text = orjson.dumps(document, option=_STRICT)
    except TypeError as error:
        raise Invalid(f"the row can't be written as JSON: {error}") from error
    _check_depth(text, document)
    if b"null" in text:
        _refuse_not_a_number(document)  # orjson writes NaN and the infinities as null
    return text


def from_text(text: str | bytes) -> Any:
    """The document in `text`. Raises Malformed where it isn't JSON or holds a number that would lose digits here.

    Integers are exact in 64 bits; other numbers are IEEE doubles, so one of more than 17 digits is refused.
    """
    try:
        document = orjson.loads(text)
        raw = text.encode() if isinstance(text, str) else text
    except ValueError as error:
        raise Malformed(f"not JSON: {error}") from error
    _check_depth(raw, document)
    if _LOSES_DIGITS_MAYBE.search(raw):
        json.loads(raw, parse_int=_exact_int, parse_float=_exact_float)
    return document


def row_from_text(text: str | bytes) -> Document:
    """As `from_text`, for a row: a JSON object."""
    document = from_text(text)
    if not isinstance(document, dict):
        raise Invalid(f"a row is a JSON object, not {kind_of(document)}")
    return document


def respelled(text: str) -> bytes:
    """`to_bytes(row_from_text(text))`, in half the time where the row is spelled so already: what is written as it was
    read has lost nothing in between."""
    try:
        raw = text.encode()
        document = orjson.loads(raw)
        is_spelled_so = orjson.dumps(document, option=_STRICT) == raw
    except (ValueError, TypeError):
        is_spelled_so = False
    if not is_spelled_so or not isinstance(document, dict):
        return to_bytes(row_from_text(text))
    _check_depth(raw, document)
    return raw


def merge_patch(target: Any, patch: Any) -> Any:
    """`target` with the RFC 7396 merge patch `patch` applied; neither is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def check_amounts(amounts: Document, path: str = "") -> None:
    """Refuse as Invalid what `add` can't count: all but 64-bit integers, decimal strings, and objects of these."""
    for name, amount in amounts.items():
        place = f"{path}/{name}"
        if isinstance(amount, dict):
            check_amounts(amount, place)
        elif isinstance(amount, str) and not DECIMAL.fullmatch(amount):
            raise Invalid(f"{place}: {amount[:64]!r} is not a decimal number such as '12.50'", field="row", path=place)
        elif isinstance(amount, bool) or not isinstance(amount, int | str):
            detail = f"{place} is {kind_of(amount)}; add is exact and takes 64-bit integers and decimal strings"
            raise Invalid(detail, field="row", path=place)
        elif isinstance(amount, int) and not INT64_MIN <= amount <= INT64_MAX:
            raise Invalid(f"{place}: {amount} doesn't fit a signed 64-bit integer", field="row", path=place)


def kind_of(value: object) -> str:
    """What `value` is in JSON, for a sentence."""
    kinds = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def _exact_int(digits: str) -> int:
    number = int(digits)
    if not INT64_MIN <= number <= 2**64 - 1:
        raise Malformed(f"the number {digits[:64]} doesn't fit 64 bits; write it as a string to keep every digit")
    return number


def _exact_float(digits: str) -> float:
    number = float(digits)
    try:
        exact = Decimal(digits)
    except InvalidOperation:  # an exponent of twenty digits
        exact = Decimal("NaN")
    if number == 0.0:
        keeps = exact == 0
    else:
        keeps = len(exact.as_tuple().digits) <= 17 or exact in (Decimal(number), Decimal(repr(number)))
    if not keeps:
        raise Malformed(f"the number {digits[:64]} doesn't fit a double; write it as a string to keep every digit")
    return number


def _check_depth(text: bytes, document: object) -> None:
    """Readers of a row walk it recursively, so one that is too deep is refused while it is still text."""
    if text.count(b"{") + text.count(b"[") <= DEPTH_MAX:
        return
    level: list[object] = [document]
    for _ in range(DEPTH_MAX + 1):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return
    raise Invalid(f"arrays and objects stand more than {DEPTH_MAX} deep in each other; make it flatter")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _refuse_not_a_number(value: object) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _refuse_not_a_number(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_not_a_number(item)
    elif isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        _not_json(value)


def _not_json(value: float) -> NoReturn:
    raise Invalid(f"JSON has no {value}; use null, or a string")
