"""How processes begin, without delay, and how they end: with the one that started them, and in order."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def importing() -> Iterator[None]:
    """While much is imported, have Python collect no garbage: what is made then stays, and the collector would walk all
    of it again and again. Measured: a fifth of what the command line takes to start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send this process a signal when the one that started it, whose id is `parent`, ends (prctl
    PR_SET_PDEATHSIG, Linux).

    More exactly, when the *thread* ends that started it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it ended before
            sys.exit("the process that started this one has ended")


def interrupt_on_sigterm() -> None:
    """Have SIGTERM end the main thread as Ctrl-C does: by KeyboardInterrupt, so that what was begun is cleared away."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def interrupt_is_over() -> None:
    """Let a KeyboardInterrupt that was dealt with have no part in the exit status.

    CPython notes one that passes through `eval` or `exec` of text, as in the making of a dataclass while something is
    imported, and ends the process by SIGINT after all, unless another text is evaluated behind it (run_eval_code_obj in
    its pythonrun.c).
    """
    eval("0")
