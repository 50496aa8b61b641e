"""A picture of throughput beside its floor: one scale a comparison, so that the lengths of bars are shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from benchmarks.measured import PER_SECOND, Result, Series
from benchmarks.report import number

WIDTH, LEFT, RIGHT = 960, 20, 120
BAR, GAP, TITLE = 16, 4, 26
OURS, OTHERS, RANGE = "#2f6db3", "#b8c4d0", "#1b2733"


def drawn(results: Iterable[Result]) -> str:
    """Every comparison of speeds as SVG; the line through a bar is the range of its rounds."""
    compared = [result for result in results if result.unit == PER_SECOND and result.sides]
    parts: list[str] = []
    y = 10
    for result in compared:
        parts.append(f'<text x="{LEFT}" y="{y + 14}" font-weight="bold">{escape(result.name)}</text>')
        y += TITLE
        bars = [("versolog", result.series), *((side.name, side.series) for side in result.sides)]
        parts.extend(_bars(bars, y))
        y += len(bars) * (2 * BAR + GAP) + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _bars(bars: Sequence[tuple[str, Series]], y: int) -> Iterator[str]:
    full = max(series.high for _, series in bars)
    scale = (WIDTH - LEFT - RIGHT) / full
    for place, (name, series) in enumerate(bars):
        top = y + place * (2 * BAR + GAP)
        width, middle = series.median * scale, top + BAR + BAR / 2
        yield f'<text x="{LEFT}" y="{top + 13}" fill="#555">{escape(name)}</text>'
        yield (
            f'<rect x="{LEFT}" y="{top + BAR}" width="{max(width, 1):.1f}" height="{BAR - 2}" '
            f'fill="{OURS if place == 0 else OTHERS}"/>'
        )
        low, high = LEFT + series.low * scale, LEFT + series.high * scale
        yield f'<path d="M{low:.1f} {middle - 1} H{high:.1f}" stroke="{RANGE}"/>'
        yield f'<text x="{max(high, LEFT + width) + 6:.1f}" y="{middle + 3}">{number(series.median, PER_SECOND)}</text>'
