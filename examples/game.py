"""A game: two characters of different guilds trade, all of it or nothing, and a cheated trade is undone.

versolog up                  # in another terminal
python examples/game.py
"""

from __future__ import annotations

import sys

from versolog import Client
from versolog.client import Read
from versolog.schemas.errors import PreconditionFailed

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
WOLVES, RAVENS = "guild-wolves", "guild-ravens"


def show(db: Client, what: str) -> None:
    """Both characters at one moment."""
    told = db.read(Read(WOLVES, "characters", "freya"), Read(RAVENS, "characters", "odd"))
    print(what)
    for place in range(2):
        row = told.row(place)
        assert row is not None
        print(f"  {row.key:6} {row.row}")


def main() -> None:
    with Client(URL, author="game server") as db:
        tx = db.transaction(None, type="Joined")
        tx.group(WOLVES).put("characters", "freya", {"gold": 10, "items": {"axe": 1}})
        tx.group(RAVENS).put("characters", "odd", {"gold": 90, "items": {}})
        tx.send()
        show(db, "before the trade")

        # Both hands at once: the trade holds only if neither character changed since it was agreed.
        freya = db.row(WOLVES, "characters", "freya")
        odd = db.row(RAVENS, "characters", "odd")
        tx = db.transaction(None, type="Traded", message="an axe for 50 gold")
        tx.group(WOLVES).expect("characters", "freya", freya.version)
        tx.group(WOLVES).patch("characters", "freya", {"gold": 60, "items": {"axe": None}})
        tx.group(RAVENS).expect("characters", "odd", odd.version)
        tx.group(RAVENS).patch("characters", "odd", {"gold": 40, "items": {"axe": 1}})
        trade = tx.send()
        show(db, "after the trade")

        # The same axe a second time: refused in both guilds.
        again = db.transaction(None, type="Traded")
        again.group(WOLVES).expect("characters", "freya", freya.version)
        again.group(WOLVES).add("characters", "freya", {"gold": 50})
        again.group(RAVENS).add("characters", "odd", {"gold": -50})
        try:
            again.send()
        except PreconditionFailed as refused:
            print(f"sold twice? {refused.detail}")

        # It was a cheat: the game master takes it back, in both guilds, in one step.
        undo = db.transaction(None, type="TradeUndone", message="odd was cheated", author="game master")
        for part in trade.parts:
            undo.group(part.group).operation("revert", versions=[part.version])
        undo.send()
        show(db, "undone")
        for past in db.history(WOLVES, "characters", "freya"):
            print(f"  version {past.version}: {past.type or past.operation:12} {past.author:12} {past.row}")


if __name__ == "__main__":
    main()
