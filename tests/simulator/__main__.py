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

from tests.simulator import ViolationError, simulate, simulate_all

CHUNK = 100
VIOLATIONS_SHOWN_MAX = 10


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
    begun, done = time.monotonic(), 0
    seen: Counter[str] = Counter()
    violations: list[str] = []
    with closing(_chunks(seeds, processes)) as chunks:
        for runs, met, wrong in chunks:
            done += runs
            seen += met
            violations += wrong
            for violation in wrong[: VIOLATIONS_SHOWN_MAX - len(violations) + len(wrong)]:
                _line(violation)
            rate = done / (time.monotonic() - begun) * 60
            sys.stderr.write(
                f"\r{done:,} of {len(seeds):,} schedules · {rate:,.0f}/min · {len(violations)} violations "
            )
            sys.stderr.flush()
            if len(violations) >= VIOLATIONS_SHOWN_MAX:
                break
    sys.stderr.write("\n")
    _line(f"{done:,} schedules from seed {seeds.start} on, {len(violations)} violations. {_told(seen)}")
    return 1 if violations else 0


def _chunks(seeds: range, processes: int) -> Generator[tuple[int, Counter[str], list[str]], None, None]:
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


def _told(seen: Counter[str]) -> str:
    return "Met: " + ", ".join(f"{what} {count:,}" for what, count in sorted(seen.items()))


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: show every step")
    parser.add_argument("--runs", type=int, default=1_000, metavar="M")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
