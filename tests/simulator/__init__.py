"""A seeded simulator of transactions over several partitions: the pure cores, in schedules full of faults.

python -m tests.simulator --runs 10000 --from 0      many seeds, on all processors
python -m tests.simulator --seed 7 -v                one of them, step by step
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from tests.simulator.judge import judge
from tests.simulator.world import Protocol, World

__all__ = ["Protocol", "ViolationError", "simulate", "simulate_all", "unmet"]

OFTEN = (
    "decided before the rest", "looked at aside", "owner crashed", "owner replaced", "owner full",
    "sequencer crashed", "sequencer replaced", "batch in flight kept", "batch in flight lost",
    "single committed", "spanning committed", "spanning committed with a part that only reads", "spanning again",
    "spanning head-mismatch", "spanning version-mismatch", "spanning id-reused",
)  # fmt: skip
SELDOM = (
    "share left behind", "single malformed", "single invalid", "single wrong-partition", "spanning invalid",
    "spanning not-a-number",
)  # fmt: skip


class ViolationError(AssertionError):
    """What a schedule has brought to light; the seed brings it again."""

    def __init__(self, seed: int, reason: str) -> None:
        super().__init__(seed, reason)
        self.seed, self.reason = seed, reason

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.reason}; to see it: python -m tests.simulator --seed {self.seed} -v"


def simulate(seed: int, protocol: Protocol | None = None, say: Callable[[str], None] | None = None) -> Counter[str]:
    """One run; what was met on the way. Raises ViolationError."""
    world = World(seed, protocol or Protocol(), say)
    try:
        world.run()
        judge(world)
    except Exception as error:
        reason = str(error) if isinstance(error, AssertionError) and str(error) else f"{type(error).__name__}: {error}"
        raise ViolationError(seed, reason) from error
    return world.seen


def simulate_all(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Many runs; what was met in all of them, and the violations."""
    seen: Counter[str] = Counter()
    violations = []
    for seed in seeds:
        try:
            seen += simulate(seed)
        except ViolationError as violation:
            violations.append(str(violation))
    return seen, violations


def unmet(seen: Counter[str], runs: int) -> list[str]:
    """What was not met as often as it should be: schedules that never get to what they are for prove nothing."""
    wanted = dict.fromkeys(OFTEN, 0.4) | dict.fromkeys(SELDOM, 0.02)
    return [f"{what}: {seen[what]:,}" for what, least in wanted.items() if seen[what] < least * runs]
