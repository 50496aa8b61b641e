"""What is written: real flights and synthetic changes, and what the rows must be after any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from versolog.streams.transaction import Transaction

GROUPS = 64
KEYS = 20_000
"""Of each synthetic table: most are written several times in a run."""
FLIGHT_EVENTS_A_DAY = 2_000
"""Fewer than there are on the average of any first days, so that enough of them are read."""
FLIGHT_DAYS = 50
"""Enough for every benchmark, so that they are read once."""

Row = dict[str, Any]


class Expected(NamedTuple):
    """A row as it must be read: the version that last changed it, and what it holds."""

    version: int
    row: Row


@dataclass(frozen=True)
class Workload:
    """Transactions of one group each, in the order in which they are sent."""

    name: str
    transactions: Sequence[Transaction]

    @cached_property
    def by_group(self) -> Mapping[str, list[Transaction]]:
        """A group's transactions in order: the first makes version 1, and none is refused."""
        found: dict[str, list[Transaction]] = {}
        for tx in self.transactions:
            found.setdefault(tx.home, []).append(tx)
        return found

    def rows_at(self, group: str, version: int) -> dict[tuple[str, str], Expected]:
        """The rows of a group by table and key, worked out from what was sent."""
        rows: dict[tuple[str, str], Expected] = {}
        for number, tx in enumerate(self.by_group[group][:version], 1):
            for change in tx.to_json()["changes"]:
                place = change["table"], change["key"]
                before = rows[place].row if place in rows else {}
                rows[place] = Expected(number, _changed(before, change))
        return rows


def one_change(count: int) -> Workload:
    """Small rows put one at a time."""
    return Workload("one change each", [item_moved(number) for number in range(count)])


def item_moved(number: int) -> Transaction:
    """A transaction of `one_change`."""
    return put_item(_begun(number), number)


def five_changes(count: int) -> Workload:
    """Five rows put in each transaction."""
    made = []
    for number in range(count):
        tx = _begun(number)
        for nth in range(5):
            put_item(tx, 5 * number + nth)
        made.append(tx)
    return Workload("five changes each", made)


def flights(count: int) -> Workload:
    """The first `count` events of the year: a flight's row put or patched, and its carrier's counters added to."""
    days = max(FLIGHT_DAYS, count // FLIGHT_EVENTS_A_DAY + 1)
    return Workload("flight events", _flight_transactions(days)[:count])


@cache
def _flight_transactions(days: int) -> list[Transaction]:
    from versolog.demo.flights import events  # pandas takes a second, and most processes here need none of it

    return [event.transaction() for event in events(days=days)]


def with_stock(workload: Workload, rows: int) -> Workload:
    """`workload`, and after it one group, `stock`, with a table `items` of so many rows to scan."""
    stock = []
    for start in range(0, rows, 100):
        tx = Transaction("stock", author="bench", type="StockCounted")
        for number in range(start, min(start + 100, rows)):
            put_item(tx, number, f"item-{number:06}")
        stock.append(tx)
    return Workload(workload.name, [*workload.transactions, *stock])


def _begun(number: int) -> Transaction:
    return Transaction(f"group-{number % GROUPS:02}", author="bench", type="ItemMoved")


def put_item(tx: Transaction, number: int, key: str | None = None) -> Transaction:
    """One row of about a hundred bytes; which one looks drawn and isn't."""
    key = key or f"item-{number * 7_919 % KEYS:06}"
    row = {"kind": "sword", "owner": f"player-{number % 977}", "level": number % 60, "zone": "north", "moves": number}
    return tx.put("items", key, row)


def _changed(before: Row, change: Mapping[str, Any]) -> Row:
    """`before` after one change; only of the shapes that workloads use."""
    given: Row = change["row"]
    match change["op"]:
        case "put":
            return given
        case "patch":
            return {name: value for name, value in (before | given).items() if value is not None}
        case "add":
            return before | {name: before.get(name, 0) + amount for name, amount in given.items()}
        case op:
            raise AssertionError(f"no workload uses {op}")
