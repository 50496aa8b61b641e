"""The demo as a user plays it: to its end with exit status 0, and not with a wrong answer."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

END_S = 120.0
WRONG = """
import sys
from pathlib import Path
from versolog.demo import demo
from versolog.demo.straight import Straight

after = Straight.after
def one_minute_more(self, events):
    tables = after(self, events)
    row = next(row for row in tables["UA"]["flights"].values() if "departed" in row)
    row["departure_delay_minutes"] += 1
    return tables
Straight.after = one_minute_more
sys.exit(demo.play(1, None, stay=False))
"""

WRONG_MERGE = """
import sys
from versolog.demo import demo
from versolog.schemas.conflicts import Conflict

Conflict.take_ours = Conflict.take_theirs
sys.exit(demo.play(1, None, stay=False))
"""


@pytest.fixture(autouse=True)
def _temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the demo makes its own directory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_the_demo_checks_all_that_it_shows_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = _played("-m", "versolog.demo", "--days", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    steps = re.findall(r"^ +(\d+)  \w", done.stdout, re.MULTILINE)
    assert steps == [str(number) for number in range(1, len(steps) + 1)]
    assert len(re.findall("✓ all .* flights and the counters", done.stdout)) == 3  # the boards
    for proof in ("events of 14 carriers", "rows differ, those of the plan", "one conflict: the flight that both moved",
                  "flights that left meanwhile included", "each field is blamed", "all 2,521 events",
                  "rows differ, those that the release", "every row of UA .* again", "diff to the version",
                  "commits: every chain", "rebuilt and live hold the same"):  # fmt: skip
        assert re.search(rf"✓ .*{proof}", done.stdout), proof
    assert len(set(re.findall(r"^digest ([0-9a-f]{64})$", done.stdout, re.MULTILINE))) == 1
    assert list(tmp_path.glob("versolog-demo-*")) == []


def test_a_board_that_is_not_what_was_computed_ends_the_demo_with_a_failure(tmp_path: Path) -> None:
    done = _played("-c", WRONG)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗ this is not so: all 842 flights" in done.stdout
    assert list(tmp_path.glob("versolog-demo-*")) == []


def test_a_merge_that_is_not_what_was_computed_ends_the_demo_with_a_failure() -> None:
    done = _played("-c", WRONG_MERGE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "✗ this is not so: every row of UA is as worked out from the CSV and the plan" in done.stdout


def test_at_a_terminal_the_demo_stays_to_be_explored_until_ctrl_c() -> None:
    with _at_a_terminal("-m", "versolog.demo", "--days", "1") as (process, screen):
        screen.wait_for("Ctrl-C stops it")
        url = re.search(r"ready: HTTP (\S+),", screen.text)
        assert url is not None
        assert httpx.get(f"{url[1]}/v1/groups/UA", trust_env=False).json()["group"] == "UA"
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S) == 0


def test_a_directory_in_use_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    done = _played("-m", "versolog.demo", "--data", str(tmp_path / "mine"))
    assert done.returncode == 1
    assert "is not empty" in done.stdout
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter"]


def _played(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=END_S,
        env={**os.environ, "COLUMNS": "200"}, check=False,
    )  # fmt: skip


class _Screen:
    """What a terminal shows, as far as it has come."""

    def __init__(self, terminal: int) -> None:
        self.text = ""
        self._grown = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(terminal,))
        self._thread.start()

    def wait_for(self, words: str) -> None:
        """Return once `words` are there; fail if the program ends or takes too long."""
        deadline = time.monotonic() + END_S
        with self._grown:
            while words not in self.text:
                assert self._thread.is_alive(), self.text
                assert time.monotonic() < deadline, self.text
                self._grown.wait(0.5)

    def end(self) -> None:
        self._thread.join(END_S)

    def _read(self, terminal: int) -> None:
        while True:
            try:
                read = os.read(terminal, 65_536)
            except OSError:  # the last one who had the other side open has closed it
                return
            with self._grown:
                self.text += read.decode(errors="replace")
                self._grown.notify_all()


@contextmanager
def _at_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], _Screen]]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    screen = _Screen(ours)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        screen.end()
        os.close(ours)
