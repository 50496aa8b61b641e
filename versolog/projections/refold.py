"""Folding partitions of the log anew, on all cores: in this process, and in others that are started beside it.

The others import this module and little else, for they are no help before they have.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Message

from versolog.lifetime import end_with_parent
from versolog.projections.digest import group_digest, standing
from versolog.projections.store import Store
from versolog.projections.tail import Ends, Tail, catch_up
from versolog.schemas.codec import Codec, SchemaIds
from versolog.schemas.errors import Unavailable, VersologError
from versolog.schemas.readings import Told, read_outcome
from versolog.schemas.topics import TopicIds, Topics

HEAR_EVERY_S = 0.2
NUMBER_BYTES = 4

Answer = TypeVar("Answer")
Tell = Callable[[int], None]
"""Told how many records were folded, again and again."""
Registry = Callable[[], SchemaIds]
"""Makes a way to the schemas; called once in each process."""
Progress = Callable[[int, int], None]
"""Told the records folded so far, and about how many there are."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to rebuild: everything, one group up to a version, or everything up to a moment."""

    group: str | None = None
    version: int | None = None
    time_ms: int | None = None

    def takes_commit(self, record: dict[str, Any]) -> bool:
        return (
            (self.group is None or record["group"] == self.group)
            and (self.version is None or record["version"] <= self.version)
            and (self.time_ms is None or record["committed_at"] <= self.time_ms)
        )

    def takes_outcome(self, told: Told) -> bool:
        if self.time_ms is None and self.group is None:
            return True
        result = read_outcome(told.body)
        if self.time_ms is not None and result["committed_at"] > self.time_ms:
            return False
        if self.group is None:
            return True
        return any(
            part["group"] == self.group and part["version"] <= (self.version or part["version"])
            for part in result["parts"]
        )


class _WantedTail(Tail):
    """A Tail that folds only what is wanted."""

    def __init__(self, store: Store, topics: Topics, codec: Codec, wanted: Wanted) -> None:
        super().__init__(store, topics, codec)
        self._wanted = wanted
        self._group = None if wanted.group is None else wanted.group.encode()
        self.commits = 0

    def takes(self, message: Message) -> bool:
        """Commits of other groups are passed over by their key, without being read."""
        return self._group is None or message.topic() == self._topics.outcomes or message.key() == self._group

    def takes_commit(self, record: dict[str, Any]) -> bool:
        taken = self._wanted.takes_commit(record)
        self.commits += taken and record["piece"] == record["pieces"]
        return taken

    def takes_outcome(self, told: Told) -> bool:
        return self._wanted.takes_outcome(told)


@dataclass(frozen=True, slots=True)
class Log:
    """Where the log is, and what it is."""

    kafka: dict[str, Any]
    topics: Topics
    ids: TopicIds
    registry: Registry


class Folder:
    """Folds one partition after the other into stores in `directory`, over the same connections."""

    def __init__(self, log: Log, directory: Path) -> None:
        self._log, self._directory = log, directory
        self._codec, self._ends = Codec(log.registry()), Ends(log.kafka)
        directory.mkdir(parents=True, exist_ok=True)

    def ends(self, numbers: Sequence[int]) -> dict[int, tuple[int, int]]:
        """For each partition the ends of its `commits` and `outcomes`: about how many records there are."""
        topics = self._log.topics
        ends = self._ends.stable([(topic, number) for number in numbers for topic in (topics.commits, topics.outcomes)])
        return {number: (ends[topics.commits, number], ends[topics.outcomes, number]) for number in numbers}

    def fold(self, number: int, wanted: Wanted, tell: Tell) -> int:
        """Fold the partition; answers the commits folded."""
        log = self._log
        with closing(
            Store.open(
                self._path(number), partition=number, codec=self._codec, identity=log.ids.identity, write_ahead=False
            )
        ) as store:
            tail = _WantedTail(store, log.topics, self._codec, wanted)
            catch_up(tail, log.kafka, log.topics, self._ends, tell)
            store.flush()
            return tail.commits

    def digests(self, number: int) -> list[tuple[str, bytes]]:
        """The groups of the partition, each with its digest."""
        with closing(Store.open(self._path(number), partition=number, read_only=True)) as store:
            return [(group, group_digest(store, group, version)) for group, version in standing(store, None)]

    def _path(self, number: int) -> Path:
        return self._directory / f"partition-{number}"


Work = Callable[[Folder, int, Tell], Answer]
"""Something to be done for a partition, that other processes can be told of."""


class Crew:
    """This process, and others beside it, if any."""

    def __init__(self, folder: Folder, others: _Others) -> None:
        """Use `crew`."""
        self._folder, self._others = folder, others

    def fold(self, numbers: Sequence[int], wanted: Wanted, progress: Progress | None) -> int:
        """Fold the partitions; answers the commits folded."""
        ends = self._folder.ends(numbers)
        busy_first = sorted(numbers, key=lambda number: -ends[number][0])
        told = _Told(sum(map(sum, ends.values())), progress)
        return sum(self.each(busy_first, partial(_fold, wanted=wanted), told.add))

    def digests(self, numbers: Sequence[int]) -> list[tuple[str, bytes]]:
        """The groups of the partitions, each with its digest."""
        found = self.each(numbers, _digests, lambda _: None)
        return [group for of_partition in found for group in of_partition]

    def each(self, numbers: Sequence[int], work: Work[Answer], tell: Tell) -> list[Answer]:
        """The answers of `work` for each partition, in any order. Raises what it raised, in whichever process (what is no
        error of ours as a RuntimeError with its traceback), and Unavailable where one of the others was ended."""
        return self._others.each(self._folder, numbers, work, tell)


@contextmanager
def crew(log: Log, directory: Path, processes: int) -> Iterator[Crew]:
    """So many processes, this one among them, that make stores in `directory`."""
    with closing(_Others(log, directory, processes - 1)) as others:
        yield Crew(Folder(log, directory), others)


def _fold(folder: Folder, number: int, tell: Tell, wanted: Wanted) -> int:
    return folder.fold(number, wanted, tell)


def _digests(folder: Folder, number: int, tell: Tell) -> list[tuple[str, bytes]]:
    return folder.digests(number)


class _Told:
    """Adds up what is told."""

    def __init__(self, about: int, progress: Progress | None) -> None:
        self._about, self._progress, self._records = about, progress, 0

    def add(self, records: int) -> None:
        self._records += records
        if self._progress is not None:
            self._progress(self._records, self._about)


class _Turns:
    """Partitions that nobody has taken yet. They stand in a pipe, of which each read takes one for good, in whichever
    process: one that is killed leaves nothing locked."""

    def __init__(self, context: SpawnContext) -> None:
        self._taken, self._given = context.Pipe(duplex=False)
        os.set_blocking(self._taken.fileno(), False)

    def give(self, numbers: Sequence[int]) -> None:
        """Have these taken; the last ones all are."""
        os.write(self._given.fileno(), b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in numbers))

    def take(self) -> Iterator[int]:
        """One after the other, until there is none."""
        with suppress(BlockingIOError):
            while True:
                yield int.from_bytes(os.read(self._taken.fileno(), NUMBER_BYTES), "big")

    def close(self) -> None:
        self._taken.close()
        self._given.close()


class _Others:
    """Processes beside this one. They begin to start at once, and come in when they are ready."""

    def __init__(self, log: Log, directory: Path, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._turns = _Turns(context)
        self._free: dict[Connection, SpawnProcess] = {}
        self._busy: dict[Connection, SpawnProcess] = {}
        # The terminal sends Ctrl-C to all of them, and this process alone is to answer it.
        mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                here, there = context.Pipe()
                begin = (os.getpid(), log, directory, self._turns, there)
                process = context.Process(target=_help, args=begin, name="refold", daemon=True)
                process.start()
                there.close()
                self._free[here] = process
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask_before)

    def each(self, folder: Folder, numbers: Sequence[int], work: Work[Answer], tell: Tell) -> list[Answer]:
        """As `Crew.each`; this process does its part with `folder`."""
        answers: list[Answer] = []
        self._turns.give(numbers)
        for connection in list(self._free):
            self._order(connection, work)

        def told(records: int) -> None:
            tell(records)
            self._hear(answers, tell, 0)

        for number in self._turns.take():
            answers.append(work(folder, number, told))
            self._hear(answers, tell, 0)
        while len(answers) < len(numbers):
            self._hear(answers, tell, HEAR_EVERY_S)
        self._end(self._busy)  # who has not begun by now is not waited for
        return answers

    def close(self) -> None:
        """End them, whatever they are at."""
        self._end(self._busy)
        self._end(self._free)
        self._turns.close()

    def _order(self, connection: Connection, work: Work[Answer]) -> None:
        self._busy[connection] = process = self._free.pop(connection)
        try:
            connection.send(work)
        except ConnectionError as error:
            raise _was_ended(process) from error

    def _hear(self, answers: list[Answer], tell: Tell, wait_s: float) -> None:
        """Take in what the others say. Raises what one of them failed with."""
        for connection in wait(self._busy, wait_s):
            assert isinstance(connection, Connection)
            try:
                said = connection.recv()
            except (EOFError, ConnectionError) as error:
                raise _was_ended(self._busy[connection]) from error
            if isinstance(said, int):
                tell(said)
                continue
            self._free[connection] = self._busy.pop(connection)
            if isinstance(said, Exception):
                raise said
            answers += said

    def _end(self, some: dict[Connection, SpawnProcess]) -> None:
        for process in some.values():
            process.kill()
        while some:
            connection, process = some.popitem()
            process.join()
            process.close()
            connection.close()


def _was_ended(process: SpawnProcess) -> Unavailable:
    process.join()
    return Unavailable(
        f"one of the processes that fold was ended from outside (exit status {process.exitcode}), as Linux does where "
        "memory runs out; fewer of them need less"
    )


# In the other processes


def _help(parent: int, log: Log, directory: Path, turns: _Turns, connection: Connection) -> None:
    """Do what comes over `connection`, until there is nothing to come: tell how far it is, and then the answers, or the
    error."""
    end_with_parent(signal.SIGKILL, parent)
    with suppress(EOFError, ConnectionError):
        folder: Folder | None = None
        while True:
            work = connection.recv()
            try:
                folder = folder or Folder(log, directory)
                said: list[Any] | Exception = [work(folder, number, connection.send) for number in turns.take()]
            except VersologError as error:
                said = error
            except Exception:  # noqa: BLE001, it is raised by the one that is told
                said = RuntimeError(traceback.format_exc())  # the error itself, as a KafkaException, may not be pickled
            connection.send(said)
