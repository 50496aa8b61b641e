"""One partition as HTTP sees it: a store to read, and who waits for what is folded into it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Literal

from versolog.projections.store import Store
from versolog.projections.views import View
from versolog.schemas.errors import VersologError
from versolog.schemas.outcome import Outcome
from versolog.schemas.readings import read_outcome
from versolog.streams.committer import Waiting
from versolog.streams.participant import Settled, settled_at

Role = Literal["idle", "follower", "recovering", "owner", "stopped"]



class Partition:
    """A store that can be read, and waited for. Everything here belongs to the event loop."""

    def __init__(self, number: int, store: Store, role: Role = "idle") -> None:
        self.number = number
        self.role: Role = role
        self.error: VersologError | None = None
        """Why it stopped."""
        self.known_settled: Callable[[Collection[str] | None], Settled | None] = _not_deciding
        """What `settled` is by its owner here, who knows more than the store; None where that is elsewhere."""
        self.committing: Callable[[str | None], object | None] = _committing_nothing
        """The batch by which its owner here changes a group, or any group, just now: in the log perhaps, and not yet in
        the store."""
        self.deciding: Callable[[str], object | None] = _committing_nothing
        """The batch by which it ends a transaction just now."""
        self.waiting: Callable[[], list[Waiting]] = list
        """What its owner here has taken in and not decided."""
        self._waiting: dict[tuple[str, bytes], list[asyncio.Future[Outcome]]] = {}
        self._next_fold: asyncio.Future[None] | None = None
        self._read(store)

    def _read(self, store: Store) -> None:
        self.store = store
        self.view = View(store)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    def stop(self, error: VersologError) -> None:
        """Go no further: `error` says why, to everyone who asks."""
        self.role, self.error = "stopped", error
        self._folded()

    def settled(self, groups: Collection[str] | None = None) -> Settled:
        """How far everything is decided and can be read here; of these groups alone, where they are given and this is
        their owner, who knows which groups the undecided concern."""
        return self.known_settled(groups) or settled_at(self.store.covered_checkpoint)

    def clock(self, groups: Collection[str] | None = None) -> int:
        """Milliseconds: everything with committed_at below it is decided and can be read here, as `settled` says it."""
        return self.settled(groups).clock

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `ready`, which is asked again after every fold; False when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    if self._next_fold is None or self._next_fold.done():
                        self._next_fold = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._next_fold)
        except TimeoutError:
            return ready()
        return True

    def expect_outcome(self, transaction_id: str, intent_hash: bytes) -> asyncio.Future[Outcome]:
        """A future of the outcome of this id with this content, whoever decides it, until `expect_no_more`."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((transaction_id, intent_hash), []).append(future)
        return future

    def expect_no_more(self, transaction_id: str, intent_hash: bytes, future: asyncio.Future[Outcome]) -> None:
        """Let go of what `expect_outcome` gave."""
        future.cancel()
        key = (transaction_id, intent_hash)
        waiting = self._waiting.get(key)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[key]

    def _answer(self, outcomes: Iterable[tuple[str, bytes, bytes]]) -> None:
        for transaction_id, intent_hash, body in outcomes:
            waiting = self._waiting.pop((transaction_id, intent_hash), ())
            outcome = Outcome.from_avro(read_outcome(body)) if waiting else None
            for future in waiting:
                if outcome is not None and not future.done():
                    future.set_result(outcome)

    def _folded(self) -> None:
        if self._next_fold is not None and not self._next_fold.done():
            self._next_fold.set_result(None)


def _committing_nothing(name: str | None) -> object | None:
    return None


def _not_deciding(groups: Collection[str] | None) -> Settled | None:
    return None
