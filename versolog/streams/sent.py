"""A transaction on its way: handed to Kafka, accepted by it, decided."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple, Protocol

from confluent_kafka import KafkaError, Message

from versolog.schemas.errors import Unavailable, Undecided, VersologError
from versolog.schemas.kafka_errors import from_kafka
from versolog.schemas.outcome import Outcome

OUTCOME_TIMEOUT_S = 10.0
ACCEPT_TIMEOUT_S = 150.0
"""Longer than Kafka's client tries, so that what it says in the end is heard."""

_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)

# Guards the few lines in which a state changes and those who wait for it are listed. One for all, since it is held for
# less than a microsecond, and two locks for each transaction would cost more than that.
_changing = threading.Lock()


class Accepted(NamedTuple):
    """Where a transaction stands in the log, on the disk or in the memory of all in-sync brokers."""

    partition: int
    offset: int


class Watched:
    """Something that changes, and those who wait for that."""

    __slots__ = ("__weakref__", "_calls")

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] | None = None

    def listen(self, call: Callable[[], None]) -> None:
        """Have `call` called once, from some thread, at the next change."""
        with _changing:
            self._calls = [*(self._calls or ()), call]

    def leave(self, call: Callable[[], None]) -> None:
        with _changing:
            self._calls = [other for other in self._calls or () if other != call]

    def changed(self) -> None:
        """Tell those who wait; to be called after the change."""
        if self._calls is not None:
            with _changing:
                calls, self._calls = self._calls, None
            for call in calls or ():
                call()


class Decision(Watched):
    """The place where the outcome of one intent will stand, shared by all who sent it."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        super().__init__()
        self.outcome: Outcome | None = None

    def decide(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self.changed()


class Sender(Protocol):
    """What a Sent asks of its producer."""

    def following(self, partition: int, floor: int) -> AbstractContextManager[None]:
        """Outcomes of the partition are read from offset `floor` on while this is entered."""

    def failed(self, sent: Sent) -> None:
        """The transaction was not accepted, and nobody was told yet."""

    def told(self, sent: Sent) -> None:
        """Somebody was told that the transaction was not accepted."""

    def trouble(self) -> str:
        """What Kafka complained of last, for a message; empty if nothing."""


class Sent(Watched):
    """A transaction that was sent: a future for its place in the log, and one for its outcome. Thread safe."""

    __slots__ = ("_accepted", "_decision", "_error", "_floor", "_held", "_placed", "_sender", "id", "partition")

    def __init__(
        self, transaction_id: str, partition: int, decision: Decision, floor: int, sender: Sender, *, held: bool
    ) -> None:
        super().__init__()
        self.id = transaction_id
        self.partition = partition
        self._decision = decision
        self._floor = floor
        self._sender = sender
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
        _wait(self, self.done, time.monotonic() + timeout_s)
        return self._accepted_or_raise(timeout_s)

    def outcome(self, timeout_s: float = OUTCOME_TIMEOUT_S) -> Outcome:
        """What was decided, once it is. Raises Undecided after `timeout_s`, or as `result` if it was not accepted."""
        return self.outcome_by(time.monotonic() + timeout_s, timeout_s)

    def outcome_by(self, deadline: float, waited_s: float) -> Outcome:
        """As `outcome`, with the end of `time.monotonic` to wait for and the seconds that this makes for the caller."""
        _wait(self, self._is_settled, deadline)
        if self._accepted is not None and not self.decided():
            with self._sender.following(self.partition, self._floor):
                _wait(self._decision, self.decided, deadline)
        return self._outcome_or_raise(waited_s)

    def _accepted_or_raise(self, waited_s: float) -> Accepted:
        if self._accepted is not None:
            return self._accepted
        if self._error is not None:
            self._sender.told(self)
            raise self._error
        raise Unavailable(
            f"Kafka has not accepted transaction {self.id} in {waited_s:g} s, and is still being tried"
            f"{self._sender.trouble()}; waiting longer, or sending the same id again, is safe",
            id=self.id,
        )

    def _outcome_or_raise(self, waited_s: float) -> Outcome:
        if self._decision.outcome is not None:
            if self._error is not None:
                self._sender.told(self)
            return self._decision.outcome
        placed = self._accepted_or_raise(waited_s)
        raise Undecided(
            f"transaction {self.id} is in the log (partition {placed.partition}, offset {placed.offset}) and was not "
            f"decided in {waited_s:g} s{self._sender.trouble()}; is a worker running? Ask for its outcome by id, or "
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
            self._sender.failed(self)
            self.changed()

    @property
    def error(self) -> VersologError | None:
        """Why Kafka did not accept it, once that is known."""
        return self._error

    def _is_settled(self) -> bool:
        return self.done() or self.decided()


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
        await _wait_async(self._sent, self._sent.done, time.monotonic() + timeout_s)
        return self._sent._accepted_or_raise(timeout_s)

    async def outcome(self, timeout_s: float = OUTCOME_TIMEOUT_S) -> Outcome:
        """As `Sent.outcome`."""
        return await self.outcome_by(time.monotonic() + timeout_s, timeout_s)

    async def outcome_by(self, deadline: float, waited_s: float) -> Outcome:
        """As `Sent.outcome_by`."""
        sent = self._sent
        await _wait_async(sent, sent._is_settled, deadline)
        if sent._accepted is not None and not sent.decided():
            with sent._sender.following(sent.partition, sent._floor):
                await _wait_async(sent._decision, sent.decided, deadline)
        return sent._outcome_or_raise(waited_s)


def _wait(watched: Watched, ready: Callable[[], bool], deadline: float) -> None:
    """Return once `ready()` holds, or when `time.monotonic` has come to `deadline`."""
    while not ready():
        event = threading.Event()
        watched.listen(event.set)
        if not ready() and not event.wait(max(deadline - time.monotonic(), 0.0)):
            watched.leave(event.set)
            return


async def _wait_async(watched: Watched, ready: Callable[[], bool], deadline: float) -> None:
    """As `_wait`, while the event loop runs on."""
    loop = asyncio.get_running_loop()
    while not ready():
        event = asyncio.Event()

        def call(event: asyncio.Event = event) -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(event.set)

        watched.listen(call)
        try:
            if not ready():
                async with asyncio.timeout(deadline - time.monotonic()):
                    await event.wait()
        except TimeoutError:
            return
        finally:
            watched.leave(call)
