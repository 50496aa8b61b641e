"""`python -m versolog.demo`: the demo on the command line."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

from versolog import lifetime


def main() -> None:
    """Play the demo; the exit status is 0 only if all that was shown was checked and right."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with lifetime.importing():
            from versolog.demo.demo import play
    except ModuleNotFoundError as error:
        sys.exit(f"the demo needs {error.name}: pip install 'versolog[server,broker,demo]'")
    asked = _arguments()
    sys.exit(play(asked.days, asked.data, stay=sys.stdin.isatty()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m versolog.demo",
        description="The departures of New York in 2013, streamed into versolog, looked at as they stood, planned "
        "anew on a branch, broken, restored and proved.",
    )
    parser.add_argument("--days", type=int, default=3, help="from 1 January on, 1 to 365; default: 3")
    parser.add_argument(
        "--data", type=Path, default=None, help="a fresh directory to keep everything in; default: one that goes away"
    )
    return parser.parse_args()


def _as_interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
