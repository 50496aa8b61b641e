"""The departure board: which flights it shows at a moment, and in what words."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from versolog.demo.board import LINES, around, board

NOON = datetime(2013, 1, 2, 12, 0, tzinfo=ZoneInfo("America/New_York"))


def test_the_board_shows_as_many_flights_before_the_moment_as_after_it_in_the_order_of_time() -> None:
    flights = {f"2013-01-02-UA-{minute}-EWR": _planned(11, minute) for minute in range(60)}
    flights |= {f"2013-01-02-AA-{minute}-JFK": _planned(12, minute) for minute in range(60)}
    half = LINES // 2
    assert around(flights, NOON) == [
        *(f"2013-01-02-UA-{minute}-EWR" for minute in range(60 - half, 60)),
        *(f"2013-01-02-AA-{minute}-JFK" for minute in range(half)),
    ]


def test_a_board_of_few_flights_shows_them_all_and_an_empty_one_none() -> None:
    assert around({}, NOON) == []
    assert around({"2013-01-02-UA-1-EWR": _planned(5, 15)}, NOON) == ["2013-01-02-UA-1-EWR"]


def test_times_are_compared_as_moments_whatever_offset_they_are_written_in() -> None:
    flights = {
        "2013-01-02-UA-2-EWR": _planned(12, 1),
        "2013-01-02-UA-1-EWR": _planned(0, 0) | {"scheduled": "2013-01-02T11:00:00-06:00"},
    }
    assert around(flights, NOON) == ["2013-01-02-UA-1-EWR", "2013-01-02-UA-2-EWR"]


def test_each_status_is_said_with_its_time_and_delay() -> None:
    left = {"departed": "2013-01-02T11:52:00-05:00", "departure_delay_minutes": -8}
    landed = {"arrived": "2013-01-02T11:58:00-05:00", "arrival_delay_minutes": 12}
    flights = {
        "2013-01-02-UA-1-EWR": _planned(11, 1) | left | landed | {"status": "arrived"},
        "2013-01-02-UA-2-EWR": _planned(11, 2) | left | {"status": "departed"},
        "2013-01-02-UA-3-EWR": _planned(11, 3) | left | {"arrived": landed["arrived"], "status": "diverted"},
        "2013-01-02-UA-4-EWR": _planned(11, 4) | {"status": "cancelled"},
        "2013-01-02-UA-5-EWR": _planned(11, 5),
        "2013-01-02-UA-6-EWR": _planned(12, 6),
    }
    assert _shown(flights) == [
        ["11:01", "UA 1", "EWR", "IAH", "arrived 11:58", "+12 min"],
        ["11:02", "UA 2", "EWR", "IAH", "departed 11:52", "-8 min"],
        ["11:03", "UA 3", "EWR", "IAH", "diverted", "-8 min"],
        ["11:04", "UA 4", "EWR", "IAH", "cancelled", ""],
        ["11:05", "UA 5", "EWR", "IAH", "waiting", ""],
        ["12:06", "UA 6", "EWR", "IAH", "on time", ""],
    ]


def _planned(hour: int, minute: int) -> dict[str, Any]:
    return {
        "number": minute,
        "origin": "EWR",
        "dest": "IAH",
        "status": "scheduled",
        "scheduled": f"2013-01-02T{hour:02}:{minute:02}:00-05:00",
    }


def _shown(flights: dict[str, dict[str, Any]]) -> list[list[str]]:
    columns = board(flights, NOON, "Departures").columns
    return [[str(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]
