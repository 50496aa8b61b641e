"""Replaying: a past version rebuilt from offsets, from the first record of the log, into a directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

from confluent_kafka import Message, Producer

from versolog.lifetime import end_with_parent
from versolog.projections.copy import Manifest, open_copy
from versolog.projections.digest import group_digest, store_digest
from versolog.projections.moments import tagged_ms, unknown_tag
from versolog.projections.store import Store
from versolog.projections.tail import OUTCOMES, Ends, Tail, catch_up, last_record
from versolog.projections.views import View
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec, SchemaIds
from versolog.schemas.errors import Invalid, Misconfigured, NotFound, Unavailable
from versolog.schemas.readings import Told, read_outcome
from versolog.schemas.topics import TopicIds, Topics, partition_of
from versolog.streams.participant import settled_at
from versolog.streams.state import MAIN, STORE_GROUP, STORE_TAGS_TABLE
from versolog.streams.versions import NameRef, TimeRef, parse_ref, resolve

CLOSE_TIMEOUT_S = 15.0
CLOSE_POLL_S = 0.2
TICK = avro.schema("Tick")

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


class ReplayTail(Tail):
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


def replay(
    log: Log, into: Path, *, at: str | None, group: str | None, processes: int | None = None,
    progress: Progress | None = None,
) -> Manifest:  # fmt: skip
    """Rebuild what `at` names (a version, branch or tag of `group`, a time, or a tag of the whole store; None: the
    newest) into `into`.

    `into` must not exist or be empty; it appears whole or not at all. Raises Invalid, NotFound for an unknown
    reference or group, Misconfigured, BrokenLog, and Unavailable for a time that the log can't close.
    """
    if into.exists() and any(into.iterdir()):
        raise Misconfigured(f"{into} is not empty; a replay needs a fresh directory")
    into.parent.mkdir(parents=True, exist_ok=True)
    with _fresh_directory(into) as directory:
        wanted = _wanted(log, directory, at, group)
        numbers = list(range(log.ids.partitions)) if group is None else [partition_of(group, log.ids.partitions)]
        commits = _fold_all(log, directory, numbers, wanted, processes or os.cpu_count() or 1, progress)
        manifest = Manifest(log.ids.identity, log.ids.partitions, at or "now", group, wanted.version, wanted.time_ms,
                            commits, "")  # fmt: skip
        manifest.write(directory)
        manifest = _with_digest(directory, manifest)
        manifest.write(directory)
    return manifest


@contextmanager
def _fresh_directory(into: Path) -> Iterator[Path]:
    """A directory beside `into` that takes its name at the end, and is gone if that is not reached: at once, or with
    the next replay where this one is killed."""
    prefix = f".{into.name}-"
    for left in into.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_unless_held(left)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=into.parent))
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield directory
        if into.exists():
            into.rmdir()
        directory.rename(into)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _remove_unless_held(directory: Path) -> None:
    """Remove what a killed replay left; one that still runs holds its directory."""
    with contextlib.suppress(OSError):
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(held)


def _wanted(log: Log, directory: Path, at: str | None, group: str | None) -> Wanted:
    if at is None:
        return Wanted(group)
    ref = parse_ref(at)
    if isinstance(ref, TimeRef):
        numbers = range(log.ids.partitions) if group is None else [partition_of(group, log.ids.partitions)]
        close(log, list(numbers), ref.time_ms)
        return Wanted(group, time_ms=ref.time_ms)
    if group is None:
        if not isinstance(ref, NameRef):
            raise Invalid(
                f"{at!r} is a version of one group: name the group, or give a time or a store-wide tag for the whole "
                "store",
                field="at",
            )
        time_ms = _moment_of(log, directory / "names", ref.name)
        close(log, range(log.ids.partitions), time_ms)
        return Wanted(time_ms=time_ms)
    with _folded(log, directory / "names", group) as store:
        return Wanted(group, version=resolve(store, group, at).version)


def _moment_of(log: Log, scratch: Path, tag: str) -> int:
    """The moment that a store-wide tag names now, in milliseconds."""
    with _folded(log, scratch, STORE_GROUP) as store:
        row = None
        if store.head(STORE_GROUP) is not None:
            row = View(store).row(resolve(store, STORE_GROUP, MAIN), STORE_TAGS_TABLE, tag)
        time_ms = None if row is None else tagged_ms(row)
    if time_ms is None:
        raise unknown_tag(tag)
    return time_ms


@contextmanager
def _folded(log: Log, scratch: Path, group: str) -> Iterator[Store]:
    """The group alone, as the log has it now: what names mean is asked of the log, so a replay needs no live store."""
    number = partition_of(group, log.ids.partitions)
    try:
        _Folder(log, scratch, Wanted(group)).fold(number, None)
        with closing(Store.open(scratch / f"partition-{number}", partition=number, read_only=True)) as store:
            yield store
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def close(log: Log, numbers: Sequence[int], time_ms: int) -> None:
    """Wait until nothing with committed_at ≤ `time_ms` can come any more to the partitions; ticks move their clocks.

    Raises Invalid for a time to come and Unavailable where a partition has no owner that would decide what is left.
    """
    if time_ms >= time.time_ns() // 1_000_000:
        raise Invalid("a time to come can't be replayed", code="time-to-come", field="at")
    ends, codec = Ends(log.kafka), Codec(log.registry())
    open_ = {number for number in numbers if _clock(log, ends, codec, number) <= time_ms}
    if not open_:
        return
    producer = Producer({**log.kafka, "acks": "all", "enable.idempotence": True})
    for number in open_:
        producer.produce(log.topics.transactions, codec.write(TICK, {}), partition=number)
    producer.flush(CLOSE_TIMEOUT_S)
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while open_:
        open_ = {number for number in open_ if _clock(log, ends, codec, number) <= time_ms}
        if open_ and time.monotonic() > deadline:
            raise Unavailable(
                f"the partitions {sorted(open_)} have transactions from before that time which nobody decides; "
                "start a worker and try again",
                partitions=sorted(open_),
            )
        time.sleep(CLOSE_POLL_S if open_ else 0)


def _clock(log: Log, ends: Ends, codec: Codec, number: int) -> int:
    """The time before which the partition is closed, from the last of its outcomes records."""
    value = last_record(log.kafka, ends, log.topics.outcomes, number)
    if value is None:
        return 0
    _, record = codec.read(value, OUTCOMES)
    return settled_at(record["checkpoint"]).clock


# Folding, one partition a task, on all cores


class _Folder:
    """Folds one partition after the other, over the same connections."""

    def __init__(self, log: Log, directory: Path, wanted: Wanted) -> None:
        self._log, self._directory, self._wanted = log, directory, wanted
        self._codec, self._ends = Codec(log.registry()), Ends(log.kafka)
        directory.mkdir(parents=True, exist_ok=True)

    def fold(self, number: int, progress: Callable[[int], None] | None) -> int:
        """Fold the partition; answers the commits folded."""
        log, path = self._log, self._directory / f"partition-{number}"
        with closing(
            Store.open(path, partition=number, codec=self._codec, identity=log.ids.identity, write_ahead=False)
        ) as store:
            tail = ReplayTail(store, log.topics, self._codec, self._wanted)
            catch_up(tail, log.kafka, log.topics, self._ends, progress)
            store.flush()
            return tail.commits


_folder: _Folder
_heard: Any
_over: Any


def _fold_all(
    log: Log, directory: Path, numbers: Sequence[int], wanted: Wanted, processes: int, progress: Progress | None
) -> int:
    """Fold the partitions; answers the commits folded."""
    ends = Ends(log.kafka).stable([(topic, n) for n in numbers for topic in (log.topics.commits, log.topics.outcomes)])
    told = _Told(sum(ends.values()), progress)
    if processes == 1 or len(numbers) == 1:
        folder = _Folder(log, directory, wanted)
        return sum(folder.fold(number, told.add) for number in numbers)
    context = multiprocessing.get_context("spawn")
    heard, over = context.Queue(), context.Event()
    busy_first = sorted(numbers, key=lambda number: -ends[log.topics.commits, number])
    begin = (os.getpid(), log, directory, wanted, heard, over)
    with ProcessPoolExecutor(min(processes, len(numbers)), context, _begin, begin) as pool:
        try:
            tasks = [pool.submit(_fold_in_process, number) for number in busy_first]
            _pass_on(heard, tasks, told)
            return sum(task.result() for task in tasks)
        except BaseException:
            over.set()  # else the tasks under way would be waited for
            raise


def _begin(parent: int, log: Log, directory: Path, wanted: Wanted, heard: Any, over: Any) -> None:
    """Make one process of the pool ready for its tasks."""
    global _folder, _heard, _over
    end_with_parent(signal.SIGKILL, parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends Ctrl-C to all; the first process says what then
    heard.cancel_join_thread()  # nobody listens any more when the first process gives up
    _folder, _heard, _over = _Folder(log, directory, wanted), heard, over


def _fold_in_process(number: int) -> int:
    return _folder.fold(number, _tell)


def _tell(records: int) -> None:
    if _over.is_set():
        raise Unavailable("the replay was given up")
    _heard.put(records)


def _pass_on(heard: Any, tasks: Sequence[Future[int]], told: _Told) -> None:
    """Tell how far the tasks are until all have ended. Raises what the first of them that fails raised."""
    while not all(task.done() for task in tasks):
        with contextlib.suppress(Empty):
            told.add(heard.get(timeout=CLOSE_POLL_S))
        for task in tasks:
            if task.done():
                task.result()


class _Told:
    """Adds up what each partition tells."""

    def __init__(self, about: int, progress: Progress | None) -> None:
        self._about, self._progress, self._records = about, progress, 0

    def add(self, records: int) -> None:
        self._records += records
        if self._progress is not None:
            self._progress(self._records, self._about)


def _with_digest(directory: Path, manifest: Manifest) -> Manifest:
    """The manifest with the digest of what was rebuilt, and the moment up to which it answers."""
    _, partitions = open_copy(directory)
    try:
        time_ms = manifest.time_ms
        stores = [partition.store for partition in partitions.values()]
        if manifest.group is not None and stores[0].head(manifest.group) is None:
            group = manifest.group
            raise NotFound(f"no group {group!r}: nothing was written to it by then", code="unknown-group", group=group)
        if manifest.version is not None and manifest.group is not None:
            step = stores[0].step(manifest.group, manifest.version)
            assert step is not None, "the version was folded"
            time_ms = step.committed_at - 1  # a later version may have the same committed_at and is not here
        digest = store_digest(stores) if manifest.group is None else group_digest(stores[0], manifest.group)
        return replace(manifest, digest=digest.hex(), time_ms=time_ms)
    finally:
        for partition in partitions.values():
            partition.close()
