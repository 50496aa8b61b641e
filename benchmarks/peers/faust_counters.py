"""A counter for each key with plain Faust, exactly once: a RocksDB table and one output for each event.

Run as `python faust_counters.py BOOTSTRAP EVENTS COUNTS DIRECTORY`.
"""

from __future__ import annotations

import sys
from typing import Any

import faust


def main(bootstrap: str, events: str, counts: str, directory: str) -> None:
    """Until it is stopped."""
    app = faust.App(
        f"{events}-faust",
        broker=f"kafka://{bootstrap}",
        store="rocksdb://",
        processing_guarantee="exactly_once",
        topic_partitions=1,
        datadir=directory,
        web_enabled=False,
    )
    source = app.topic(events, key_type=str, key_serializer="raw", value_serializer="json")
    output = app.topic(counts, key_type=str, key_serializer="raw", value_serializer="json")
    table: Any = app.Table(f"{events}-table", default=int, partitions=1)

    async def count(stream: Any) -> None:
        async for key, event in stream.items():
            table[key] += event["n"]
            await output.send(key=key, value={"n": table[key]})

    app.agent(source)(count)
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:])
