"""The client's end of the `outcomes` topic: reads it while somebody waits for a decision, and only from there on."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, ListOffsetsResultInfo, OffsetSpec

from versolog.schemas import codec
from versolog.schemas.codec import Codec
from versolog.schemas.errors import Unavailable, VersologError
from versolog.schemas.kafka_errors import PASSING, from_kafka, listed_offset
from versolog.schemas.outcome import Outcome
from versolog.streams.decision import Decision
from versolog.streams.stalls import Stalls

IDLE_S = 10.0
"""So long after the last one stopped waiting a partition is still read, for the next one to be answered at once."""
POLL_S = 0.02
"""A partition that is asked for begins to be read after so long at most."""
RECORDS_AT_ONCE = 200
FLOORS_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.05
COMPLAIN_EVERY_S = 10.0
"""librdkafka tells of each try to connect, ten a second and more while a broker is away."""
DEAD_MAX = 10_000
"""So many decisions that nobody holds any more are forgotten together."""

_OUTCOMES = codec.schema("Outcomes")

logger = logging.getLogger(__name__)


class _Followed:
    """A partition to be read: from which offset, whether it is so already, for how many, and since when for nobody."""

    __slots__ = ("assigned", "idle_since", "next_offset", "since", "waiting")

    def __init__(self, since: int) -> None:
        self.since = since
        self.assigned: int | None = None
        self.next_offset = since
        """Behind what has been read."""
        self.waiting = 0
        self.idle_since = 0.0


class OutcomeReader:
    """Finds the outcomes of intents, by the intents' SHA-256.

    A decision is found if it was expected before its transaction was sent, and its partition is followed from a floor
    that was asked for before then too. Memory is bounded by the decisions that callers hold. Thread safe.
    """

    def __init__(self, kafka: Mapping[str, Any], topic: str, partitions: int, records: Codec) -> None:
        """Raises Unavailable where Kafka doesn't tell the topic's ends."""
        self._kafka = dict(kafka)
        self._topic = topic
        self._records = records
        self._admin = AdminClient({**kafka, "log_level": 0})
        self._expected: dict[bytes, weakref.ref[Decision]] = {}
        self._expected_max = DEAD_MAX
        self._expecting = threading.Lock()
        self._changing = threading.Condition()
        self._followed: dict[int, _Followed] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self.floors = [0] * partitions
        """For each partition an offset below which the outcome of nothing sent from now on can stand."""
        self.trouble = ""
        self._complained_s = float("-inf")
        self._wait_for_floors()

    def expect(self, intent_hash: bytes, home: int) -> Decision:
        """The place for the outcome of an intent, whose home group is of partition `home`: the same one while anybody
        holds it."""
        with self._expecting:
            reference = self._expected.get(intent_hash)
            decision = None if reference is None else reference()
            if decision is None:
                decision = Decision(home)
                if len(self._expected) >= self._expected_max:
                    self._forget_dead()
                self._expected[intent_hash] = weakref.ref(decision)
            return decision

    @contextmanager
    def following(self, floors: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Each partition is read from its floor on, or from before it, while this is entered."""
        with self._changing:
            self._start()
            was_idle = not self._followed
            for partition, floor in floors:
                followed = self._followed.get(partition)
                if followed is None:
                    followed = self._followed[partition] = _Followed(floor)
                # Somebody who sent earlier may wait only now. What is then read twice was decided the first time.
                followed.since = min(followed.since, floor)
                followed.waiting += 1
            if was_idle:
                self._changing.notify_all()
        try:
            yield
        finally:
            with self._changing:
                for partition, _ in floors:
                    followed = self._followed[partition]
                    followed.waiting -= 1
                    followed.idle_since = time.monotonic()

    def refresh_floors_soon(self) -> None:
        """Have the floors raised to the topic's ends in the background. If that fails they stay, which only costs."""
        for place, asked in self._ask_for_ends().items():
            # It may hold nothing that holds the admin client: it is called on that client's own thread, and if it were
            # the last to let go, the client would be destroyed there, which ends the process.
            asked.add_done_callback(partial(_raise_floor, self.floors, place.partition))

    def _wait_for_floors(self) -> None:
        deadline = time.monotonic() + FLOORS_TIMEOUT_S
        # Connects first: librdkafka lets a question for offsets wait for seconds, at times, where it has to connect.
        with suppress(KafkaException):
            self._admin.list_topics(self._topic, timeout=FLOORS_TIMEOUT_S)
        for place, asked in self._ask_for_ends().items():
            while True:
                try:
                    self.floors[place.partition] = listed_offset(asked)
                    break
                except KafkaException as error:
                    if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                        raise from_kafka(error, f"asking for the end of topic {self._topic}") from error
                time.sleep(RETRY_AFTER_S)
                asked = self._ask_for_ends()[place]

    def _ask_for_ends(self) -> dict[TopicPartition, Future[ListOffsetsResultInfo]]:
        ends = {
            TopicPartition(self._topic, partition): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for partition in range(len(self.floors))
        }
        return self._admin.list_offsets(ends, request_timeout=FLOORS_TIMEOUT_S)

    def close(self) -> None:
        """Stop reading. Whoever waits is not told any more."""
        with self._changing:
            self._closed = True
            self._changing.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._closed:
            raise Unavailable("the producer is closed, and reads no outcomes any more")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="versolog-outcomes", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        stalls = Stalls()
        while not self._closed:
            # Made, asked and closed by this thread alone: a call from another one waits until nobody polls.
            with closing(self._consumer()) as consumer:
                try:
                    self._read(consumer, stalls)
                except Unavailable as stalled:
                    logger.warning("outcomes are read again: %s", stalled.detail)
                    with self._changing:
                        for followed in self._followed.values():
                            followed.assigned = None

    def _read(self, consumer: Consumer, stalls: Stalls) -> None:
        while self._wait_for_work(consumer):
            message = consumer.poll(POLL_S)
            if message is not None:
                self._take(message)
                for further in consumer.consume(RECORDS_AT_ONCE, 0):
                    self._take(further)
            stalls.look(consumer, self._next_offsets)

    def _next_offsets(self) -> dict[tuple[str, int], int]:
        return {
            (self._topic, partition): followed.next_offset
            for partition, followed in list(self._followed.items())
            if followed.waiting
        }

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "fetch.wait.max.ms": 20,
                "queued.max.messages.kbytes": 16_384,
                **self._kafka,
                "group.id": "versolog-outcomes",  # librdkafka wants one; nothing is committed under it
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "error_cb": self._complain,
                "logger": logger,
                "log_level": 0,
            }
        )

    def _wait_for_work(self, consumer: Consumer) -> bool:
        """Wait until a partition is followed, and have those assigned that are. False once closed."""
        with self._changing:
            while not self._followed and not self._closed:
                self._changing.wait()
            now = time.monotonic()
            for partition, followed in list(self._followed.items()):
                if followed.assigned is not None and not followed.waiting and now - followed.idle_since > IDLE_S:
                    consumer.incremental_unassign([TopicPartition(self._topic, partition)])
                    del self._followed[partition]
                elif followed.assigned != followed.since:
                    self._assign(consumer, partition, followed)
            return not self._closed

    def _assign(self, consumer: Consumer, partition: int, followed: _Followed) -> None:
        place = TopicPartition(self._topic, partition, followed.since)
        if followed.assigned is not None:
            consumer.incremental_unassign([place])
        consumer.incremental_assign([place])
        followed.assigned = followed.next_offset = followed.since

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            self._complain(error)
            return
        followed = self._followed.get(message.partition() or 0)
        if followed is not None:
            followed.next_offset = (message.offset() or 0) + 1
        try:
            _, record = self._records.read(message.value(), _OUTCOMES)
        except VersologError as reason:
            logger.error(
                "offset %s of partition %s of %s can't be read as outcomes: %s",
                message.offset(), message.partition(), self._topic, reason,
            )  # fmt: skip
            return
        self.trouble = ""
        for result in record["results"]:
            reference = self._expected.get(result["intent_hash"])
            decision = None if reference is None else reference()
            if decision is not None:
                decision.decide(Outcome.from_avro(result), message.partition() or 0)

    def _forget_dead(self) -> None:
        for intent_hash, reference in list(self._expected.items()):
            if reference() is None:
                del self._expected[intent_hash]
        self._expected_max = 2 * len(self._expected) + DEAD_MAX

    def _complain(self, error: Any) -> None:
        self.trouble = f"reading outcomes: {error.str()}"
        quiet = time.monotonic() - self._complained_s < COMPLAIN_EVERY_S
        logger.log(logging.DEBUG if quiet else logging.WARNING, "reading topic %s: %s", self._topic, error)
        if not quiet:
            self._complained_s = time.monotonic()


def _raise_floor(floors: list[int], partition: int, answered: Future[ListOffsetsResultInfo]) -> None:
    with suppress(KafkaException):
        floors[partition] = max(floors[partition], listed_offset(answered))
