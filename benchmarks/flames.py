"""Profiles: where a process spends its time, as py-spy samples it, and the flame graph of that."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import NamedTuple

SAMPLES_PER_S = 200
START_TIMEOUT_S = 20.0
WRITE_TIMEOUT_S = 60.0
SHOWN_MIN = 0.003
"""Frames with a smaller share are left out of the picture, and not out of the sums."""
IDLE = (
    "_worker (concurrent/futures/thread.py",
    "EpollSelector.select (",
    "Condition.wait (threading.py",
    "KafkaIntake._poll (",
    "fetched (versolog/projections/tail.py",
)
"""The frames in which a worker's threads wait for work."""
LAUNCHING = ("(typer/", "(<frozen runpy>", "<module> (<string>", "(multiprocessing/", "(concurrent/futures/process.py",
             "Thread._bootstrap", "Thread.run (")  # fmt: skip
WIDTH, ROW, TOP = 1200, 17, 40


class Stack(NamedTuple):
    """Frames from the outermost inwards, and how many samples found them so."""

    frames: tuple[str, ...]
    samples: int


class Frame:
    """A frame where it was called from, with all that it called."""

    __slots__ = ("called", "name", "samples")

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples = 0
        self.called: dict[str, Frame] = {}


@contextmanager
def recorded(pid: int, path: Path, *, waits: bool) -> Iterator[Path]:
    """Sample the process meanwhile. Makes `path`.folded, which speedscope and others read, `path`.svg and `path`.txt.

    Without `waits` threads that have nothing to do are left out, which py-spy doesn't tell apart everywhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folded, picture = path.with_suffix(".folded"), path.with_suffix(".svg")
    spy = subprocess.Popen(
        [_py_spy(), "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_S), "--function", "--format", "raw",
         "--output", str(folded)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield picture
    finally:
        spy.send_signal(signal.SIGINT)
        _, told = spy.communicate(timeout=WRITE_TIMEOUT_S)
    if not folded.exists():
        raise RuntimeError(f"py-spy made no profile: {told.strip()}")
    sampled = (without_launching(stack) for stack in read(folded.read_text().splitlines()))
    stacks = [stack for stack in sampled if stack.frames and (waits or not is_idle(stack))]
    picture.write_text(drawn(path.name, stacks))
    path.with_suffix(".txt").write_text(told_shares(stacks))


def read(lines: Iterable[str]) -> Iterator[Stack]:
    """The stacks of folded lines: `outer;inner;innermost 12`."""
    for line in lines:
        frames, _, samples = line.rpartition(" ")
        yield Stack(tuple(frames.split(";")), int(samples))


def without_launching(stack: Stack) -> Stack:
    """The stack without the frames that only lead to ours, and are the same in every sample."""
    return stack._replace(frames=tuple(frame for frame in stack.frames if not any(name in frame for name in LAUNCHING)))


def is_idle(stack: Stack) -> bool:
    """Whether the thread waited for something to do."""
    return stack.frames[-1].startswith(IDLE)


def shares(stacks: Iterable[Stack]) -> dict[str, tuple[float, float]]:
    """For each frame its share of all samples, with what it called and by itself; the greatest first."""
    whole: dict[str, int] = {}
    alone: dict[str, int] = {}
    total = 0
    for frames, samples in stacks:
        total += samples
        for frame in set(frames):
            whole[frame] = whole.get(frame, 0) + samples
        alone[frames[-1]] = alone.get(frames[-1], 0) + samples
    ordered = sorted(whole, key=lambda frame: -whole[frame])
    return {frame: (whole[frame] / total, alone.get(frame, 0) / total) for frame in ordered}


def told_shares(stacks: Iterable[Stack], least: float = 0.01) -> str:
    """The shares as a table."""
    rows = (
        f"{with_called:7.1%} {alone:7.1%}  {frame}\n"
        for frame, (with_called, alone) in shares(stacks).items()
        if with_called >= least
    )
    return "  total    self  function\n" + "".join(rows)


def drawn(title: str, stacks: Iterable[Stack]) -> str:
    """A flame graph as SVG: what is called stands above its caller, as wide as its share of the samples."""
    root = Frame("all")
    for frames, samples in stacks:
        place = root
        place.samples += samples
        for name in frames:
            place = place.called.setdefault(name, Frame(name))
            place.samples += samples
    boxes = list(_boxes(root, 0, 0.0, max(root.samples, 1)))
    height = TOP + ROW * (max(depth for depth, *_ in boxes) + 1)
    drawn_ = "".join(_box(height, *box) for box in boxes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" '
        f'font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="6" y="18" font-size="14">{escape(title)}: {root.samples:,} samples</text>{drawn_}</svg>\n'
    )


def _boxes(frame: Frame, depth: int, left: float, total: int) -> Iterator[tuple[int, float, float, str]]:
    """Depth, left edge and width as shares of the whole, and name."""
    share = frame.samples / total
    yield depth, left, share, frame.name
    for called in sorted(frame.called.values(), key=lambda called: called.name):
        if called.samples / total >= SHOWN_MIN:
            yield from _boxes(called, depth + 1, left, total)
        left += called.samples / total


def _box(height: int, depth: int, left: float, share: float, name: str) -> str:
    x, y, width = left * WIDTH, height - ROW * (depth + 1), share * WIDTH
    hue = 20 + zlib.crc32(name.encode()) % 40
    fits = int(width / 6.7)
    label = f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(name[:fits])}</text>' if fits > 3 else ""
    return (
        f'<g><title>{escape(name)} {share:.1%}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" '
        f'fill="hsl({hue},80%,70%)"/>{label}</g>'
    )


def _py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise RuntimeError("profiles need py-spy: pip install 'versolog[dev]'")
    return found
