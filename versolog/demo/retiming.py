"""An evening re-timed on a branch: the part of the story in which a plan and live events meet.

The operations team plans on a branch, while the flights go on on main. What both sides did to one flight merges field
by field; one flight was moved by both, and that they have to settle.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from versolog import Client, MergeConflict, Transaction
from versolog.client import Conflict, Diff
from versolog.demo.flights import CARRIERS, FLIGHTS, Events
from versolog.demo.stage import Stage, WrongAnswerError
from versolog.demo.straight import Retiming, Straight, Tables
from versolog.demo.stream import Stream
from versolog.streams.state import MAIN

BRANCH = "evening"
AIRPORT = "EWR"
FIELD = "scheduled"
BEGIN_HOUR = 18
"""Departures from then on are moved."""
MINUTES, LATE_MINUTES = 10, 25
"""By so many in the plan; by so many the one flight whose aircraft is late."""
AT_WORK_MINUTES, TALKING_MINUTES = 75, 15
"""How long the flights go on while the plan is made, and until it is merged."""
ROWS_SHOWN = 3
COMMITS_SHOWN = 9
PAGE_ROWS = 5_000


class Move(NamedTuple):
    """A commit that moved flights."""

    version: int
    keys: list[str]


@dataclass(frozen=True, slots=True)
class Evening:
    """Each step takes what the ones before it made. All commits are noted in what `stream` has done."""

    stage: Stage
    client: Client
    url: str
    carrier: str
    happened: Events
    stream: Stream
    begin: datetime
    """The moment at which the planning begins; everything until then is committed."""

    def play(self, straight: Straight) -> Retiming:
        """All steps, to the end of the day's flights; answers the plan. Raises WrongAnswerError."""
        known = self.stream.done.events[self.carrier]
        plan, late = self._plan()
        retiming = Retiming(self.carrier, known, AIRPORT, self._bank, MINUTES, dict.fromkeys(late.keys, LATE_MINUTES))
        self._compare(plan)
        conflict = self._meet(late)
        self._settle(conflict, plan, late, straight, retiming)
        self._end(straight, retiming)
        return retiming

    @property
    def _bank(self) -> datetime:
        return self.begin.replace(hour=BEGIN_HOUR, minute=0)

    def _plan(self) -> tuple[Move, Move]:
        """The team's commit on the branch, and the dispatcher's on main."""
        self.stage.step(f"The operations team tries a later evening at {AIRPORT}, on a branch")
        self.stage.command(f'>>> client.branch("{self.carrier}", "{BRANCH}")')
        begun = self.stream.done.note(self.client.branch(self.carrier, BRANCH))
        self.stage.say(f"version {begun} of {self.carrier} begins it, and copies nothing. On main the flights go on:")
        self._go_on(self.begin + timedelta(minutes=AT_WORK_MINUTES))
        bank = self._still_to_leave()
        plan = self._move(bank, MINUTES, BRANCH, "operations", "a later evening")
        self.stage.say(f"version {plan.version}, on {BRANCH}: {len(bank)} departures leave {MINUTES} minutes later")
        last = max(bank, key=lambda key: (bank[key], key))
        late = self._move({last: bank[last]}, LATE_MINUTES, MAIN, "dispatch", "the aircraft comes in late")
        self.stage.say(f"version {late.version}, on main: {last} leaves {LATE_MINUTES} minutes later, says dispatch")
        self._go_on(self.begin + timedelta(minutes=AT_WORK_MINUTES + TALKING_MINUTES))
        return plan, late

    def _still_to_leave(self) -> dict[str, str]:
        """When the flights of the bank are to leave, as the branch has them."""
        where = f'origin = "{AIRPORT}" and status = "scheduled" and {FIELD} >= "{self._bank:%Y-%m-%dT%H:%M}"'
        self.stage.command(
            f'>>> client.rows("{self.carrier}", "flights", "{BRANCH}", where=\'{where}\')\n'
            f'>>> Transaction("{self.carrier}", branch="{BRANCH}").patch("flights", key, {{"{FIELD}": …}})'
        )
        rows = self.client.rows(self.carrier, FLIGHTS, BRANCH, where=where, page=PAGE_ROWS)
        return {row.key: row.row[FIELD] for row in rows}

    def _compare(self, plan: Move) -> None:
        self.stage.step("Two lines of commits: the log as a graph, and what the plan would change")
        self._shell("log", self.carrier, "--all", "--graph", "--limit", str(COMMITS_SHOWN))
        self.stage.command(f'>>> client.diff("{self.carrier}", "main", "{BRANCH}", merge_base=True)')
        diff = self.client.diff(self.carrier, "main", BRANCH, merge_base=True, limit=ROWS_SHOWN)
        tell_fields(self.stage, diff)
        apart = self.client.compare(self.carrier, BRANCH)
        self.stage.check(
            diff.counts.changed == diff.counts.rows == len(plan.keys) and apart.ahead == 1 and apart.behind > 1,
            f"{len(plan.keys)} rows differ, those of the plan; main's {apart.behind} commits since are not among it",
        )

    def _meet(self, late: Move) -> Conflict:
        """The one conflict of the merge."""
        self.stage.step("Merge it: fields of one flight go together, but one was changed twice")
        self.stage.command(f'>>> client.merge("{self.carrier}", "{BRANCH}")')
        try:
            self.client.merge(self.carrier, BRANCH)
            found: list[Conflict] = []
        except MergeConflict as refused:
            self.stage.say(f"{refused.code}: {refused.detail}")
            found = list(self.client.conflicts(refused))
        for conflict in found:
            self.stage.say(f"  {conflict.table}/{conflict.key}, {'.'.join(conflict.path)}: {conflict.code}")
            self.stage.say(f"    base    {conflict.base}")
            self.stage.say(f"    ours    {conflict.ours}  main, by dispatch")
            self.stage.say(f"    theirs  {conflict.theirs}  {BRANCH}, by operations")
        places = [(conflict.table, conflict.key, conflict.path) for conflict in found]
        self.stage.check(
            places == [(FLIGHTS, late.keys[0], (FIELD,))], "one conflict: the flight that both moved, and nothing else"
        )
        return found[0]

    def _settle(self, conflict: Conflict, plan: Move, late: Move, straight: Straight, retiming: Retiming) -> None:
        self.stage.step("Settle it: the aircraft is late whatever the plan says")
        self.stage.command(
            f'>>> client.merge("{self.carrier}", "{BRANCH}", resolutions=[conflict.take_ours()], author="operations")'
        )
        outcome = self.client.merge(
            self.carrier, BRANCH, resolutions=[conflict.take_ours()], author="operations", message="a later evening"
        )
        version = self.stream.done.note(outcome)
        tables = self._tables(version)
        left = [key for key in plan.keys if tables[FLIGHTS][key]["status"] != "scheduled"]
        self._shell("log", self.carrier, "--graph", "--limit", str(COMMITS_SHOWN - 3))
        self.stage.check(
            tables == straight.retimed(self.stream.done.events[self.carrier], retiming),
            f"every row of {self.carrier} is as worked out from the CSV and the plan, {len(left)} flights that left "
            "meanwhile included",
        )
        self._show_blame(late.keys[0])
        blamed = self._blamed(late.keys[0]) | {("left", *path): at for path, at in self._blamed(left[0]).items()}
        self.stage.check(
            blamed[(FIELD,)] == (late.version, "main") and blamed["left", FIELD] == (plan.version, BRANCH),
            "each field is blamed on who set it: that one on dispatch, those of the plan on the branch's commit",
        )

    def _end(self, straight: Straight, retiming: Retiming) -> None:
        self.stage.step("The last flights of the evening, by the new plan")
        self._go_on(None)
        events = self.stream.done.events
        self.stage.check(
            events.total() == len(self.happened), f"all {len(self.happened):,} events of {len(events)} carriers are in"
        )
        self.stage.check(
            self._tables(None) == straight.retimed(events[self.carrier], retiming),
            f"every row of {self.carrier} is as worked out from the CSV and the plan",
        )

    # What the steps are made of

    def _go_on(self, moment: datetime | None) -> None:
        """Have the flights of all carriers go on, on main."""
        until = len(self.happened) if moment is None else self.happened.until(moment)
        with self.stage.counting(until - self.stream.done.events.total()) as count:
            self.stream.until(moment, count)

    def _move(self, planned: dict[str, str], minutes: int, branch: str, author: str, message: str) -> Move:
        tx = Transaction(self.carrier, branch=branch, author=author, message=message, type="FlightsRetimed")
        for key, text in planned.items():
            moved = datetime.fromisoformat(text) + timedelta(minutes=minutes)
            tx.patch(FLIGHTS, key, {FIELD: moved.isoformat()})
        return Move(self.stream.done.note(self.client.send(tx)), list(planned))

    def _tables(self, at: int | None) -> Tables:
        return {
            table: {row.key: row.row for row in self.client.rows(self.carrier, table, at, page=PAGE_ROWS)}
            for table in (FLIGHTS, CARRIERS)
        }

    def _show_blame(self, key: str) -> None:
        self.stage.command(f'>>> client.blame("{self.carrier}", "flights", "{key}")')
        for field in self.client.blame(self.carrier, FLIGHTS, key):
            name, who = ".".join(field.path), f"{field.author}, {field.message or field.type}"
            self.stage.say(f"  {name:12} {field.value!s:27} version {field.version:>6}  {who}")

    def _blamed(self, key: str) -> dict[tuple[str, ...], tuple[int, str]]:
        """The version and the branch that set each field."""
        return {field.path: (field.version, field.branch) for field in self.client.blame(self.carrier, FLIGHTS, key)}

    def _shell(self, *command: str) -> None:
        """Run a command of `versolog`, and show it as it is typed."""
        self.stage.command(f"$ versolog {' '.join(command)}")
        done = subprocess.run(
            [sys.executable, "-m", "versolog", *command, "--url", self.url],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        self.stage.say(done.stdout.rstrip())
        if done.returncode:
            raise WrongAnswerError(f"`versolog {command[0]}` ends with status {done.returncode}")


def tell_fields(stage: Stage, diff: Diff) -> None:
    """The first rows that differ, field by field."""
    for row in diff.rows:
        for field in row.fields:
            stage.say(f"  {row.key:24} {'.'.join(field.path)}: {field.before} → {field.after}")
    if len(diff.rows) < diff.counts.rows:
        stage.say(f"  and {diff.counts.rows - len(diff.rows):,} more")
