"""One group of an engine, written to and read in short words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import Engine
from versolog.schemas import codec as avro
from versolog.schemas.documents import from_text
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME, plan
from versolog.streams.merging import Unmerged
from versolog.streams.transaction import Transaction
from versolog.streams.versions import levels_at, resolve, row_at


class Group:
    """One group of an engine, in short words."""

    def __init__(self, engine: Engine, name: str = "g") -> None:
        self.engine, self.name = engine, name

    def put(self, key: str, row: dict[str, Any] | None, branch: str = "main", table: str = "t") -> int:
        tx = Transaction(self.name, branch=branch)
        return self.done(tx.delete(table, key) if row is None else tx.put(table, key, row))

    def add(self, key: str, amounts: dict[str, Any], branch: str = "main") -> int:
        return self.done(Transaction(self.name, branch=branch).add("t", key, amounts))

    def do(self, kind: str, branch: str = "main", /, **arguments: Any) -> int:
        return self.done(Transaction(self.name, branch=branch).operation(kind, **arguments))

    def done(self, tx: Transaction) -> int:
        outcome = self.decided(tx)
        assert outcome.committed, (outcome.code, outcome.detail)
        return outcome.parts[0].version

    def refused(self, kind: str, branch: str = "main", /, **arguments: Any) -> Outcome:
        outcome = self.decided(Transaction(self.name, branch=branch).operation(kind, **arguments))
        assert not outcome.committed
        return outcome

    def conflicts(self, kind: str, branch: str = "main", /, **arguments: Any) -> list[dict[str, Any]]:
        """The conflicts, told alike by the refusal and by a dry run before it."""
        tx = Transaction(self.name, branch=branch).operation(kind, **arguments)
        with pytest.raises(Unmerged) as rehearsed:
            plan(self.engine.overlay, tx.record()["parts"][0])
        outcome = self.decided(tx)
        assert outcome.code == "merge-conflict"
        assert outcome.facts == rehearsed.value.facts
        found: list[dict[str, Any]] = outcome.facts["conflicts"]
        return found

    def decided(self, tx: Transaction) -> Outcome:
        return Outcome.from_avro(avro.decode(OUTCOME, self.engine.decide(tx).outcome))

    def branch(self, name: str, from_: str = "main") -> int:
        return self.do("create-branch", name=name, **{"from": from_})

    def row(self, key: str, at: str = "main", table: str = "t") -> Any:
        state = self.engine.overlay
        found = row_at(state, self.name, levels_at(state, resolve(state, self.name, at)), table, key)
        return None if found is None or found.text is None else from_text(found.text)
