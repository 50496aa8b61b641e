"""What the tables must hold after so many events, worked out straight from the CSV: no event is made, none folded.

This is the other way round from `flights`, and shares nothing with it but the names of the files: the csv module and
zoneinfo in place of pandas, and a flight's row written down from what had become of it by a moment. Tests and the demo
hold versolog's answers against it.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from versolog.demo.columns import NEW_YORK, NOT_IN_AIRPORTS, csv_file

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]
"""Rows by table and key."""

_NEW_YORK = ZoneInfo(NEW_YORK)


class Step(NamedTuple):
    """An event's place in the order of all: its instant, its phase's rank, its flight."""

    instant: datetime
    rank: int
    key: str


class Life(NamedTuple):
    """One flight of the CSV, with its steps; None where that never happened."""

    carrier: str
    plan: Row
    scheduled: Step
    departed: Step | None
    cancelled: Step | None
    arrived: Step | None
    diverted: Step | None
    dest_zone: ZoneInfo
    departure_delay: int
    arrival_delay: int

    def steps(self) -> Iterator[Step]:
        steps = (self.scheduled, self.departed, self.cancelled, self.arrived, self.diverted)
        return (step for step in steps if step is not None)

    def row(self, last: Step) -> Row | None:
        """The flight as it stood after `last`, an event of any flight; None before it was scheduled."""
        if self.scheduled > last:
            return None
        row = {**self.plan, "status": "scheduled"}
        if (step := self.departed) is not None and step <= last:
            row["status"] = "departed"
            row["departed"] = _rfc3339(step.instant, _NEW_YORK)
            row["departure_delay_minutes"] = self.departure_delay
        if (step := self.cancelled) is not None and step <= last:
            row["status"] = "cancelled"
        if (step := self.arrived) is not None and step <= last:
            row["status"] = "arrived"
            row["arrived"] = _rfc3339(step.instant, self.dest_zone)
            row["arrival_delay_minutes"] = self.arrival_delay
        if (step := self.diverted) is not None and step <= last:
            row["status"] = "diverted"
            row["arrived"] = _rfc3339(step.instant, self.dest_zone)
        return row


class Retiming(NamedTuple):
    """A change of one carrier's plan."""

    carrier: str
    known: int
    """How many of the carrier's events had happened when it was made: what had not left by then is moved."""
    origin: str
    begin: datetime
    """Departures from `origin` that were planned for then or later are moved."""
    minutes: int
    late: dict[str, int]
    """Flights that are moved by other minutes, by key."""


class Straight:
    """The flights of some days, and what each carrier's tables hold at any point of their events' order."""

    def __init__(self, *, start: date, days: int) -> None:
        self._lives = list(_lives(start, start + timedelta(days=days)))
        self._steps = sorted((step, life.carrier) for life in self._lives for step in life.steps())

    def __len__(self) -> int:
        return len(self._steps)

    def after(self, events: int) -> dict[str, Tables]:
        """Each carrier's tables after the first `events` events of all; a carrier without one is left out."""
        return {} if events == 0 else self._standing(self._steps[events - 1][0], self._lives)

    def of(self, carrier: str, events: int) -> Tables:
        """One carrier's tables after the first `events` of its own events."""
        own = [step for step, name in self._steps if name == carrier]
        lives = (life for life in self._lives if life.carrier == carrier)
        return self._standing(own[events - 1], lives)[carrier] if events else {}

    def retimed(self, events: int, plan: Retiming) -> Tables:
        """The carrier's tables after the first `events` of its own events, with its plan changed."""
        tables = self.of(plan.carrier, events)
        for key, row in self.of(plan.carrier, plan.known)["flights"].items():
            planned = datetime.fromisoformat(row["scheduled"])
            if row["status"] == "scheduled" and row["origin"] == plan.origin and planned >= plan.begin:
                moved = planned + timedelta(minutes=plan.late.get(key, plan.minutes))
                tables["flights"][key]["scheduled"] = _rfc3339(moved, _NEW_YORK)
        return tables

    @staticmethod
    def _standing(last: Step, lives: Iterable[Life]) -> dict[str, Tables]:
        rows: dict[str, dict[str, Row]] = {}
        for life in lives:
            if (row := life.row(last)) is not None:
                rows.setdefault(life.carrier, {})[life.scheduled.key] = row
        return {
            carrier: {"flights": flights, "carriers": {carrier: _counters(list(flights.values()))}}
            for carrier, flights in rows.items()
        }


def _counters(flights: list[Row]) -> Row:
    """A carrier's counters by counting its rows. What never happened has no counter."""
    departures = [row["departure_delay_minutes"] for row in flights if "departed" in row]
    arrivals = [row["arrival_delay_minutes"] for row in flights if "arrival_delay_minutes" in row]
    statuses = [row["status"] for row in flights]
    counters: Row = {"scheduled": len(flights)}
    if departures:
        counters |= {"departures": len(departures), "departure_delay_minutes": sum(departures)}
    if arrivals:
        counters |= {"arrivals": len(arrivals), "arrival_delay_minutes": sum(arrivals)}
    return counters | {name: statuses.count(name) for name in ("cancelled", "diverted") if name in statuses}


def _lives(start: date, end: date) -> Iterator[Life]:
    with csv_file("airports.csv").open(encoding="utf-8", newline="") as file:
        names = {row["faa"]: row["tzone"] for row in csv.DictReader(file)} | NOT_IN_AIRPORTS
    with (
        zipfile.ZipFile(csv_file("flights.csv.zip")) as archive,
        archive.open(archive.namelist()[0]) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
    ):
        for row in csv.DictReader(file):
            day = date(int(row["year"]), int(row["month"]), int(row["day"]))
            if start <= day < end:
                known = {name: "" if value == "NA" else value for name, value in row.items()}
                yield _life(day, known, ZoneInfo(names[row["dest"]]))


def _life(day: date, row: dict[str, str], dest_zone: ZoneInfo) -> Life:
    key = f"{day}-{row['carrier']}-{row['flight']}-{row['origin']}"
    planned = _utc(datetime.combine(day, _time(row["sched_dep_time"])), _NEW_YORK)
    due = _next(planned, row["sched_arr_time"], dest_zone)
    departed = planned + timedelta(minutes=int(row["dep_delay"])) if row["dep_time"] else None
    landed = departed is not None and row["arr_time"] and not row["arr_delay"]
    plan: Row = {
        "number": int(row["flight"]), "origin": row["origin"], "dest": row["dest"],
        "scheduled": _rfc3339(planned, _NEW_YORK), "due": _rfc3339(due, dest_zone),
    }  # fmt: skip
    return Life(
        carrier=row["carrier"],
        plan=plan | ({"tail": row["tailnum"]} if row["tailnum"] else {}),
        scheduled=Step(_utc(datetime.combine(day, time()), _NEW_YORK), 0, key),
        departed=Step(departed, 1, key) if departed is not None else None,
        cancelled=Step(planned, 2, key) if departed is None else None,
        arrived=Step(due + timedelta(minutes=int(row["arr_delay"])), 3, key) if row["arr_delay"] else None,
        diverted=Step(_next(departed, row["arr_time"], dest_zone), 4, key) if departed and landed else None,
        dest_zone=dest_zone,
        departure_delay=int(row["dep_delay"] or 0),
        arrival_delay=int(row["arr_delay"] or 0),
    )


def _next(instant: datetime, clock: str, zone: ZoneInfo) -> datetime:
    """The first instant from `instant` on at which the zone's clocks show `clock`, such as 517 or 2400."""
    day = instant.astimezone(zone).date()
    candidates = (_utc(datetime.combine(day + timedelta(days=later), _time(clock)), zone) for later in range(3))
    return next(candidate for candidate in candidates if candidate >= instant)


def _time(clock: str) -> time:
    return time(int(clock) // 100 % 24, int(clock) % 100)


def _utc(wall: datetime, zone: ZoneInfo) -> datetime:
    return wall.replace(tzinfo=zone).astimezone(UTC)


def _rfc3339(instant: datetime, zone: ZoneInfo) -> str:
    return instant.astimezone(zone).isoformat(timespec="seconds")
