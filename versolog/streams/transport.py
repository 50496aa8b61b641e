"""The Faust driver: whole fetched batches instead of single records, read where each lane stands, read_committed.

Faust hands agents one record at a time, which makes some 8,000 records/s. Its fetch loop and its schema are where an
application can shape what an event is; here an event is all that one fetch brought. Its aiokafka driver is subclassed
where its behaviour doesn't fit a store that keeps its own checkpoints:

- it leaves workers idle where their number doesn't divide that of the partitions;
- it reads `read_committed` only under Faust's own exactly-once, which this project doesn't use;
- it seeks to the group's committed offsets after each rebalance: here each lane says where to read on;
- its fetch loop drops records without seeking back when a partition is paused or a rebalance comes between, and its
  bookkeeping of acknowledged offsets takes them for dense. Here every fetch says at which offset it starts, counted
  where it is made, so that a lane can tell whether anything is missing;
- its committed offsets become a lag gauge: what lanes took in, committed now and then, and never a reason to crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import faust
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.client import ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from faust.exceptions import ConsumerNotStarted
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT, ConsumerMessage, Message
from mode import ServiceT
from yarl import URL

from versolog.streams.assignment import Claim, share_out
from versolog.streams.lanes import Batch, Fetched, Lanes, OutOfRange

CONNECT_TIMEOUT_S = 5.0
COMMIT_TIMEOUT_S = 2.0
HEARTBEAT_TIMEOUT_S = 5.0
LEAVE_PATIENCE_S = 1.0
STOP_TIMEOUT_S = 4.0
IDLE_WAIT_S = 1.0
"""How long a fetch waits for records while no partition is held back."""
PARTLY_HELD_WAIT_S = 0.1
"""And while some are: what was fetched ahead for one that is then released is not noticed before the next fetch."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """How a worker takes part in its group. Every worker of a group must have the same times."""

    session_timeout_s: float = 10.0
    """A worker that died is noticed so long after its last heartbeat."""
    heartbeat_interval_s: float = 0.5
    """Also how long the others take to notice that a rebalance has begun, and so about how long one lasts."""
    rebalance_timeout_s: float = 10.0
    """A worker that heartbeats and doesn't join a rebalance in this time is put out of the group."""
    poll_interval_max_s: float = 60.0
    """A worker whose event loop hangs so long leaves the group; one that waits or recovers doesn't."""
    kept_in: Path | None = None
    """A file that names the member that this worker is. Who starts where one died takes that member out of the group,
    which would wait for the dead one's session to end otherwise. No two processes may run with the same file."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """How much is read at once."""

    records_max: int = 2_000
    partition_bytes_max: int = 4 * 1024 * 1024
    """The most that one fetch brings for a partition, and that is fetched ahead for it. A larger record comes alone."""
    wait_ms: int = 100
    """The broker answers a fetch without records so late, and a partition that is released meanwhile waits for it."""


class BatchSchema(faust.Schema[Any, Any]):
    """The event's value is the list of `Fetched`, one for each partition; nothing is decoded here."""

    def loads_key(self, app: AppT, message: Message, *, loads: Any = None, serializer: Any = None) -> Any:
        return None

    def loads_value(self, app: AppT, message: Message, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value


class Assignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """`share_out` as aiokafka calls it: the group's leader gives each partition number, of all topics, to one member.

    Faust's own assignor gives no member more than the count divided and rounded up, and so leaves some without any: of
    seven workers with eight partitions, three.
    """

    name = "versolog"
    _VERSION = 0

    def __init__(self, lanes: Lanes) -> None:
        """`lanes` are told at once what the group gives this worker."""
        self._claim = Claim(0, frozenset())
        self._lanes = lanes

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        claim = {"round": self._claim.round, "partitions": sorted(self._claim.partitions)}
        return ConsumerProtocolMemberMetadata(self._VERSION, sorted(topics), json.dumps(claim).encode())

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        claims = {member: _claim(json.loads(metadata.user_data)) for member, metadata in members.items()}
        topics = sorted({topic for metadata in members.values() for topic in metadata.subscription})
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        following = max(claim.round for claim in claims.values()) + 1
        return {
            member: ConsumerProtocolMemberAssignment(
                self._VERSION,
                [(topic, [p for p in share if p < counts[topic]]) for topic in topics],
                json.dumps({"round": following, "partitions": share}).encode(),
            )
            for member, share in share_out(max(counts.values()), claims).items()
        }

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        self._claim = _claim(json.loads(assignment.user_data))
        self._lanes.given = self._claim.partitions


def _claim(said: dict[str, Any]) -> Claim:
    return Claim(said["round"], frozenset(said["partitions"]))


class BatchThread(driver.AIOKafkaConsumerThread):
    """The aiokafka consumer, on a thread and an event loop of its own: heartbeats go on while the worker is busy."""

    mundane_level = "debug"
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # The offset that the next fetch of a partition starts at, from our own seek and the fetches after it. Kept by
        # aiokafka's state of the partition, which is new after each rebalance, so that nothing outlives one.
        self._starts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    async def on_start(self) -> None:
        """Connect. A failure is kept for `BatchConsumer.on_started`: mode would crash the app from this thread."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await super().on_start()
                await self._leave_for_who_died()
        except (KafkaError, TimeoutError) as error:
            self.failure = error

    async def _leave_for_who_died(self) -> None:
        """Take the member out of the group that the process was which ran here before. Nothing where it has left."""
        kept_in = cast("BatchTransport", self.transport).membership.kept_in
        if kept_in is None or not kept_in.exists():
            return
        consumer = self._ensure_consumer()
        coordinator = consumer._coordinator
        await coordinator.ensure_coordinator_known()
        request = LeaveGroupRequest(coordinator.group_id, kept_in.read_text())
        answer = await consumer._client.send(coordinator.coordinator_id, request, group=ConnectionGroup.COORDINATION)
        if answer.error_code == 0:
            logger.info("who ran here before was still a member of the group, and is none any more")
        kept_in.unlink()

    def keep_member(self) -> None:
        """Note which member this is, for who comes after a crash. In any thread."""
        kept_in = cast("BatchTransport", self.transport).membership.kept_in
        if kept_in is None:
            return
        fresh = kept_in.with_name(f"{kept_in.name}.new")
        fresh.write_text(self._ensure_consumer()._coordinator.member_id)
        fresh.replace(kept_in)

    async def on_thread_stop(self) -> None:
        """Leave the group and disconnect, in bounded time even in the midst of a rebalance."""
        if self._method_queue is not None:
            await self._method_queue.stop()
        consumer, coordinator = self._consumer, getattr(self._consumer, "_coordinator", None)
        if consumer is None:
            return
        stopping = asyncio.ensure_future(consumer.stop())
        await asyncio.wait({stopping}, timeout=LEAVE_PATIENCE_S)
        if not stopping.done() and coordinator is not None:
            # It waits for the other members to join a rebalance. The broker answers the pending join at once when
            # we leave; that has to be said on another connection, for this one is answered in order.
            with contextlib.suppress(KafkaError, TimeoutError):
                request = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
                await asyncio.wait_for(
                    consumer._client.send(coordinator.coordinator_id, request, group=ConnectionGroup.DEFAULT),
                    LEAVE_PATIENCE_S,
                )
        await asyncio.wait({stopping}, timeout=STOP_TIMEOUT_S)
        if not stopping.done():
            logger.error(
                "the consumer did not stop in %.0f s; the group notices by the session time-out", STOP_TIMEOUT_S
            )
            stopping.cancel()
        # aiokafka's fetcher lets the cancellation of a fetch out, and `stop` then ends before it has disconnected.
        ended = await asyncio.gather(stopping, return_exceptions=True)
        if any(error is not None for error in ended):
            logger.debug("aiokafka's consumer did not stop cleanly: %r", ended)
            await consumer._client.close()

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        logger.exception(msg.format(*fmt))

    async def touch(self) -> None:
        """Tell aiokafka that the worker is alive although it fetches nothing just now."""
        await self.call_thread(self._touch)

    async def is_member(self) -> bool:
        return bool(await self.call_thread(self._is_member))

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        settings = cast("BatchTransport", transport)
        return AIOKafkaConsumer(
            bootstrap_servers=settings.bootstrap,
            client_id=self.app.conf.broker_client_id,
            group_id=self.app.conf.id,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=[Assignor(settings.lanes)],
            session_timeout_ms=int(settings.membership.session_timeout_s * 1000),
            heartbeat_interval_ms=int(settings.membership.heartbeat_interval_s * 1000),
            rebalance_timeout_ms=int(settings.membership.rebalance_timeout_s * 1000),
            max_poll_interval_ms=int(settings.membership.poll_interval_max_s * 1000),
            # A join is answered when all members have joined, so the request must outlast the rebalance.
            request_timeout_ms=int((settings.membership.rebalance_timeout_s + 5) * 1000),
            max_poll_records=settings.fetching.records_max,
            max_partition_fetch_bytes=settings.fetching.partition_bytes_max,
            fetch_max_wait_ms=settings.fetching.wait_ms,
            fetch_min_bytes=1,
            retry_backoff_ms=250,
            metadata_max_age_ms=5_000,
            check_crcs=True,
            **settings.security,
        )

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109, the name is Faust's
        max_records: int | None = None,
    ) -> Mapping[TP, Any]:
        self._raise_background_errors(consumer)
        try:
            fetched = await super()._fetch_records(
                consumer, active_partitions, timeout=timeout, max_records=max_records
            )
        except NoOffsetForPartitionError:
            return {}  # assigned, and not yet told where to read
        except OffsetOutOfRangeError as error:
            return {tp: OutOfRange(tp.partition, offset) for tp, offset in error.args[0].items()}
        # Nothing else runs on this thread between aiokafka's taking these records and here, so that its positions
        # are those right after them.
        assignment = consumer._subscription.subscription.assignment
        return {tp: self._batch(tp, records, assignment.state_value(tp)) for tp, records in fetched.items()}

    def _batch(self, tp: TP, records: list[ConsumerRecord[bytes, bytes]], state: Any) -> Batch:
        start = self._starts.get(state)
        following: int = state.position
        if start is not None:
            self._starts[state] = following
        size = sum(max(r.serialized_key_size, 0) + max(r.serialized_value_size, 0) for r in records)
        return Batch(tp.partition, start, following, records, size)

    async def _seek_wait(self, consumer: AIOKafkaConsumer, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            consumer.seek(tp, offset)
            self._starts[consumer._subscription.subscription.assignment.state_value(tp)] = offset

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        positions = {driver.ensure_aiokafka_TP(tp): offset for tp, offset in offsets.items()}
        try:
            await asyncio.wait_for(self._ensure_consumer().commit(positions), COMMIT_TIMEOUT_S)
        except (KafkaError, TimeoutError) as error:
            logger.info("the group's offsets, which only measure lag, were not committed: %r", error)
            return False
        return True

    async def _touch(self) -> None:
        consumer = self._ensure_consumer()
        self._raise_background_errors(consumer)
        with consumer._subscription.fetch_context():
            pass

    async def _is_member(self) -> bool:
        consumer = self._ensure_consumer()
        coordinator, subscription = consumer._coordinator, consumer._subscription.subscription
        try:
            known = await asyncio.wait_for(coordinator._do_heartbeat(), HEARTBEAT_TIMEOUT_S)
        except (KafkaError, TimeoutError):
            return False
        return bool(known) and not coordinator.need_rejoin(subscription)

    def _raise_background_errors(self, consumer: AIOKafkaConsumer) -> None:
        # aiokafka stops coordinating until someone has seen its error, and Faust never looks.
        consumer._coordinator.check_errors()
        fetching = consumer._fetcher.error_future
        if fetching.done() and not fetching.cancelled() and not consumer._closed:
            fetching.result()


class BatchConsumer(driver.Consumer):
    """Faust's consumer, in step with the lanes. It is their `Reader`."""

    mundane_level = "debug"
    _thread: BatchThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transport = cast("BatchTransport", self.transport)
        self._lanes = transport.lanes
        self._topic = transport.topic
        self._released = asyncio.Event()

    def _new_consumer_thread(self) -> BatchThread:
        return BatchThread(self, loop=self.loop, beacon=self.beacon)

    async def read_from(self, partition: int, offset: int) -> None:
        tp = TP(self._topic, partition)
        try:
            await self.seek_wait({tp: offset})
        except (IllegalStateError, ConsumerNotStarted):
            return  # not ours at the moment; `perform_seek` comes at the end of the rebalance
        self.resume_partitions({tp})

    def hold(self, partition: int) -> None:
        self.pause_partitions({TP(self._topic, partition)})

    def release(self, partition: int) -> None:
        self.resume_partitions({TP(self._topic, partition)})

    @property
    def connected(self) -> bool:
        """False if the group's coordinator is not known or stopped answering."""
        coordinator = getattr(self._thread._consumer, "_coordinator", None)
        return coordinator is not None and coordinator.coordinator_id is not None

    async def is_member(self) -> bool:
        return not self.app.rebalancing and await self._thread.is_member()

    async def on_started(self) -> None:
        if self._thread.failure is not None:
            raise self._thread.failure

    async def perform_seek(self) -> None:
        """Set each assigned partition to where its lane reads on, and hold back those whose lanes want nothing now.

        Faust calls this at the end of a rebalance, after it has released all partitions and before any record flows.
        """
        self._thread.keep_member()
        assigned = {tp for tp in self.assignment() if tp.topic == self._topic}
        positions, full = self._lanes.positions(), self._lanes.full()
        self.pause_partitions({tp for tp in assigned if tp.partition not in positions or tp.partition in full})
        await self.seek_wait({tp: positions[tp.partition] for tp in assigned if tp.partition in positions})

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(set(tps) & self.assignment())
        self._released.set()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what the lanes have taken in, where that has changed."""
        taken = {TP(self._topic, partition): offset for partition, offset in self._lanes.taken().items()}
        changed = {tp: taken[tp] for tp in taken.keys() & self.assignment() if taken[tp] != self._committed_offset[tp]}
        if not changed or not await self._commit(changed):
            return False
        self._committed_offset.update(changed)
        return True

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust would complain of partitions that recover or are idle. `Lanes.states` tells how they are."""

    def close(self) -> None:
        """Nothing: Faust calls this for a rebalance while the app stops, and closes the consumer on the wrong loop."""

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Faust's fetch loop: hand on what is fetched, until the app or its fetcher stops."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                if fetched := await self._fetch():
                    # Not by way of `wait_first`, as Faust does it, nor partition by partition: each takes turns of the
                    # event loop, tens of milliseconds under load, in which nothing would be fetched.
                    await self.callback(self._to_message(next(iter(fetched)), list(fetched.values())))
        except (asyncio.CancelledError, ConsumerStoppedError):
            if not self.app.should_stop:
                raise

    async def _fetch(self) -> Mapping[TP, Fetched]:
        released = set(self._get_active_partitions()) if self.flow_active else set()
        if not released:
            self._released.clear()
            await self._thread.touch()
            change = self._released if self.flow_active else self.can_resume_flow
            await self.wait(cast(Any, change), timeout=IDLE_WAIT_S)
            return {}
        wait_s = IDLE_WAIT_S if released >= self.assignment() else PARTLY_HELD_WAIT_S
        fetched = cast(Mapping[TP, Fetched], await self._thread.getmany(released, wait_s))
        # After a rebalance all lanes are read from their positions again.
        return fetched if self.flow_active else {}

    def _to_message(self, tp: TP, fetched: Any) -> ConsumerMessage:
        """One fetch as an event. Faust wants a partition and an offset; what is in it has those of its own."""
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            0,
            timestamp=0.0,
            timestamp_type=0,
            headers=None,
            key=None,
            value=fetched,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )


class Repeats(logging.Filter):
    """Lets one message of a kind through every `every_s`: without a broker aiokafka writes forty lines a second."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, str(record.msg)), time.monotonic()
        if record.levelno < logging.WARNING or now - self._last.get(kind, -self._every_s) >= self._every_s:
            self._last[kind] = now
            return True
        return False


AIOKAFKA_REPEATS = Repeats(every_s=10.0)
for _name in ("aiokafka", "aiokafka.consumer.fetcher", "aiokafka.consumer.group_coordinator"):
    logging.getLogger(_name).addFilter(AIOKAFKA_REPEATS)


class BatchTransport(driver.Transport):
    """Faust's transport with the above, and with all that its consumer has to know."""

    Consumer = BatchConsumer

    def __init__(
        self,
        app: AppT,
        *,
        bootstrap: str,
        security: Mapping[str, Any],
        topic: str,
        lanes: Lanes,
        membership: Membership,
        fetching: Fetching,
    ) -> None:
        super().__init__(broker_urls(bootstrap), app)
        self.bootstrap = bootstrap
        self.security = security
        self.topic = topic
        self.lanes = lanes
        self.membership = membership
        self.fetching = fetching


def broker_urls(bootstrap: str) -> list[URL]:
    """`host:port,host:port` as Faust wants it."""
    return [URL(f"kafka://{address.strip()}") for address in bootstrap.split(",")]
