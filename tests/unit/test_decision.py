"""Waiting for a change that comes from another thread."""

from __future__ import annotations

import asyncio
import threading
import time

from versolog.streams.decision import Watched, wait_async

SOON_S = 20.0


class Light(Watched):
    """Goes on once."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on = False

    def switch_on(self) -> None:
        self.is_on = True
        self.changed()

    async def until_on(self, within_s: float = SOON_S) -> bool:
        await wait_async(self, lambda: self.is_on, time.monotonic() + within_s)
        return self.is_on


def test_all_who_wait_are_woken_by_changes_in_several_threads() -> None:
    lights = [Light() for _ in range(2_000)]

    def switch_on(some: list[Light]) -> None:
        for light in some:
            light.switch_on()
            time.sleep(0)

    async def run() -> list[bool]:
        waiting = [asyncio.create_task(light.until_on()) for light in lights]
        await asyncio.sleep(0)
        threads = [threading.Thread(target=switch_on, args=(lights[start::4],)) for start in range(4)]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*waiting)
        for thread in threads:
            thread.join()
        return found

    begun_s = time.monotonic()
    assert all(asyncio.run(run()))
    assert time.monotonic() - begun_s < SOON_S, "somebody waited to the end, and was not woken"


def test_a_change_that_is_no_end_is_waited_on() -> None:
    light = Light()

    async def run() -> bool:
        waiting = asyncio.create_task(light.until_on())
        for _ in range(3):
            await asyncio.sleep(0.01)
            light.changed()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        light.switch_on()
        return await waiting

    assert asyncio.run(run())


def test_waiting_ends_at_its_deadline_and_leaves_nothing_behind() -> None:
    light = Light()
    assert not asyncio.run(light.until_on(0.05))
    assert not light._calls


def test_loops_one_after_the_other_are_woken() -> None:
    for _ in range(3):
        light = Light()

        async def run(light: Light = light) -> bool:
            threading.Timer(0.02, light.switch_on).start()
            return await light.until_on()

        assert asyncio.run(run())
