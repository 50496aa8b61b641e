"""What is measured: one value a round, the sides of a comparison, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType
from typing import Literal, NamedTuple

Better = Literal["more", "less"]

PER_SECOND = "/s"
MILLISECONDS = "ms"
SECONDS = "s"
MIB = "MiB"
TIMES = "×"


class WrongResultError(Exception):
    """A benchmark did not get the result that it must, so that it has no speed to tell."""


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each round, in the order of the rounds; at least one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Series:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: Series) -> Series:
        """The ratio to `other` in each round: what else went on in a round slowed both sides of it."""
        return Series.of(own / others for own, others in zip(self.values, other.values, strict=True))


@dataclass(frozen=True, slots=True)
class Side:
    """What versolog was measured beside."""

    name: str
    series: Series
    cpu_us: Series | None = None
    """Microseconds of processor time, of the measured process, for each; None where that is not the question."""
    size: int = 0
    """Where it is the same at another size: at which."""
    ratio_target: float | None = None
    """How many times as much as this versolog should be, or at most where less is better."""


@dataclass(frozen=True, slots=True)
class Result:
    """One thing that was measured over several rounds, and its result checked before."""

    name: str
    unit: str
    series: Series
    checked: str
    """What was checked, for the reader."""
    sides: tuple[Side, ...] = ()
    target: float | None = None
    better: Better = "more"
    cpu_us: Series | None = None
    grows_with: str = ""
    """What `size` counts, where the question is how it grows; the sides that have a size are the same at others."""
    size: int = 0

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        return None if self.target is None else self._meets(self.series.median, self.target)

    def ratio(self, side: Side) -> float:
        """How many times as much as the side this is: the median of the rounds' ratios."""
        return self.series.over(side.series).median

    def met_beside(self, side: Side) -> bool | None:
        """Whether the ratio meets its target; None without one."""
        return None if side.ratio_target is None else self._meets(self.ratio(side), side.ratio_target)

    def beside(self, others: Mapping[str, Sequence[float]]) -> Result:
        """The same with more sides, by name what they made in each round."""
        return replace(self, sides=(*self.sides, *(Side(name, Series.of(made)) for name, made in others.items())))

    def _meets(self, value: float, target: float) -> bool:
        return value >= target if self.better == "more" else value <= target


class Speed(NamedTuple):
    """How fast a process did something."""

    per_s: float
    cpu_us: float
    """Microseconds of processor time, of that process, for each: what else the machine does hardly changes it."""


class Seen(NamedTuple):
    """A counter of a process, and the processor time it had used, at a moment."""

    at_s: float
    cpu_s: float
    counted: int


def speed(first: Seen, last: Seen) -> Speed:
    """Between two moments. Raises WrongResultError where nothing was counted between."""
    count, took_s = last.counted - first.counted, last.at_s - first.at_s
    if count <= 0 or took_s <= 0:
        raise WrongResultError("it was over before it could be seen twice; measure more at once")
    return Speed(count / took_s, (last.cpu_s - first.cpu_s) / count * 1e6)


def told(speed: Speed) -> str:
    """For a line of progress."""
    return f"{speed.per_s:,.0f}/s ({speed.cpu_us:.1f} µs)"


def compared(
    name: str, ours: Sequence[Speed], checked: str, sides: Mapping[str, Sequence[Speed]], target: float | None = None,
    ratio_targets: Mapping[str, float] = MappingProxyType({}),
) -> Result:  # fmt: skip
    """How fast, beside the others; some of them with a ratio that is aimed at."""
    others = (
        Side(other, _per_s(speeds), _cpu_us(speeds), ratio_target=ratio_targets.get(other))
        for other, speeds in sides.items()
    )
    return Result(name, PER_SECOND, _per_s(ours), checked, tuple(others), target, cpu_us=_cpu_us(ours))


def _per_s(speeds: Sequence[Speed]) -> Series:
    return Series.of(speed.per_s for speed in speeds)


def _cpu_us(speeds: Sequence[Speed]) -> Series:
    return Series.of(speed.cpu_us for speed in speeds)


def percentile(samples: Iterable[float], share: float) -> float:
    """The smallest sample that `share` (0 < share ≤ 1) of all are not above: the nearest rank."""
    ordered = sorted(samples)
    return ordered[math.ceil(share * len(ordered)) - 1]


class Latency(NamedTuple):
    """How long answers took, in milliseconds."""

    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, samples_s: Sequence[float]) -> Latency:
        return cls(percentile(samples_s, 0.50) * 1000, percentile(samples_s, 0.99) * 1000)
