"""Something that is waited for, by threads and by coroutines; the decision of a transaction is one."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from versolog.schemas.outcome import Outcome

# Guards the few lines in which a state changes and those who wait for it are listed. One for all, since it is held for
# less than a microsecond, and two locks for each transaction would cost more than that.
_changing = threading.Lock()


class Watched:
    """Something that changes, and those who wait for that."""

    __slots__ = ("__weakref__", "_calls")

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] | None = None

    def listen(self, call: Callable[[], None]) -> None:
        """Have `call` called once, from some thread, at the next change."""
        with _changing:
            self._calls = [*(self._calls or ()), call]

    def leave(self, call: Callable[[], None]) -> None:
        with _changing:
            self._calls = [other for other in self._calls or () if other != call]

    def changed(self) -> None:
        """Tell those who wait; to be called after the change."""
        if self._calls is not None:
            with _changing:
                calls, self._calls = self._calls, None
            for call in calls or ():
                call()


class Decision(Watched):
    """The place where the outcome of one intent will stand, shared by all who sent it."""

    __slots__ = ("_found", "home", "outcome")

    def __init__(self, home: int) -> None:
        """`home` is the partition of the home group, whose outcome it is; the other participants' complete it."""
        super().__init__()
        self.home = home
        self.outcome: Outcome | None = None
        self._found: dict[int, Outcome] = {}

    def decide(self, outcome: Outcome, partition: int) -> None:
        """Take in the outcome that `partition` has."""
        if self.outcome is not None:
            return
        if partition != self.home or outcome.missing:
            self._found[partition] = outcome
            if (home := self._found.get(self.home)) is None:
                return
            outcome = home.joined(self._found.values())
            if outcome.missing:
                return
        self.outcome = outcome
        self.changed()


def wait(watched: Watched, ready: Callable[[], bool], deadline: float) -> None:
    """Return once `ready()` holds, or when `time.monotonic` has come to `deadline`."""
    while not ready():
        event = threading.Event()
        watched.listen(event.set)
        if not ready() and not event.wait(max(deadline - time.monotonic(), 0.0)):
            watched.leave(event.set)
            return


async def wait_async(watched: Watched, ready: Callable[[], bool], deadline: float) -> None:
    """As `wait`, while the event loop runs on."""
    loop = asyncio.get_running_loop()
    wakes = _wakes.get(loop)
    if wakes is None:
        wakes = _wakes[loop] = _Wakes(loop)
    while not ready():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return
        change = loop.create_future()
        call = partial(wakes.wake, change)
        watched.listen(call)
        timer = loop.call_later(left_s, _settle, change)
        try:
            if not ready():
                await change
        finally:
            timer.cancel()
            watched.leave(call)


class _Wakes:
    """Wakes coroutines of one event loop from other threads: all that come together with one call into the loop, which
    costs a system call and hands the interpreter over."""

    __slots__ = ("_changes", "_is_called", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._changes: deque[asyncio.Future[None]] = deque()
        self._is_called = False

    def wake(self, change: asyncio.Future[None]) -> None:
        """In any thread."""
        self._changes.append(change)
        if not self._is_called and (loop := self._loop()) is not None:
            self._is_called = True
            with suppress(RuntimeError):  # the loop was closed, and nobody waits
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_called = False  # first: what comes from here on calls again
        while self._changes:
            _settle(self._changes.popleft())


_wakes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Wakes] = weakref.WeakKeyDictionary()


def _settle(change: asyncio.Future[None]) -> None:
    if not change.done():
        change.set_result(None)
