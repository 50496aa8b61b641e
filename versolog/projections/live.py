"""A partition that lives: its store follows the log, written by the committer of its owner or by the follower."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import KafkaError, TopicPartition

from versolog.projections.partition import Partition
from versolog.projections.rocks import Memory, StoreLocked, StoreUnusable
from versolog.projections.store import Store
from versolog.projections.follower import Followed
from versolog.projections.tail import (
    COMMIT,
    REQUEST_TIMEOUT_S,
    Ends,
    OtherLog,
    Tail,
    catch_up,
    reader_to_end,
    refuse_ahead,
    takes_effect,
)
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import BrokenLog, Malformed, Unavailable, VersologError
from versolog.schemas.readings import read_commit, read_outcome
from versolog.schemas.topics import Topics
from versolog.streams.chain import commit_hash
from versolog.streams.committer import Stand, Written
from versolog.streams.decide import Decision
from versolog.streams.state import State

LOCKED_WAIT_S = 12.0
"""A worker whose starter was killed ends within 9 s, and holds its stores until then."""
LOCKED_LOOK_S = 0.1

_NO_RECORD = (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)

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
        self._unusable: VersologError | None = None
        """Why the store is to be made anew before anything else."""
        try:
            store = self._opened_once_free()
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

    def _opened_once_free(self) -> Store:
        """The store. A worker that was here before and is about to end is waited for."""
        deadline = time.monotonic() + LOCKED_WAIT_S
        told = False
        while True:
            try:
                return self._opened()
            except StoreLocked as error:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    logger.warning("store-locked-still", partition=self.number, reason=error.detail)
                    told = True
                time.sleep(LOCKED_LOOK_S)

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

    @property
    def next_commit_offset(self) -> int:
        return self.store.next_commit_offset

    @property
    def awaited(self) -> int:
        return len(self._waiting)

    def outcomes(self, transaction_ids: Sequence[str]) -> Sequence[bytes | None]:
        return self.store.outcomes(transaction_ids)

    def broke_off(self, failure: BaseException) -> None:
        """Deciding has ended by `failure`."""
        self.role = "recovering"
        self.distrust(failure)

    def distrust(self, failure: BaseException) -> None:
        """Where `failure` says that the store can't be read, it is made anew before it is caught up or followed."""
        if isinstance(failure, StoreUnusable):
            self._unusable = failure

    def catch_up(self) -> Stand:
        """Fold the log to its end; a store that is not of this log, or can't be read, is made anew from its beginning."""
        with self._lock:
            stand = self._settled_ends()
            self._make_anew_if_foreign()
            try:
                catch_up(self._tail, self._kafka, self._topics, self._ends)
            except StoreUnusable as error:
                self._make_anew(error)
                catch_up(self._tail, self._kafka, self._topics, self._ends)
        return stand

    def caught_up(self) -> None:
        """Tell who waits, on the event loop, what catching up has brought."""
        for transaction_id, intent_hash in list(self._waiting):
            body = self.store.outcome(transaction_id)
            if body is not None:
                self._answer([(transaction_id, intent_hash, body)])
        self._folded()

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
            fold.checkpoint(written.checkpoint, written.checkpoint_body)
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

    def _settled_ends(self) -> Stand:
        """The ends of the two topics. Raises Unavailable while a transaction is open: what stands behind its first
        record, perhaps this partition's own outcomes, is not shown before its end."""
        places = [(self._topics.commits, self.number), (self._topics.outcomes, self.number)]
        stable, last = self._ends.stable(places), self._ends.last(places)
        for topic, number in places:
            if (shown := stable[topic, number]) < (end := last[topic, number]):
                raise Unavailable(
                    f"{topic}[{number}] is shown up to offset {shown} and ends at {end}: another producer, which has "
                    "no business there, has a transaction open, or Kafka has lost the end of one (4.3.0 to 4.4.0 can: "
                    "KAFKA-20734)",
                    partition=number, topic=topic, expected=end, found=shown,
                )  # fmt: skip
        return Stand(*(stable[place] for place in places))

    def _make_anew_if_foreign(self) -> None:
        """Make the store anew where it is of another log, or can't be read. Raises Unavailable while the log does not
        show what it holds: after a crash the broker may still have to mark transactions as committed that were."""
        if self._unusable is not None:
            self._make_anew(self._unusable)
        places = [(place.topic, place.partition) for place in self._tail.starts()]
        try:
            refuse_ahead(self._tail, self._ends.last(places))
        except OtherLog as error:
            self._make_anew(error)
            return
        try:
            refuse_ahead(self._tail, self._ends.stable(places))
        except OtherLog as hidden:
            raise Unavailable(f"not all of the log is shown yet: {hidden.detail}", partition=self.number) from hidden
        try:
            self._check_last_commit()
        except (OtherLog, StoreUnusable) as error:
            self._make_anew(error)

    def _make_anew(self, why: VersologError) -> None:
        self._unusable = why  # until it is done
        self.store.close()
        self._read(self._made_anew(why.detail))
        self._unusable = None

    def _check_last_commit(self) -> None:
        """Raise OtherLog where the store's last commit is not in the log at its offset with its hash."""
        offset = self.store.next_commit_offset - 1
        if offset < 0:
            return
        with closing(reader_to_end(self._kafka)) as consumer:
            consumer.assign([TopicPartition(self._topics.commits, self.number, offset)])
            message = consumer.poll(REQUEST_TIMEOUT_S)
        error = None if message is None else message.error()
        if message is None or (error is not None and error.code() not in _NO_RECORD):
            raise Unavailable(
                f"{self._topics.commits}[{self.number}] was not answered: {error or 'in time'}", partition=self.number
            )
        if error is not None or message.offset() != offset or not self._is_known(message.value()):
            raise OtherLog(
                f"the last commit of the store of partition {self.number} is not in the log at offset {offset}",
                partition=self.number, offset=offset,
            )  # fmt: skip

    def _is_known(self, value: Any) -> bool:
        """Whether the store holds this commit, or piece of one, as its last."""
        try:
            writer, body = self._codec.opened(value, COMMIT)
            record = read_commit(body, writer)
        except Malformed:
            return False
        known = self.store.piece(record["group"], record["version"], record["piece"])
        return known is not None and known.hash == commit_hash(writer.fingerprint, body)

    # Following

    def reconcile(self, after: VersologError | None = None) -> None:
        """Before it is followed: make the store anew where it is not of this log, or where `after`, with which the last
        attempt ended, says that it can't be read. Blocks. Raises Unavailable."""
        with self._lock:
            if after is not None:
                self.distrust(after)
            self._make_anew_if_foreign()

    def followed(self, loop: asyncio.AbstractEventLoop, let_go: Callable[[VersologError], None]) -> Followed:
        """How a Follower keeps this partition up to date; what waits on `loop` is told, and `let_go` called there."""

        def folded(outcomes: list[bytes]) -> None:
            loop.call_soon_threadsafe(self._followed_to, outcomes)

        def broken(error: VersologError) -> None:
            loop.call_soon_threadsafe(let_go, error)

        return Followed(self._tail, folded, broken)

    def _followed_to(self, outcomes: list[bytes]) -> None:
        if self._waiting:
            records = (read_outcome(body) for body in outcomes)
            bodies = zip(records, outcomes, strict=True)
            self._answer((record["transaction_id"], record["intent_hash"], body) for record, body in bodies)
        self._folded()
