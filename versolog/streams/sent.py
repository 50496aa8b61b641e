"""A transaction on its way: handed to Kafka, accepted by it, decided."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, Message

from versolog.schemas.errors import Unavailable, Undecided, VersologError
from versolog.schemas.kafka_errors import from_kafka
from versolog.schemas.outcome import Outcome
from versolog.streams.decision import Decision, Watched, wait, wait_async
from versolog.streams.link import Link
from versolog.streams.outcome_reader import OutcomeReader

OUTCOME_TIMEOUT_S = 10.0
ACCEPT_TIMEOUT_S = 150.0
"""Longer than Kafka's client tries, so that what it says in the end is heard."""
FAILED_MAX = 10_000
"""So many failed transactions are kept until somebody asks; of further ones only the number."""

_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)

logger = logging.getLogger(__name__)


class Accepted(NamedTuple):
    """Where a transaction stands in the log, on the disk or in the memory of all in-sync brokers."""

    partition: int
    offset: int


class Despatch:
    """What all Sents of a producer share: the way to Kafka, the way back, and the failures that nobody was told of."""

    def __init__(self, link: Link, reader: OutcomeReader) -> None:
        self.link = link
        self.reader = reader
        self._failed: dict[int, Sent] = {}
        self._failed_count = 0

    def trouble(self) -> str:
        """What Kafka complained of last, for a message; empty if nothing."""
        return f" ({self.reader.trouble})" if self.reader.trouble else self.link.trouble()

    def failed(self, sent: Sent) -> None:
        """The transaction was not accepted, and nobody was told yet."""
        self._failed_count += 1
        if len(self._failed) < FAILED_MAX:
            self._failed[id(sent)] = sent

    def told(self, sent: Sent) -> None:
        """Somebody was told that the transaction was not accepted."""
        if self._failed.pop(id(sent), None) is not None:
            self._failed_count -= 1

    def raise_failed(self) -> None:
        """Raise the error of the first failure that nobody was told of; after that all were."""
        failed, count = list(self._failed.values()), self._failed_count
        self._failed, self._failed_count = {}, 0
        if not failed:
            return
        first = failed[0].error
        assert first is not None
        logger.error("%d transactions were not accepted by Kafka, the first of them %s: %s", count, failed[0].id, first)
        raise type(first)(
            f"{count} transactions were not accepted by Kafka; the first: {first.detail}",
            **first.facts,
            failed=count,
            ids=[sent.id for sent in failed[:100]],
        ) from first


class Sent(Watched):
    """A transaction that was sent: a future for its place in the log, and one for its outcome. Thread safe."""

    __slots__ = ("_accepted", "_decision", "_despatch", "_error", "_floors", "_held", "_placed", "id", "partition")

    def __init__(
        self, transaction_id: str, decision: Decision, floors: Sequence[tuple[int, int]], despatch: Despatch,
        *, held: bool,
    ) -> None:  # fmt: skip
        """`floors` are the partitions that decide it, each with an offset of its outcomes to look from."""
        super().__init__()
        self.id = transaction_id
        self.partition = decision.home
        self._decision = decision
        self._floors = floors
        self._despatch = despatch
        self._held = held
        self._placed: Accepted | None = None
        self._accepted: Accepted | None = None
        self._error: VersologError | None = None

    def __repr__(self) -> str:
        state = "accepted" if self._accepted else f"failed: {self._error.code}" if self._error else "on its way"
        return f"Sent({self.id!r}, {'decided' if self._decision.outcome else state})"

    def done(self) -> bool:
        """Whether Kafka has accepted the transaction, or failed to."""
        return self._accepted is not None or self._error is not None

    def decided(self) -> bool:
        """Whether `outcome` would return at once. Outcomes are only looked for while somebody waits for one."""
        return self._decision.outcome is not None

    def result(self, timeout_s: float = ACCEPT_TIMEOUT_S) -> Accepted:
        """Where Kafka keeps the transaction, once it does.

        Raises the typed error of a failed delivery, or Unavailable where neither came in time. After either, the
        transaction may still be in the log; sending it again with the same id is safe.
        """
        wait(self, self.done, time.monotonic() + timeout_s)
        return self._accepted_or_raise(timeout_s)

    def outcome(self, timeout_s: float = OUTCOME_TIMEOUT_S) -> Outcome:
        """What was decided, once it is. Raises Undecided after `timeout_s`, or as `result` if it was not accepted."""
        return self.outcome_by(time.monotonic() + timeout_s, timeout_s)

    def outcome_by(self, deadline: float, waited_s: float) -> Outcome:
        """As `outcome`, with the end of `time.monotonic` to wait for and the seconds that this makes for the caller."""
        if not self._is_over():
            with self._despatch.reader.following(self._floors):
                wait(self._decision, self._is_over, deadline)
        return self._outcome_or_raise(waited_s)

    def _accepted_or_raise(self, waited_s: float) -> Accepted:
        if self._accepted is not None:
            return self._accepted
        if self._error is not None:
            self._despatch.told(self)
            raise self._error
        raise Unavailable(
            f"Kafka has not accepted transaction {self.id} in {waited_s:g} s, and is still being tried"
            f"{self._despatch.trouble()}; waiting longer, or sending the same id again, is safe",
            id=self.id,
        )

    def _outcome_or_raise(self, waited_s: float) -> Outcome:
        if self._decision.outcome is not None:
            if self._error is not None:
                self._despatch.told(self)
            return self._decision.outcome
        placed = self._accepted_or_raise(waited_s)
        raise Undecided(
            f"transaction {self.id} is in the log (partition {placed.partition}, offset {placed.offset}) and was not "
            f"decided in {waited_s:g} s{self._despatch.trouble()}; is a worker running? Ask for its outcome by id, or "
            "send the same id again",
            id=self.id,
            partition=placed.partition,
            offset=placed.offset,
        )

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """Kafka's delivery report."""
        if error is not None and self._held and error.code() in _PURGED:
            return  # the abort says why
        if error is not None:
            self.fail(from_kafka(error, f"sending transaction {self.id}"))
            return
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        self._placed = Accepted(partition, offset)
        if not self._held:
            self.accept()

    def accept(self) -> None:
        """It is in the log for every reader: delivered, and its Kafka transaction committed if it has one."""
        self._accepted = self._placed
        self.changed()

    def fail(self, error: VersologError) -> None:
        """It was not accepted, or nobody knows."""
        if not self.done():
            self._error = error
            self._despatch.failed(self)
            self.changed()
            self._decision.changed()

    @property
    def error(self) -> VersologError | None:
        """Why Kafka did not accept it, once that is known."""
        return self._error

    def _is_over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._decision.outcome is not None or self._error is not None


class AsyncSent:
    """A Sent for asyncio."""

    __slots__ = ("_sent", "id", "partition")

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self.id = sent.id
        self.partition = sent.partition

    def __repr__(self) -> str:
        return f"Async{self._sent!r}"

    def done(self) -> bool:
        """As `Sent.done`."""
        return self._sent.done()

    def decided(self) -> bool:
        """As `Sent.decided`."""
        return self._sent.decided()

    async def result(self, timeout_s: float = ACCEPT_TIMEOUT_S) -> Accepted:
        """As `Sent.result`."""
        await wait_async(self._sent, self._sent.done, time.monotonic() + timeout_s)
        return self._sent._accepted_or_raise(timeout_s)

    async def outcome(self, timeout_s: float = OUTCOME_TIMEOUT_S) -> Outcome:
        """As `Sent.outcome`."""
        return await self.outcome_by(time.monotonic() + timeout_s, timeout_s)

    async def outcome_by(self, deadline: float, waited_s: float) -> Outcome:
        """As `Sent.outcome_by`."""
        sent = self._sent
        if not sent._is_over():
            with sent._despatch.reader.following(sent._floors):
                await wait_async(sent._decision, sent._is_over, deadline)
        return sent._outcome_or_raise(waited_s)
