"""Named points at which a crash test has the process killed: nothing but a comparison when none is armed."""

from __future__ import annotations

import os
import signal

_armed: dict[str, int] = {}

POINTS = (
    "shares-produced",
    "votes-cast",
    "votes-heard",
    "batch-decided",
    "transaction-begun",
    "commits-produced",
    "records-produced",
    "kafka-committed",
    "store-written",
    "owner-fenced",
    "owner-caught-up",
)
"""In the order that a write passes them, the first three if it is over several partitions; the last two are passed by an owner that takes over."""


def arm(points: str) -> None:
    """Have the process killed at each of the comma-separated `point` or `point:n`, on the n-th time it is reached."""
    for item in filter(None, points.split(",")):
        name, _, count = item.partition(":")
        if name not in POINTS:
            raise ValueError(f"no failpoint {name!r}; there are {', '.join(POINTS)}")
        _armed[name] = int(count or 1)


def reach(name: str) -> None:
    """Kill the process here, at once and without a word to anyone, if a test asked for it."""
    if _armed and name in _armed:
        _armed[name] -= 1
        if _armed[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
