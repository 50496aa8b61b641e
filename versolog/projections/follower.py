"""Keeping up with the partitions of other owners, while a worker runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, Message

from versolog.projections.tail import IDLE_POLL_S, Tail, fetched, raise_if_final, reader
from versolog.schemas.errors import BrokenLog, Unavailable, VersologError
from versolog.schemas.topics import Topics
from versolog.streams.stalls import Stalls

START_AGAIN_S = 1.0

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Followed:
    """A partition that a Follower keeps up with, and whom it tells."""

    tail: Tail
    folded: Callable[[list[bytes]], None]
    """Called on the follower's thread with the outcomes that came with a fold."""
    broken: Callable[[VersologError], None]
    """Called once, when the partition is let go of: a BrokenLog, or for now, until it is followed again."""


@dataclass(slots=True)
class _Command:
    partition: int
    follow: Followed | None
    done: threading.Event = field(default_factory=threading.Event)


class Follower:
    """A thread that folds the log into the stores of the partitions that this worker doesn't own."""

    def __init__(self, kafka: dict[str, Any], topics: Topics) -> None:
        self._kafka, self._topics = kafka, topics
        self._followed: dict[int, Followed] = {}
        self._commands: list[_Command] = []
        self._stalls = Stalls()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def _stopping(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the stores stay as they are. Blocks until it has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def follow(self, followed: Followed) -> None:
        """Keep up with the partition from now on."""
        self._order(_Command(followed.tail.store.partition, followed))

    def release(self, partition: int) -> None:
        """Let go of the partition. Blocks until its store is no longer written here."""
        command = _Command(partition, None)
        self._order(command)
        while self._thread.is_alive() and not command.done.wait(IDLE_POLL_S):
            pass

    def _order(self, command: _Command) -> None:
        with self._lock:
            self._commands.append(command)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._follow_until_it_fails()
            except Unavailable as stalled:
                logger.warning("follower-starts-again", reason=stalled.detail)
            except Exception:
                logger.exception("follower-starts-again", in_s=START_AGAIN_S)
                self._obey()
                self._stop.wait(START_AGAIN_S)

    def _follow_until_it_fails(self) -> None:
        with closing(reader(self._kafka)) as consumer:
            self._obey()
            self._assign(consumer)
            while not self._stopping:
                if self._obey():
                    self._assign(consumer)
                self._read(consumer)
                self._stalls.look(consumer, self._next_offsets)

    def _next_offsets(self) -> dict[tuple[str, int], int]:
        starts = (place for followed in self._followed.values() for place in followed.tail.starts())
        return {(place.topic, place.partition): place.offset for place in starts}

    def _obey(self) -> bool:
        with self._lock:
            commands, self._commands = self._commands, []
        for command in commands:
            if command.follow is not None:
                self._followed[command.partition] = command.follow
            else:
                self._followed.pop(command.partition, None)
            command.done.set()
        return bool(commands)

    def _assign(self, consumer: Consumer) -> None:
        consumer.assign([place for followed in self._followed.values() for place in followed.tail.starts()])

    def _read(self, consumer: Consumer) -> None:
        by_partition: dict[int, list[Message]] = {}
        for message in fetched(consumer):
            number = message.partition()
            if (error := message.error()) is not None:
                self._meet(consumer, message, error)
                continue
            if number is not None and number in self._followed:
                by_partition.setdefault(number, []).append(message)
        for number, messages in by_partition.items():
            if (followed := self._followed.get(number)) is None:
                continue
            try:
                followed.folded(followed.tail.fold(messages))
            except VersologError as error:
                self._give_up(consumer, number, error)
            except Exception as error:  # what nobody could have written was folded: the others go on
                logger.exception("follower-failed", partition=number)
                reason = f"partition {number} can't be folded: {type(error).__name__}: {error}"
                self._give_up(consumer, number, BrokenLog(reason, partition=number))

    def _meet(self, consumer: Consumer, message: Message, error: KafkaError) -> None:
        number = message.partition()
        try:
            raise_if_final(error, message.topic(), number)
        except VersologError as final:
            if number is not None and number in self._followed:
                self._give_up(consumer, number, final)

    def _give_up(self, consumer: Consumer, number: int, error: VersologError) -> None:
        logger.error("follower-stopped", partition=number, reason=error.detail)
        self._followed.pop(number).broken(error)
        self._assign(consumer)
