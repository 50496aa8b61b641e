"""One partition on this worker: its store, who writes it, and who waits for it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import structlog
from confluent_kafka import TopicPartition

from versolog.projections.rocks import Memory
from versolog.projections.store import Store
from versolog.projections.tail import OUTCOME, REQUEST_TIMEOUT_S, Ends, Followed, Tail, catch_up, reader, takes_effect
from versolog.projections.views import View
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import BrokenLog, Unavailable, VersologError
from versolog.schemas.outcome import Outcome
from versolog.schemas.topics import Topics
from versolog.streams.chain import commit_hash
from versolog.streams.committer import Written
from versolog.streams.decide import Decision
from versolog.streams.state import State

Role = Literal["idle", "follower", "recovering", "owner", "stopped"]

logger = structlog.get_logger(__name__)


class Partition:
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
        self.number = number
        self.role: Role = "idle"
        self.error: VersologError | None = None
        self._path = directory / f"partition-{number}"
        self._kafka, self._topics, self._codec, self._identity = kafka, topics, codec, identity
        self._ends, self._memory = ends, memory
        self._lock = threading.RLock()
        self._waiting: dict[tuple[str, bytes], list[asyncio.Future[Outcome]]] = {}
        self._next_fold: asyncio.Future[None] | None = None
        self._open_store()

    def _open_store(self) -> None:
        try:
            self.store = self._opened()
        except BrokenLog as error:
            self._start_anew(error.detail)
        self.view = View(self.store)
        self._tail = Tail(self.store, self._topics, self._codec, self._lock)

    def _start_anew(self, reason: str) -> None:
        """The log is the truth: a store that is not of it is made again from it."""
        logger.warning("store-rebuilt", partition=self.number, path=str(self._path), reason=reason)
        shutil.rmtree(self._path, ignore_errors=True)
        self.store = self._opened()

    def _opened(self) -> Store:
        return Store.open(
            self._path, partition=self.number, codec=self._codec, memory=self._memory, identity=self._identity
        )

    def close(self) -> None:
        with self._lock:
            self.store.close()

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
                self._start_anew(error.detail)
                self.view = View(self.store)
                self._tail = Tail(self.store, self._topics, self._codec, self._lock)
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

    def stop(self, error: VersologError) -> None:
        """Go no further: `error` says why, to everyone who asks."""
        self.role, self.error = "stopped", error
        self._folded()

    # Waiting

    def clock(self) -> int:
        """Milliseconds: everything with committed_at below it is decided and can be read here."""
        checkpoint = self.store.checkpoint
        return 0 if checkpoint is None else int(checkpoint["clock"])

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `ready`, which is asked again after every fold; False when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    if self._next_fold is None or self._next_fold.done():
                        self._next_fold = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._next_fold)
        except TimeoutError:
            return ready()
        return True

    def expect_outcome(self, transaction_id: str, intent_hash: bytes) -> asyncio.Future[Outcome]:
        """A future of the outcome of this id with this content, whoever decides it. Cancel it when it's not wanted."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        key = (transaction_id, intent_hash)
        self._waiting.setdefault(key, []).append(future)
        future.add_done_callback(lambda done: self._forget(key, done))
        return future

    def _answer(self, outcomes: Iterable[tuple[str, bytes, bytes]]) -> None:
        for transaction_id, intent_hash, body in outcomes:
            waiting = self._waiting.pop((transaction_id, intent_hash), ())
            outcome = Outcome.from_avro(avro.decode(OUTCOME, body)) if waiting else None
            for future in waiting:
                if outcome is not None and not future.done():
                    future.set_result(outcome)

    def _forget(self, key: tuple[str, bytes], done: asyncio.Future[Outcome]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and done in waiting:
            waiting.remove(done)
            if not waiting:
                del self._waiting[key]

    def _folded(self) -> None:
        if self._next_fold is not None and not self._next_fold.done():
            self._next_fold.set_result(None)
