"""The departure board: flights around a moment, as an airport shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

LINES = 14

_STYLES = {"scheduled": "", "departed": "cyan", "arrived": "green", "cancelled": "red", "diverted": "magenta"}


def board(flights: Mapping[str, Mapping[str, Any]], moment: datetime, title: str) -> Table:
    """The last flights due before `moment` and the next ones, earliest first; rows by key, of any carriers."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for heading in ("time", "flight", "from", "to", "status"):
        table.add_column(heading)
    table.add_column("delay", justify="right")
    for key in around(flights, moment):
        row = flights[key]
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


def around(flights: Mapping[str, Mapping[str, Any]], moment: datetime) -> list[str]:
    """The keys of the board's lines: half of them due before `moment`, half from it on, as far as there are any."""
    due = sorted((_instant(row["scheduled"]), key) for key, row in flights.items())
    following = bisect_left(due, (moment, ""))
    return [key for _, key in due[max(following - LINES // 2, 0) : following + LINES // 2]]


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
