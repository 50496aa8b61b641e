"""The demo's story: flights streamed in, looked at as they stood, planned on a branch and merged, broken by a release,
restored, and proved.

What versolog answers is held against a computation that shares no code with it (`straight`). A wrong answer ends the
demo with exit status 1, and so does anything that hinders it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
from rich.console import Console

from versolog import Client, Producer, Transaction, VersologError
from versolog.broker.ports import is_free
from versolog.demo.board import board
from versolog.demo.flights import CARRIERS, FIRST_DAY, FLIGHTS, Events, events
from versolog.demo.retiming import Evening, tell_fields
from versolog.demo.stage import Stage, WrongAnswerError
from versolog.demo.straight import Straight, Tables
from versolog.demo.stream import Moment, Stream, moments
from versolog.schemas.errors import Misconfigured
from versolog.schemas.times import millis_to_text
from versolog.up import Plan, Running, running, until_interrupted

HTTP_PORT = 8080
CARRIER = "UA"
"""Whose evening is planned anew, and whose delays the release breaks."""
FIELD = "departure_delay_minutes"
MINUTES_OF_AN_HOUR = 60
ROWS_BROKEN_MAX = 5_000
"""The most that one transaction is made to change here."""
ROWS_SHOWN = 5
PAGE_ROWS = 5_000
TIMEOUT_S = 300.0
"""Verifying a group of the whole year and its digest take as long as reading all of it."""


def play(days: int, data: Path | None, *, stay: bool) -> int:
    """Tell the story on the terminal, keeping what it makes in `data`; answers the exit status.

    Without `data` all is kept in a directory that is gone at the end. With `stay` versolog keeps running after the
    story, to be explored, until Ctrl-C.
    """
    stage = Stage(Console(highlight=False))
    try:
        with _directory(data) as directory, ExitStack() as stack:
            story = _opened(stack, stage, days, directory)
            story.tell()
            if stay:
                story.stay()
    except WrongAnswerError as error:
        stage.fail(f"this is not so: {error}")
        return 1
    except VersologError as error:
        stage.fail(f"{error.code}: {error.detail}")
        return 1
    except KeyboardInterrupt:
        stage.say("stopped")
        return 130
    return 0


@contextmanager
def _directory(data: Path | None) -> Iterator[Path]:
    if data is None:
        with tempfile.TemporaryDirectory(prefix="versolog-demo-") as directory:
            yield Path(directory)
        return
    if data.exists() and any(data.iterdir()):
        raise Misconfigured(f"{data} is not empty; the demo wants a fresh directory, or none to make one itself")
    yield data


def _opened(stack: ExitStack, stage: Stage, days: int, directory: Path) -> Story:
    """Start versolog, and connect to it as services do: a producer at Kafka, a client over HTTP."""
    happened = events(days=days)
    stage.title(f"versolog: {len(happened):,} events of the flights from New York, {_span(days)}")
    stage.step("Start Apache Kafka, its topics and a worker")
    port = HTTP_PORT if is_free(HTTP_PORT) else 0
    stage.command(f"$ versolog up --data {directory}" + (f" --http-port {port}" if port != HTTP_PORT else ""))
    up = stack.enter_context(running(Plan(directory, http_port=port), lambda line: stage.say(f"· {line}")))
    stage.say(f"ready: HTTP {up.http_url}, Kafka {up.bootstrap}")
    producer = stack.enter_context(Producer(up.bootstrap))
    # A transport of its own keeps what is on this machine from being asked of a proxy that the environment names.
    transport = httpx.HTTPTransport()
    client = stack.enter_context(Client(up.http_url, author="demo", timeout_s=TIMEOUT_S, transport=transport))
    return Story(stage, up, producer, client, directory, days, happened)


class Release(NamedTuple):
    """The bad bulk update."""

    version: int
    rows: int
    """How many it changed."""
    key: str
    """One of them."""


@dataclass(frozen=True, slots=True)
class Story:
    """Each step takes what the ones before it made."""

    stage: Stage
    up: Running
    producer: Producer
    client: Client
    directory: Path
    days: int
    happened: Events

    def tell(self) -> None:
        """All steps, from the first event to the proof. Raises WrongAnswerError where an answer is not right."""
        stream = self._stream()
        done = stream.done
        with self.stage.working("working out straight from the CSV what must come of it"):
            straight = Straight(start=FIRST_DAY, days=self.days)
        for moment in moments(self.days):
            self._look_at(moment, done.tags[moment.tag], straight)
        begin = moments(self.days)[-1].time
        evening = Evening(self.stage, self.client, self.up.http_url, CARRIER, self.happened, stream, begin)
        plan = evening.play(straight)
        right = straight.retimed(done.events[CARRIER], plan)
        release = self._break(right)
        self._compare(release)
        self._roll_back(release, right)
        self._verify(list(done.events), done.commits + 2)
        self._replay(done.committed_at)
        self._end(release)

    def stay(self) -> None:
        """Until Ctrl-C."""
        self.stage.say("\nversolog goes on running; Ctrl-C stops it")
        with suppress(KeyboardInterrupt):
            until_interrupted()

    def _stream(self) -> Stream:
        """Up to the last of the moments."""
        self.stage.step("Stream the flights in the order they happened, and tag three moments")
        self.stage.command(
            '>>> producer.send(Transaction("UA").patch("flights", key, {"status": "departed"})\n'
            '...                               .add("carriers", "UA", {"departures": 1}))\n'
            '>>> client.tag("UA", "jan-01-0830")'
        )
        stream, tagged = Stream(self.happened, self.producer, self.client), moments(self.days)
        sent = self.happened.until(tagged[-1].time)
        with self.stage.counting(sent) as count:
            for moment in tagged:
                stream.until(moment.time, count)
                stream.tag(moment)
        self.stage.check(
            stream.done.events.total() == sent,
            f"{sent:,} events of {len(stream.done.events)} carriers are committed; tags: "
            + ", ".join(moment.tag for moment in tagged),
        )
        return stream

    def _look_at(self, moment: Moment, happened: Counter[str], straight: Straight) -> None:
        """`happened` are the events by carrier until then."""
        self.stage.step(f"The departure board as it stood on {moment.time:%B %-d at %H:%M}")
        self.stage.command(f"$ curl '{self.up.http_url}/v1/groups/UA/tables/flights/rows?at={moment.tag}'")
        found = {carrier: self._tables(carrier, moment.tag) for carrier in happened}
        flights = {key: row for tables in found.values() for key, row in tables[FLIGHTS].items()}
        self.stage.show(board(flights, moment.time, f"Departures, {moment.time:%A %-d %B %Y, %H:%M}"))
        self.stage.check(
            found == straight.after(happened.total()),
            f"all {len(flights):,} flights and the counters of {len(found)} carriers are as worked out from the CSV",
        )

    def _break(self, right: Tables) -> Release:
        self.stage.step(f"A bad release takes minutes for hours: {CARRIER}'s delays grow sixtyfold")
        delays = [(key, row[FIELD]) for key, row in right[FLIGHTS].items() if row.get(FIELD)][-ROWS_BROKEN_MAX:]
        tx = Transaction(CARRIER, author="release 2.4", message="delays in minutes", type="DelaysConverted")
        for key, minutes in delays:
            tx.patch(FLIGHTS, key, {FIELD: minutes * MINUTES_OF_AN_HOUR})
        version = self.client.send(tx).parts[0].version
        self.stage.say(f"version {version} of {CARRIER}: {len(delays):,} rows in one transaction")
        return Release(version, len(delays), max(delays, key=lambda delay: delay[1])[0])

    def _compare(self, release: Release) -> None:
        before, after = release.version - 1, release.version
        self.stage.step("What did it change?")
        self.stage.command(f"$ curl '{self.up.http_url}/v1/groups/{CARRIER}/diff?from={before}&to={after}'")
        diff = self.client.diff(CARRIER, before, after, limit=ROWS_SHOWN)
        tell_fields(self.stage, diff)
        self.stage.check(
            diff.counts.changed == diff.counts.rows == release.rows,
            f"{release.rows:,} rows differ, those that the release wrote and no other",
        )

    def _roll_back(self, release: Release, right: Tables) -> None:
        before = release.version - 1
        self.stage.step("Take it back, by one call")
        self.stage.command(f'>>> client.rollback("{CARRIER}", to={before})')
        outcome = self.client.rollback(CARRIER, before, message="release 2.4 took minutes for hours")
        version = outcome.parts[0].version
        self.stage.say(f"version {version} of {CARRIER} is as version {before} was; nothing is lost:")
        self._show_history(release.key)
        self.stage.check(
            self._tables(CARRIER, version) == right, f"every row of {CARRIER} is as worked out from the CSV again"
        )
        self.stage.check(
            self.client.diff(CARRIER, before, version).counts.rows == 0,
            "the diff to the version before the release is empty",
        )

    def _show_history(self, key: str) -> None:
        path = f"/v1/groups/{CARRIER}/tables/{FLIGHTS}/history"
        self.stage.command(f"$ curl '{self.up.http_url}{path}?key={key}'")
        for past in reversed(list(self.client.history(CARRIER, FLIGHTS, key))):
            delay = None if past.row is None else past.row.get(FIELD)
            late = "" if delay is None else f"{delay:+,} min"
            self.stage.say(f"  version {past.version:>6}  {past.author:14} {past.type or past.operation:16} {late}")

    def _verify(self, carriers: list[str], commits: int) -> None:
        self.stage.step("Compute every hash again from Kafka alone, and compare")
        self.stage.command(f'>>> client.verify("{CARRIER}")')
        verified = []
        for carrier in carriers:
            with self.stage.working(f"verifying {carrier}"):
                verified.append(self.client.verify(carrier))
        self.stage.check(
            all(one.ok for one in verified) and sum(one.commits for one in verified) == commits,
            f"{commits:,} commits: every chain is unbroken, every hash is right, and the store holds what they say",
        )

    def _replay(self, committed_at: int) -> None:
        self.stage.step("Rebuild all that was before the release from offsets, elsewhere")
        cut, into = millis_to_text(committed_at), self.directory / "replayed"
        command = ["replay", "--cut", cut, "--into", str(into), "--bootstrap", self.up.bootstrap]
        self.stage.command(f"$ versolog {' '.join(command)}")
        done = subprocess.run(
            [sys.executable, "-m", "versolog", *command], stdout=subprocess.PIPE, text=True, check=False
        )
        self.stage.check(done.returncode == 0, "the replay reached its end")
        self.stage.say(done.stdout.rstrip())
        self.stage.command(f'>>> client.digest(at="{cut}")')
        with self.stage.working("adding up what the live store holds"):
            live = self.client.digest(at=cut)
        self.stage.say(f"digest {live}")
        self.stage.check(
            done.stdout.split()[-1] == live, "rebuilt and live hold the same: every row, every version, every hash"
        )

    def _end(self, release: Release) -> None:
        url = self.up.http_url
        row = f"{url}/v1/groups/{CARRIER}/tables/flights/rows/{release.key}"
        self.stage.step("To go on exploring")
        for what, command in (
            ("every endpoint", f"{url}/docs"),
            ("a flight now", f"curl '{row}'"),
            ("and in the bad release", f"curl '{row}?at={release.version}'"),
            ("the commits of a carrier", f"versolog log {CARRIER} --graph --url {url}"),
            ("the log itself", f"Kafka at {self.up.bootstrap}, topics versolog.commits and versolog.outcomes"),
        ):
            self.stage.say(f"  {what:26} {command}")

    def _tables(self, carrier: str, at: str | int) -> Tables:
        return {
            table: {row.key: row.row for row in self.client.rows(carrier, table, at, page=PAGE_ROWS)}
            for table in (FLIGHTS, CARRIERS)
        }


def _span(days: int) -> str:
    return "the whole of 2013" if days == 365 else "1 January 2013" if days == 1 else f"the first {days} days of 2013"
