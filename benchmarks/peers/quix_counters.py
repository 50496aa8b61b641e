"""A counter for each key with Quix Streams, exactly once: one state update and one output for each event.

Run by the Python that Quix Streams is installed for: `python quix_counters.py BOOTSTRAP EVENTS COUNTS DIRECTORY`.
"""

from __future__ import annotations

import sys
from typing import Any

from quixstreams import Application, State

COMMIT_INTERVAL_S = 0.5


def count(event: dict[str, Any], state: State) -> dict[str, Any]:
    """The counter after this event."""
    total = (state.get("n") or 0) + event["n"]
    state.set("n", total)
    return {"n": total}


def main(bootstrap: str, events: str, counts: str, directory: str) -> None:
    """Until it is stopped."""
    app = Application(
        broker_address=bootstrap,
        consumer_group=f"{events}-quix",
        processing_guarantee="exactly-once",
        auto_offset_reset="earliest",
        commit_interval=COMMIT_INTERVAL_S,
        state_dir=directory,
        loglevel="WARNING",
    )
    stream = app.dataframe(app.topic(events, value_deserializer="json"))
    stream = stream.apply(count, stateful=True)
    stream.to_topic(app.topic(counts, value_serializer="json"))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
