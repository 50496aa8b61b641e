"""What was measured, as JSON for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from benchmarks.bench import Round, Sizes
from benchmarks.machine import PACKAGES
from benchmarks.measured import MIB, MILLISECONDS, SECONDS, TIMES, Result, Series, Side

BEGIN, END = "<!-- results: written by python -m benchmarks --reference -->", "<!-- end of results -->"

DIGITS = {MILLISECONDS: 1, SECONDS: 1, MIB: 0, TIMES: 2}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmarks."""

    at: datetime
    sizes: Sizes
    machine: dict[str, Any]
    rounds: Sequence[Round]
    results: Sequence[Result]
    took_s: float

    def to_json(self) -> bytes:
        """All of it."""
        return orjson.dumps(
            {
                "at": self.at.isoformat(timespec="seconds"),
                "took_s": round(self.took_s, 1),
                "sizes": self.sizes._asdict(),
                "machine": self.machine,
                "rounds": [
                    {"benchmark": each.benchmark, "number": each.number, **each.load._asdict()} for each in self.rounds
                ],
                "results": [_result_json(result) for result in self.results],
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )

    def markdown(self) -> str:
        """The table, and under what conditions it was measured."""
        parts = (self._conditions(), table(self.results), targets(self.results), _checks(self.results))
        return "\n\n".join("\n".join(part) for part in parts) + "\n"

    def _conditions(self) -> Iterator[str]:
        machine, sizes = self.machine, self.sizes
        busy = Series.of(each.load.busy for each in self.rounds)
        averages = Series.of(each.load.average[0] for each in self.rounds)
        fsync = (
            "**fsync on**: every record is on the disk before it is acknowledged"
            if sizes.fsync
            else "**fsync off**: Kafka acknowledges from the page cache, so kill -9 loses nothing and a power cut can"
        )
        yield (
            f"Measured {self.at:%Y-%m-%d %H:%M} UTC in {self.took_s / 60:.1f} minutes on {machine['cores']} cores "
            f"({machine['processor']}), {machine['memory_gib']} GiB, {machine['system']}; broker, worker and load "
            f"generator share them. {sizes.rounds} rounds, {sizes.partitions} partitions; {fsync}."
        )
        yield ""
        yield (
            f"Before the rounds other things kept {busy.median:.0%} of the processors busy "
            f"({busy.low:.0%} to {busy.high:.0%}), and the load average was {averages.median:.1f} "
            f"({averages.low:.1f} to {averages.high:.1f}; what was measured before counts in it)."
        )
        yield ""
        versions = ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
        yield (
            f"Apache Kafka {machine['kafka']}, Python {machine['python']}, librdkafka {machine['librdkafka']}, "
            f"{versions}; load by {machine['load_generator']}."
        )


def table(results: Iterable[Result]) -> Iterator[str]:
    """A line for each side of each comparison. The ratio is the median of the rounds' own."""
    yield "| what | median | range | processor time each | versolog to it | target |"
    yield "| --- | ---: | ---: | ---: | ---: | --- |"
    for result in results:
        unit, series = result.unit, result.series
        yield (
            f"| **{result.name}** | **{number(series.median, unit)}** | {_range(series, unit)} | {_cpu(result.cpu_us)} "
            f"| | {_target(result)} |"
        )
        for side in result.sides:
            yield (
                f"| {side.name} | {number(side.series.median, unit)} | {_range(side.series, unit)} "
                f"| {_cpu(side.cpu_us)} | {result.ratio(side):.2g}× |{_ratio_target(result, side)} |"
            )


def targets(results: Iterable[Result]) -> Iterator[str]:
    """What was aimed at, target by target, and what was measured."""
    yield "| target | measured | |"
    yield "| --- | ---: | --- |"
    for result in results:
        if result.target is not None:
            aimed = _aimed(result, number(result.target, result.unit))
            yield f"| {result.name}: {aimed} | {number(result.series.median, result.unit)} | {_met(result.met)} |"
        for side in result.sides:
            if side.ratio_target is not None:
                aimed = _aimed(result, f"{side.ratio_target:.2g}×")
                yield (
                    f"| {result.name}: {aimed} of *{side.name}* | {result.ratio(side):.2f}× "
                    f"| {_met(result.met_beside(side))} |"
                )


def number(value: float, unit: str) -> str:
    """The value with its unit: whole where it counts, with digits more where it is a time or a ratio."""
    if unit in DIGITS:
        return f"{value:,.{DIGITS[unit]}f} {unit}".replace(f" {TIMES}", TIMES)
    return f"{value:,.0f}{unit}"


def put_between_markers(text: str, fresh: str) -> str:
    """`text` with what stands between the markers replaced. Raises ValueError where they are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{BEGIN} and {END} are wanted, in this order")
    return f"{before}{BEGIN}\n\n{fresh.strip()}\n\n{END}{after}"


def write(run: Run, directory: Path) -> list[Path]:
    """Write the run into files that are named by its time."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = directory / run.at.strftime("%Y-%m-%d-%H%M%S")
    stem.with_suffix(".json").write_bytes(run.to_json())
    stem.with_suffix(".md").write_text(run.markdown())
    return [stem.with_suffix(".json"), stem.with_suffix(".md")]


def _range(series: Series, unit: str) -> str:
    return f"{number(series.low, unit)} – {number(series.high, unit)}"


def _cpu(series: Series | None) -> str:
    return "" if series is None else f"{series.median:.3g} µs"


def _target(result: Result) -> str:
    if result.target is None:
        return ""
    return f"{_aimed(result, number(result.target, result.unit))}: {_met(result.met)}"


def _ratio_target(result: Result, side: Side) -> str:
    if side.ratio_target is None:
        return ""
    return f" {_aimed(result, f'{side.ratio_target:.2g}×')}: {_met(result.met_beside(side))}"


def _aimed(result: Result, at: str) -> str:
    return f"{'≥' if result.better == 'more' else '≤'} {at}"


def _met(is_met: bool | None) -> str:
    return "met" if is_met else "**missed**"


def _checks(results: Iterable[Result]) -> Iterator[str]:
    yield "Checked before a speed was told:"
    yield ""
    seen: dict[str, list[str]] = {}
    for result in results:
        seen.setdefault(result.checked, []).append(result.name.partition(":")[0])
    for checked, names in seen.items():
        yield f"- {'; '.join(dict.fromkeys(names))}: {checked}."


def _result_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "unit": result.unit,
        "better": result.better,
        "median": result.series.median,
        "values": result.series.values,
        "processor_us": None if result.cpu_us is None else result.cpu_us.values,
        "target": result.target,
        "met": result.met,
        "checked": result.checked,
        "beside": [
            {
                "name": side.name,
                "values": side.series.values,
                "processor_us": None if side.cpu_us is None else side.cpu_us.values,
                "ratio": result.ratio(side),
                "ratio_target": side.ratio_target,
                "met": result.met_beside(side),
            }
            for side in result.sides
        ],
    }
