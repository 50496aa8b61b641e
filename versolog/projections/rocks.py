"""RocksDB: bytes by column family, how it is tuned, and its failures as ours. Nothing else imports rocksdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    DataBlockIndexType,
    DbClosedError,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from versolog.projections import keys, layout
from versolog.projections.evolve import Batch, Families
from versolog.schemas.errors import BrokenLog, Misconfigured, Unavailable, VersologError

KIB, MIB = 1024, 1024 * 1024
CACHE_BYTES = 160 * MIB
SHORT_FROM = 0.8
"""Of the memory for writes. RocksDB thinks so from 7/8 on."""
ACTIVE_BYTES = "rocksdb.cur-size-active-mem-table"
NEAR_MAX = 4
"""Steps to try before a seek, which costs as much as five of them."""
REOPEN_TIMEOUT_S = 5.0
"""How long to wait for reads of a store that this process has just closed to let go of it."""


class StoreLocked(Misconfigured):
    """Another process has the store open."""

    code = "store-locked"


class StoreUnusable(BrokenLog):
    """The directory holds no store to go on with: broken, of another format, of another log.

    The log holds all that is in a store: remove the directory and fold the log again.
    """

    code = "store-unusable"


class Memory:
    """What the stores of a process use together: blocks of their files, and writes that are in no file yet."""

    def __init__(self, cache_bytes: int = CACHE_BYTES, write_bytes: int | None = None) -> None:
        """`write_bytes` is a part of `cache_bytes`, half of it if it is not given: what writes don't use is left for
        reads."""
        self.write_bytes = cache_bytes // 2 if write_bytes is None else write_bytes
        self.cache = Cache(cache_bytes)
        self.writes = WriteBufferManager.new_write_buffer_manager_with_cache(self.write_bytes, False, self.cache)
        self.stores: set[Rocks] = set()
        """Those that write."""

    @property
    def is_short(self) -> bool:
        """Whether the writes that are in no file yet take nearly all that they may."""
        return self.writes.get_usage() > self.write_bytes * SHORT_FROM


class Rocks:
    """The database itself: bytes by family, and its failures as ours."""

    def __init__(self, path: Path, memory: Memory, *, read_only: bool, write_ahead: bool = True) -> None:
        """Without `write_ahead` what is written is kept from the next `flush` on, and not before."""
        self.path = path
        self.read_only = read_only
        self._write_ahead = write_ahead
        self._memory = memory
        self._how = WriteOptions()
        self._how.disable_wal = not write_ahead  # type: ignore[assignment, method-assign]  # not what the stub says
        self.closed = False
        self._root = _open(path, memory, read_only)
        self._families = {name: self._root.get_column_family(name) for name in layout.FAMILIES}
        handle = self._root.get_column_family_handle
        self.handles = Families(**{name: handle(name) for name in layout.FAMILIES})
        """The families, for a batch. They would keep the directory locked, so `close` takes them out of here."""
        if not read_only:
            memory.stores.add(self)

    def close(self) -> None:
        """Let go of the directory, once reads under way have noticed. Closing again is harmless. Raises Unavailable where
        what was written is not kept."""
        if self.closed:
            return
        self.closed = True
        self._memory.stores.discard(self)
        failed: Exception | None = None
        for family in (*self._families.values(), self._root):
            try:
                family.close()  # which flushes, and closes even if that fails
            except Exception as error:
                failed = failed or error
        self.handles.clear()
        if failed is not None and not self._write_ahead:  # with it, what is in no file is read again from there
            raise self._failed(failed) from failed

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value under `key`."""
        try:
            value: bytes | None = self._families[family].get(key)
        except Exception as error:
            raise self.failure(error) from error
        return value

    def get_all(self, family: str, wanted: list[bytes]) -> list[bytes | None]:
        """The value under each key."""
        try:
            values: Any = self._families[family].get(cast(list[Any], wanted))
        except Exception as error:
            raise self.failure(error) from error
        return cast(list[bytes | None], values)

    def first(self, family: str, lower: bytes, upper: bytes) -> tuple[bytes, bytes] | None:
        """The first entry in [lower, upper). By itself, for as the first of `between` it would take a third longer."""
        return self.cursor(family, upper).at_or_after(lower)

    def starting(self, family: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The entries whose keys start with the whole elements in `prefix`."""
        return self.between(family, prefix, keys.end(prefix))

    def between(self, family: str, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The entries in [lower, upper) as of when the first is asked for."""
        try:
            bounds = _bounded(upper)  # kept in this name: see there
            found = self._families[family].iter(bounds)
            found.seek(lower)
            # Not `items`, which takes a damaged block for the end; 0.33 µs an entry instead of 0.25.
            valid, key, value, step = found.valid, found.key, found.value, found.next
            while valid():
                yield key(), value()
                if self.closed:
                    raise DbClosedError
                step()
            found.status()
        except Exception as error:
            raise self.failure(error) from error

    def cursor(self, family: str, upper: bytes) -> Cursor:
        """To look up keys in order, below `upper`."""
        bounds = _bounded(upper)
        try:
            return Cursor(self, self._families[family].iter(bounds), bounds)
        except Exception as error:
            raise self.failure(error) from error

    def batch(self) -> WriteBatch:
        """An empty batch."""
        return WriteBatch(raw_mode=True)

    def write(self, batch: Batch) -> None:
        """Make what is in `batch` (one of `batch`) visible and kept, all of it or nothing."""
        assert isinstance(batch, WriteBatch)
        try:
            self._root.write(batch, self._how)
            if self._memory.is_short:
                self._leave_room()
        except Exception as error:
            raise self.failure(error) from error

    def _leave_room(self) -> None:
        """Begin to put into files what is written, where that is more than this store's part of the memory.

        RocksDB does so only as a store is written to. One that takes much and is not written to again would keep it, and
        have all others begin a new file with each of their writes.
        """
        part = self._memory.write_bytes / (len(self._memory.stores) or 1)
        held = {family: family.property_int_value(ACTIVE_BYTES) or 0 for family in self._families.values()}
        if sum(held.values()) > part:
            for family, size in held.items():
                if size > part / len(held):
                    family.flush(wait=False)

    def put(self, family: str, key: bytes, value: bytes) -> None:
        """Write one value."""
        batch = self.batch()
        batch.put(key, value, getattr(self.handles, family))
        self.write(batch)

    def flush(self) -> None:
        """Put what is written into files, so that opening again has no log of writes to read."""
        try:
            for family in self._families.values():
                family.flush()
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> VersologError:
        """What a failure of the database means to who asked it."""
        if isinstance(error, VersologError):
            return error
        if isinstance(error, DbClosedError) or self.closed:
            return Unavailable(f"the store in {self.path} was closed meanwhile; ask again", path=str(self.path))
        if str(error).startswith("Corruption"):
            return unusable(self.path, f"it is damaged: {error}", "damaged")
        return self._failed(error)

    def _failed(self, error: Exception) -> Unavailable:
        return Unavailable(f"the store in {self.path} failed: {error}", code="store-failed", path=str(self.path))


class Cursor:
    """Goes forward through a range: to near keys by steps, to far ones by seeks."""

    def __init__(self, rocks: Rocks, entries: RdictIter, bounds: ReadOptions) -> None:
        self._rocks = rocks
        self._entries = entries
        self._bounds = bounds

    def at_or_after(self, wanted: bytes) -> tuple[bytes, bytes] | None:
        """The first entry from `wanted` on, which may not be before the one wanted last."""
        entries, steps = self._entries, NEAR_MAX
        try:
            while steps and entries.valid() and entries.key() < wanted:
                entries.next()
                steps -= 1
            if not steps or not entries.valid():
                entries.seek(wanted)
            if entries.valid():
                return entries.key(), entries.value()
            entries.status()
        except Exception as error:
            raise self._rocks.failure(error) from error
        return None


def _open(path: Path, memory: Memory, read_only: bool) -> Rdict:
    if read_only and not (path / "CURRENT").is_file():
        raise Misconfigured(f"there is no store in {path}", path=str(path))
    if not read_only:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misconfigured(f"no store can be made in {path}: {error}", path=str(path)) from error
    families = {name: _family_options(name, memory) for name in layout.FAMILIES}
    access = AccessType.read_only() if read_only else AccessType.read_write()
    deadline = time.monotonic() + REOPEN_TIMEOUT_S
    while True:
        try:
            return Rdict(str(path), _database_options(memory), column_families=families, access_type=access)
        except Exception as error:
            if "lock hold by current process" not in str(error):
                raise _not_opened(path, str(error)) from error
            if time.monotonic() > deadline:
                raise StoreLocked(f"this process has the store in {path} open already", path=str(path)) from error
            time.sleep(0.01)


def _not_opened(path: Path, error: str) -> VersologError:
    if "While lock file" in error:
        return StoreLocked(
            f"another process has the store in {path} open; stop it, or give this one a directory of its own",
            path=str(path),
        )
    if error.startswith("IO error") and "No such file" not in error:
        return Misconfigured(f"the store in {path} can't be opened: {error}", path=str(path))
    return unusable(path, f"it is damaged: {error}", "damaged")


def unusable(path: Path, why: str, reason: str) -> StoreUnusable:
    return StoreUnusable(
        f"the store in {path} can't be used: {why}. The log holds all that is in it: remove the directory, "
        "and it is made again",
        path=str(path),
        reason=reason,
    )


def _bounded(upper: bytes) -> ReadOptions:
    """Ends an iteration at `upper`, so that nothing beyond it is read to find out that it's not wanted.

    Keep the options as long as the iterator: rocksdict 0.3.29 does not, and RocksDB then compares with freed memory.
    """
    options = ReadOptions()
    options.set_iterate_upper_bound(upper)
    return options


def _database_options(memory: Memory) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_write_buffer_manager(memory.writes)
    # The write-ahead log is on and not synced: kill -9 loses nothing, and after a power cut Kafka's log tells the rest.
    # Without it a write takes a quarter less, as in replays (`Rocks`): they start again from nothing. What is in it is
    # read when a store opens: 0.1 s after a million commits.
    options.set_max_total_wal_size(64 * MIB)
    options.set_max_background_jobs(2)
    options.set_max_open_files(100)  # so that 8 partitions stay below the usual limit of 1,024
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 * MIB)
    return options


def _family_options(name: str, memory: Memory) -> Options:
    options = Options(raw_mode=True)
    options.set_write_buffer_size(16 * MIB)
    options.set_arena_block_size(64 * KIB)  # by default 1 MiB a family, used or not: 56 MiB for 8 empty partitions
    options.set_compression_type(DBCompressionType.lz4())
    options.set_bottommost_compression_type(DBCompressionType.zstd())
    options.set_level_compaction_dynamic_level_bytes(True)
    # What is new goes through a level between, in place of being merged with all there is each time there are four files
    # of it: half the work, and the less the larger a store is. Reads of the past seek in each that is not merged yet, so
    # that there are not more than four (store-layout.md).
    options.set_level_zero_file_num_compaction_trigger(4)
    options.set_max_bytes_for_level_base(32 * MIB)
    options.set_max_bytes_for_level_multiplier(8)
    options.set_target_file_size_base(16 * MIB)
    table = BlockBasedOptions()
    table.set_block_cache(memory.cache)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    # In pieces, of which only what is used has to be in the cache: whole, those of millions of commits fill it.
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_pin_top_level_index_and_filter(True)
    table.set_format_version(5)
    if name in (layout.LATEST, layout.TRANSACTIONS):
        # Looked up by whole key, often for what isn't there: a new row, a new transaction id.
        table.set_bloom_filter(10, False)
        table.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
        options.set_memtable_whole_key_filtering(True)
        options.set_memtable_prefix_bloom_ratio(0.02)
    options.set_block_based_table_factory(table)
    return options
