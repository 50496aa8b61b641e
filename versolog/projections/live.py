"""A partition that lives: its store follows the log, written by the committer of its owner or by the follower."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import TopicPartition

from versolog.projections.partition import Partition
from versolog.projections.rocks import Memory
from versolog.projections.store import Store
from versolog.projections.tail import OUTCOME, REQUEST_TIMEOUT_S, Ends, Followed, Tail, catch_up, reader, takes_effect
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import BrokenLog, Unavailable, VersologError
from versolog.schemas.topics import Topics
from versolog.streams.chain import commit_hash
from versolog.streams.committer import Written
from versolog.streams.decide import Decision
from versolog.streams.state import State

logger = structlog.get_logger(__name__)


class LivePartition(Partition):
    """A store and its writer. The committer (as owner) or the follower folds into it, never both.

    Reads, waits and `applied` belong to the event loop; folds run in threads and serialize on a lock.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        *,
        kafka: dict[str, Any],
        topics: Topics,
        codec: Codec,
        identity: str,
        ends: Ends,
        memory: Memory,
    ) -> None:
        self._path = directory / f"partition-{number}"
        self._kafka, self._topics, self._codec, self._identity = kafka, topics, codec, identity
        self._ends, self._memory = ends, memory
        self._lock = threading.RLock()
        self.number = number
        try:
            store = self._opened()
        except BrokenLog as error:
            store = self._made_anew(error.detail)
        super().__init__(number, store)

    def _read(self, store: Store) -> None:
        super()._read(store)
        self._tail = Tail(store, self._topics, self._codec, self._lock)

    def _made_anew(self, reason: str) -> Store:
        """The log is the truth: a store that is not of it is made again from it."""
        logger.warning("store-rebuilt", partition=self.number, path=str(self._path), reason=reason)
        shutil.rmtree(self._path, ignore_errors=True)
        return self._opened()

    def _opened(self) -> Store:
        return Store.open(
            self._path, partition=self.number, codec=self._codec, memory=self._memory, identity=self._identity
        )

    def close(self) -> None:
        with self._lock:
            super().close()

    # What the committer asks of its replica

    @property
    def state(self) -> State:
        return self.store

    @property
    def checkpoint(self) -> Record | None:
        return self.store.checkpoint

    def outcomes(self, transaction_ids: Sequence[str]) -> Sequence[bytes | None]:
        return self.store.outcomes(transaction_ids)

    def catch_up(self) -> None:
        """Fold the log to its last stable offset; a store that is not of this log is made anew from its beginning."""
        with self._lock:
            try:
                self._check_last_commit()
                catch_up(self._tail, self._kafka, self._topics, self._ends)
            except BrokenLog as error:
                if self.store.next_commit_offset == 0 and self.store.next_outcome_offset == 0:
                    raise  # the log itself is broken, and no store can help it
                self.store.close()
                self._read(self._made_anew(error.detail))
                catch_up(self._tail, self._kafka, self._topics, self._ends)

    def apply(self, written: Written) -> None:
        with self._lock:
            if written.last_outcome_offset < self.store.next_outcome_offset:
                return  # an owner's late thread: the batch was read from the log meanwhile
            fold = self.store.fold()
            offset, values = written.first_commit_offset, iter(written.values)
            for decision in written.decisions:
                for sealed in decision.commits:
                    for piece in sealed.pieces:
                        fold.commit(offset=offset, value=next(values), record=piece.record, hash=piece.hash)
                        offset += 1
                if not decision.repeated and takes_effect(decision.transaction_id, decision.code):
                    fold.outcome(decision.outcome, decision.transaction_id)
            fold.checkpoint(written.checkpoint)
            fold.offsets(commits=offset if written.values else None, outcomes=written.last_outcome_offset + 1)
            fold.write()

    def applied(self, decisions: Sequence[Decision]) -> None:
        if self._waiting:
            self._answer(
                (decision.transaction_id, decision.intent_hash, decision.outcome)
                for decision in decisions
                if (decision.transaction_id, decision.intent_hash) in self._waiting
            )
        self._folded()

    def _check_last_commit(self) -> None:
        """Raise BrokenLog where the store's last commit is not in the log at its offset with its hash."""
        offset = self.store.next_commit_offset - 1
        if offset < 0:
            return
        with closing(reader(self._kafka, **{"enable.partition.eof": True})) as consumer:
            consumer.assign([TopicPartition(self._topics.commits, self.number, offset)])
            message = consumer.poll(REQUEST_TIMEOUT_S)
        if message is None:
            raise Unavailable(f"{self._topics.commits}[{self.number}] was not answered in time", partition=self.number)
        value = message.value()
        if message.error() is None and message.offset() == offset and isinstance(value, bytes):
            schema_id, body = avro.unframe(value)
            hash_ = commit_hash(self._codec.schema_of(schema_id).fingerprint, body)
            record = avro.decode(avro.schema("Commit"), body, writer=self._codec.schema_of(schema_id))
            entry = self.store.commit_entry(record["group"], record["version"])
            if entry is not None and entry.hash == hash_:
                return
        raise BrokenLog(
            f"the last commit of the store of partition {self.number} is not in the log at offset {offset}",
            partition=self.number, offset=offset,
        )  # fmt: skip

    # Following

    def followed(self, loop: asyncio.AbstractEventLoop) -> Followed:
        """How a Follower keeps this partition up to date; what waits on `loop` is told."""

        def folded(outcomes: list[bytes]) -> None:
            loop.call_soon_threadsafe(self._followed_to, outcomes)

        def broken(error: VersologError) -> None:
            loop.call_soon_threadsafe(self.stop, error)

        return Followed(self._tail, folded, broken)

    def _followed_to(self, outcomes: list[bytes]) -> None:
        if self._waiting:
            records = (avro.decode(OUTCOME, body) for body in outcomes)
            bodies = zip(records, outcomes, strict=True)
            self._answer((record["transaction_id"], record["intent_hash"], body) for record, body in bodies)
        self._folded()
