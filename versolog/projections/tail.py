"""Folding the log into stores: the one way in which a follower, a new owner and a replay read it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka._model import IsolationLevel
from confluent_kafka.admin import AdminClient, OffsetSpec

from versolog.projections.evolve import Fold
from versolog.projections.store import Store
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, Record
from versolog.schemas.errors import BrokenLog, Malformed, Unavailable, VersologError
from versolog.schemas.kafka_errors import listed_offset
from versolog.schemas.readings import Outcomes, Told, read_checkpoint, read_commit, read_outcomes
from versolog.schemas.topics import Topics
from versolog.streams import readers
from versolog.streams.chain import commit_hash

COMMIT = avro.schema("Commit")
OUTCOME = avro.schema("Outcome")
OUTCOMES = avro.schema("Outcomes")

FETCH_RECORDS_MAX = 5_000
REQUEST_TIMEOUT_S = 10.0
IDLE_POLL_S = 0.2
PATIENCE_S = 30.0
"""For how long the log may have nothing to say, where more is to come, before it counts as away."""
SILENCE_S = 5.0
"""For how long a consumer may have nothing to say then, before another takes its place."""
END_WAIT_MS = 10


class OtherLog(BrokenLog):
    """The store is not of this log: that ends before, or holds something else where the store's last commit is."""

    code = "other-log"


class Tail:
    """Reads the commits and outcomes of one partition, from where its store stands, into the store."""

    def __init__(self, store: Store, topics: Topics, codec: Codec, lock: threading.RLock | None = None) -> None:
        """`lock` is held while folding, where others write the store too."""
        self.store = store
        self._lock = lock or threading.RLock()
        self._topics, self._codec = topics, codec

    def starts(self) -> list[TopicPartition]:
        """Where to read from. The log is kept from offset 0 on; to ask for its beginning instead costs half a second,
        in which the client waits to ask the broker where that is."""
        number = self.store.partition
        return [
            TopicPartition(self._topics.commits, number, self.store.next_commit_offset),
            TopicPartition(self._topics.outcomes, number, self.store.next_outcome_offset),
        ]

    def fold(self, messages: Sequence[Message]) -> list[bytes]:
        """Fold records of this partition, in the order they were read; answers the outcomes among them, as Avro bodies.

        Raises BrokenLog where they do not follow on what the store holds, and then leaves the store as it was.
        """
        try:
            with self._lock:
                return self._fold(messages)
        except AssertionError as error:
            number = self.store.partition
            raise BrokenLog(f"partition {number} holds what no owner writes: {error}", partition=number) from error

    def _fold(self, messages: Sequence[Message]) -> list[bytes]:
        fold = self.store.fold()
        outcomes: list[bytes] = []
        commits_next = outcomes_next = checkpoint = None
        for message in messages:
            if not self.takes(message):
                commits_next = (message.offset() or 0) + 1
                continue
            offset, value = message.offset(), message.value()
            assert offset is not None
            assert isinstance(value, bytes)
            is_outcome = message.topic() == self._topics.outcomes
            if offset < (self.store.next_outcome_offset if is_outcome else self.store.next_commit_offset):
                continue  # read again after a new assignment; a checkpoint of before must not take the place of its successor
            if is_outcome:
                told, body = self._outcomes(offset, value)
                outcomes += self._fold_outcomes(fold, told)
                outcomes_next = offset + 1
                checkpoint = (offset, body) if body is not None else checkpoint
                continue
            self._fold_commit(fold, offset, value)
            commits_next = offset + 1
        if checkpoint is not None:
            self._fold_checkpoint(fold, *checkpoint)
        fold.offsets(commits=commits_next, outcomes=outcomes_next)
        fold.write()
        return outcomes

    def takes(self, message: Message) -> bool:
        """Whether the record is to be read at all; a replay of a part leaves some out."""
        return True

    def takes_commit(self, record: Record) -> bool:
        """Whether the commit, or the piece of one, is to be folded."""
        return True

    def takes_outcome(self, told: Told) -> bool:
        """Whether the outcome is to be folded."""
        return True

    def _fold_commit(self, fold: Fold, offset: int, value: bytes) -> None:
        try:
            writer, body = self._codec.opened(value, COMMIT)
            record = read_commit(body, writer)
        except Malformed as error:
            raise self._unreadable(self._topics.commits, offset, error) from error
        if self.takes_commit(record):
            fold.commit(offset=offset, value=value, record=record, hash=commit_hash(writer.fingerprint, body))

    def _outcomes(self, offset: int, value: bytes) -> Outcomes:
        try:
            writer, body = self._codec.opened(value, OUTCOMES)
            return read_outcomes(body, writer)
        except Malformed as error:
            raise self._unreadable(self._topics.outcomes, offset, error) from error

    def _fold_outcomes(self, fold: Fold, told: Sequence[Told]) -> list[bytes]:
        bodies = []
        for one in filter(self.takes_outcome, told):
            bodies.append(one.body)
            if takes_effect(one.transaction_id, one.code):
                fold.outcome(one.body, one.transaction_id)
        return bodies

    def _fold_checkpoint(self, fold: Fold, offset: int, body: bytes) -> None:
        try:
            fold.checkpoint(read_checkpoint(body), body)
        except Malformed as error:
            raise self._unreadable(self._topics.outcomes, offset, error) from error

    def _unreadable(self, topic: str, offset: int, error: VersologError) -> BrokenLog:
        number = self.store.partition
        return BrokenLog(
            f"{topic}[{number}] offset {offset} can't be read: {error.detail}",
            topic=topic, partition=number, offset=offset,
        )  # fmt: skip


def takes_effect(transaction_id: str, code: str) -> bool:
    """Whether an outcome is that of its id: garbage has no id, and a refused reuse leaves the id's first outcome."""
    return transaction_id != "" and code != "id-reused"


def reader(kafka: dict[str, Any], **settings: Any) -> Consumer:
    """A consumer that belongs to no group and sees only what is committed, and does not fetch far ahead."""
    return readers.reader(kafka, **{"queued.max.messages.kbytes": 32 * 1024, **settings})


def reader_to_end(kafka: dict[str, Any], **settings: Any) -> Consumer:
    """A `reader` that says where a partition ends. To learn that, it asks once more, and the broker keeps that question
    for as long as it may; so it may not for long."""
    return reader(kafka, **{"enable.partition.eof": True, "fetch.wait.max.ms": END_WAIT_MS, **settings})


class Ends:
    """Where topics begin and end. Thread safe; keeps its connection."""

    def __init__(self, kafka: dict[str, Any]) -> None:
        self._kafka = kafka
        self._admin = AdminClient(kafka)

    def stable(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The last stable offset of each (topic, partition): everything below it is committed or aborted for good."""
        return self._ask(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def last(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The end of each (topic, partition), after the records of transactions that are still open."""
        return self._ask(places, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]

    def first(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The first offset that each (topic, partition) still holds."""
        return self._ask(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def at(self, places: Iterable[tuple[str, int]], time_ms: int) -> dict[tuple[str, int], int]:
        """The first offset of each (topic, partition) with a timestamp ≥ `time_ms`; -1 where there is none."""
        return self._ask(places, OffsetSpec.for_timestamp(time_ms))

    def _ask(
        self, places: Iterable[tuple[str, int]], spec: OffsetSpec,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[tuple[str, int], int]:  # fmt: skip
        request = {TopicPartition(topic, number): spec for topic, number in places}
        admin = self._admin  # held until it has answered, whatever others do meanwhile: see `answered`
        try:
            futures = admin.list_offsets(request, isolation_level=isolation, request_timeout=REQUEST_TIMEOUT_S)
            return {(place.topic, place.partition): listed_offset(future) for place, future in futures.items()}
        except KafkaException as error:
            # librdkafka's admin client keeps the leader's epoch of before a broker's crash, and is then refused for
            # minutes (FENCED_LEADER_EPOCH), where its consumers and producers learn the new one.
            if self._admin is admin:
                self._admin = AdminClient(self._kafka)
            raise Unavailable(f"Kafka did not say how far its topics go: {error}") from error


def catch_up(
    tail: Tail, kafka: dict[str, Any], topics: Topics, ends_of: Ends, progress: Callable[[int], None] | None = None
) -> None:
    """Fold everything up to the last stable offset of the partition. `progress` is told how many records were folded.

    Raises BrokenLog where the log does not go on where the store stands, OtherLog where it ends before that, and
    Unavailable where it does not answer.
    """
    store = tail.store
    _fold_to_ends(tail, kafka, topics, ends_of, progress)
    come_to, deadline = store.next_commit_offset, time.monotonic() + PATIENCE_S
    while store.covered_checkpoint is not store.checkpoint:
        # The end of a Kafka transaction is written into one topic after the other: the commits are not shown yet.
        if store.next_commit_offset > come_to:
            come_to, deadline = store.next_commit_offset, time.monotonic() + PATIENCE_S
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{topics.commits}[{store.partition}] is shown up to offset {store.next_commit_offset}, and outcomes tell "
                "of later ones",
                partition=store.partition, topic=topics.commits,
            )  # fmt: skip
        time.sleep(IDLE_POLL_S)
        _fold_to_ends(tail, kafka, topics, ends_of, progress)


def _fold_to_ends(
    tail: Tail, kafka: dict[str, Any], topics: Topics, ends_of: Ends, progress: Callable[[int], None] | None
) -> None:
    number = tail.store.partition
    ends = ends_of.stable([(topics.commits, number), (topics.outcomes, number)])
    refuse_ahead(tail, ends)
    starts = {(place.topic, number): max(place.offset, 0) for place in tail.starts()}
    open_ = {place[0] for place, end in ends.items() if starts[place] < end}
    if not open_:
        return
    heard_at_s = time.monotonic()
    while open_:
        with closing(reader_to_end(kafka)) as consumer:  # another one, where the last has stalled: see `stalls`
            consumer.assign([place for place in tail.starts() if place.topic in open_])
            for messages in _until_silent(consumer):
                open_ -= _fold_some(tail, messages, ends, progress)
                heard_at_s = time.monotonic()
                if not open_:
                    break
        if time.monotonic() - heard_at_s > PATIENCE_S:
            raise Unavailable(f"partition {number} was not answered for {PATIENCE_S:g} s", partition=number)


def _fold_some(
    tail: Tail, messages: Sequence[Message], ends: dict[tuple[str, int], int], progress: Callable[[int], None] | None
) -> set[str]:
    """Fold the records among `messages`; the topics that are read to their ends with them."""
    records = [message for message in messages if message.error() is None]
    tail.fold(records)
    if progress is not None:
        progress(len(records))
    ended: set[str] = set()
    for message in messages:
        if (error := message.error()) is not None:
            ended |= _ended(message, error, ends)
    return ended


def _until_silent(consumer: Consumer) -> Iterator[list[Message]]:
    """What comes, until nothing has come for SILENCE_S."""
    silent_s = 0.0
    while silent_s < SILENCE_S:
        messages = fetched(consumer)
        silent_s = 0.0 if messages else silent_s + IDLE_POLL_S
        if messages:
            yield messages


def refuse_ahead(tail: Tail, ends: dict[tuple[str, int], int]) -> None:
    """Raise OtherLog where the store has come further than the log reaches."""
    number = tail.store.partition
    for place in tail.starts():
        if place.offset > (end := ends[place.topic, number]):
            raise OtherLog(
                f"the store of partition {number} stands at offset {place.offset} of {place.topic}, which ends at "
                f"{end}: it belongs to another log, or the log lost records",
                partition=number, topic=place.topic, expected=place.offset, found=end,
            )  # fmt: skip


def fetched(consumer: Consumer) -> list[Message]:
    """What has been fetched, waiting a little for the first of it and not at all for more: `consume` alone would wait
    until it has as many as it may return."""
    first = consumer.poll(IDLE_POLL_S)
    return [] if first is None else [first, *consumer.consume(FETCH_RECORDS_MAX, 0)]


def last_record(kafka: dict[str, Any], ends_of: Ends, topic: str, number: int) -> bytes | None:
    """The value of the last committed record of topic[number]; None where there is none.

    The offsets at the end may be those of transaction markers and aborted records, so it looks back ever further.
    """
    place = (topic, number)
    end, first = ends_of.stable([place])[place], ends_of.first([place])[place]
    back = 16
    while end > first:
        start = max(first, end - back)
        found: bytes | None = None
        with closing(reader_to_end(kafka)) as consumer:
            consumer.assign([TopicPartition(topic, number, start)])
            while (message := consumer.poll(REQUEST_TIMEOUT_S)) is not None:
                error, value = message.error(), message.value()
                if error is None and isinstance(value, bytes):
                    found = value
                elif error is not None and _ended(message, error, {place: end}):
                    break
            else:
                raise Unavailable(f"{topic}[{number}] was not answered in time")
        if found is not None or start == first:
            return found
        back *= 16
    return None


def _ended(message: Message, error: KafkaError, ends: dict[tuple[str, int], int]) -> set[str]:
    """The topic that is read to its end, where the event says that; other errors are raised if they won't pass."""
    topic, number, offset = message.topic(), message.partition(), message.offset()
    if error.code() == KafkaError._PARTITION_EOF:
        assert topic is not None
        assert number is not None
        assert offset is not None
        return {topic} if offset >= ends[topic, number] else set()
    raise_if_final(error, topic, number)
    return set()


def raise_if_final(error: KafkaError, topic: str | None, number: int | None) -> None:
    """Raise OtherLog, or Unavailable, where an error that came in place of a record won't pass."""
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise OtherLog(
            f"{topic}[{number}] does not hold the offset to go on from: {error}", topic=topic, partition=number
        )
    if error.fatal() or error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED):
        raise Unavailable(f"{topic}[{number}] can't be read: {error}", topic=topic, partition=number)
