"""Turns of the interpreter: what is compiled, or takes long in one call, keeps it from all other threads meanwhile."""

from __future__ import annotations

import time

ITEMS_A_TURN = 1_000
"""So many rows are looked at, about a millisecond of work, before others may have their turn."""


def give_way() -> None:
    """Let another thread that waits for the interpreter have it; where none waits, go on at once."""
    time.sleep(0)
