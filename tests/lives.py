"""Lives of one group, at random: what the logs and differences of branches that merge to and fro are tested on."""

from __future__ import annotations

from random import Random

from tests.engine import Engine
from versolog.streams.transaction import Transaction

AUTHORS, TYPES, MESSAGES = ("ann", "bob", ""), ("Moved", ""), ("Gate closed", "gate open", "STRASSE", "")
TABLES, KEYS = ("t", "u"), ("a", "b")
NAMES = ("main", "plan", "fix")
STEPS = 25


def live_through(engine: Engine, random: Random) -> None:
    """Writes, branches, deletes, tags and merges; what is refused is left out."""
    for _ in range(STEPS):
        tx = Transaction(
            "g", branch=random.choice(NAMES), author=random.choice(AUTHORS), type=random.choice(TYPES),
            message=random.choice(MESSAGES),
        )  # fmt: skip
        chance = random.random()
        if chance < 0.5:
            for _ in range(random.randint(1, 2)):
                tx.put(random.choice(TABLES), random.choice(KEYS), {"n": random.randrange(9)})
        elif chance < 0.65:
            tx.operation("create-branch", name=random.choice(NAMES), **{"from": random.choice(NAMES)})
        elif chance < 0.7:
            tx.operation("delete-branch", name=random.choice(NAMES), force=True)
        elif chance < 0.75:
            tx.operation("tag", name=f"v{random.randrange(9)}", at=random.choice(NAMES))
        else:
            no_ff = random.random() < 0.5
            tx.operation("merge", source=random.choice(NAMES), policy=random.choice(("ours", "theirs")), no_ff=no_ff)
        engine.send(tx, tick_ms=random.randint(0, 2))
