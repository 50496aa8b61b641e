"""What the simulator's clients ask for: small transactions that meet each other, and the mistakes that clients make."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import NamedTuple

from versolog.schemas import codec
from versolog.schemas.codec import Record
from versolog.schemas.errors import VersologError, refusal
from versolog.schemas.topics import partition_of
from versolog.streams.chain import intent_hash

TRANSACTION = codec.schema("Transaction")

ACCOUNTS, NOTES = "accounts", "notes"
KEYS = ("a", "b")
PLACES = [(table, key) for table in (ACCOUNTS, NOTES) for key in KEYS]
SEQUENCE = -1
"""In place of a partition's number: the topic `sequence`."""


class Intent(NamedTuple):
    """A record as a client appends it."""

    record: Record | None
    """None for garbage."""
    hash: bytes
    fault: VersologError | None
    """Why it can't be read."""


class Known(NamedTuple):
    """What a client may know of the store when it asks: an answer of some time ago."""

    head: Callable[[str], int]
    row: Callable[[str, str, str], int]
    """The version that last changed a row of a group, by table and key."""


@cache
def groups_of(partitions: int) -> list[list[str]]:
    """For each partition two groups."""
    groups: list[list[str]] = [[] for _ in range(partitions)]
    number = 0
    while any(len(own) < 2 for own in groups):
        name = f"g{number}"
        own = groups[partition_of(name, partitions)]
        if len(own) < 2:
            own.append(name)
        number += 1
    return groups


class Clients:
    """Draws what is asked next, and where it is sent."""

    def __init__(self, random: Random, partitions: int, known: Known, spanning: float) -> None:
        """`spanning` is the share of transactions over several partitions."""
        self._random, self._partitions, self._known, self._spanning = random, partitions, known, spanning
        self._groups = groups_of(partitions)
        self._sent: list[tuple[int, Intent]] = []
        self._number = 0

    def next(self) -> tuple[int, Intent]:
        """Where to, and what."""
        draw = self._random.random()
        if self._sent and draw < 0.16:
            to, intent = self._again(*self._random.choice(self._sent))
        elif draw < 0.20:
            to, intent = self._garbage()
        else:
            to, intent = self._new(f"t{self._number}")
            self._number += 1
        self._sent.append((to, intent))
        return to, intent

    def _again(self, to: int, intent: Intent) -> tuple[int, Intent]:
        """The same once more, or another content under its id."""
        draw = self._random.random()
        if intent.record is None or draw < 0.5:
            return to, intent
        if draw < 0.6:  # the same content, sent astray, or sent right after it was sent astray
            return self._random.choice([SEQUENCE, partition_of(_first_group(intent.record), self._partitions)]), intent
        return self._new(intent.record["id"])

    def _garbage(self) -> tuple[int, Intent]:
        random = self._random
        to = random.randrange(SEQUENCE, self._partitions)
        kind = random.randrange(5)
        parts = [_part(random.choice(random.choice(self._groups)), changes=[_put(random)]) for _ in range(2)]
        if kind == 0:
            body = random.randbytes(4)
            return to, Intent(None, intent_hash(body), refusal("malformed", "not an Avro Transaction"))
        if kind == 1:
            return to, _intent("", parts[:1])
        if kind == 2:
            return to, _intent(f"t{self._number}", [])
        if kind == 3:
            parts[0]["changes"] = []
        else:
            parts[1]["changes"][0]["table"] = "$tables"
        return to, _intent(f"t{self._number}", parts)

    def _new(self, id: str) -> tuple[int, Intent]:
        random = self._random
        partitions = [random.randrange(self._partitions)]
        if random.random() < self._spanning:
            partitions = random.sample(range(self._partitions), random.randint(2, min(3, self._partitions)))
        groups = [random.choice(self._groups[partition]) for partition in partitions]
        if random.random() < 0.2:
            other = random.choice(self._groups[partitions[0]])
            groups += [other] if other not in groups else []
        parts = self._transfer(groups) if random.random() < 0.4 else [self._noted(group) for group in groups]
        parts.sort(key=lambda part: str(part["group"]))
        for part in parts:
            if random.random() < 0.3:
                self._expect(part)
        intent = _intent(id, parts)
        spans = len(partitions) > 1
        if random.random() < 0.03:
            return random.randrange(SEQUENCE, self._partitions), intent
        return (SEQUENCE if spans else partitions[0]), intent

    def _transfer(self, groups: list[str]) -> list[Record]:
        """Amounts whose sum is zero."""
        random = self._random
        if len(groups) == 1:
            return [_part(groups[0], changes=[_add("a", -3), _add("b", 3)])]
        amounts = [random.randint(1, 9) for _ in groups[1:]]
        return [
            _part(group, changes=[_add(random.choice(KEYS), amount)])
            for group, amount in zip(groups, [-sum(amounts), *amounts], strict=True)
        ]

    def _noted(self, group: str) -> Record:
        random = self._random
        draw = random.random()
        if draw < 0.25:
            part = _part(group)
            self._expect(part)
            return part
        if draw < 0.6:
            return _part(group, changes=[_put(random)])
        key = random.choice(KEYS)
        if draw < 0.8:
            return _part(group, changes=[_change("add", NOTES, key, '{"n":1}')])
        if draw < 0.9:
            return _part(group, changes=[_change("delete", NOTES, key, None)])
        return _part(group, changes=[_change("patch", NOTES, key, '{"p":7}'), _put(random)])

    def _expect(self, part: Record) -> None:
        """A precondition that holds, if what the client knows is new."""
        random, group = self._random, part["group"]
        off = random.random() < 0.15
        if random.random() < 0.5:
            part["expect_head"] = self._known.head(group) + off
            return
        table, key = random.choice(PLACES)
        part["expect"] = [{"table": table, "key": key, "version": self._known.row(group, table, key) + off}]


def _first_group(record: Record) -> str:
    return str(record["parts"][0]["group"]) if record["parts"] else "g0"


def _intent(id: str, parts: list[Record]) -> Intent:
    record = {"id": id, "author": "", "message": "", "type": "", "occurred_at": None, "parts": parts}
    return Intent(record, intent_hash(codec.encode(TRANSACTION, record)), None)


def _part(group: str, changes: list[Record] | None = None) -> Record:
    return {
        "group": group, "branch": "main", "expect_head": None, "expect": [], "changes": changes or [],
        "operation": None,
    }  # fmt: skip


def _change(op: str, table: str, key: str, row: str | None) -> Record:
    return {"op": op, "table": table, "key": key, "row": row}


def _add(key: str, amount: int) -> Record:
    return _change("add", ACCOUNTS, key, f'{{"balance":{amount}}}')


def _put(random: Random) -> Record:
    row = '{"n":"some"}' if random.random() < 0.2 else f'{{"n":{random.randrange(100)}}}'
    return _change("put", NOTES, random.choice(KEYS), row)
