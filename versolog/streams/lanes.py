"""Lanes: one for each partition that this worker was given, between who reads the log and who decides it.

A lane calls `Partitions.assigned`, has the log read from the offset that this returned, and hands on one batch after
the other, in order and without a gap. Lanes don't wait for each other: each has a task and a bounded queue of its own,
and holds its partition back while the queue is full.

What a rebalance does. The group's protocol takes all partitions from every member and gives them out anew, and most
come back to the member that had them. A lane lives through that: it goes on with the batches that it holds, and ends
only when the new assignment leaves its partition out. That is safe, because no decision rests on the assignment:

1. In one generation of the group a partition has one member, and a member that is given a partition in two generations
   in a row was the only one to be given it. Nobody else has fenced it, so it needs no new fence.
2. Between two generations a member can't know what it will keep. If it goes on with a partition that it loses, the new
   owner's `assigned` fences it: each of its transactions either committed before the fence, and the new owner reads its
   outcome, or is aborted by it. To stop a lane late costs work that is thrown away, never a second decision.
3. A member that was put out of the group and doesn't know yet (it was frozen, or cut off) is in the position of 2. If
   the partition went to another and comes back, its next batch fails on the other's fence, and the lane starts again at
   `assigned`. But it must not fence back while it is out, or two owners would take the partition from each other in
   turns. So a lane that failed asks the group whether it is a member before it calls `assigned` again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from versolog.schemas.errors import BrokenLog

BATCH_RECORDS_MAX = 2_000
"""What has piled up in a lane is handed on together, up to so many records: a busy partition commits large batches."""
HELD_BYTES_MAX = 8 * 1024 * 1024
"""A lane that holds so much holds its partition back; a fetch or two can still be on their way."""
HELD_BYTES_LOW = HELD_BYTES_MAX // 2
"""It opens again when no more than this is left: early enough for the next fetch to arrive before the lane runs dry."""
RECORD_OVERHEAD_BYTES = 600
"""What a record takes in memory beside its key, value and headers, about."""
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 30.0
MEMBERSHIP_POLL_S = 1.0
CANCEL_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)


class Record(Protocol):
    """A record as aiokafka reads it (`aiokafka.ConsumerRecord`)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds; the broker's LogAppendTime where the topic says so."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Partitions(Protocol):
    """Who decides. There is never more than one call for a partition; those for different ones run side by side.

    A call may take as long as it needs, for neither heartbeats nor other partitions wait; it must not block the loop.
    """

    async def assigned(self, partition: int) -> int:
        """Fence and recover; return the offset to read `transactions[partition]` from, 0 if nothing was ever decided.

        Called before the first batch, and again, after a pause, whenever this or `batch` raised.
        """

    async def batch(self, partition: int, records: Sequence[Record]) -> None:
        """Take in the next records: they follow the last ones, or start at the offset that `assigned` returned.

        Return when they are taken in, which may be before they are durable; back-pressure is by not returning. Offsets
        are ascending and not dense. What raises here starts the partition again at `assigned`.
        """

    async def revoked(self, partition: int) -> None:
        """Stop deciding. The call that was under way has been cancelled and has ended; the next one is `assigned`.

        Also called where `assigned` never returned. Bounded by a few seconds, after which nobody waits for it any more.
        """


class Reader(Protocol):
    """Who reads the log for lanes."""

    async def read_from(self, partition: int, offset: int) -> None:
        """Read `partition` from `offset` on. Does nothing while the group is being rebalanced: at the end of
        that the reader takes each lane's own `position`."""

    def hold(self, partition: int) -> None:
        """Fetch nothing more of `partition`; what is on its way may still arrive."""

    def release(self, partition: int) -> None:
        """Go on where the last fetch of `partition` ended."""

    async def is_member(self) -> bool:
        """True if the group knows this worker and no rebalance is going on: the answer of a heartbeat sent now."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All records of `partition` from offset `start` to before `following`; there is at least one."""

    partition: int
    start: int | None
    """None where the reader wasn't told where to start: such a batch belongs to nobody."""
    following: int
    records: Sequence[Record]
    size: int
    """The bytes of keys and values."""

    @property
    def held_bytes(self) -> int:
        """What the batch takes in memory, about."""
        return self.size + len(self.records) * RECORD_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """The log of `partition` no longer has, or doesn't have yet, the offset that was asked for."""

    partition: int
    offset: int


Fetched = Batch | OutOfRange


@dataclass(frozen=True, slots=True)
class Recovering:
    """`Partitions.assigned` is under way."""

    since: float
    """`time.monotonic()` when this began."""


@dataclass(frozen=True, slots=True)
class Running:
    """Batches are taken in; `taken` is the offset after the last one."""

    since: float
    taken: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """`error` stopped the partition; it starts again at `assigned` within `retry_in_s` of `since`."""

    since: float
    error: str
    failures: int
    """How many times in a row; 1 the first time."""
    retry_in_s: float


LaneState = Recovering | Running | Stopped


class Lane:
    """The way of one partition's batches to `Partitions`, from its assignment to its revocation."""

    def __init__(
        self, partition: int, partitions: Partitions, reader: Reader, *, after: asyncio.Task[None] | None = None
    ) -> None:
        """Start. `after` is the end of this partition's last lane, which is waited for."""
        self.partition = partition
        self.position: int | None = None
        """The offset that the next batch must start at; None while no batch is wanted."""
        self.taken: int | None = None
        """The offset after the last batch taken in, or the checkpoint before the first; None before that is known."""
        self.full = False
        self.state: LaneState = Recovering(time.monotonic())
        self._partitions = partitions
        self._reader = reader
        self._held: deque[Fetched] = deque()
        self._held_bytes = 0
        self._more = asyncio.Event()
        self._failures = 0
        self._failure: BaseException | None = None
        self._after = after
        self._seeking: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run(), name=f"lane-{partition}")

    def take(self, fetched: Fetched) -> None:
        """Queue what was fetched if it starts where the last batch ended; if not, drop it and have that offset read.

        Fetches are lost or come late around seeks and rebalances. This one comparison makes up for all of it.
        """
        if self.position is None:
            return
        match fetched:
            case OutOfRange():
                self.position = None
                self._reader.hold(self.partition)
            case Batch(start=start) if start != self.position:
                self._seek()
                return
            case Batch(following=following):
                self.position = following
                self._held_bytes += fetched.held_bytes
                if not self.full and self._held_bytes >= HELD_BYTES_MAX:
                    self.full = True
                    self._reader.hold(self.partition)
        self._held.append(fetched)
        self._more.set()

    def fail(self, error: BaseException) -> None:
        """Start again at `assigned`: what was taken in is lost, though no call is under way that could say so."""
        self._failure = error
        self._more.set()

    async def stop(self, revoke_timeout_s: float) -> None:
        """End the call that is under way, then tell `Partitions`. Never raises."""
        self.position = None
        self._task.cancel()
        if self._seeking is not None:
            self._seeking.cancel()
        if self._after is not None:
            await asyncio.wait({self._after})
        await self._bounded(self._task, CANCEL_TIMEOUT_S)
        revoking = asyncio.create_task(self._partitions.revoked(self.partition), name=f"lane-{self.partition}-revoked")
        if await self._bounded(revoking, revoke_timeout_s) and (error := revoking.exception()) is not None:
            logger.error("partition %d: revoked() failed", self.partition, exc_info=error)

    async def _bounded(self, task: asyncio.Task[None], timeout_s: float) -> bool:
        """True if `task` ended by itself. One that takes longer is cancelled and left behind."""
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            logger.error(
                "partition %d: %s did not end in %.1f s: %s",
                self.partition,
                task.get_name(),
                timeout_s,
                task.get_stack(),
            )
            task.cancel()
        return task.done() and not task.cancelled()

    async def _run(self) -> None:
        if self._after is not None:
            await asyncio.wait({self._after})
        while True:
            try:
                await self._serve()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._stopped(error)  # not this task was cancelled, but something that it waited for
            except Exception as error:  # noqa: BLE001, it is logged there and shown by `state`
                self._stopped(error)
            await self._until_retry()

    async def _serve(self) -> None:
        self.state = Recovering(time.monotonic())
        start = await self._partitions.assigned(self.partition)
        self._held.clear()
        self._held_bytes = 0
        self.full = False
        self._failure = None
        self.taken = self.position = start
        self.state = Running(time.monotonic(), start)
        await self._reader.read_from(self.partition, start)
        while True:
            records, following = await self._next()
            await self._partitions.batch(self.partition, records)
            self.taken = following
            self.state = Running(self.state.since, following)
            self._failures = 0

    async def _next(self) -> tuple[Sequence[Record], int]:
        """Wait for records; return all that are held, up to `BATCH_RECORDS_MAX`, and the offset after them."""
        while not self._held and self._failure is None:
            self._more.clear()
            await self._more.wait()
        if self._failure is not None:
            raise self._failure
        first = self._pop()
        records = first.records
        following = first.following
        while self._held and isinstance(then := self._held[0], Batch):
            if len(records) + len(then.records) > BATCH_RECORDS_MAX:
                break
            records = [*records, *then.records]
            following = self._pop().following
        if self.full and self._held_bytes <= HELD_BYTES_LOW:
            self.full = False
            self._reader.release(self.partition)
        return records, following

    def _pop(self) -> Batch:
        fetched = self._held.popleft()
        if isinstance(fetched, OutOfRange):
            raise BrokenLog(
                f"partition {self.partition} of the log has no offset {fetched.offset}, the next one to decide: "
                "records were deleted before they were decided, or the log is not the one that the checkpoint is of",
                partition=self.partition,
                offset=fetched.offset,
            )
        self._held_bytes -= fetched.held_bytes
        return fetched

    def _stopped(self, error: BaseException) -> None:
        self.position = None
        self._reader.hold(self.partition)
        self._failures += 1
        delay_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._failures - 1, 16)) * random.uniform(0.8, 1.2)
        self.state = Stopped(time.monotonic(), f"{type(error).__name__}: {error}", self._failures, delay_s)
        logger.error(
            "partition %d stopped (failure %d in a row), starts again in %.1f s",
            self.partition,
            self._failures,
            delay_s,
            exc_info=error,
        )

    async def _until_retry(self) -> None:
        if isinstance(self.state, Stopped):
            await asyncio.sleep(self.state.retry_in_s)
        while not await self._reader.is_member():  # noqa: ASYNC110, nothing would set an event
            await asyncio.sleep(MEMBERSHIP_POLL_S)

    def _seek(self) -> None:
        if self.position is not None and (self._seeking is None or self._seeking.done()):
            logger.debug("partition %d: reads again from %d", self.partition, self.position)
            self._seeking = asyncio.create_task(self._reader.read_from(self.partition, self.position))


class Lanes:
    """The lanes of this worker, kept in step with what the group gives it."""

    def __init__(self, partitions: Partitions, *, revoke_timeout_s: float = 3.0) -> None:
        self._partitions = partitions
        self._revoke_timeout_s = revoke_timeout_s
        self._lanes: dict[int, Lane] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}
        self.given: frozenset[int] = frozenset()
        """What the group gives this worker. Set in the consumer's thread as soon as it hears that; `assign` comes when
        the event loop gets to it, and the end of a lane takes longer still. Who owns it next does not wait for either."""

    def assign(self, partitions: Collection[int], reader: Reader) -> None:
        """Make these the worker's partitions: start lanes for new ones, end those of lost ones, leave the rest alone.

        Returns at once; starting and ending go on by themselves, side by side.
        """
        for partition in self._lanes.keys() - set(partitions):
            self._end(self._lanes.pop(partition))
        for partition in sorted(set(partitions) - self._lanes.keys()):
            after = self._ending.get(partition)
            self._lanes[partition] = Lane(partition, self._partitions, reader, after=after)

    async def revoke_all(self) -> None:
        """End all lanes, and return when each has been revoked or has run out of time. Never raises."""
        while self._lanes:
            self._end(self._lanes.popitem()[1])
        if self._ending:
            await asyncio.wait(set(self._ending.values()))

    def take(self, fetched: Fetched) -> None:
        """Hand what was fetched to its lane; drop it if its partition isn't ours any more."""
        if (lane := self._lanes.get(fetched.partition)) is not None:
            lane.take(fetched)

    def fail(self, partition: int, error: BaseException) -> None:
        """Start a partition again at `assigned`, because of `error`; nothing happens if it isn't ours any more."""
        if (lane := self._lanes.get(partition)) is not None:
            lane.fail(error)

    def states(self) -> Mapping[int, LaneState]:
        return {partition: lane.state for partition, lane in sorted(self._lanes.items())}

    def positions(self) -> Mapping[int, int]:
        """Where to read on, for each partition that wants records."""
        return {partition: lane.position for partition, lane in self._lanes.items() if lane.position is not None}

    def full(self) -> Collection[int]:
        """The partitions that want no records just now."""
        return {partition for partition, lane in self._lanes.items() if lane.full}

    def taken(self) -> Mapping[int, int]:
        """The offset after the last batch that was taken in, for each partition that got as far."""
        return {partition: lane.taken for partition, lane in self._lanes.items() if lane.taken is not None}

    def _end(self, lane: Lane) -> None:
        ending = asyncio.create_task(lane.stop(self._revoke_timeout_s), name=f"lane-{lane.partition}-ends")
        self._ending[lane.partition] = ending
        ending.add_done_callback(lambda _: self._forget(lane.partition, ending))

    def _forget(self, partition: int, ending: asyncio.Task[None]) -> None:
        if self._ending.get(partition) is ending:
            del self._ending[partition]
