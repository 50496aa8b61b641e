"""The command line of the simulator."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import tests.simulator
from tests.simulator import ViolationError, simulate, simulate_all, unmet

CHUNK = 100
VIOLATIONS_SHOWN_MAX = 10
RUNS_THAT_MEET_ALL = 300
"""With fewer, that something was not met says nothing."""
LINE_EVERY_S = 10.0
"""Where the progress is not shown on a terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _arguments(arguments)
    if asked.seed is not None:
        return _one(asked.seed, asked.verbose)
    return _many(range(asked.first, asked.first + asked.runs), asked.processes)


def _one(seed: int, verbose: bool) -> int:
    try:
        seen = simulate(seed, say=_line if verbose else None)
    except ViolationError as violation:
        _line(str(violation))
        return 1
    _line(f"seed {seed}: nothing wrong. {_told(seen)}")
    return 0


def _many(seeds: range, processes: int) -> int:
    progress = _Progress(len(seeds))
    seen: Counter[str] = Counter()
    violations: list[str] = []
    with closing(_chunks(seeds, processes)) as chunks:
        for runs, met, wrong in chunks:
            seen += met
            for violation in wrong[: VIOLATIONS_SHOWN_MAX - len(violations)]:
                _line(violation)
            violations += wrong
            progress.add(runs, len(violations))
            if len(violations) >= VIOLATIONS_SHOWN_MAX:
                break
    progress.end()
    done = progress.done
    _line(
        f"{done:,} schedules from seed {seeds.start} on, {len(violations)} violations, "
        f"{progress.seconds:,.0f} s, {progress.rate:,.0f}/min. {_told(seen)}"
    )
    missed = unmet(seen, done) if done >= RUNS_THAT_MEET_ALL else []
    if missed:
        _line(f"too seldom met to prove anything: {', '.join(missed)}")
    return 1 if violations or missed else 0


def _chunks(seeds: range, processes: int) -> Generator[tuple[int, Counter[str], list[str]]]:
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    if processes == 1:
        for chunk in chunks:
            yield len(chunk), *simulate_all(chunk)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            for chunk, (seen, violations) in zip(chunks, pool.map(simulate_all, chunks), strict=True):
                yield len(chunk), seen, violations
        finally:
            pool.shutdown(cancel_futures=True)


class _Progress:
    """How far it is: one line that is written anew on a terminal, and elsewhere a line now and then."""

    def __init__(self, runs: int) -> None:
        self._runs, self.done, self._violations = runs, 0, 0
        self._begun = self._shown = time.monotonic()
        self._on_terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Schedules a minute."""
        return self.done / max(self.seconds, 1e-9) * 60

    def add(self, done: int, violations: int) -> None:
        self.done += done
        self._violations = violations
        if self._on_terminal:
            self._show("\r", " ")
        elif time.monotonic() - self._shown > LINE_EVERY_S and self.done < self._runs:
            self._shown = time.monotonic()
            self._show("", "\n")

    def end(self) -> None:
        self._show("\r" if self._on_terminal else "", "\n")

    def _show(self, begin: str, end: str) -> None:
        told = f"{self.done:,} of {self._runs:,} schedules · {self.rate:,.0f}/min · {self._violations} violations"
        sys.stderr.write(f"{begin}{told}{end}")
        sys.stderr.flush()


def _told(seen: Counter[str]) -> str:
    return "Met: " + ", ".join(f"{what} {count:,}" for what, count in sorted(seen.items()))


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulator", description=tests.simulator.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: show every step")
    parser.add_argument("--runs", type=int, default=1_000, metavar="M", help="how many (default: %(default)s)")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a processor")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
