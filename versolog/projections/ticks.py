"""Ticks: records that ask for nothing, appended so that a partition's clock moves on without anybody who writes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import NamedTuple

from versolog.projections.intake import Intake
from versolog.schemas import codec as avro
from versolog.schemas.codec import Codec
from versolog.schemas.errors import VersologError

AGAIN_S = 0.25
"""A tick whose time did not pass what it was to pass, or that got lost, is followed by another one after so long."""
APART_S = 0.0015
"""More than the millisecond that the log's times are told in."""

_TICK = avro.schema("Tick")


class _Ticked(NamedTuple):
    """The last tick of a partition."""

    at_s: float
    clock: int
    """What the partition's clock was."""
    time_ms: int
    """What the log's was; 0 while that is not told."""


class Ticks:
    """Ticks of one node. Everything here belongs to the event loop."""

    def __init__(self, intake: Intake, codec: Codec) -> None:
        self._intake, self._codec = intake, codec
        self._last: dict[int, _Ticked] = {}
        self._under_way: dict[int, asyncio.Task[int | VersologError]] = {}
        self._next: dict[int, asyncio.Task[int | VersologError]] = {}
        self.time_ms = 0
        """The latest time of the log that a tick was told."""

    def move(self, partition: int, clock: int, time_ms: int) -> None:
        """Append a tick to move the partition's clock past `time_ms`, unless one is likely to do so already."""
        last = self._last.get(partition)
        if last is not None and time.monotonic() - last.at_s < AGAIN_S and (last.clock == clock or last.time_ms > time_ms):
            return
        self._append(partition, clock)

    async def after_this(self, partition: int, clock: int) -> int:
        """The log's time, in milliseconds, of a tick that it takes after this call. What it took before the call has an
        earlier one, if that is by the same broker's clock. Raises Unavailable.

        Who comes while one is on its way shares the next one.
        """
        task = self._next.get(partition)
        if task is None:
            before = self._under_way.get(partition)
            task = self._next[partition] = asyncio.create_task(self._take_turn(partition, clock, before))
        found = await asyncio.shield(task)
        if isinstance(found, VersologError):
            raise found
        return found

    async def _take_turn(
        self, partition: int, clock: int, before: asyncio.Task[int | VersologError] | None
    ) -> int | VersologError:
        if before is not None:
            await asyncio.wait({before})
        self._under_way[partition] = self._next.pop(partition)
        await asyncio.sleep(APART_S)
        return await self._append(partition, clock)

    def _append(self, partition: int, clock: int) -> asyncio.Future[int | VersologError]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int | VersologError] = loop.create_future()
        ticked = self._last[partition] = _Ticked(time.monotonic(), clock, 0)

        def told(result: int | VersologError) -> None:
            if future.cancelled():
                return
            future.set_result(result)
            if not isinstance(result, VersologError):
                self.time_ms = max(self.time_ms, result)
                if self._last[partition] is ticked:
                    self._last[partition] = ticked._replace(time_ms=result)

        def appended(result: int | VersologError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(told, result)

        try:
            self._intake.append(partition, None, self._codec.write(_TICK, {}), appended)
        except VersologError as error:
            future.set_result(error)
        return future
