"""A node: takes transactions for the log and answers reads, of any group, wherever its partition lives."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from versolog.projections.ends import LogEnds
from versolog.projections.intake import Intake
from versolog.projections.lag import Lag
from versolog.projections.metrics import PartitionState
from versolog.projections.partition import Partition
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import (
    Invalid,
    NotFound,
    TooMany,
    Unavailable,
    Undecided,
    VersologError,
    refusal,
)
from versolog.schemas.outcome import Outcome
from versolog.schemas.readings import read_outcome
from versolog.schemas.times import millis_to_text
from versolog.schemas.topics import partition_of
from versolog.streams.chain import intent_hash
from versolog.streams.committer import Waiting
from versolog.streams.transaction import Transaction
from versolog.streams.versions import AncestorRef, At, Ref, TimeRef, parse_ref, resolve_ref

UNDER_WAY_MAX = 20_000
"""Transactions that may wait for their outcome on one node at once."""
STEPS_AT_ONCE = 100
"""Ancestors that are looked up on the event loop; more are in a thread."""
TICK_AGAIN_S = 0.25
MARKERS_AFTER_S = 0.05
AWAY_AFTER_S = 5.0
"""A partition that has not voted for so long is told to be away."""
AGAIN_S = 0.05

_TRANSACTION = avro.schema("Transaction")
_TICK = avro.schema("Tick")


class Owners(Protocol):
    """Who owns which partition."""

    async def __call__(self, *, refresh: bool = False) -> Mapping[int, str]:
        """The base URL of each partition's owner, as far as known; with `refresh` asked anew."""


class Elsewhere(Exception):  # noqa: N818 - not a mistake: another node has to answer
    """The request belongs to the owner of `partition`; `body` is what was read of it.

    `reason` is why the partition doesn't go on here, for the case that no other node has it.
    """

    def __init__(self, partition: int, body: bytes = b"", reason: VersologError | None = None) -> None:
        super().__init__(f"partition {partition} is owned by another node")
        self.partition = partition
        self.body = body
        self.reason = reason
        self.answer_within_s = 60.0
        """How long its owner may take."""

    def mistaken(self) -> VersologError:
        """What a node answers that was passed the request by another one, and isn't the owner either."""
        return self.reason or Unavailable(
            f"partition {self.partition} has another owner now; ask again", code="not-owner", partition=self.partition
        )

    def nobody(self) -> VersologError:
        """What a node answers that finds nobody to pass the request on to."""
        return self.reason or Unavailable(
            f"partition {self.partition} has no owner that answers; ask again",
            code="owner-away",
            partition=self.partition,
        )


class Away(NamedTuple):
    """A partition whose vote is awaited for long."""

    partition: int
    transactions: int
    """How many wait for it."""
    for_s: float
    """How long the first of them has."""


class Node:
    """What HTTP stands on. `partitions` are those that are kept here; without an intake nothing is written."""

    def __init__(
        self,
        partitions: Mapping[int, Partition],
        *,
        count: int,
        codec: Codec,
        intake: Intake | None,
        owners: Owners,
        own_url: str,
        lag: Lag,
        ends: LogEnds | None = None,
        outage: Callable[[], str | None] = lambda: None,
        keeps: Callable[[int], bool] = lambda partition: True,
    ) -> None:
        """`outage` says why this worker takes no part in the group just now; None while it does. `keeps` says whether the
        group still gives it a partition that it owns: the end of owning it may take a moment longer."""
        self.partitions = partitions
        self.count = count
        self.codec = codec
        self.owners = owners
        self.own_url = own_url
        self.lag = lag
        self.outage = outage
        self._keeps = keeps
        self._intake, self._ends = intake, ends
        self.under_way = 0
        """Transactions that wait for their outcome here."""
        self._ticked: dict[int, tuple[float, int]] = {}
        """By partition, when a tick was last appended, and the clock then."""

    @property
    def read_only(self) -> bool:
        """Whether this is a copy that nobody writes to: a replay, served beside the live store."""
        return self._intake is None

    def states(self) -> list[PartitionState]:
        """How each partition here stands."""
        return [self._state(number, partition) for number, partition in sorted(self.partitions.items())]

    def _state(self, number: int, partition: Partition) -> PartitionState:
        waiting = partition.waiting()
        since_ms = min((one.since_ms for one in waiting), default=None)
        return PartitionState(
            number=number,
            role=partition.role,
            error=None if partition.error is None else partition.error.detail,
            next_commit_offset=partition.store.next_commit_offset,
            lag_offsets=self.lag.offsets(number),
            lag_s=self.lag.staleness_s(number),
            undecided_offsets=self.lag.undecided(number),
            held_up_offsets=self.lag.held_up(number),
            waiting=len(waiting),
            waiting_s=0.0 if since_ms is None else max(0.0, (_now_ms() - since_ms) / 1000),
            awaited=Counter(participant for one in waiting for participant in one.awaited),
            store_bytes=partition.store.disk_bytes(),
        )

    def waiting(self) -> list[Waiting]:
        """What the partitions that this node speaks for have taken in and not decided, by partition and offset."""
        return [one for partition in self.owned() for one in partition.waiting()]

    def away(self) -> list[Away]:
        """The partitions whose votes have been awaited here for longer than AWAY_AFTER_S."""
        now_ms = _now_ms()
        late = [one for one in self.waiting() if now_ms - one.since_ms > AWAY_AFTER_S * 1000]
        numbers = sorted({number for one in late for number in one.awaited})
        awaited = {number: [one.since_ms for one in late if number in one.awaited] for number in numbers}
        return [Away(number, len(since), (now_ms - min(since)) / 1000) for number, since in awaited.items()]

    def close(self, timeout_s: float) -> None:
        """Hand what was taken to the log, and take no more."""
        if self._intake is not None:
            self._intake.close(timeout_s)
        if self._ends is not None:
            self._ends.close()

    def owned(self) -> list[Partition]:
        """The partitions that this node speaks for."""
        return [partition for partition in self.partitions.values() if self._speaks_for(partition)]

    def _speaks_for(self, partition: Partition) -> bool:
        return (partition.role == "owner" and self._keeps(partition.number)) or self.read_only

    def readable(self) -> list[Partition]:
        """The partitions that can be read here, some perhaps a little behind."""
        return [partition for partition in self.partitions.values() if partition.role not in ("idle", "stopped")]

    def elsewhere(self) -> list[int]:
        """The partitions that can only be read on other nodes."""
        here = {partition.number for partition in self.readable()}
        return [] if self.read_only else [number for number in range(self.count) if number not in here]

    # Writing

    async def submit(self, tx: Transaction, timeout_s: float) -> Outcome:
        """Send `tx` and wait for its outcome; one that was decided before has its first outcome again.

        Raises Undecided when it did not come in time, Unavailable when the log did not take it, Conflict for an id that
        was used with another content, Elsewhere where this node doesn't see the partition, TooMany, TooLarge.
        """
        return await self.send(tx).outcome(timeout_s)

    def send(self, tx: Transaction) -> Sent:
        """Send `tx` without waiting: whoever calls must call `outcome` on what this returns, once."""
        intake = self._writable()
        home = partition_of(tx.home, self.count)
        if not self._is_seen(home):
            partition = self.partitions.get(home)
            raise Elsewhere(home, reason=partition.error if partition is not None else None)
        if self.under_way >= UNDER_WAY_MAX:
            raise TooMany(f"{UNDER_WAY_MAX:,} transactions wait for their outcome here; send it again")
        body = tx.intent()
        others = {partition_of(group, self.count) for group in tx.groups} - {home}
        seen = [self.partitions[number] for number in (home, *sorted(others)) if self._is_seen(number)]
        sent = Sent(self, tx, body, seen)
        if not sent.was_decided:
            value = avro.frame(self.codec.id_of(_TRANSACTION), body)
            try:
                intake.append(None if others else home, tx.home.encode(), value, sent.appended)
            except VersologError:
                sent.forget()
                raise
        return sent

    def completed(self, outcome: Outcome) -> Outcome:
        """The outcome with what the other participants here know of it."""
        numbers = {partition_of(group, self.count) for group in outcome.missing}
        found = (self.outcome_in(number, outcome.transaction_id) for number in numbers if self._is_seen(number))
        return outcome.joined(one for one in found if one is not None and one.intent_hash == outcome.intent_hash)

    def _is_seen(self, number: int) -> bool:
        partition = self.partitions.get(number)
        return partition is not None and partition.role not in ("idle", "stopped")

    def outcome_in(self, partition: int, transaction_id: str) -> Outcome | None:
        """The outcome that the store of `partition` here has for the id."""
        return _outcome_in(self.partitions[partition], transaction_id)

    def _writable(self) -> Intake:
        if self._intake is None:
            raise VersologError("this is a copy for reading; write to the live store", code="read-only", status=403)
        return self._intake

    # Reading

    def reader(self, group: str, *, stale_s: float | None = None, forwarded: bool = False) -> Partition:
        """The partition of `group`, where it may be read here: by its owner, or by a follower that is near enough.

        Raises Elsewhere, and Unavailable where another node passed the request on to this one and was mistaken.
        """
        number = partition_of(group, self.count)
        partition = self.partitions.get(number)
        if partition is not None and not self._speaks_for(partition):
            if stale_s is not None and (bound := self.lag.staleness_s(number)) is not None and bound <= stale_s:
                return partition
            if partition.role == "recovering":
                raise recovering(number)
        if partition is None and self.read_only:
            raise NotFound(f"this copy does not hold the group {group!r}", code="unknown-group", group=group)
        return self.owned_here(number, forwarded=forwarded)

    def owned_here(self, number: int, *, forwarded: bool = False) -> Partition:
        """A partition that this node speaks for. Raises as `reader` does."""
        partition = self.partitions.get(number)
        if partition is not None and self._speaks_for(partition):
            return partition
        if self.read_only:
            raise NotFound(f"this copy does not hold partition {number}", code="unknown-group", partition=number)
        elsewhere = Elsewhere(number, reason=partition.error if partition is not None else None)
        raise elsewhere.mistaken() if forwarded else elsewhere

    async def stored(self, partition: Partition, group: str | None, timeout_s: float) -> None:
        """Wait for the batch that changes `group`, or any group, just now, if there is one: another node, which follows
        the log, may have told its client of it before it is in the store of its owner. Raises Unavailable."""
        what = "a change" if group is None else f"a change of {group!r}"
        await _passed(partition, lambda: partition.committing(group), what, timeout_s)

    def refuse_recovering(self) -> None:
        """Raise Unavailable while a partition is being taken over here: what it holds can't be told."""
        for number, partition in self.partitions.items():
            if partition.role == "recovering":
                raise recovering(number)

    async def told(self, partition: Partition, transaction_id: str, timeout_s: float) -> None:
        """As `stored`, for the batch that ends a transaction just now."""
        await _passed(
            partition, lambda: partition.deciding(transaction_id), f"the end of {transaction_id!r}", timeout_s
        )

    async def visible(self, partition: Partition, token: Mapping[str, int], timeout_s: float) -> None:
        """Wait until the versions in `token` that belong to `partition` can be read. Raises Unavailable."""
        wanted = [
            (group, version) for group, version in token.items() if partition_of(group, self.count) == partition.number
        ]

        def all_there() -> bool:
            return all(
                (head := partition.store.head(group)) is not None and head.version >= version
                for group, version in wanted
            )

        if not wanted or all_there() or await partition.until(all_there, timeout_s):
            return
        raise Unavailable(
            f"what the token names could not be read within {timeout_s:g} s; ask again", code="not-yet-visible"
        )

    async def resolve(
        self, partition: Partition, group: str, at: str | None, branch: str | None, timeout_s: float
    ) -> At:
        """The exact place that `at` names; a time is waited for until nothing more can come before it."""
        ref = None if at is None else parse_ref(at)
        time_ms = _time_in(ref)
        if time_ms is not None:
            await self.closed(partition, time_ms, timeout_s, groups=(group,))
        if isinstance(ref, AncestorRef) and len(ref.steps) > STEPS_AT_ONCE:
            return await asyncio.to_thread(resolve_ref, partition.store, group, ref, branch)
        return resolve_ref(partition.store, group, ref, branch)

    async def closed(
        self, partition: Partition, time_ms: int, timeout_s: float, *, groups: Collection[str] | None = None,
        has_been: bool = False,
    ) -> None:  # fmt: skip
        """Wait until everything with committed_at ≤ `time_ms` is decided and can be read; of `groups` alone, if given.

        A partition that nobody writes to would stand still, so a tick is appended to move its clock. Raises Invalid for
        a time to come, unless it is known to have been somewhere, and Unavailable where the clock doesn't pass it.
        """
        if partition.clock(groups) > time_ms:
            return
        if self.read_only:
            if not has_been:
                _refuse_after(partition.clock() - 1, time_ms, "this copy ends at")
            return
        if not has_been:
            _refuse_after(self._latest_ms(), time_ms, "here it is")
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._tick(partition)
            if await partition.until(lambda: partition.clock(groups) > time_ms, min(left_s, TICK_AGAIN_S)):
                return
        raise Unavailable(
            f"partition {partition.number} could not close {millis_to_text(time_ms)} within {timeout_s:g} s; ask again",
            code="time-not-closed",
        )

    async def fresh(self, partition: Partition, groups: Collection[str] | None, timeout_s: float) -> int:
        """Wait until all that the log held of `groups` before this call can be read here, by their owner; answers the latest
        committed_at among it, in milliseconds. None are all groups of the partition.

        What the log holds undecided was shown to nobody. It is waited for all the same: of two reads that miss it, one could
        show what came after it. Raises Unavailable.
        """
        if not self.read_only:
            deadline_s = time.monotonic() + timeout_s
            end = await self._end(partition, timeout_s)
            again_s = MARKERS_AFTER_S
            while not await partition.until(
                lambda: partition.settled(groups).offset >= end, min(deadline_s - time.monotonic(), again_s)
            ):
                if time.monotonic() >= deadline_s:
                    raise Unavailable(
                        f"partition {partition.number} could not end in time what it had begun before; ask again, or for "
                        "a time",
                        code="not-yet-visible", partition=partition.number,
                    )  # fmt: skip
                self._tick(partition)  # the last offsets of the log may be those of markers, which nobody is handed
                again_s = TICK_AGAIN_S
        if groups is None:
            return partition.clock()
        heads = (partition.store.head(group) for group in groups)
        return max((head.committed_at for head in heads if head is not None), default=0)

    async def _end(self, partition: Partition, timeout_s: float) -> int:
        assert self._ends is not None, "a copy that nobody writes to is not asked"
        failure: Unavailable | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._ends.now(partition.number)
                    except Unavailable as error:
                        failure = error
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            raise failure or Unavailable(
                f"Kafka did not say within {timeout_s:g} s how far partition {partition.number} goes; ask again",
                partition=partition.number,
            ) from None

    async def level(self, partition: Partition, timeout_s: float) -> None:
        """Wait until the partition has here all that was committed before this call. Raises Unavailable."""
        if self._speaks_for(partition):
            return
        begun_s = time.monotonic()
        while (waited_s := time.monotonic() - begun_s) < timeout_s:
            behind_s = self.lag.staleness_s(partition.number)
            if behind_s is not None and behind_s <= waited_s:
                return
            await asyncio.sleep(AGAIN_S)
        raise Unavailable(
            f"partition {partition.number} is still behind here after {timeout_s:g} s; ask again",
            code="not-yet-visible",
        )

    def refuse_time_to_come(self, at: str | None) -> None:
        """Raise Invalid where `at` is a time that is yet to come: nothing may be decided by it now."""
        time_ms = None if at is None else _time_in(parse_ref(at))
        if time_ms is None:
            return
        if self.read_only:
            end_ms = min(partition.clock() for partition in self.partitions.values()) - 1
            _refuse_after(end_ms, time_ms, "this copy ends at")
        else:
            _refuse_after(self._latest_ms(), time_ms, "here it is")

    def _latest_ms(self) -> int:
        """The time here, or the log's where that is known to be ahead."""
        return max([_now_ms(), *(partition.clock() for partition in self.partitions.values())])

    def _tick(self, partition: Partition) -> None:
        """Append a tick, unless one is likely to be under way: since the last one, the clock has not moved."""
        now_s, clock = time.monotonic(), partition.clock()
        ticked_at_s, ticked_clock = self._ticked.get(partition.number, (-TICK_AGAIN_S, -1))
        if clock == ticked_clock and now_s - ticked_at_s < TICK_AGAIN_S:
            return
        self._ticked[partition.number] = now_s, clock
        self._writable().append(partition.number, None, self.codec.write(_TICK, {}), _ignore)


class Sent:
    """A transaction under way to its outcome."""

    __slots__ = ("_forgotten", "_futures", "_in_log", "_intent_hash", "_known", "_loop", "_node", "_partitions", "_tx")

    def __init__(self, node: Node, tx: Transaction, intent: bytes, partitions: Sequence[Partition]) -> None:
        """`partitions` are those that decide it, as far as they are seen here; the home group's comes first."""
        self._node, self._tx, self._partitions = node, tx, partitions
        self._intent_hash = intent_hash(intent)
        self._in_log = self._forgotten = False
        self._loop = asyncio.get_running_loop()
        self._futures = [partition.expect_outcome(tx.id, self._intent_hash) for partition in partitions]
        node.under_way += 1
        try:
            # Asked after the futures were made: a decision in between is seen by one of the two.
            self._known = [_outcome_in(partition, tx.id) for partition in partitions]
        except BaseException:
            self.forget()
            raise

    @property
    def was_decided(self) -> bool:
        """Whether the id had its outcome before it was sent."""
        return self._known[0] is not None

    @property
    def is_decided(self) -> bool:
        """Whether `outcome` would not have to wait."""
        if self._forgotten or not self._is_there(0):
            return self._forgotten
        home = self._futures[0]
        has_failed = home.done() and home.exception() is not None
        return has_failed or all(map(self._is_there, self._others()))

    def appended(self, error: VersologError | None) -> None:
        """The log has the record, or isn't known to. In any thread."""
        if error is None:
            self._in_log = True
        else:
            self._loop.call_soon_threadsafe(self._fail, error)

    async def outcome(self, timeout_s: float) -> Outcome:
        """Wait for the outcome, whatever it is. Raises as `Node.submit` does."""
        try:
            if not self.is_decided:
                async with asyncio.timeout(timeout_s):
                    await self._settled()
            return self._decided()
        except TimeoutError:
            raise self._late(timeout_s) from None
        finally:
            self.forget()

    async def _settled(self) -> None:
        if self._known[0] is None:
            await self._futures[0]
        for index in self._others():
            if self._known[index] is None:
                await self._futures[index]

    def _others(self) -> range:
        """The participants that add to the home's outcome, which is there: to a commit of this content their hashes. Of
        what the home has refused, or knows with another content, they may never hear."""
        home = self._of(0)
        return range(1, len(self._futures) if home.committed and home.intent_hash == self._intent_hash else 1)

    def _is_there(self, index: int) -> bool:
        return self._known[index] is not None or self._futures[index].done()

    def _decided(self) -> Outcome:
        """The home partition's outcome, with what the other participants know of it."""
        first = self._of(0)
        if first.intent_hash != self._intent_hash:
            verdict = "committed" if first.committed else "refused"
            raise refusal(
                "id-reused", f"the id {self._tx.id!r} was decided before with another content; send a new id",
                id=self._tx.id, decided=verdict,
            )  # fmt: skip
        others = [self._of(index) for index in self._others()]
        return first.joined(one for one in others if one.intent_hash == self._intent_hash) if others else first

    def _of(self, index: int) -> Outcome:
        known = self._known[index]
        return known if known is not None else self._futures[index].result()

    def forget(self) -> None:
        """Wait no longer. What is in the log is decided all the same."""
        self._forgotten = True
        for partition, future in zip(self._partitions, self._futures, strict=True):
            partition.expect_no_more(self._tx.id, self._intent_hash, future)
        self._node.under_way -= 1

    def _fail(self, error: VersologError) -> None:
        if not self._futures[0].done():
            self._futures[0].set_exception(error)

    def _late(self, timeout_s: float) -> VersologError:
        about: dict[str, Any] = {"id": self._tx.id, "group": self._tx.home}
        if self._in_log:
            return Undecided(f"not decided within {timeout_s:g} s; ask for the id, or send it again", **about)
        return Unavailable(
            f"the log did not take it within {timeout_s:g} s; it may still be decided: send the same id again",
            **about,
        )


def recovering(number: int) -> Unavailable:
    """What asking for a partition ends in that this node is about to own."""
    return Unavailable(f"partition {number} is being taken over; ask again", code="recovering", partition=number)


async def _passed(partition: Partition, on_its_way: Callable[[], object | None], what: str, timeout_s: float) -> None:
    """Wait until the batch that is on its way now is in the store. Raises Unavailable."""
    batch = on_its_way()
    if batch is not None and not await partition.until(lambda: on_its_way() is not batch, timeout_s):
        raise Unavailable(f"{what} was under way for longer than {timeout_s:g} s; ask again", code="not-yet-visible")


def _outcome_in(partition: Partition, transaction_id: str) -> Outcome | None:
    """The outcome that the partition's store has for the id."""
    body = partition.store.outcome(transaction_id)
    return None if body is None else Outcome.from_avro(read_outcome(body))


def _time_in(ref: Ref | None) -> int | None:
    """The time that reading `ref` depends on."""
    match ref:
        case TimeRef(time_ms):
            return time_ms
        case AncestorRef(base, _):
            return _time_in(base)
        case _:
            return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _refuse_after(end_ms: int, time_ms: int, ends: str) -> None:
    if time_ms > end_ms:
        raise Invalid(
            f"{millis_to_text(time_ms)} is yet to come: {ends} {millis_to_text(end_ms)}",
            code="time-to-come",
            field="at",
        )


def _ignore(error: VersologError | None) -> None:
    """A tick that got lost is sent again by whoever waits for it."""
