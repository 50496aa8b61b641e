"""Pictures of what was measured: speeds beside their floors, and how times grow with what there is."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measured import MILLISECONDS, PER_SECOND, Result, Series
from benchmarks.report import number

INCH_WIDE, INCH_A_BAR = 10.0, 0.42
OURS, OTHERS = "#2f6db3", "#b8c4d0"
MARKERS = "osD^vP"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "versolog", "font.size": 9.0}
"""Text as text, and the same picture of the same figures."""


def speeds(results: Iterable[Result]) -> str:
    """Every comparison of speeds as SVG: each with a scale of its own, and the range of the rounds on each bar."""
    compared = [result for result in results if result.unit == PER_SECOND and result.sides]
    bars = [1.5 + len(result.sides) for result in compared]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(INCH_WIDE, INCH_A_BAR * sum(bars) + 0.2), layout="constrained")
        panels = figure.subplots(len(compared), 1, squeeze=False, height_ratios=bars)[:, 0]
        for axes, result in zip(panels, compared, strict=True):
            _draw_bars(axes, result)
        return _svg(figure)


def growth(results: Iterable[Result]) -> str:
    """What was timed at several sizes, as SVG: a panel for what grows, and a line for each question."""
    by_axis: dict[str, list[Result]] = {}
    for result in results:
        if result.grows_with and result.unit == MILLISECONDS:
            by_axis.setdefault(result.grows_with, []).append(result)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(INCH_WIDE, 3.6 * len(by_axis)), layout="constrained")
        panels = figure.subplots(len(by_axis), 1, squeeze=False)[:, 0]
        for axes, (what, grown) in zip(panels, by_axis.items(), strict=True):
            for marker, result in zip(MARKERS, grown, strict=False):
                points = sorted(_points(result))
                question = result.name.partition(", after")[0].replace(f"{result.size:,} ", "")
                axes.plot(*zip(*points, strict=True), marker=marker, label=question)
            axes.set(xscale="log", yscale="log", xlabel=what, ylabel="milliseconds", ylim=(0.1, 1_000))
            axes.grid(alpha=0.3)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return _svg(figure)


def _points(result: Result) -> Iterator[tuple[int, float]]:
    yield result.size, result.series.median
    for side in result.sides:
        if side.size:
            yield side.size, side.series.median


def _draw_bars(axes: Axes, result: Result) -> None:
    named: list[tuple[str, Series]] = [("versolog", result.series)]
    named += [(side.name, side.series) for side in result.sides]
    for place, (name, series) in enumerate(named):
        spread = [[series.median - series.low], [series.high - series.median]]
        axes.barh(place, series.median, xerr=spread, color=OTHERS if place else OURS, height=0.6, ecolor="#1b2733")
        axes.text(series.high, place, f"  {number(series.median, result.unit)}   {name}", va="center")
    axes.set_title(result.name, loc="left", fontweight="bold", fontsize=9.0)
    axes.set_xlim(0, max(series.high for _, series in named) * 1.9)
    axes.invert_yaxis()
    axes.set_axis_off()


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
