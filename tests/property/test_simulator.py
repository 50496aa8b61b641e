"""Transactions over several partitions in random schedules full of faults; broken protocols are caught in them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from tests.simulator import Protocol, ViolationError, simulate, simulate_all, unmet
from tests.simulator.__main__ import main
from versolog.streams.decide import Asked, Decision
from versolog.streams.holds import Holds, Name
from versolog.streams.participant import Participant, Undecided
from versolog.streams.shares import REPEAT

SCHEDULES = 300
CATCH_WITHIN = 300


def test_no_schedule_breaks_a_rule() -> None:
    seen, violations = simulate_all(range(SCHEDULES))
    assert not violations, violations[0]
    assert not unmet(seen, SCHEDULES)


def test_a_seed_makes_the_same_schedule_again() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        simulate(7, say=lines.append)
    assert told[0] == told[1]
    assert len(told[0]) > 50


def test_many_schedules_are_run_by_one_command_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runs", "5", "--from", "7", "--processes", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("5 schedules from seed 7 on, 0 violations")
    assert "5 of 5 schedules" in err


def test_one_schedule_is_shown_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "7", "-v"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("seed 7: nothing wrong")
    assert any(line.startswith("client appends to ") for line in lines)


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
            asked = asked._replace(share=asked.share._replace(previous=self._sequence_offset))
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
            undecided.asked = undecided.asked._replace(share=share._replace(participants=(self._partition,)))
        return super()._by_votes(undecided)


class RepeatsWithoutTheReason(Participant):
    """Votes that the id was decided before, and not that it was refused."""

    def _vote(self, undecided: Undecided) -> None:
        super()._vote(undecided)
        if undecided.vote is not None and undecided.vote.verdict == REPEAT:
            undecided.vote = replace(undecided.vote, error=None)
            self._ballots = [
                ballot._replace(vote=undecided.vote)
                if ballot.vote.sequence_offset == undecided.sequence_offset
                else ballot
                for ballot in self._ballots
            ]


BROKEN: list[tuple[type[Participant], str]] = [
    (GroupsAreNotHeld, "was voted on while what it touches was held"),
    (IdsAreNotHeld, "was voted on while what it touches was held|decided again, .* ends differently"),
    (DecidesBeforeItsVoteIsInTheLog, "leaves undecided"),
    (TakesAnyShare, "leaves undecided"),
    (ForgetsTheUndecided, r"commits at \d+; \d+ was closed"),
    (ForgetsWhenTheUndecidedCame, "and before it was"),
    (CommitsAtItsOwnClock, "was expected"),
    (ForgetsEarlyVotes, "leaves undecided"),
    (ForgetsReads, "was expected"),
    (DecidesByTheFirstVotes, "decided again, .* ends differently"),
    (RepeatsWithoutTheReason, "was committed, but not here"),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_a_broken_participant_is_caught(broken: type[Participant], reason: str) -> None:
    check_caught(Protocol(participant=broken), reason)


def test_a_sequencer_that_forgets_what_it_has_not_delivered_is_caught() -> None:
    check_caught(Protocol(saves_undelivered=True), "leaves undecided|never got its share")


def test_a_refusal_that_takes_the_place_of_an_ids_first_outcome_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first refusal in the order of partitions is everybody's, though one had the id with another content."""
    monkeypatch.setattr("versolog.streams.participant.ID_REUSED", "")
    check_caught(Protocol(), "'id-reused', .* was expected")


@pytest.mark.parametrize("broken", [GroupsAreNotHeld, IdsAreNotHeld])
def test_what_is_not_held_is_caught_by_what_comes_of_it(
    broken: type[Participant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look into who waits for whom: the logs alone tell."""
    monkeypatch.setattr("tests.simulator.world.check_waiting", lambda waiting: None)
    check_caught(Protocol(participant=broken), "was expected|follows on|overtaken|ends differently|and before it was")


def check_caught(protocol: Protocol, reason: str) -> None:
    """A seed that was caught is caught again, and said."""
    violation = next((one for seed in range(CATCH_WITHIN) if (one := violation_of(seed, protocol))), None)
    assert violation is not None, f"{CATCH_WITHIN} schedules did not catch it"
    assert re.search(reason, violation.reason), violation
    assert str(violation).endswith(f"python -m tests.simulator --seed {violation.seed} -v")
    assert str(violation_of(violation.seed, protocol)) == str(violation)


def violation_of(seed: int, protocol: Protocol) -> ViolationError | None:
    try:
        simulate(seed, protocol)
    except ViolationError as violation:
        return violation
    return None
