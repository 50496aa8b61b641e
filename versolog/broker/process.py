"""The broker's process: out of reach of the terminal's Ctrl-C, known again by later processes, ended in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from versolog.broker.errors import BrokerError

POLL_S = 0.02
ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
"""All that Java sees of the environment: no JAVA_TOOL_OPTIONS or CLASSPATH of the user's changes the broker."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process and no other: `birth` tells it from a later one that got the same pid, after a reboot as well."""

    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has `pid` now; None if there is none, or only one that ended and waits to be reaped.

        One whose first thread alone has ended goes on: the others keep its ports and files open.
        """
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field, the program's name in parentheses, may hold blanks; proc(5) numbers the fields from 1.
        state, *fields_from_4 = stat[stat.rindex(")") + 2 :].split()
        if state in ("Z", "X") and int(fields_from_4[20 - 4]) <= 1:
            return None
        return cls(pid, f"{boot}/{fields_from_4[22 - 4]}")

    @property
    def alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def send(self, signal_number: signal.Signals) -> None:
        """Signal the process; nothing happens if it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)

    def ended_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def end(self, timeout_s: float) -> None:
        """Ask the process to end, and kill it if it hasn't after `timeout_s`. It is gone on return."""
        self.send(signal.SIGTERM)
        if not self.ended_within(timeout_s):
            self.kill()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if not self.ended_within(10):
            raise BrokerError(f"process {self.pid} doesn't die of SIGKILL; it may hang in the kernel on a broken disk")


# Runs in a fresh Python between fork and Java: prctl in this process's own fork (preexec_fn) could deadlock on a lock
# that another thread holds. The pid stays the same through exec, and so does PR_SET_PDEATHSIG (1 in linux/prctl.h).
_EXEC_AND_DIE_WITH_PARENT = f"""
import ctypes, os, sys
parent, signal_number = map(int, sys.argv[1:3])
ctypes.CDLL(None, use_errno=True).prctl(1, signal_number, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the parent ended first")
try:
    os.execve(sys.argv[3], sys.argv[3:], {ENVIRONMENT!r})
except OSError as problem:
    sys.exit(f"cannot execute Java: {{problem}}")
"""


class Child:
    """A process that this one started, in a session of its own, writing to `console`. OSError if it can't be started.

    With `die_with_parent` the kernel sends it SIGTERM when this process ends in whatever way. Linux counts the end of
    the *thread* that forked as the end of the parent, so each child has a keeper thread, which starts it, waits for its
    end and reaps it.
    """

    def __init__(self, command: Sequence[str], directory: Path, console: Path, *, die_with_parent: bool) -> None:
        self._command = _dying_with_parent(command) if die_with_parent else list(command)
        self._environment = None if die_with_parent else ENVIRONMENT
        self._directory = directory
        self._console = console
        self._ended = threading.Event()
        started: Future[ProcessIdentity] = Future()
        threading.Thread(target=self._keep, args=[started], name="broker-keeper", daemon=True).start()
        self.identity = started.result()

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def ended_within(self, timeout_s: float) -> bool:
        """Wait until it has ended and is reaped; False after `timeout_s`."""
        return self._ended.wait(timeout_s)

    def end(self, timeout_s: float) -> None:
        self.identity.end(timeout_s)
        self._ended.wait()

    def kill(self) -> None:
        self.identity.kill()
        self._ended.wait()

    def _keep(self, started: Future[ProcessIdentity]) -> None:
        try:
            with self._console.open("wb") as console:
                process = subprocess.Popen(
                    self._command,
                    cwd=self._directory,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as problem:
            started.set_exception(problem)
            return
        # Even if it ended at once: until it is reaped, nobody else can have its pid.
        started.set_result(ProcessIdentity.of(process.pid) or ProcessIdentity(process.pid, "ended at once"))
        process.wait()
        self._ended.set()


def _dying_with_parent(command: Sequence[str]) -> list[str]:
    python = [sys.executable, "-I", "-S", "-c", _EXEC_AND_DIE_WITH_PARENT]
    return [*python, str(os.getpid()), str(int(signal.SIGTERM)), *command]
