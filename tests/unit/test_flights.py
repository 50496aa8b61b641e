"""The flights of 2013: every one accounted for, in true order, the same in two ways of working it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from versolog.demo.flights import FlightEvent, Phase, events
from versolog.demo.straight import Retiming, Straight
from versolog.schemas.errors import Invalid
from versolog.streams.transaction import Transaction


@pytest.fixture(scope="module")
def year() -> list[FlightEvent]:
    return list(events())


def test_the_year_has_an_event_for_all_that_the_columns_tell(year: list[FlightEvent]) -> None:
    assert Counter(event.phase for event in year) == {
        Phase.SCHEDULED: 336_776,
        Phase.DEPARTED: 328_521,
        Phase.CANCELLED: 8_255,
        Phase.ARRIVED: 327_346,
        Phase.DIVERTED: 717,
    }
    assert len(year) == 1_001_615


def test_keys_and_transaction_ids_are_unique_over_the_year(year: list[FlightEvent]) -> None:
    seen = {(event.flight.key, event.phase) for event in year}
    assert len(seen) == len(year)


def test_events_come_in_the_order_of_time_and_of_each_flights_life(year: list[FlightEvent]) -> None:
    phases = list(Phase)
    before = (datetime.min.replace(tzinfo=UTC), 0, "")
    reached: dict[str, Phase] = {}
    for event in year:
        place = (event.occurred_at, phases.index(event.phase), event.flight.key)
        assert before < place
        before = place
        assert _follows(event.phase, reached.get(event.flight.key))
        reached[event.flight.key] = event.phase
    assert Counter(reached.values())[Phase.DEPARTED] == 458  # of these the columns tell no end


def _follows(phase: Phase, before: Phase | None) -> bool:
    match phase:
        case Phase.SCHEDULED:
            return before is None
        case Phase.DEPARTED | Phase.CANCELLED:
            return before is Phase.SCHEDULED
        case Phase.ARRIVED | Phase.DIVERTED:
            return before is Phase.DEPARTED


@pytest.mark.parametrize(
    ("start", "days"),
    [
        (date(2013, 1, 1), 3),
        (date(2013, 3, 9), 2),  # clocks go forward in the night between, with flights in the air
        (date(2013, 7, 27), 1),  # holds the one flight planned for between midnight and five
        (date(2013, 11, 2), 2),  # clocks go back
    ],
)
def test_folding_the_transactions_gives_the_tables_worked_out_straight_from_the_csv(start: date, days: int) -> None:
    happened = list(events(start=start, days=days))
    straight = Straight(start=start, days=days)
    assert len(straight) == len(happened)
    for count in (1, 2, len(happened) // 3, len(happened) // 2, len(happened) - 1, len(happened)):
        tables = _folded(event.transaction() for event in happened[:count])
        assert tables == straight.after(count)


def test_a_carriers_tables_at_its_own_versions_are_those_of_its_first_events() -> None:
    own = [event for event in events(days=1) if event.flight.carrier == "UA"]
    straight = Straight(start=date(2013, 1, 1), days=1)
    assert straight.of("UA", 0) == {}
    for version in (1, 200, len(own)):
        assert straight.of("UA", version) == _folded(event.transaction() for event in own[:version])["UA"]


@pytest.mark.parametrize("day", [date(2013, 1, 1), date(2013, 2, 9), date(2013, 3, 9), date(2013, 12, 31)])
def test_a_plan_moves_what_had_not_left_when_it_was_made(day: date) -> None:
    happened = events(start=day, days=1)
    made, begin = (datetime.combine(day, at, ZoneInfo("America/New_York")) for at in (clock(17, 30), clock(18)))
    known = sum(event.flight.carrier == "UA" for event in islice(happened, happened.until(made)))
    own = [event for event in happened if event.flight.carrier == "UA"]
    straight = Straight(start=day, days=1)
    assert [event.occurred_at <= made for event in own] == [True] * known + [False] * (len(own) - known)
    gone = {event.flight.key for event in own[:known] if event.phase is not Phase.SCHEDULED}
    expected = straight.of("UA", len(own))
    for key, row in expected["flights"].items():
        planned = datetime.fromisoformat(row["scheduled"])
        if row["origin"] == "EWR" and planned >= begin and key not in gone:
            row["scheduled"] = (planned + timedelta(minutes=10)).isoformat()
    assert straight.retimed(len(own), Retiming("UA", known, "EWR", begin, 10, {})) == expected
    moved = next(key for key, row in expected["flights"].items() if row != straight.of("UA", len(own))["flights"][key])
    late = straight.retimed(len(own), Retiming("UA", known, "EWR", begin, 10, {moved: 25}))["flights"][moved]
    spread = datetime.fromisoformat(late["scheduled"]) - datetime.fromisoformat(expected["flights"][moved]["scheduled"])
    assert spread == timedelta(minutes=15)


def test_nothing_has_happened_after_no_events() -> None:
    assert Straight(start=date(2013, 1, 1), days=1).after(0) == {}


def test_a_flight_of_the_first_morning_is_told_as_the_columns_have_it() -> None:
    """UA 1545: planned 05:15, left 05:17, due 08:19 in Houston, landed 08:30."""
    told = [event for event in events(days=1) if event.flight.key == "2013-01-01-UA-1545-EWR"]
    assert [(event.phase, event.occurred_at, event.clock, event.delay_minutes) for event in told] == [
        (Phase.SCHEDULED, datetime(2013, 1, 1, 5, 0, tzinfo=UTC), "2013-01-01T00:00:00-05:00", None),
        (Phase.DEPARTED, datetime(2013, 1, 1, 10, 17, tzinfo=UTC), "2013-01-01T05:17:00-05:00", 2),
        (Phase.ARRIVED, datetime(2013, 1, 1, 14, 30, tzinfo=UTC), "2013-01-01T08:30:00-06:00", 11),
    ]
    assert _folded(event.transaction() for event in told)["UA"]["flights"] == {
        "2013-01-01-UA-1545-EWR": {
            "number": 1545,
            "origin": "EWR",
            "dest": "IAH",
            "tail": "N14228",
            "status": "arrived",
            "scheduled": "2013-01-01T05:15:00-05:00",
            "due": "2013-01-01T08:19:00-06:00",
            "departed": "2013-01-01T05:17:00-05:00",
            "departure_delay_minutes": 2,
            "arrived": "2013-01-01T08:30:00-06:00",
            "arrival_delay_minutes": 11,
        }
    }


def test_a_departure_delayed_past_midnight_happens_on_the_next_day() -> None:
    *_, last = (event for event in events(days=1) if event.phase is Phase.DEPARTED)
    assert last.flight.scheduled.startswith("2013-01-01")
    assert last.clock.startswith("2013-01-02")


def test_clocks_leap_over_an_hour_that_does_not_exist() -> None:
    """The night of 10 March: 00:34 planned and 89 minutes late is 03:03, since 02:03 was never shown."""
    landed = next(
        event
        for event in events(start=date(2013, 3, 9), days=1)
        if event.phase is Phase.ARRIVED
        and event.flight.due == "2013-03-10T00:34:00-05:00"
        and event.delay_minutes == 89
    )
    assert landed.clock == "2013-03-10T03:03:00-04:00"
    assert landed.occurred_at == datetime(2013, 3, 10, 7, 3, tzinfo=UTC)


def test_the_same_event_makes_the_same_transaction_so_that_it_may_be_sent_again() -> None:
    first, second = (_intents(events(days=1)) for _ in range(2))
    assert first == second


def test_occurred_at_travels_with_the_transaction() -> None:
    event = next(iter(events(days=1)))
    micros = event.transaction().occurred_at
    assert micros is not None
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros) == event.occurred_at


def test_days_outside_the_year_are_refused() -> None:
    for start, days in ((date(2012, 12, 31), 1), (date(2013, 12, 31), 2), (date(2013, 1, 1), 0)):
        with pytest.raises(Invalid):
            events(start=start, days=days)


def _intents(happened: Iterable[FlightEvent]) -> dict[str, bytes]:
    return {tx.id: tx.intent() for tx in (event.transaction() for event in happened)}


def _folded(transactions: Iterable[Transaction]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Put, patch and add by themselves, for flat rows."""
    groups: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for tx in transactions:
        asked = tx.to_json()
        for change in asked["changes"]:
            table = groups.setdefault(asked["group"], {}).setdefault(change["table"], {})
            row, news = table.setdefault(change["key"], {}), change["row"]
            if change["op"] == "add":
                news = {name: row.get(name, 0) + amount for name, amount in news.items()}
            elif change["op"] == "put":
                row.clear()
            row.update(news)
    return groups
