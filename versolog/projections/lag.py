"""How far what is here may be behind the log: known by asking the log for its ends from time to time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog

from versolog.projections.partition import Partition
from versolog.projections.store import Store
from versolog.projections.tail import Ends
from versolog.schemas.errors import VersologError
from versolog.schemas.topics import Topics

ASK_EVERY_S = 1.0

log = structlog.get_logger("versolog.lag")


class _Known(NamedTuple):
    """Where a partition's topics end, and when that was asked (`time.monotonic()`)."""

    commits: int
    """The offset behind the last record, those of open Kafka transactions too: one may be committed, and told, that Kafka
    does not show yet."""
    outcomes: int
    transactions: int
    """Its last stable offset: up to there it can be decided."""
    open: int
    """Records of transactions after that, held up by a service's Kafka transaction that is still open."""
    asked_at_s: float


class Lag:
    """For each partition: the records not folded yet, and how old what is here can be at most.

    A copy that has folded up to the ends as they were at a moment has all that was committed before it.
    """

    def __init__(self, partitions: Mapping[int, Partition]) -> None:
        self._partitions = partitions
        self._ends: dict[int, _Known] = {}
        self._current: dict[int, tuple[Store, float]] = {}
        """The store that had all there was at a time; one that takes its place begins anew."""

    async def watch(self, ends: Ends, topics: Topics) -> None:
        """Ask again and again, until cancelled."""
        threads = ThreadPoolExecutor(1, "versolog-lag")  # its own: it may not wait behind reads that take minutes
        try:
            while True:
                try:
                    await self._ask(ends, topics, threads)
                except VersologError as error:
                    log.warning("the ends of the log are not known", reason=error.detail)
                await asyncio.sleep(ASK_EVERY_S)
        finally:
            threads.shutdown(wait=False)

    def offsets(self, partition: int) -> int | None:
        """Records of commits and outcomes that the log had when it was last asked and that are not folded here; None
        while that isn't known.

        Never too few of them: those of a Kafka transaction that is open count. After an aborted one, whose records nobody reads, some too many until the next one.
        """
        ends, here = self._ends.get(partition), self._partitions.get(partition)
        if ends is None or here is None:
            return None
        return _missing(ends, here.store)

    def undecided(self, partition: int) -> int | None:
        """Transactions in the log that are not known here to be decided; None while that isn't known."""
        ends, here = self._ends.get(partition), self._partitions.get(partition)
        if ends is None or here is None:
            return None
        checkpoint = here.store.checkpoint
        return max(0, ends.transactions - (0 if checkpoint is None else int(checkpoint["next_offset"])))

    def held_up(self, partition: int) -> int | None:
        """Records that wait for a service to end its own Kafka transaction; None while that isn't known."""
        ends = self._ends.get(partition)
        return None if ends is None else ends.open

    def staleness_s(self, partition: int) -> float | None:
        """For how long something may have been committed that is not here; None while that isn't known."""
        self._note_current(partition)
        store, current_at_s = self._current.get(partition, (None, 0.0))
        here = self._partitions.get(partition)
        return None if here is None or here.store is not store else time.monotonic() - current_at_s

    async def _ask(self, log_ends: Ends, topics: Topics, threads: ThreadPoolExecutor) -> None:
        numbers = list(self._partitions)
        asked_at_s = time.monotonic()
        every = (topics.commits, topics.outcomes, topics.transactions)
        places = [(topic, number) for number in numbers for topic in every]
        loop = asyncio.get_running_loop()
        stable = await loop.run_in_executor(threads, log_ends.stable, places)
        last = await loop.run_in_executor(threads, log_ends.last, places)
        for number in numbers:
            self._note_current(number)  # by the former ends, which these replace
            transactions = stable[topics.transactions, number]
            self._ends[number] = _Known(
                commits=_behind(last[topics.commits, number], stable[topics.commits, number]),
                outcomes=_behind(last[topics.outcomes, number], stable[topics.outcomes, number]),
                transactions=transactions,
                open=max(0, last[topics.transactions, number] - transactions),
                asked_at_s=asked_at_s,
            )

    def _note_current(self, partition: int) -> None:
        ends, here = self._ends.get(partition), self._partitions.get(partition)
        if ends is None or here is None:
            return
        store = here.store  # once: another thread may make it anew
        if _missing(ends, store) == 0:
            self._current[partition] = store, ends.asked_at_s


def _missing(ends: _Known, store: Store) -> int:
    """Records that the store does not have."""
    return max(0, ends.commits - store.next_commit_offset) + max(0, ends.outcomes - store.next_outcome_offset)


def _behind(last: int, stable: int) -> int:
    """The offset behind the last record of a topic. Where no Kafka transaction is open, the last offset is the mark that one
    has ended."""
    return max(0, last - 1) if last == stable else last
