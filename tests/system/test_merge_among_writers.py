"""A large merge while others write and read: nothing is lost, it is seen whole, and nobody else waits for it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.cluster import Cluster, eventually
from tests.conftest import RealBroker
from tests.history import LogReader
from versolog import Client, Producer, Transaction
from versolog.schemas.topics import partition_of

GROUP = "fleet"
WRITERS, READERS = 20, 2
WRITES_BEFORE, WRITES_AFTER = 5, 5
ROWS_AT_ONCE = 2_000
PAGE_ROWS = 10_000
NOTE = "." * 200
"""Makes rows so large that a merge of a few thousand is cut into pieces."""
SOON_S = 60.0


@dataclass
class Writer:
    """Patches a field of its own in one random row after the other, and counts itself."""

    name: str
    rows: int
    writes: int = 0
    last: dict[str, int] = field(default_factory=dict)
    """By row, what it wrote last."""

    def write(self, producer: Producer) -> None:
        key = _key(random.randrange(self.rows))
        tx = Transaction(GROUP, author=self.name).patch("ships", key, {self.name: self.writes})
        tx.add("counts", self.name, {"n": 1})
        producer.send(tx).outcome(SOON_S).raise_for_refusal()
        self.last[key] = self.writes
        self.writes += 1


@dataclass
class Prober:
    """Writes to a group of its own, and notes when each was sent and how long it took."""

    group: str
    waits: list[tuple[float, float]] = field(default_factory=list)

    def write(self, producer: Producer) -> None:
        begun = time.monotonic()
        producer.send(Transaction(self.group).put("t", "k", {"n": len(self.waits)})).outcome(SOON_S).raise_for_refusal()
        self.waits.append((begun, time.monotonic() - begun))

    def between(self, begin: float, end: float) -> list[float]:
        """The waits of what was under way at some time between."""
        return [wait for begun, wait in self.waits if begun < end and begun + wait > begin]


@dataclass
class Reader:
    """Scans all rows at the head, again and again."""

    url: str
    seen: Counter[str] = field(default_factory=Counter)

    def read(self, producer: Producer) -> None:
        with Client(self.url, timeout_s=SOON_S) as client:
            plans = {row.row["plan"] for row in client.rows(GROUP, "ships", page=PAGE_ROWS)}
        assert len(plans) == 1, "a merge is seen in part"
        self.seen[plans.pop()] += 1


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(5_000, id="5,000 rows"),
        pytest.param(50_000, id="50,000 rows", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_merge_among_writers_loses_nothing_and_is_seen_whole(
    new_cluster: Callable[..., Cluster], broker: RealBroker, rows: int, record_property: Callable[[str, object], None]
) -> None:
    cluster = new_cluster(broker)
    url = cluster.start().url
    cluster.owned()
    writers = [Writer(f"writer-{number}", rows) for number in range(WRITERS)]
    readers = [Reader(url) for _ in range(READERS)]
    near, far = (Prober(name) for name in _neighbours(cluster.partitions))
    acts = [*(writer.write for writer in writers), *(reader.read for reader in readers), near.write, far.write]
    with cluster.producer() as producer, Client(url, timeout_s=SOON_S) as client:
        _plan(client, rows)
        with _going_on(acts, producer) as check:
            _all_have(writers, WRITES_BEFORE, check)
            eventually(lambda: check() and all(reader.seen["old"] for reader in readers), SOON_S, "readers have read")
            begun = time.monotonic()
            merged = client.merge(GROUP, "plan").version
            ended = time.monotonic()
            _all_have(writers, max(writer.writes for writer in writers) + WRITES_AFTER, check)
            eventually(lambda: check() and all(reader.seen["new"] for reader in readers), SOON_S, "readers have read")
        _check_rows(client, writers, rows)
    for name, prober in (("near", near), ("far", far)):
        record_property(f"longest_wait_{name}_s", round(max(prober.between(begun, ended)), 3))
        before = prober.between(2 * begun - ended, begun)
        record_property(f"longest_wait_{name}_before_s", round(max(before), 3))
    record_property("merge_s", round(ended - begun, 3))
    cluster.stop()
    history = LogReader(cluster).history()
    history.check()
    assert next(one for one in history.commits[GROUP] if one.record["version"] == merged).record["pieces"] > 1
    if rows > 10_000:  # long enough to tell
        for prober in (near, far):
            assert max(prober.between(begun, ended)) < (ended - begun) / 2, "another group waits for the merge"


def _plan(client: Client, rows: int) -> None:
    """Rows on main, and a branch on which all of them are changed."""
    for start in range(0, rows, ROWS_AT_ONCE):
        tx = Transaction(GROUP)
        for number in range(start, min(start + ROWS_AT_ONCE, rows)):
            tx.put("ships", _key(number), {"plan": "old", "note": NOTE})
        client.send(tx)
    client.branch(GROUP, "plan")
    for start in range(0, rows, ROWS_AT_ONCE):
        tx = Transaction(GROUP, branch="plan")
        for number in range(start, min(start + ROWS_AT_ONCE, rows)):
            tx.patch("ships", _key(number), {"plan": "new"})
        client.send(tx)


@contextmanager
def _going_on(acts: list[Callable[[Producer], None]], producer: Producer) -> Iterator[Callable[[], bool]]:
    """Have each of `acts` done again and again, in a thread of its own. What is given raises what one raised."""
    over = threading.Event()

    def go_on(act: Callable[[Producer], None]) -> None:
        while not over.is_set():
            act(producer)

    with ThreadPoolExecutor(len(acts)) as threads:
        going = [threads.submit(go_on, act) for act in acts]

        def check() -> bool:
            for one in going:
                if one.done():
                    one.result()
            return True

        try:
            yield check
        finally:
            over.set()
        for one in going:
            one.result()


def _all_have(writers: list[Writer], writes: int, check: Callable[[], bool]) -> None:
    eventually(lambda: check() and all(writer.writes >= writes for writer in writers), SOON_S, "all have written")


def _check_rows(client: Client, writers: list[Writer], rows: int) -> None:
    """Every row is merged, and holds what each writer wrote last."""
    found = {row.key: row.row for row in client.rows(GROUP, "ships", page=PAGE_ROWS)}
    expected = {_key(number): {"plan": "new", "note": NOTE} for number in range(rows)}
    for writer in writers:
        for key, written in writer.last.items():
            expected[key][writer.name] = written
    assert found == expected
    counts = {row.key: row.row for row in client.rows(GROUP, "counts")}
    assert counts == {writer.name: {"n": writer.writes} for writer in writers}


def _neighbours(partitions: int) -> tuple[str, str]:
    """A group of the same partition, and one of another."""
    mine = partition_of(GROUP, partitions)
    names = [f"group-{number}" for number in range(100)]
    near = next(name for name in names if partition_of(name, partitions) == mine)
    return near, next(name for name in names if partition_of(name, partitions) != mine)


def _key(number: int) -> str:
    return f"ship-{number:06}"
