"""Instants: integers inside our code (milliseconds or microseconds since 1970, UTC), RFC 3339 text outside of it."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from versolog.schemas.errors import Invalid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MICROS_MIN = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
MICROS_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
"""What RFC 3339 can say: the years 1 to 9999."""
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def looks_like_time(text: str) -> bool:
    """Whether `text` is spelled as an RFC 3339 time, sensible or not."""
    return _RFC_3339.fullmatch(text) is not None


def micros_from_text(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time. Raises Invalid, also for a time without an offset from UTC."""
    if looks_like_time(text):
        with suppress(ValueError):
            return micros_from(datetime.fromisoformat(text.upper()))
    raise Invalid(f"{text[:64]!r} is not an RFC 3339 time; one looks like 2013-06-01T12:00:00.000Z")


def micros_from(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime. Raises Invalid for one without a time zone."""
    if not isinstance(moment, datetime):
        raise Invalid(f"{repr(moment)[:64]} is no datetime; give one with a time zone, UTC for example")
    if moment.tzinfo is None:
        raise Invalid(f"{moment.isoformat()} has no time zone, so it isn't a moment; give it one, UTC for example")
    micros = (moment - _EPOCH) // _MICROSECOND
    if not MICROS_MIN <= micros <= MICROS_MAX:
        raise Invalid(f"{moment.isoformat()} is not in the years 1 to 9999 of UTC")
    return micros


def micros_to_text(micros: int) -> str:
    """An RFC 3339 time in UTC, to the microsecond."""
    return _to_text(micros, "microseconds")


@lru_cache(maxsize=4_096)
def millis_to_text(millis: int) -> str:
    """An RFC 3339 time in UTC, to the millisecond. The same one is told often: of all that a batch committed."""
    return _to_text(millis * 1000, "milliseconds")


def _to_text(micros: int, precision: str) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat(timespec=precision).removesuffix("+00:00") + "Z"
