"""`python -m benchmarks`: measure, check, print a table and keep the figures."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    commits,
    counters,
    large,
    machine,
    outages,
    pictures,
    replays,
    report,
    served,
    soak,
    spanning,
    versioning,
)
from benchmarks.bench import Bench, Sizes
from benchmarks.measured import Result, WrongResultError
from versolog.broker import Broker

HERE = Path(__file__).parent
README, REFERENCE, SPEEDS, GROWTH, FLAMES, RESULTS = (
    HERE / "README.md", HERE / "results.json", HERE / "throughput.svg", HERE / "growth.svg", HERE / "flames",
    HERE / "results",
)  # fmt: skip

BENCHMARKS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "commits": commits.measure,
    "counters": counters.measure,
    "replay": replays.measure,
    "http": served.measure,
    "versioning": versioning.measure,
    "large": large.measure,
    "spanning": spanning.measure,
    "outages": outages.measure,
    "soak": soak.measure,
}
LENGTHY = ("spanning", "outages", "soak")
"""Left out unless they are named, or all is measured in full."""
KEPT_BYTES_MAX = 64 * 1024 * 1024
"""Of one log of a run that went wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for. 0 where all results were right; a missed target is told and is no failure."""
    asked = _arguments(arguments)
    sizes = Sizes(asked.rounds, asked.scale, asked.partitions, asked.fsync, asked.full)
    flames = FLAMES if asked.reference else asked.results / FLAMES.name
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="versolog-bench-", dir=asked.scratch) as scratch:
        say("starting Apache Kafka")
        with Broker(Path(scratch) / "kafka", fsync=sizes.fsync, say=say) as broker:
            bench = Bench(broker.bootstrap, Path(scratch), sizes, say, flames if asked.profile else None)
            try:
                for name in asked.benchmarks or [name for name in BENCHMARKS if asked.full or name not in LENGTHY]:
                    results.extend(BENCHMARKS[name](bench))
            except WrongResultError as wrong:
                say(f"WRONG RESULT, nothing is told: {wrong}")
                say(f"  what its processes said: {_kept_logs(Path(scratch), asked.results)}")
                return 1
    took_s = time.monotonic() - begun
    run = report.Run(datetime.now(UTC), sizes, machine.described(), bench.loads, results, took_s)
    print(run.markdown())
    for path in report.write(run, asked.results):
        say(f"written: {path}")
    if asked.reference:
        REFERENCE.write_bytes(run.to_json())
        SPEEDS.write_text(pictures.speeds(results))
        GROWTH.write_text(pictures.growth(results))
        README.write_text(report.put_between_markers(README.read_text(), run.markdown()))
        say(f"written: {REFERENCE}, {SPEEDS}, {GROWTH} and the table in {README}")
    return 0


def _kept_logs(scratch: Path, results: Path) -> Path:
    """Copies of the logs of workers, of Kafka and of RocksDB, which would go with the scratch directory."""
    into = results / f"failed-{datetime.now(UTC):%Y-%m-%d-%H%M%S}"
    for path in scratch.rglob("*"):
        # Files whose names are numbers are data: of Kafka's topics, of RocksDB's writes.
        is_log = path.name == "LOG" or (path.suffix == ".log" and not path.stem.isdecimal())
        if path.is_file() and is_log and path.stat().st_size < KEPT_BYTES_MAX:
            kept = into / path.relative_to(scratch)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # Kafka still runs
                shutil.copyfile(path, kept)
    return into


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    option = parser.add_argument
    option(
        "benchmarks",
        nargs="*",
        metavar="|".join(BENCHMARKS),
        help=f"which to run; without any all but {', '.join(LENGTHY)}",
    )
    option("--rounds", type=int, default=3, help="of each comparison (default 3)")
    option("--scale", type=float, default=1.0, help="how much is written: 0.1 is a tenth (default 1)")
    option("--partitions", type=int, default=8, help="of the topics (default 8)")
    option("--full", action="store_true", help="also what takes long, and large stores at their whole size")
    option("--fsync", action="store_true", help="have Kafka flush every record to the disk")
    option("--profile", action="store_true", help="do each once more under py-spy, and draw flame graphs")
    option("--results", type=Path, default=RESULTS, metavar="DIR", help="where the figures of this run are kept")
    option("--reference", action="store_true", help="make this run the reference: results.json, README, pictures")
    option(
        "--scratch", type=Path, help="where Kafka and the stores are for the time (default: the temporary directory)"
    )
    asked = parser.parse_args(arguments)
    if unknown := set(asked.benchmarks) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if asked.reference and asked.benchmarks:
        parser.error("the reference has all benchmarks in it; leave their names out")
    return asked


if __name__ == "__main__":
    sys.exit(main())
