"""Votes over Kafka: a worker's way to the other participants, and what they say to the partitions that it owns.

Votes are functions of the log, so nothing here is transactional: a vote that is sent twice, or by an owner that was
fenced meanwhile, is the same vote. A partition's votes are read without ever pausing, whatever waits for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from versolog.schemas.codec import Codec, frame
from versolog.schemas.errors import NOT_OF_THE_TRANSACTION, BrokenLog, Unavailable, VersologError
from versolog.schemas.readings import read_votes
from versolog.schemas.topics import Topics
from versolog.schemas.written import vote_body, votes_body
from versolog.streams.carrier import Carrier
from versolog.streams.failpoints import reach
from versolog.streams.participant import Ballot
from versolog.streams.readers import reader
from versolog.streams.shares import VOTES, Vote
from versolog.streams.stalls import Stalls

POLL_S = 0.05
START_AGAIN_S = 1.0
RECORDS_AT_ONCE = 1_000
VOTES_IN_RECORD = 500
"""A vote is small but for its parts, and for a refusal's facts; both are bounded as those of an outcome are."""
VOTES_BYTES_MAX = 500_000
CLOSE_TIMEOUT_S = 2.0

Hear = Callable[[Sequence[tuple[Vote, int]]], None]
"""Takes votes and, for each, its offset; on the event loop."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """Who hears the votes of a partition, from an offset on."""

    partition: int
    offset: int
    hear: Hear
    failed: Callable[[VersologError], None]


class Ballots:
    """Carries votes to and from all partitions that a worker owns. To be used on one event loop."""

    def __init__(self, kafka: dict[str, Any], topics: Topics, codec: Codec, carrier: Carrier) -> None:
        self._kafka, self._topic, self._codec, self._carrier = kafka, topics.votes, codec, carrier
        self._schema_id = codec.id_of(VOTES)
        self._listeners: dict[int, _Listener] = {}
        self._changed = False
        self._stalls = Stalls()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="votes-heard", daemon=True)

    def start(self) -> None:
        """Begin; on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Hear no more. Blocks for a moment."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    # To the others

    def cast(self, partition: int, ballots: Sequence[Ballot], done: Callable[[], None]) -> None:
        """Have the others hear what `partition` votes. `done` is called on the loop once all of it is in the log, which
        is tried for as long as the worker lives."""
        by_partition: dict[int, list[Vote]] = {}
        for ballot in ballots:
            for to in ballot.to:
                by_partition.setdefault(to, []).append(ballot.vote)
        records = [(to, value) for to, votes in by_partition.items() for value in self._records(partition, votes)]

        def cast() -> None:
            reach("votes-cast")
            done()

        self._carrier.carry(self._topic, records, cast)

    def _records(self, partition: int, votes: Sequence[Vote]) -> list[bytes]:
        return [frame(self._schema_id, votes_body(partition, run)) for run in runs(votes)]

    # From the others

    def follow(self, partition: int, offset: int, hear: Hear, failed: Callable[[VersologError], None]) -> None:
        """Hear the votes to `partition` from `offset` on, in place of what was heard before. `failed` is called on the
        loop where they can't be read, after which nothing more is heard."""
        self._listeners[partition] = _Listener(partition, offset, hear, failed)
        self._changed = True

    def leave(self, partition: int) -> None:
        """Hear no more of it."""
        self._listeners.pop(partition, None)
        self._changed = True

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen_until_it_fails()
            except Unavailable as stalled:
                logger.warning("votes-are-read-again", reason=stalled.detail)
            except Exception:
                logger.exception("votes-are-read-again", in_s=START_AGAIN_S)
                self._stopping.wait(START_AGAIN_S)

    def _listen_until_it_fails(self) -> None:
        assigned: dict[int, _Listener] = {}
        next_offsets: dict[tuple[str, int], int] = {}
        self._changed = True
        with closing(reader(self._kafka, **{"client.id": "versolog-votes"})) as consumer:
            while not self._stopping.is_set():
                if self._changed:
                    self._changed = False
                    self._assign(consumer, assigned)
                    next_offsets = {(self._topic, number): one.offset for number, one in assigned.items()} | {
                        place: offset for place, offset in next_offsets.items() if place[1] in assigned
                    }
                message = consumer.poll(POLL_S)
                if message is not None:
                    messages = [message, *consumer.consume(RECORDS_AT_ONCE, 0)]
                    self._hear(assigned, messages)
                    next_offsets |= _next_offsets(messages)
                self._stalls.look(consumer, lambda: next_offsets)

    def _assign(self, consumer: Consumer, assigned: dict[int, _Listener]) -> None:
        wanted = dict(self._listeners)
        for partition, listener in list(assigned.items()):
            if wanted.get(partition) is not listener:
                consumer.incremental_unassign([TopicPartition(self._topic, partition)])
                del assigned[partition]
        for partition, listener in wanted.items():
            if partition not in assigned:
                consumer.incremental_assign([TopicPartition(self._topic, partition, listener.offset)])
                assigned[partition] = listener

    def _hear(self, assigned: dict[int, _Listener], messages: Sequence[Message]) -> None:
        votes: dict[_Listener, list[tuple[Vote, int]]] = {}
        for message in messages:
            number = message.partition()
            listener = None if number is None else assigned.get(number)
            if listener is None:
                continue
            try:
                if (error := message.error()) is not None:
                    self._meet(error, listener)
                    continue
                writer, body = self._codec.opened(message.value(), VOTES)
                record = read_votes(body, writer)
                heard = [Vote.of(record["partition"], vote) for vote in record["votes"]]
            except NOT_OF_THE_TRANSACTION as unreadable:
                self._loop.call_soon_threadsafe(self._fail, listener, unreadable)
                continue
            except VersologError as fault:  # no participant's: theirs can be read
                logger.warning("poison-vote", partition=number, offset=message.offset(), reason=fault.detail)
                continue
            offset = message.offset()
            assert offset is not None
            votes.setdefault(listener, []).extend((vote, offset) for vote in heard)
        for listener, some in votes.items():
            reach("votes-heard")
            self._loop.call_soon_threadsafe(self._tell, listener, some)

    def _meet(self, error: KafkaError, listener: _Listener) -> None:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise BrokenLog(
                f"{self._topic}[{listener.partition}] does not hold the votes from offset {listener.offset} on: {error}",
                partition=listener.partition, topic=self._topic, expected=listener.offset,
            )  # fmt: skip
        if error.fatal():
            raise KafkaException(error)

    def _tell(self, listener: _Listener, votes: Sequence[tuple[Vote, int]]) -> None:
        if self._listeners.get(listener.partition) is listener:
            listener.hear(votes)

    def _fail(self, listener: _Listener, error: VersologError) -> None:
        if self._listeners.get(listener.partition) is listener:
            self.leave(listener.partition)
            listener.failed(error)


def _next_offsets(messages: Sequence[Message]) -> dict[tuple[str, int], int]:
    return {
        (topic, number): offset + 1
        for one in messages
        if one.error() is None
        and (topic := one.topic()) is not None
        and (number := one.partition()) is not None
        and (offset := one.offset()) is not None
    }


def runs(votes: Sequence[Vote]) -> list[list[bytes]]:
    """The votes' Avro bodies, cut so that each run of them fits a record."""
    cut: list[list[bytes]] = [[]]
    size = 0
    for vote in votes:
        body = vote_body(vote.record())
        if len(cut[-1]) == VOTES_IN_RECORD or (cut[-1] and size + len(body) > VOTES_BYTES_MAX):
            cut.append([])
            size = 0
        cut[-1].append(body)
        size += len(body)
    return cut
