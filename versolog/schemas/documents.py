"""Rows as JSON text: one spelling for each document, and no number silently changed on the way."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

from versolog.schemas.errors import Invalid, Malformed

Document = dict[str, Any]

_LONG_NUMBER = re.compile(rb"\d{16}")
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def to_text(document: object) -> str:
    """`document` as JSON with sorted keys, the spelling that goes on the wire. Raises Invalid for what JSON can't say."""
    return to_bytes(document).decode()


def to_bytes(document: object) -> bytes:
    """As `to_text`, in UTF-8."""
    try:
        text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise Invalid(f"the row can't be written as JSON: {error}") from error
    if b"null" in text:
        _refuse_not_a_number(document)  # orjson writes NaN and the infinities as null
    return text


def from_text(text: str | bytes) -> Any:
    """The document in `text`. Raises Malformed where it isn't JSON or holds a number that would lose digits here."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error}") from error
    raw = text.encode() if isinstance(text, str) else text
    if _LONG_NUMBER.search(raw):
        json.loads(raw, parse_int=_exact_int)
    return document


def row_from_text(text: str | bytes) -> Document:
    """As `from_text`, for a row: a JSON object."""
    document = from_text(text)
    if not isinstance(document, dict):
        raise Invalid(f"a row is a JSON object, not {_kind_of(document)}")
    return document


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


def _exact_int(digits: str) -> int:
    number = int(digits)
    if not INT64_MIN <= number <= 2**64 - 1:
        raise Malformed(f"the number {digits} doesn't fit 64 bits; write it as a string to keep every digit")
    return number


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


def _kind_of(document: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(document), "a number")
