"""Lanes against a reader and partitions that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest

from versolog.streams import lanes as module
from versolog.streams.lanes import BATCH_RECORDS_MAX, Batch, Lanes, OutOfRange, Record, Recovering, Running, Stopped


class FakeRecord(NamedTuple):
    offset: int
    topic: str = "transactions"
    partition: int = 0
    timestamp: int = 0
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass
class FakeReader:
    calls: list[tuple[object, ...]] = field(default_factory=list)
    member: bool = True
    asked: int = 0

    async def read_from(self, partition: int, offset: int) -> None:
        self.calls.append(("read_from", partition, offset))

    def hold(self, partition: int) -> None:
        self.calls.append(("hold", partition))

    def release(self, partition: int) -> None:
        self.calls.append(("release", partition))

    async def is_member(self) -> bool:
        self.asked += 1
        return self.member


@dataclass
class FakePartitions:
    """Remembers its calls. A partition whose gate is closed keeps its caller waiting; `failures` are raised in turn."""

    start: int = 0
    calls: list[tuple[object, ...]] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)

    async def assigned(self, partition: int) -> int:
        await self._called("assigned", partition)
        return self.start

    async def batch(self, partition: int, records: Sequence[Record]) -> None:
        await self._called("batch", partition, *[record.offset for record in records])
        if self.failures:
            raise self.failures.pop(0)

    async def revoked(self, partition: int) -> None:
        await self._called("revoked", partition)

    async def _called(self, what: str, *facts: object) -> None:
        self.calls.append((what, *facts))
        if what in self.gates:
            try:
                await self.gates[what].wait()
            except asyncio.CancelledError:
                self.calls.append((f"{what} cancelled", *facts))
                raise

    def named(self, *names: str) -> list[tuple[object, ...]]:
        return [call for call in self.calls if call[0] in names]


def batch(start: int | None, *offsets: int, following: int | None = None, partition: int = 0) -> Batch:
    end = offsets[-1] + 1 if following is None else following
    return Batch(partition, start, end, [FakeRecord(offset) for offset in offsets], 0)


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110, conditions are of any kind
            await asyncio.sleep(0)


def run(test: Callable[[FakePartitions, FakeReader, Lanes], Awaitable[None]]) -> None:
    async def main() -> None:
        partitions, reader = FakePartitions(), FakeReader()
        lanes = Lanes(partitions, revoke_timeout_s=0.2)
        try:
            async with asyncio.timeout(20):
                await test(partitions, reader, lanes)
        finally:
            partitions.gates.clear()
            await lanes.revoke_all()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(module, "MEMBERSHIP_POLL_S", 0.001)
    monkeypatch.setattr(module, "CANCEL_TIMEOUT_S", 0.2)


async def running(lanes: Lanes, *partitions: int) -> None:
    await settled(lambda: all(isinstance(lanes.states().get(p), Running) for p in partitions))


def test_reading_begins_where_assigned_says_and_only_then() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.start = 7
        partitions.gates["assigned"] = asyncio.Event()
        lanes.assign([0], reader)
        lanes.take(batch(0, 0))
        await settled(lambda: partitions.calls == [("assigned", 0)])
        assert isinstance(lanes.states()[0], Recovering)
        assert lanes.positions() == {}
        assert reader.calls == []
        partitions.gates["assigned"].set()
        await running(lanes, 0)
        assert reader.calls == [("read_from", 0, 7)]
        assert lanes.positions() == lanes.taken() == {0: 7}
        assert partitions.named("batch") == []

    run(test)


@pytest.mark.parametrize("wrong", [None, 0, 2, 4], ids=["of nobody", "of before", "overlapping", "after a gap"])
def test_a_batch_that_does_not_start_where_the_last_one_ended_is_dropped_and_read_again(wrong: int | None) -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        lanes.assign([0], reader)
        await running(lanes, 0)
        lanes.take(batch(0, 0, 2, following=3))
        lanes.take(batch(wrong, 8, 9))
        lanes.take(batch(3, 4, 5, following=6))
        await settled(lambda: lanes.taken() == {0: 6} and ("read_from", 0, 3) in reader.calls)
        assert [offset for call in partitions.named("batch") for offset in call[2:]] == [0, 2, 4, 5]

    run(test)


def test_what_piled_up_is_handed_on_together_up_to_a_limit() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.gates["batch"] = asyncio.Event()
        lanes.assign([0], reader)
        await running(lanes, 0)
        lanes.take(batch(0, 0))
        await settled(lambda: bool(partitions.named("batch")))
        lanes.take(batch(1, 1))
        lanes.take(batch(2, *range(2, BATCH_RECORDS_MAX + 1)))
        lanes.take(batch(BATCH_RECORDS_MAX + 1, BATCH_RECORDS_MAX + 1))
        partitions.gates.pop("batch").set()
        await settled(lambda: lanes.taken() == {0: BATCH_RECORDS_MAX + 2})
        assert [len(call) - 2 for call in partitions.named("batch")] == [1, BATCH_RECORDS_MAX, 1]

    run(test)


def test_a_full_lane_holds_its_partition_back_until_half_is_gone() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.gates["batch"] = asyncio.Event()
        lanes.assign([0, 1], reader)
        await running(lanes, 0, 1)
        offset = 0
        while not lanes.full():
            lanes.take(batch(offset, *range(offset, offset + BATCH_RECORDS_MAX)))
            offset += BATCH_RECORDS_MAX
        assert list(lanes.full()) == [0]
        assert ("hold", 0) in reader.calls
        assert ("release", 0) not in reader.calls
        partitions.gates.pop("batch").set()
        await settled(lambda: lanes.taken()[0] == offset)
        assert not lanes.full()
        assert reader.calls.count(("hold", 0)) == reader.calls.count(("release", 0)) == 1
        assert ("hold", 1) not in reader.calls

    run(test)


def test_partitions_that_stay_are_left_alone_and_lost_ones_end() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        lanes.assign([0, 1], reader)
        await running(lanes, 0, 1)
        lanes.assign([1, 2], reader)
        await running(lanes, 1, 2)
        await settled(lambda: ("revoked", 0) in partitions.calls)
        assert sorted(partitions.named("assigned", "revoked")) == [
            ("assigned", 0),
            ("assigned", 1),
            ("assigned", 2),
            ("revoked", 0),
        ]
        lanes.take(batch(0, 0, partition=0))
        assert set(lanes.states()) == {1, 2}

    run(test)


def test_revoked_comes_after_the_call_under_way_has_ended_and_before_the_next_assigned() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        lanes.assign([0], reader)
        await running(lanes, 0)
        partitions.gates |= {"batch": asyncio.Event(), "revoked": asyncio.Event()}
        lanes.take(batch(0, 0))
        await settled(lambda: bool(partitions.named("batch")))
        lanes.assign([], reader)
        lanes.assign([0], reader)
        lanes.assign([], reader)
        lanes.assign([0], reader)
        await settled(lambda: ("revoked", 0) in partitions.calls)
        partitions.gates.clear()
        await running(lanes, 0)
        names = [call[0] for call in partitions.calls]
        assert names[:4] == ["assigned", "batch", "batch cancelled", "revoked"]
        assert names[-1] == "assigned"
        assert names.count("assigned") == 2

    run(test)


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()], ids=["an error", "cancelled"])
def test_a_failure_starts_the_partition_again_at_assigned(error: BaseException) -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.failures = [error, error]
        lanes.assign([0], reader)
        await running(lanes, 0)
        for attempt in range(3):
            await settled(lambda: lanes.positions() == {0: 0})
            lanes.take(batch(0, 0, 1))
            await settled(lambda n=attempt + 1: len(partitions.named("batch")) == n)  # type: ignore[misc]
        await settled(lambda: lanes.taken() == {0: 2})
        assert [call[0] for call in partitions.calls] == ["assigned", "batch"] * 3
        assert reader.calls == [("read_from", 0, 0), ("hold", 0)] * 2 + [("read_from", 0, 0)]

    run(test)


def test_a_worker_out_of_the_group_does_not_fence_back() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.failures = [ValueError("fenced")]
        lanes.assign([0], reader)
        await running(lanes, 0)
        reader.member = False
        lanes.take(batch(0, 0))
        await settled(lambda: isinstance(lanes.states()[0], Stopped))
        await settled(lambda: reader.asked > 3)
        assert partitions.named("assigned") == [("assigned", 0)]
        state = lanes.states()[0]
        assert isinstance(state, Stopped)
        assert (state.error, state.failures) == ("ValueError: fenced", 1)
        reader.member = True
        await running(lanes, 0)

    run(test)


def test_an_offset_that_is_not_in_the_log_stops_the_partition_after_what_was_read_before() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        partitions.gates["batch"] = asyncio.Event()
        lanes.assign([0], reader)
        await running(lanes, 0)
        lanes.take(batch(0, 0, 1))
        lanes.take(OutOfRange(0, 2))
        assert ("hold", 0) in reader.calls
        reader.member = False
        partitions.gates.pop("batch").set()
        await settled(lambda: isinstance(lanes.states()[0], Stopped))
        assert lanes.taken() == {0: 2}
        state = lanes.states()[0]
        assert isinstance(state, Stopped)
        assert "has no offset 2" in state.error

    run(test)


def test_a_revoked_that_hangs_or_fails_is_left_behind() -> None:
    async def test(partitions: FakePartitions, reader: FakeReader, lanes: Lanes) -> None:
        lanes.assign([0, 1], reader)
        await running(lanes, 0, 1)
        partitions.gates["revoked"] = asyncio.Event()
        async with asyncio.timeout(2):
            await lanes.revoke_all()
        assert sorted(partitions.named("revoked")) == [("revoked", 0), ("revoked", 1)]
        assert lanes.states() == {}

    run(test)
