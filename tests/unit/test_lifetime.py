"""How processes end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
