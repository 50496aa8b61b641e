"""Replaying: a past version rebuilt from offsets, from the first record of the log, into a directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from confluent_kafka import Producer

from versolog.projections.copy import Manifest
from versolog.projections.digest import combined, group_digest
from versolog.projections.moments import tagged_ms, unknown_tag
from versolog.projections.refold import Folder, Log, Progress, Wanted, crew
from versolog.projections.store import Store
from versolog.projections.tail import OUTCOMES, Ends, last_record
from versolog.projections.views import View
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import Invalid, Misconfigured, NotFound, Unavailable
from versolog.schemas.topics import partition_of
from versolog.streams.participant import settled_at
from versolog.streams.state import MAIN, STORE_GROUP, STORE_TAGS_TABLE
from versolog.streams.versions import NameRef, TimeRef, parse_ref, resolve

CLOSE_TIMEOUT_S = 15.0
CLOSE_POLL_S = 0.2
TICK = avro.schema("Tick")


def replay(
    log: Log, into: Path, *, at: str | None, group: str | None, processes: int | None = None,
    progress: Progress | None = None,
) -> Manifest:  # fmt: skip
    """Rebuild what `at` names (a version, branch or tag of `group`, a time, or a tag of the whole store; None: the
    newest) into `into`.

    `into` must not exist or be empty, and then it is taken away meanwhile; it appears whole or not at all. Raises
    Invalid, NotFound for an unknown reference or group, Misconfigured, BrokenLog, and Unavailable for a time that the
    log can't close.
    """
    with _fresh_directory(into.absolute()) as directory:
        wanted = _wanted(log, directory, at, group)
        numbers = list(range(log.ids.partitions)) if group is None else [partition_of(group, log.ids.partitions)]
        with crew(log, directory, min(processes or os.cpu_count() or 1, len(numbers))) as all_hands:
            commits = all_hands.fold(numbers, wanted, progress)
            manifest = Manifest(log.ids.identity, log.ids.partitions, at or "now", group, wanted.version,
                                wanted.time_ms, commits, "")  # fmt: skip
            if group is None:
                manifest = replace(manifest, digest=combined(all_hands.digests(numbers)).hex())
            else:
                manifest = _of_group(directory / f"partition-{numbers[0]}", manifest, group)
        manifest.write(directory)
    return manifest


@contextmanager
def _fresh_directory(into: Path) -> Iterator[Path]:
    """A directory beside `into` that takes its name at the end, and is gone if that is not reached: at once, or with
    the next replay where this one is killed. Raises Misconfigured."""
    directory = _begun(into)
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield directory
        try:
            directory.rename(into)  # in place of an empty directory that came to be there meanwhile, too
        except OSError as error:
            raise Misconfigured(f"{into} can't be made: {error}", path=str(into)) from error
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _begun(into: Path) -> Path:
    """A directory beside `into`, whose place is free. Raises Misconfigured where it can't be had: now, and not when all is
    folded."""
    prefix = f".{into.name}.versolog-replay-"
    try:
        if into.is_dir():
            if any(into.iterdir()):
                raise Misconfigured(f"{into} is not empty; a replay needs a fresh directory")
            if into.samefile(Path.cwd()):
                raise Misconfigured(f"{into} is where you stand; a replay needs a fresh directory")
            into.rmdir()
        elif into.exists():
            raise Misconfigured(f"{into} is a file; a replay needs a fresh directory")
        into.parent.mkdir(parents=True, exist_ok=True)
        for left in into.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_unless_held(left)
        return Path(tempfile.mkdtemp(prefix=prefix, dir=into.parent))
    except OSError as error:
        raise Misconfigured(
            f"no replay can be made in {into}: {error.strerror or error}. Name a directory that does not exist yet, beside "
            "which one can be made",
            path=str(into),
        ) from error


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
        Folder(log, scratch).fold(number, Wanted(group), lambda _: None)
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


def _of_group(path: Path, manifest: Manifest, group: str) -> Manifest:
    """The manifest with the digest of the one group that was rebuilt, and the moment up to which it answers."""
    with closing(Store.open(path, read_only=True)) as store:
        if store.head(group) is None:
            raise NotFound(f"no group {group!r}: nothing was written to it by then", code="unknown-group", group=group)
        time_ms = manifest.time_ms
        if manifest.version is not None:
            step = store.step(group, manifest.version)
            assert step is not None, "the version was folded"
            time_ms = step.committed_at - 1  # a later version may have the same committed_at and is not here
        return replace(manifest, digest=group_digest(store, group).hex(), time_ms=time_ms)
