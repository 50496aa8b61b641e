"""The departure board: flights around a moment, as an airport shows them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from rich.table import Table
from rich.text import Text

LINES = 12
_SHOWN_BEFORE = timedelta(minutes=20)

_STYLES = {"scheduled": "", "departed": "cyan", "arrived": "green", "cancelled": "red", "diverted": "magenta"}


def board(flights: Mapping[str, Mapping[str, Any]], moment: datetime, title: str) -> Table:
    """The flights due to leave from shortly before `moment` on, earliest first; rows by key, of any carriers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for heading in ("time", "flight", "from", "to", "status"):
        table.add_column(heading)
    table.add_column("delay", justify="right")
    for key, row in around(flights, moment):
        carrier = key.split("-")[3]
        table.add_row(
            row["scheduled"][11:16],
            f"{carrier} {row['number']}",
            row["origin"],
            row["dest"],
            Text(_status(row, moment), style=_STYLES[row["status"]]),
            _delay(row),
        )
    return table


def around(flights: Mapping[str, Mapping[str, Any]], moment: datetime) -> list[tuple[str, Mapping[str, Any]]]:
    """The lines of the board: key and row, by scheduled time and key."""
    since = moment - _SHOWN_BEFORE
    due = [(_instant(row["scheduled"]), key, row) for key, row in flights.items()]
    shown = sorted((at, key) for at, key, _ in due if at >= since)[:LINES]
    return [(key, flights[key]) for _, key in shown]


def _status(row: Mapping[str, Any], moment: datetime) -> str:
    match row["status"]:
        case "scheduled":
            return "on time" if _instant(row["scheduled"]) > moment else "waiting"
        case "departed":
            return f"departed {row['departed'][11:16]}"
        case "arrived":
            return f"arrived {row['arrived'][11:16]}"
        case status:
            return str(status)


def _delay(row: Mapping[str, Any]) -> str:
    minutes = row.get("arrival_delay_minutes", row.get("departure_delay_minutes"))
    return "" if minutes is None else f"{minutes:+} min"


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
