"""Instants as text and as integers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.schemas import times
from versolog.schemas.errors import Invalid


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2013-06-01T12:00:00.000001Z", 1_370_088_000_000_001),
        ("2013-06-01t14:00:00.5+02:00", 1_370_088_000_500_000),
        ("2013-06-01 07:30:00-04:30", 1_370_088_000_000_000),
        ("1969-12-31T23:59:59.999999Z", -1),
    ],
)
def test_a_time_is_read_with_its_offset(text: str, micros: int) -> None:
    assert times.micros_from_text(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2013-06-01", "2013-06-01T12:00Z", "2013-06-01T12:00:00", "2013-13-01T12:00:00Z", "2013-W22-6",
        "2013-06-01T12:00:60Z", "2013-06-01T12:00:00.1234567Z", "2013-06-01T12:00:00+0200", "٢٠١٣-06-01T12:00:00Z",
        "2013-06-01T12:00:00Z ",
    ],
)  # fmt: skip
def test_what_is_no_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="RFC 3339"):
        times.micros_from_text(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_a_time_that_utc_can_t_say_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="years 1 to 9999"):
        times.micros_from_text(text)


def test_a_time_without_a_zone_is_no_moment() -> None:
    with pytest.raises(Invalid, match="time zone"):
        times.micros_from(datetime(2013, 6, 1))  # noqa: DTZ001 - which is the point


def test_microseconds_are_exact_however_far_away() -> None:
    moment = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert times.micros_from(moment) == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert times.micros_to_text(times.micros_from(moment)) == "9999-12-31T23:59:59.999999Z"


@given(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(timezone(timedelta(hours=-3)))))  # noqa: DTZ001
def test_a_time_survives_its_text(moment: datetime) -> None:
    micros = times.micros_from(moment)
    assert times.micros_from_text(times.micros_to_text(micros)) == micros


@given(st.integers(0, 253_402_300_799_999))
def test_milliseconds_are_written_as_such(millis: int) -> None:
    text = times.millis_to_text(millis)
    assert times.micros_from_text(text) == millis * 1000
    assert len(text) == len("2013-06-01T12:00:00.000Z")


@pytest.mark.parametrize("moment", ["2024-01-01T00:00:00Z", date(2024, 1, 1), 7, "x" * 1_000])
def test_what_is_no_datetime_is_refused(moment: Any) -> None:
    with pytest.raises(Invalid, match="is no datetime"):
        times.micros_from(moment)
