"""One partition without Kafka: the real decide, overlay, fold and store around a log that is two lists.

It does what a committer does, in the same order, one step at a time, so that a test can stop it between any two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from versolog.projections.store import Store
from versolog.projections.tail import takes_effect
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record, Schema
from versolog.schemas.outcome import Outcome
from versolog.streams.chain import commit_hash, intent_hash
from versolog.streams.decide import COMMIT, OUTCOME, Asked, Decision, decide
from versolog.streams.overlay import Layer, Overlay
from versolog.streams.transaction import Transaction


class MemoryIds:
    """Schema ids in the order of registration."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def id_of(self, schema: Schema) -> int:
        if schema.text not in self.texts:
            self.texts.append(schema.text)
        return self.texts.index(schema.text) + 1

    def text_of(self, schema_id: int) -> str:
        return self.texts[schema_id - 1]


@dataclass
class Log:
    """What Kafka would keep."""

    commits: list[bytes] = field(default_factory=list)
    outcomes: list[bytes] = field(default_factory=list)
    """Avro bodies, one for each decided record."""


class Engine:
    """Decides, logs and folds."""

    def __init__(self, path: Path, *, partition: int = 0, partitions: int = 1) -> None:
        self.path, self.partition, self.partitions = path, partition, partitions
        self.codec = Codec(MemoryIds())
        self.schema_id = self.codec.id_of(COMMIT)
        self.log = Log()
        self.offset = 0
        self.clock = 1_767_225_600_000
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.path, partition=self.partition, codec=self.codec, identity="test")
        self.overlay = Overlay(self.store)
        self.unwritten: list[tuple[Layer, list[Decision], int]] = []
        self.decided: list[Decision] = []

    def restart(self) -> None:
        """Stop without writing what is decided, and go on from the log, as after a crash behind the commit."""
        self.flush_to_log()
        self.store.close()
        self.open()
        self.fold_log(self.store)

    def send(self, *transactions: Transaction, tick_ms: int = 1) -> list[Outcome]:
        """Decide, commit and fold `transactions` as one batch."""
        decisions = [self.decide(tx, tick_ms=tick_ms) for tx in transactions]
        self.flush()
        return [Outcome.from_avro(avro.decode(OUTCOME, decision.outcome)) for decision in decisions]

    def decide(self, tx: Transaction | bytes | Record, *, tick_ms: int = 1) -> Decision:
        """Decide without committing."""
        body = tx if isinstance(tx, bytes) else avro.encode(avro.schema("Transaction"), _record(tx))
        self.clock += tick_ms
        record = avro.decode(avro.schema("Transaction"), body)
        asked = Asked(self.offset, self.clock, intent_hash(body), record)
        self.offset += 1
        decision = decide(self.overlay, asked, self.partition, self.partitions)
        self.decided.append(decision)
        return decision

    def cut_batch(self) -> None:
        """Put what is decided into the log, and go on deciding above it without having written the store."""
        layer, decisions = self.overlay.push(), self.decided
        self.decided = []
        first = len(self.log.commits)
        for decision in decisions:
            for sealed in decision.commits:
                self.log.commits += (avro.frame(self.schema_id, piece.body) for piece in sealed.pieces)
            self.log.outcomes.append(decision.outcome)
        self.unwritten.append((layer, decisions, first))

    def flush_to_log(self) -> None:
        self.cut_batch()

    def write_oldest(self) -> None:
        """Write the oldest committed batch to the store."""
        layer, decisions, offset = self.unwritten.pop(0)
        fold = self.store.fold()
        for decision in decisions:
            for sealed in decision.commits:
                for piece in sealed.pieces:
                    value = self.log.commits[offset]
                    fold.commit(offset=offset, value=value, record=piece.record, hash=piece.hash)
                    offset += 1
            if not decision.repeated and takes_effect(decision.transaction_id, decision.code):
                fold.outcome(decision.outcome, decision.transaction_id)
        fold.offsets(commits=offset)
        fold.write()
        self.overlay.drop(layer)

    def flush(self) -> None:
        self.cut_batch()
        while self.unwritten:
            self.write_oldest()

    def fold_log(self, store: Store) -> None:
        """Fold the whole log, what the store has already included."""
        fold = store.fold()
        for offset, value in enumerate(self.log.commits):
            _, body = avro.unframe(value)
            hash_ = commit_hash(COMMIT.fingerprint, body)
            fold.commit(offset=offset, value=value, record=avro.decode(COMMIT, body), hash=hash_)
        for body in self.log.outcomes:
            record = avro.decode(OUTCOME, body)
            if takes_effect(record["transaction_id"], record["code"]):
                fold.outcome(body, record["transaction_id"])
        fold.offsets(commits=len(self.log.commits))
        fold.write()


def _record(tx: Transaction | Record) -> Record:
    return tx.record() if isinstance(tx, Transaction) else tx


def codes(outcomes: Sequence[Outcome]) -> list[str]:
    """`committed` or the code of the refusal, for each."""
    return [outcome.code or "committed" for outcome in outcomes]
