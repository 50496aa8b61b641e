"""A worker: owns some partitions, follows the others, and answers HTTP. Where streams and projections meet."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from versolog.config import Settings
from versolog.projections.ends import KafkaEnds
from versolog.projections.follower import Follower
from versolog.projections.http import Source
from versolog.projections.http import app as http_app
from versolog.projections.intake import KafkaIntake
from versolog.projections.lag import Lag
from versolog.projections.live import LivePartition
from versolog.projections.metrics import Counted
from versolog.projections.node import Node
from versolog.projections.retention import delete_decided
from versolog.projections.rocks import MIB, Memory, StoreUnusable
from versolog.projections.tail import Ends, OtherLog
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import BrokenLog, Unavailable, VersologError
from versolog.schemas.registry import TopicRegistry
from versolog.schemas.topics import ensure_topics
from versolog.streams import failpoints
from versolog.streams.ballots import Ballots
from versolog.streams.carrier import Carrier
from versolog.streams.committer import Committer
from versolog.streams.lanes import Record
from versolog.streams.ownership import owners
from versolog.streams.pace import Pace
from versolog.streams.participant import settled_at
from versolog.streams.runtime import HttpServer, WorkerRuntime
from versolog.streams.sequencer import SEQUENCER_BESIDE, Sequencer
from versolog.streams.transport import Membership

DELETE_FIRST_S, DELETE_EVERY_S = 60.0, 3_600.0
"""After the start, and then. A worker that is often started again deletes too."""
OWNERS_KNOWN_FOR_S = 5.0
THREADS_MAX = 64
ASIDERS_MAX = 4
"""Merges and the like that are looked at at a time. They compute, and more of them would only share the interpreter."""
CLOSE_TIMEOUT_S = 2.0
FOLLOW_AGAIN_S = 1.0
KAFKA_AGAIN_S = 0.5
M_ARENA_MAX, ARENAS = -8, 2
"""What glibc's malloc.h calls the most arenas that there may be, and how many."""

WRITTEN = ("Transaction", "Tick", "Share", "Votes", "Commit", "Outcomes")
"""The record types that are registered before anything is written."""

Answer = TypeVar("Answer")

logger = structlog.get_logger(__name__)


class Worker:
    """The partitions of one process and their committers; what the runtime drives (`lanes.Partitions`)."""

    def __init__(self, settings: Settings, codec: Codec, identity: str, counted: Counted) -> None:
        """Opens the stores. Raises Misconfigured where another process has them open."""
        self._settings, self._codec, self._counted = settings, codec, counted
        self._ends = Ends(settings.client)
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="versolog")
        self._asiders = ThreadPoolExecutor(ASIDERS_MAX, thread_name_prefix="versolog-aside")
        self._committers: dict[int, Committer] = {}
        self._beginning: dict[int, asyncio.Task[None]] = {}
        """By partition, what has to be done before it is followed."""
        self._ending: dict[int, asyncio.Task[None]] = {}
        """By partition, the end of having owned it, which may outlast the patience of whoever asked for it."""
        self.restart: Callable[[int, BaseException], None] = _nobody_to_restart
        self._follower = Follower(settings.client, settings.topics)
        self._carrier = Carrier(settings.client, "versolog-carrier")
        self._ballots = Ballots(settings.client, settings.topics, codec, self._carrier)
        self._pace = Pace()
        self._sequencer = Sequencer(settings.client, settings.topics, codec, settings.partitions, self._carrier)
        memory = Memory(settings.cache_mib * MIB)
        self.partitions = {
            number: LivePartition(
                number,
                settings.data,
                kafka=settings.client,
                topics=settings.topics,
                codec=codec,
                identity=identity,
                ends=self._ends,
                memory=memory,
            )
            for number in range(settings.partitions)
        }
        self.lag = Lag(self.partitions)
        self._closing = False

    async def assigned(self, partition: int) -> int:
        """Become the owner: nobody else writes the store from here on, and the log is read to its end first."""
        place = self.partitions[partition]
        if (ending := self._ending.get(partition)) is not None:
            await asyncio.wait({ending})
        if place.role != "stopped":  # what stopped it is shown until it is over
            place.role, place.error = "recovering", None
        await self._stop_following(partition)
        committer = self._committers.get(partition)
        if committer is None:
            committer = self._committers[partition] = self._committer(place)
        begun = time.perf_counter()
        try:
            offset = await committer.recover()
            place.caught_up()
        except BrokenLog as error:
            place.distrust(error)
            place.stop(error)
            raise
        except VersologError as error:
            place.error = error
            raise
        place.role, place.error = "owner", None
        place.known_settled, place.waiting = committer.settled, committer.waiting
        place.committing, place.deciding = committer.committing, committer.deciding
        if partition == SEQUENCER_BESIDE:
            self._sequencer.start()
        logger.info("owner", partition=partition, offset=offset, took_s=round(time.perf_counter() - begun, 3))
        return offset

    async def batch(self, partition: int, records: Sequence[Record]) -> None:
        try:
            await self._committers[partition].take(records)
        except BaseException as error:
            self.partitions[partition].broke_off(error)
            raise

    async def revoked(self, partition: int) -> None:
        """Own no more: what is decided is committed if that can be done soon, and the store follows the next owner."""
        place = self.partitions[partition]
        place.role = "recovering"
        ending = asyncio.create_task(self._end(place), name=f"partition-{partition}-ends")
        self._ending[partition] = ending
        await asyncio.shield(ending)

    async def _end(self, place: LivePartition) -> None:
        committer = self._committers.pop(place.number, None)
        if place.number == SEQUENCER_BESIDE:
            await self._in_thread(self._sequencer.stop)
        try:
            if committer is not None:
                await committer.stop()
        finally:
            del self._ending[place.number]
        if not self._closing:
            self._follow(place)

    def start(self) -> None:
        """Begin to follow; on the running loop."""
        self._follower.start()
        self._carrier.start()
        self._ballots.start()
        for place in self.partitions.values():
            self._follow(place)
        self._tasks = [
            asyncio.create_task(self.lag.watch(self._ends, self._settings.topics), name="lag"),
            asyncio.create_task(self._delete_old_transactions(), name="delete-old-transactions"),
        ]

    async def close(self) -> None:
        """After the runtime has ended: let go of the log and the stores."""
        self._closing = True
        if self._ending:
            await asyncio.wait(set(self._ending.values()), timeout=CLOSE_TIMEOUT_S)
        tasks = {*self._tasks, *self._beginning.values()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._in_thread(self._follower.stop)
        await self._in_thread(self._sequencer.stop)
        await self._in_thread(self._ballots.close)
        await self._carrier.close()
        for place in self.partitions.values():
            await self._in_thread(place.close)
        for threads in (self._asiders, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _follow(self, place: LivePartition, *, after: VersologError | None = None) -> None:
        """Keep up with the partition; `after` says why the last attempt ended."""
        place.error = None
        if self._settings.follow == "none":
            place.role = "idle"
            return
        place.role = "follower"
        beginning = asyncio.create_task(self._begin_to_follow(place, after), name=f"follow-{place.number}")
        self._beginning[place.number] = beginning

    async def _begin_to_follow(self, place: LivePartition, after: VersologError | None) -> None:
        await asyncio.sleep(FOLLOW_AGAIN_S if after is not None else 0)
        while True:
            try:
                await self._in_thread(place.reconcile, after)
                break
            except VersologError as error:
                logger.warning("not-followed-yet", partition=place.number, reason=error.detail)
                await asyncio.sleep(FOLLOW_AGAIN_S)
        self._follower.follow(place.followed(asyncio.get_running_loop(), partial(self._let_go, place)))

    def _let_go(self, place: LivePartition, error: VersologError) -> None:
        """The follower has let go of the partition: for good where the log is broken, and else for a moment."""
        if place.role != "follower":
            return  # it was on its way to become the owner
        if isinstance(error, BrokenLog) and not isinstance(error, (OtherLog, StoreUnusable)):
            place.stop(error)
        else:
            self._follow(place, after=error)

    async def _stop_following(self, partition: int) -> None:
        beginning = self._beginning.pop(partition, None)
        if beginning is not None:
            beginning.cancel()
            await asyncio.wait({beginning})
        await self._in_thread(self._follower.release, partition)

    def _failed(self, place: LivePartition, error: BaseException) -> None:
        """A commit failed, and no batch may come for long that would be told."""
        place.broke_off(error)
        self.restart(place.number, error)

    def _committer(self, place: LivePartition) -> Committer:
        topics = self._settings.topics

        def first_kept(partition: int) -> int:
            place = (topics.transactions, partition)
            return self._ends.first([place])[place]

        return Committer(
            place.number,
            partitions=self._settings.partitions,
            replica=place,
            kafka=self._settings.client,
            topics=topics,
            codec=self._codec,
            ballots=self._ballots,
            pace=self._pace,
            threads=self._threads,
            asiders=self._asiders,
            tally=self._counted,
            first_kept=first_kept,
            failed=partial(self._failed, place),
        )

    async def _delete_old_transactions(self) -> None:
        """Delete decided transactions older than the setting says."""
        settings = self._settings
        wait_s = DELETE_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = DELETE_EVERY_S
            before_ms = int((time.time() - settings.keep_transactions_days * 86_400) * 1000)
            owned = (place for place in self.partitions.values() if place.role == "owner")
            decided = {place.number: settled_at(place.checkpoint).offset for place in owned}
            try:
                await self._in_thread(
                    delete_decided, settings.client, self._ends, settings.topics.transactions, decided, before_ms
                )
            except Unavailable as error:
                logger.warning("transactions-not-deleted", reason=error.detail)

    async def _in_thread(self, blocking: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, blocking, *arguments)


class KnownOwners:
    """Who owns which partition, asked of the consumer group and remembered for some seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: Mapping[int, str] = {}
        self._asked_at = 0.0
        self._asking: asyncio.Future[Mapping[int, str]] | None = None

    async def __call__(self, *, refresh: bool = False) -> Mapping[int, str]:
        if not refresh and self._asked_at and time.monotonic() - self._asked_at < OWNERS_KNOWN_FOR_S:
            return self._known
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask())
        try:
            return await asyncio.shield(self._asking)
        finally:
            if self._asking is not None and self._asking.done():
                self._asking = None

    async def _ask(self) -> Mapping[int, str]:
        settings = self._settings
        self._known = await owners(settings.client, settings.group_id, settings.topics.transactions)
        self._asked_at = time.monotonic()
        return self._known


async def work(settings: Settings, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run a worker until a signal ends it. `ready` is told the address once HTTP answers.

    Raises Misconfigured, for topics that don't fit or a directory in use, and Unavailable when no broker answers for as
    long as the settings say.
    """
    failpoints.arm(settings.failpoints)
    _collect_garbage_rarely()
    share_arenas()
    answers_by_s = time.monotonic() + settings.kafka_wait_s
    ids = await _once_kafka_answers(
        partial(
            ensure_topics,
            settings.client,
            settings.topics,
            partitions=settings.partitions,
            replication=settings.replication,
            fsync=settings.fsync,
        ),
        answers_by_s,
    )
    registry = settings.registry()
    codec = Codec(registry)
    await _once_kafka_answers(partial(_register, codec), answers_by_s)
    metrics = CollectorRegistry()
    worker = Worker(settings, codec, ids.identity, Counted(metrics))
    intake = KafkaIntake(settings.client, settings.topics)

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    http = HttpServer(served, settings.http_host, settings.http_port)  # binds now: the node must know its own address
    url = settings.advertised_url or f"http://{_shown(settings.http_host)}:{http.port}"
    node = Node(
        worker.partitions,
        count=settings.partitions,
        codec=codec,
        intake=intake,
        ends=KafkaEnds(settings.client, settings.topics),
        owners=KnownOwners(settings),
        own_url=url,
        lag=worker.lag,
        outage=lambda: runtime.outage,
        keeps=lambda partition: runtime.keeps(partition),
    )
    runtime = WorkerRuntime(
        app_id=settings.group_id,
        bootstrap=settings.bootstrap,
        client_settings=settings.kafka,
        transactions_topic=settings.topics.transactions,
        advertised_url=url,
        partitions=worker,
        http=http,
        membership=Membership(session_timeout_s=settings.session_timeout_s, kept_in=settings.data / "member"),
    )
    app = http_app(
        node,
        metrics=metrics,
        registry=registry if isinstance(registry, TopicRegistry) else None,
        source=Source(settings.client, settings.topics, Ends(settings.client)),
    )
    worker.restart = runtime.restart
    worker.start()
    ready(url)
    try:
        await runtime.run()
    finally:
        await asyncio.to_thread(node.close, CLOSE_TIMEOUT_S)
        await worker.close()


async def _once_kafka_answers(blocking: Callable[[], Answer], by_s: float) -> Answer:
    """What `blocking` returns, called again while it raises Unavailable until `by_s` on the monotonic clock: Kafka may
    be starting too."""
    while True:
        try:
            return await asyncio.to_thread(blocking)
        except Unavailable as away:
            if time.monotonic() > by_s:
                raise
            logger.warning("waits-for-kafka", reason=away.detail)
            await asyncio.sleep(KAFKA_AGAIN_S)


def _register(codec: Codec) -> None:
    for name in WRITTEN:
        codec.id_of(avro.schema(name))


def _nobody_to_restart(partition: int, error: BaseException) -> None:
    raise AssertionError(f"partition {partition} failed before there was a runtime") from error


def _collect_garbage_rarely() -> None:
    """A batch makes tens of thousands of objects without cycles, which live until it is stored. At Python's own
    thresholds the collector walks all of them again and again: a third of the worker's time, measured."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def share_arenas() -> None:
    """Let all threads allocate from two of glibc's arenas. It would give each thread one of its own, up to eight for
    each processor, and records that one thread reads and another lets go of leave holes in all of them: 75 MiB of 433,
    measured, and no faster. To be called before there are threads; MALLOC_ARENA_MAX in the environment goes before."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
