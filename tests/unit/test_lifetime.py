"""How processes end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from versolog import lifetime

INTERRUPTED_IN_TEXT = """
from versolog import lifetime

def interrupt():
    raise KeyboardInterrupt

try:
    eval("interrupt()")
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("", -signal.SIGINT), ("lifetime.interrupt_is_over()", 0)],
    ids=["CPython's own way", "an interrupt that was dealt with"],
)
def test_the_exit_status_after_an_interrupt(tmp_path: Path, end: str, status: int) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IN_TEXT + end)
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, check=False)
    assert ended.returncode == status


WITH_ITS_PARENT = """
import os, signal, sys
from versolog.lifetime import end_with_parent
end_with_parent(signal.SIGKILL, int(sys.argv[1]))
print("goes on")
"""


def test_a_process_goes_on_with_the_parent_that_it_was_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which in a container is often process 1."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    lifetime.end_with_parent(signal.Signals.SIGCONT, 1)
    command = [sys.executable, "-c", WITH_ITS_PARENT]
    assert subprocess.run([*command, str(os.getpid())], check=False, capture_output=True).stdout == b"goes on\n"
    ended = subprocess.run([*command, "1"], check=False, capture_output=True)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"has ended" in ended.stderr
