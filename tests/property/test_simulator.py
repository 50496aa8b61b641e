"""Transactions over several partitions in random schedules full of faults; broken protocols are caught in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.simulator import Protocol, ViolationError, simulate, simulate_all
from versolog.streams.decide import Asked, Decision
from versolog.streams.holds import Holds, Name
from versolog.streams.participant import Participant, Undecided

SCHEDULES, SCHEDULES_FULL, CHUNK = 400, 100_000, 250
CATCH_WITHIN = 400


def test_no_schedule_breaks_a_rule() -> None:
    seen, violations = simulate_all(range(SCHEDULES))
    assert not violations, violations[0]
    check_all_was_met(seen, SCHEDULES)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_none_of_many_schedules_breaks_a_rule() -> None:
    """A hundred thousand, on all cores."""
    first = SCHEDULES
    runs = [range(start, start + CHUNK) for start in range(first, first + SCHEDULES_FULL, CHUNK)]
    seen: Counter[str] = Counter()
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        for met, violations in processes.map(simulate_all, runs):
            assert not violations, violations[0]
            seen += met
    check_all_was_met(seen, SCHEDULES_FULL)


def test_a_seed_makes_the_same_schedule_again() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        simulate(7, say=lines.append)
    assert told[0] == told[1]
    assert len(told[0]) > 50


def check_all_was_met(seen: Counter[str], schedules: int) -> None:
    """Schedules that never get to what they are for prove nothing."""
    often = (
        "owner crashed", "owner replaced", "sequencer crashed", "sequencer replaced", "batch in flight kept",
        "batch in flight lost", "single committed", "spanning committed", "spanning again", "spanning head-mismatch",
        "spanning version-mismatch", "spanning id-reused", "spanning committed with a part that only reads",
    )  # fmt: skip
    seldom = ("single malformed", "single invalid", "single wrong-partition", "spanning not-a-number")
    for what, least in (*((one, 0.5) for one in often), *((one, 0.02) for one in seldom)):
        assert seen[what] > least * schedules, (what, seen)


# Protocols that are wrong in one place


class HoldsBut(Holds):
    """Holds only names of one kind."""

    kind = ""

    def blocks(self, names: Collection[Name]) -> bool:
        return super().blocks(self._kept(names))

    def enter(self, offset: int, names: Collection[Name]) -> bool:
        return super().enter(offset, self._kept(names))

    def _kept(self, names: Collection[Name]) -> list[Name]:
        return [name for name in names if name[0] == self.kind]


class OnlyIds(HoldsBut):
    kind = "id"


class OnlyGroups(HoldsBut):
    kind = "group"


class GroupsAreNotHeld(Participant):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._holds = OnlyIds()


class IdsAreNotHeld(Participant):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._holds = OnlyGroups()


class DecidesBeforeItsVoteIsInTheLog(Participant):
    def _vote(self, undecided: Undecided) -> None:
        super()._vote(undecided)
        undecided.cast = True


class TakesAnyShare(Participant):
    def take(self, asked: Asked) -> None:
        if asked.share is not None:
            asked = replace(asked, share=asked.share._replace(previous=self._sequence_offset))
        super().take(asked)


class ForgetsTheUndecided(Participant):
    def checkpoint(self) -> dict[str, Any]:
        return super().checkpoint() | {"undecided": []}


class ForgetsWhenTheUndecidedCame(Participant):
    def place(self, offset: int, timestamp: int) -> int | None:
        return self.clock if super().place(offset, timestamp) is not None else None


class CommitsAtItsOwnClock(Participant):
    def _by_votes(self, undecided: Undecided) -> Decision:
        heard = self._heard.get(undecided.asked.share.sequence_offset) if undecided.asked.share else None
        if heard is not None and undecided.vote is not None:
            own = undecided.vote.clock
            heard.by_partition = {by: replace(vote, clock=own) for by, vote in heard.by_partition.items()}
        return super()._by_votes(undecided)


class ForgetsEarlyVotes(Participant):
    @property
    def votes_offset(self) -> int:
        return self._votes_next


class ForgetsReads(Participant):
    def _floor(self, asked: Asked) -> int:
        return 0


class DecidesByTheFirstVotes(Participant):
    """Commits for good when half of the votes say so."""

    def missing(self, undecided: Undecided) -> list[int]:
        missing = super().missing(undecided)
        return missing if undecided.asked.share and len(missing) * 2 > len(undecided.asked.share.participants) else []

    def _by_votes(self, undecided: Undecided) -> Decision:
        share, heard = undecided.asked.share, self._heard
        assert share is not None
        assert undecided.vote is not None
        if share.sequence_offset in heard:
            by_partition = heard[share.sequence_offset].by_partition
            for one in share.participants:
                by_partition.setdefault(one, undecided.vote)
        else:
            undecided.asked = replace(undecided.asked, share=share._replace(participants=(self._partition,)))
        return super()._by_votes(undecided)


BROKEN = [
    GroupsAreNotHeld, IdsAreNotHeld, DecidesBeforeItsVoteIsInTheLog, TakesAnyShare, ForgetsTheUndecided,
    ForgetsWhenTheUndecidedCame, CommitsAtItsOwnClock, ForgetsEarlyVotes, ForgetsReads, DecidesByTheFirstVotes,
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_participant_is_caught(broken: type[Participant]) -> None:
    assert caught(Protocol(participant=broken)), f"{CATCH_WITHIN} schedules did not catch it"


def test_a_sequencer_that_forgets_what_it_has_not_delivered_is_caught() -> None:
    assert caught(Protocol(saves_undelivered=True)), f"{CATCH_WITHIN} schedules did not catch it"


def caught(protocol: Protocol) -> str:
    """What was found, and with which seed."""
    for seed in range(CATCH_WITHIN):
        try:
            simulate(seed, protocol)
        except ViolationError as violation:
            return str(violation)
    return ""
