"""Sixteen clients of the `eventsourcing` library on PostgreSQL, each with aggregates of its own. Tells JSON.

python eventsourcing_clients.py commits|reads ADDRESS SECONDS
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

CLIENTS, PROCESSES = 16, 2
KEYS = 50
"""Aggregates of each client."""
MOVES = 3


class Item(Aggregate):
    """One row."""

    @event("Made")
    def __init__(self, name: str, row: dict[str, Any]) -> None:
        self.name, self.row = name, row

    @staticmethod
    def create_id(name: str, row: dict[str, Any]) -> UUID:
        return uuid5(NAMESPACE_URL, name)

    @event("Moved")
    def move(self, row: dict[str, Any]) -> None:
        self.row = row


class Items(Application[UUID]):
    """Takes the events down."""


def row(number: int) -> dict[str, Any]:
    return {"kind": "sword", "owner": f"player-{number % 977}", "level": number % 60, "zone": "north", "moves": number}


def run(what: str, run_id: str, seconds: float, number: int) -> list[float]:
    """One process's clients: the seconds that each of what they did took."""
    items = Items()
    took_s: list[float] = []

    def client(seed: int) -> None:
        drawn = random.Random(seed)
        names = [f"{run_id}-{seed}-{key}" for key in range(KEYS)]
        for name in names:
            made = Item(name, row(0))
            for moves in range(1, MOVES):
                made.move(row(moves))
            items.save(made)
        start.wait()
        end_s = time.perf_counter() + seconds
        while (begun_s := time.perf_counter()) < end_s:
            aggregate = uuid5(NAMESPACE_URL, drawn.choice(names))
            if what == "commits":
                item: Item = items.repository.get(aggregate)
                item.move(row(drawn.randrange(1_000)))
                items.save(item)
            else:
                item = items.repository.get(aggregate, version=2)
                assert item.row["moves"] == 1
            took_s.append(time.perf_counter() - begun_s)

    clients = CLIENTS // PROCESSES
    start = threading.Barrier(clients)
    threads = [threading.Thread(target=client, args=(number * CLIENTS + each,)) for each in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items.close()
    return took_s


def written() -> int:
    """Events there are; makes the tables."""
    items = Items()
    try:
        return items.recorder.max_notification_id() or 0
    finally:
        items.close()


def main(what: str, address: str, seconds: float) -> None:
    parts = urlsplit(address)
    os.environ |= {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": parts.path.strip("/"),
        "POSTGRES_HOST": parse_qs(parts.query)["host"][0],
        "POSTGRES_PORT": str(parts.port or 5432),
        "POSTGRES_USER": parts.username or "",
        "POSTGRES_PASSWORD": parts.password or "none",
        "POSTGRES_POOL_SIZE": str(CLIENTS // PROCESSES),
    }
    before, run_id = written(), str(uuid4())
    os.environ["CREATE_TABLE"] = "no"  # two processes at it at once are an error of PostgreSQL's
    with ProcessPoolExecutor(PROCESSES) as pool:
        ended = [pool.submit(run, what, run_id, seconds, number) for number in range(PROCESSES)]
        ordered = sorted(second for one in ended for second in one.result())
    wanted = CLIENTS * KEYS * MOVES + (len(ordered) if what == "commits" else 0)
    if (found := written() - before) != wanted:
        sys.exit(f"{wanted} events were written, and {found} are there")
    print(
        json.dumps(
            {
                "per_s": len(ordered) / seconds,
                "p50_ms": ordered[len(ordered) // 2] * 1_000,
                "p99_ms": ordered[len(ordered) * 99 // 100] * 1_000,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
