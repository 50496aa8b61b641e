"""Folding: what follows is taken, what is known is passed over, all else stops. Keeping: what a directory may be."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.scribe import START_MS, Scribe, Written, codec, fold, ref
from versolog.projections import layout
from versolog.projections.evolve import Batch
from versolog.projections.rocks import MIB, Memory, Rocks, StoreLocked, StoreUnusable
from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.codec import Codec, Schema, encode, schema
from versolog.schemas.errors import BrokenLog, Malformed, Misconfigured, Unavailable
from versolog.schemas.written import checkpoint_body
from versolog.streams.state import Head, Level, Row
from versolog.streams.versions import At

ROW = '{"n":1}'
CHECKPOINT = {
    "next_offset": 7,
    "clock": START_MS,
    "undecided": [],
    "sequence_offset": None,
    "votes_offset": 0,
    "reads": [],
    "commits_offset": 0,
}

Open = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    opened: list[Store] = []

    def open_(name: str = "store", **settings: object) -> Store:
        store = Store.open(tmp_path / name, **{"partition": 0, "codec": codec(), "identity": "log", **settings})  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


def changed(record: Written, **fields: object) -> Written:
    return record._replace(record={**record.record, **fields})


# Folding


def test_nothing_is_visible_before_the_write(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    making = store.fold()
    for written in scribe.write("g", {("t", "a"): ROW}):
        assert making.commit(offset=written.offset, value=written.value, record=written.record, hash=written.hash)
    making.outcome(b"outcome", "tx-0")
    making.offsets(commits=1, outcomes=5)
    making.checkpoint(CHECKPOINT, checkpoint_body(CHECKPOINT))
    assert store.head("g") is None
    assert store.outcome("tx-0") is None
    assert store.checkpoint is None
    making.write()
    assert store.head("g") == Head(1, written.hash, START_MS + 1, 0)
    assert store.outcomes(["tx-0", "tx-1"]) == [b"outcome", None]
    assert (store.next_commit_offset, store.next_outcome_offset, store.checkpoint) == (1, 5, CHECKPOINT)


def test_all_of_it_is_there_after_opening_again(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    scribe.write("g", {("t", "a"): ROW, ("$tables", "t"): "{}"})
    scribe.refs("g", ref("tag", "v1", 1))
    fold(store, scribe.records)
    making = store.fold()
    making.outcome(b"outcome", "tx-0")
    making.offsets(outcomes=9)
    making.checkpoint(CHECKPOINT, checkpoint_body(CHECKPOINT))
    making.write()
    store.close()
    again = open_store()
    assert again.head("g") == Head(2, scribe.records[-1].hash, START_MS + 2, 1)
    assert again.tags("g") == {"v1": 1}
    assert again.row("g", Level(1, 2), "t", "a") == Row(1, START_MS + 1, ROW.encode())
    assert again.outcome("tx-0") == b"outcome"
    assert (again.next_commit_offset, again.next_outcome_offset, again.checkpoint) == (3, 9, CHECKPOINT)


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path, open_store: Open) -> None:
    program = """
import os, sys
from pathlib import Path
from tests.scribe import Scribe, codec, fold
from versolog.projections.store import Store
store, scribe = Store.open(Path(sys.argv[1]), partition=0, codec=codec(), identity="log"), Scribe()
for number in range(300):
    scribe.write("g", {("t", f"k{number}"): '{"n":1}'})
    fold(store, scribe.records[-1:])
print("written", flush=True)
os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], capture_output=True, check=False)
    assert run.stdout == b"written\n", run.stderr.decode()
    assert run.returncode == -9
    store = open_store()
    head = store.head("g")
    assert head is not None
    assert head.version == 300
    assert len(View(store).scan(At("g", "main", 1, 300), "t", limit=1_000).rows) == 300


def test_the_first_outcome_of_an_id_stays(open_store: Open) -> None:
    store = open_store()
    for bodies in (("first", "second"), ("third",)):
        making = store.fold()
        for body in bodies:
            making.outcome(body.encode(), "tx")
        making.write()
    assert store.outcome("tx") == b"first"


def test_offsets_never_go_back(open_store: Open) -> None:
    store = open_store()
    for offset in (5, 3):
        making = store.fold()
        making.offsets(commits=offset)
        making.write()
    assert store.next_commit_offset == 5


def test_a_clock_is_believed_once_all_commits_before_it_are_here(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes and commits are two topics, and a follower can have read one of them further."""
    monkeypatch.setattr("versolog.projections.store.CHECKPOINTS_AHEAD_MAX", 3)
    store = open_store()

    def reach(*, checkpoint: int | None = None, commits: int | None = None) -> int | None:
        """Fold a checkpoint that tells of commits below an offset, or commits; where that offset is now."""
        fold = store.fold()
        if checkpoint is not None:
            record = {**CHECKPOINT, "commits_offset": checkpoint}
            fold.checkpoint(record, checkpoint_body(record))
        fold.offsets(commits=commits, outcomes=None)
        fold.write()
        return None if store.covered_checkpoint is None else int(store.covered_checkpoint["commits_offset"])

    assert reach(checkpoint=2) is None
    assert reach(checkpoint=4) is None
    assert reach(commits=1) is None
    assert reach(commits=3) == 2
    assert reach(checkpoint=9) == 2
    assert reach(commits=4) == 4
    assert [reach(checkpoint=at) for at in (11, 13, 15, 17)] == [4] * 4  # as many as are kept
    assert reach(commits=11) == 11
    assert reach(commits=16) == 11, "only the first and the last of many are kept"
    store.close()
    store = open_store()
    assert store.checkpoint is not None
    assert store.covered_checkpoint is None, "it stands in the directory, and its commits do not"
    assert reach(commits=17) == 17
    assert store.covered_checkpoint is store.checkpoint


def test_known_commits_are_passed_over(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    for number in range(3):
        scribe.write("g", {("t", "a"): f'{{"n":{number}}}'}, pieces=1 + number)
    assert fold(store, scribe.records * 2) == [True] * 6 + [False] * 6
    assert fold(store, scribe.records) == [False] * 6
    assert store.row("g", Level(1, 3), "t", "a") == Row(3, START_MS + 3, b'{"n":2}')


@pytest.mark.parametrize("in_one_write", [True, False])
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"version": 4}, "version is 4, 3 was expected"),
        ({"previous_hash": bytes(32)}, "previous_hash is 0000"),
        ({"committed_at": START_MS + 1}, f"committed_at is {START_MS + 1}, at least {START_MS + 2} was expected"),
        ({"transaction_offset": 1}, "transaction_offset is 1, at least 2 was expected"),
        ({"piece": 2, "pieces": 2}, "piece is 2, 1 was expected"),
    ],
)
def test_a_commit_that_does_not_follow_stops_the_fold(
    open_store: Open, in_one_write: bool, fields: dict[str, object], names: str
) -> None:
    store, scribe = open_store(), Scribe()
    for _ in range(3):
        scribe.write("g", {("t", "a"): ROW})
    *known, last = scribe.records
    wrong = changed(last, **fields)
    if not in_one_write:
        fold(store, known)
    with pytest.raises(BrokenLog, match=names) as raised:
        fold(store, [*known, wrong] if in_one_write else [wrong])
    facts = raised.value.facts
    assert (facts["partition"], facts["offset"], facts["group"]) == (0, last.offset, "g")
    assert facts["version"] == wrong.record["version"]
    assert facts["expected"]["version"] == 3
    head = store.head("g")
    assert (head.version if head else 0) == (0 if in_one_write else 2)
    fold(store, scribe.records)
    assert store.step("g", 3) is not None


@pytest.mark.parametrize("change", [{"hash": b"x" * 32}, {"offset": 99}])
def test_another_commit_of_a_known_version_stops_the_fold(open_store: Open, change: dict[str, object]) -> None:
    store, scribe = open_store(), Scribe()
    (written,) = scribe.write("g", {("t", "a"): ROW})
    fold(store, [written])
    with pytest.raises(BrokenLog, match="that version is known, and another one, at offset 0"):
        fold(store, [written._replace(**change)])


def test_a_commit_in_pieces_is_seen_with_its_last(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    scribe.write("g", {("t", "a"): ROW, ("t", "b"): ROW})
    scribe.write("g", {("t", key): None for key in "abcd"}, pieces=3, schemas=[])
    fold(store, scribe.records[:3])
    view = View(store)
    assert [key for key, _ in view.scan(view.resolve("g"), "t", limit=9).rows] == ["a", "b"]
    assert store.step("g", 2) is None
    store.close()
    store = open_store()
    with pytest.raises(BrokenLog, match="piece is 4, 3 was expected"):
        fold(store, [changed(scribe.records[3], piece=4)])
    with pytest.raises(BrokenLog, match="that version is known"):
        fold(store, [changed(scribe.records[3], piece=2)])
    assert fold(store, scribe.records[2:]) == [False, True]
    view = View(store)
    assert view.scan(view.resolve("g"), "t", limit=9).rows == []
    whole = store.commit("g", 2)
    assert whole is not None
    assert sorted(change["key"] for change in whole["changes"]) == ["a", "b", "c", "d"]
    entry = store.commit_entry("g", 2)
    assert entry is not None
    assert [(piece.offset, piece.hash, piece.value) for piece in entry.pieces] == [
        (written.offset, written.hash, written.value) for written in scribe.records[1:]
    ]
    assert (entry.hash, entry.offset) == (scribe.records[-1].hash, scribe.records[1].offset)


def test_a_large_commit_reads_back_whole(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    (written,) = scribe.write("g", {("t", "a"): '{"s":"' + "x" * 100_000 + '"}'})
    fold(store, [written])
    assert store.commit("g", 1) == written.record
    heading = store.heading("g", 1)
    assert heading is not None
    assert heading == {name: written.record[name] for name in heading}
    assert list(heading)[-1] == "arguments"


def test_a_commit_is_read_with_the_schema_that_the_store_keeps(open_store: Open) -> None:
    """Deciding asks for old commits: whether a registry answers must not make a difference to that."""

    class NoRegistry:
        def id_of(self, schema: Schema) -> int:
            raise Unavailable("the registry is away")

        def text_of(self, schema_id: int) -> str:
            raise Malformed("the registry has lost it")

    store, scribe = open_store(), Scribe()
    fold(store, scribe.write("g", {("t", "a"): ROW}))
    store.close()
    assert open_store(codec=Codec(NoRegistry())).commit("g", 1) == scribe.records[0].record


def test_a_commit_that_can_not_be_read_is_no_fault_of_who_asks(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scribe = open_store(), Scribe()
    fold(store, scribe.write("g", {("t", "a"): ROW}))
    entry = store.commit_entry("g", 1)
    assert entry is not None
    broken = entry._replace(pieces=[entry.pieces[0]._replace(value=entry.pieces[0].value[:-1])])
    monkeypatch.setattr(store, "commit_entry", lambda group, version: broken)
    with pytest.raises(StoreUnusable, match="version 1 of 'g'"):
        store.commit("g", 1)


def test_who_sees_a_new_head_sees_the_branches_of_it_though_old_ones_are_at_hand(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes between the write into the database and that to what is at hand."""
    store, scribe, seen = open_store(), Scribe(), []
    scribe.write("g", {("t", "a"): ROW})
    scribe.refs("g", ref("branch", "plan", 1))
    scribe.refs("g", ref("branch", "plan", None))
    scribe.write("g", {("t", "a"): ROW})
    rocks_write = store._rocks.write

    def write(batch: Batch) -> None:
        rocks_write(batch)
        store._groups._values.clear()
        head, main = store.head("g"), store.branch("g", "main")
        seen.append((head and head.version, main and main.head, store.branch("g", "plan") is not None))

    monkeypatch.setattr(store._rocks, "write", write)
    for record in scribe.records:
        fold(store, [record])
        assert store.branch("g", "main") is not None
        store.branch("g", "plan")
    assert seen == [(1, 1, False), (2, 1, True), (3, 1, False), (4, 4, False)]


def test_heads_are_kept_at_hand_and_never_stale(open_store: Open) -> None:
    """Readers that miss what is at hand race with the writer; none may leave an old head behind."""
    store, scribe = open_store(), Scribe()
    for _ in range(400):
        scribe.write("g", {("t", "a"): ROW})
    stop, falls = threading.Event(), []

    def read() -> None:
        last = 0
        while not stop.is_set():
            head, branch = store.head("g"), store.branch("g", "main")
            versions = (head.version if head else 0, branch.head if branch else 0)
            if versions[0] < last or versions[1] < versions[0]:
                falls.append((last, versions))
            last = versions[0]
            store._groups._values.clear()
            store._branches._values.clear()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for written in scribe.records:
        fold(store, [written])
    stop.set()
    for reader in readers:
        reader.join()
    assert falls == []
    assert store.group_state("g") == open_store_state(store)


def open_store_state(store: Store) -> object:
    """What the database itself says."""
    store._groups._values.clear()
    return store.group_state("g")


def test_scans_at_a_version_are_the_same_while_others_write(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    for number in range(60):
        scribe.write("g", {("t", f"k{key:03}"): f'{{"n":{number}}}' for key in range(number % 7, 200, 7)})
    fold(store, scribe.records)
    view = View(store)
    at = view.resolve("g", "31")
    expected = view.scan(at, "t", limit=1_000).rows
    assert len(expected) == 200
    for number in range(1_500):
        scribe.write("g", {("t", f"k{number % 250:03}"): None if number % 3 else ROW})

    def write() -> None:
        for start in range(60, len(scribe.records), 10):
            fold(store, scribe.records[start : start + 10])

    writer = threading.Thread(target=write)
    writer.start()
    rounds = 0
    while writer.is_alive() or rounds < 3:
        rounds += 1
        rows, after = [], None
        while True:
            page = view.scan(at, "t", limit=17, after=after)
            rows += page.rows
            if (after := page.cursor) is None:
                break
        assert rows == expected
    writer.join()


# The directory


def test_a_store_is_of_one_log_one_partition_and_one_format(open_store: Open, tmp_path: Path) -> None:
    open_store().close()
    for settings in ({"identity": "another"}, {"partition": 1}):
        with pytest.raises(StoreUnusable, match=r"is of another (log|partition).*remove the directory") as raised:
            open_store(**settings)
        assert raised.value.facts["path"] == str(tmp_path / "store")
    store = open_store(identity=None, partition=None)
    assert (store.identity, store.partition) == ("log", 0)
    store._rocks.put("meta", b"format", b"0")
    store.close()
    with pytest.raises(StoreUnusable, match="of another format"):
        open_store()


def test_a_store_has_one_process(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    program = (
        "import sys; from pathlib import Path; from versolog.projections.store import Store; "
        "Store.open(Path(sys.argv[1]), partition=0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert "StoreLocked: another process has the store in" in run.stderr
    reader = open_store(read_only=True)
    assert reader.identity == "log"


def test_a_store_can_be_opened_again_although_a_scan_was_left_standing(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    scribe.write("g", {("t", key): ROW for key in "abc"})
    fold(store, scribe.records)
    scan = store.scan("g", Level(1, 1), "t", b"", b"\xff")
    assert next(scan)[1].version == 1
    store.close()
    with pytest.raises(Unavailable, match="closed meanwhile"):
        next(scan)
    with pytest.raises(Unavailable, match="closed meanwhile"):
        store.row("g", Level(1, 1), "t", "a")
    with pytest.raises(Unavailable, match="closed meanwhile"):
        store.line("g", "main", 1)
    again = open_store()
    assert again.row("g", Level(1, 1), "t", "a") is not None


@pytest.mark.parametrize("write_ahead", [True, False])
def test_without_write_ahead_what_is_folded_is_kept_from_the_flush_on(
    open_store: Open, tmp_path: Path, write_ahead: bool
) -> None:
    store, scribe = open_store(write_ahead=write_ahead), Scribe()
    scribe.write("g", {("t", "a"): ROW})
    fold(store, scribe.records)
    assert store.head("g") is not None
    shutil.copytree(store.path, tmp_path / "as-killed-before")  # what kill -9 leaves
    store.flush()
    shutil.copytree(store.path, tmp_path / "as-killed-after")
    assert (open_store("as-killed-before").head("g") is not None) == write_ahead
    assert open_store("as-killed-after").head("g") is not None


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may become larger than a page."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write_ahead", [True, False])
def test_a_store_closes_on_a_full_disk_and_says_what_is_not_kept(open_store: Open, write_ahead: bool) -> None:
    store, scribe = open_store(write_ahead=write_ahead), Scribe()
    scribe.write("g", {("t", f"k{number}"): f'"{random.Random(number).randbytes(500).hex()}"' for number in range(100)})
    fold(store, scribe.records)
    with full_disk():
        with pytest.raises(Unavailable, match=r"failed: .*[Ff]ile too large"):
            store.flush()
        if write_ahead:
            store.close()
        else:
            with pytest.raises(Unavailable, match=r"failed: .*[Ff]ile too large"):
                store.close()
    assert (open_store().head("g") is not None) == write_ahead


def test_this_process_may_not_have_it_twice(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("versolog.projections.rocks.REOPEN_TIMEOUT_S", 0.05)
    open_store()
    with pytest.raises(StoreLocked, match="this process has"):
        open_store()


@pytest.mark.parametrize("file", ["CURRENT", "MANIFEST*", "*.sst"])
def test_a_damaged_store_says_what_to_do(open_store: Open, file: str) -> None:
    store, scribe = open_store(), Scribe()
    scribe.write("g", {("t", "a"): ROW})
    fold(store, scribe.records)
    store.flush()
    store.close()
    damaged = next(store.path.glob(file))
    if file == "*.sst":
        damaged.unlink()
    else:
        damaged.write_bytes(b"garbage")
    with pytest.raises(StoreUnusable, match="remove the directory"):
        open_store()


def test_a_changed_byte_is_not_read_as_if_nothing_was(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    scribe.write("g", {("flights", f"k{number}"): ROW for number in range(100)})
    fold(store, scribe.records)
    store.flush()
    store.close()
    for file in store.path.glob("*.sst"):
        content = bytearray(file.read_bytes())
        if b"flights" in content:
            content[content.index(b"flights")] ^= 0xFF
            file.write_bytes(content)
    store = open_store()
    with pytest.raises(StoreUnusable, match="damaged"):
        store.row("g", Level(1, 1), "flights", "k5")
    with pytest.raises(StoreUnusable, match="damaged"):
        list(store.scan("g", Level(1, 1), "flights", b"", b"\xff"))


def test_a_directory_that_can_not_hold_a_store_is_refused(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Misconfigured, match="no store can be made"):
        open_store("file")
    with pytest.raises(Misconfigured, match="there is no store"):
        open_store("nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_for_reading_stands_alone(open_store: Open) -> None:
    store, scribe = open_store(), Scribe()
    (written,) = scribe.write("g", {("t", "a"): ROW})
    fold(store, [written])
    store.close()
    reader = open_store(read_only=True, codec=None)
    assert reader.commit("g", 1) == written.record
    assert View(reader).row(At("g", "main", 1, 1), "t", "a") == Row(1, START_MS + 1, ROW.encode())
    with pytest.raises(Misconfigured, match="reading only"):
        reader.fold()
    with pytest.raises(Misconfigured, match="without a registry"):
        reader.codec.id_of(schema("Commit"))
    with pytest.raises(Malformed, match="keeps no schema with id 9"):
        reader.codec.schema_of(9)


def test_stores_share_the_memory_they_are_given(open_store: Open) -> None:
    memory, scribe = Memory(cache_bytes=16 * 1024 * 1024, write_bytes=8 * 1024 * 1024), Scribe()
    stores = [open_store(f"store-{partition}", partition=partition, memory=memory) for partition in range(3)]
    for number in range(1_000):
        scribe.write("g", {("t", f"k{number}"): '{"s":"' + "x" * 3_000 + '"}'})
    taken = []
    for store in stores:
        fold(store, scribe.records)
        taken.append(memory.writes.get_usage())
    assert max(taken) > 8 * 1024 * 1024
    # A write finds that there is too much and has some of it put into files, which takes as long as it takes.
    deadline = time.monotonic() + 60
    while memory.writes.get_usage() > 8 * 1024 * 1024:
        assert time.monotonic() < deadline, f"{memory.writes.get_usage():,} bytes of writes are still in memory"
        scribe.write("g", {})
        for store in stores:
            fold(store, scribe.records[-1:])


def test_a_store_that_took_much_and_rests_leaves_the_others_room(tmp_path: Path) -> None:
    """RocksDB makes room in the store that is written to, whichever took the memory: a file for each of its writes."""
    memory = Memory(cache_bytes=12 * MIB, write_bytes=4 * MIB)
    large, small = (Rocks(tmp_path / name, memory, read_only=False) for name in ("large", "small"))
    with closing(large), closing(small):
        batch = large.batch()
        for number in range(50):
            batch.put(b"%d" % number, b"x" * 100_000, getattr(large.handles, layout.LATEST))
        large.write(batch)
        for number in range(100):
            small.put(layout.LATEST, b"%d" % number, b"x" * 100)
            time.sleep(0.005)  # in which a file is written
        files = [int(path.stem) for path in small.path.iterdir() if path.stem.isdigit()]
        assert max(files) < 20, "a new file with each write"


def test_half_of_the_memory_is_for_writes() -> None:
    assert Memory(48 * MIB).writes.get_buffer_size() == 24 * MIB


def test_the_outcome_schema_is_a_part_of_the_format() -> None:
    """Outcome bodies stand in the store without a schema id; if this fails, the format must tell old ones apart."""
    from versolog.projections.store import _FORMAT

    assert schema("Outcome").fingerprint.hex() in _FORMAT
    assert encode(schema("Checkpoint"), CHECKPOINT)
