"""What branches, merges, differences and histories cost, and that it does not grow with the rows or commits there are.

On the store alone, with no Kafka between: `python -m benchmarks.versioning` runs these without a broker.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, ParamSpec

from benchmarks import report
from benchmarks.bench import Bench, Sizes
from benchmarks.measured import MILLISECONDS, Result, Series, Side, WrongResultError
from tests.engine import Engine
from versolog.projections.logs import log
from versolog.projections.views import View
from versolog.schemas import codec
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME, plan
from versolog.streams.merging import Unmerged
from versolog.streams.transaction import Transaction

TABLE = "t"
ROWS_FEW, ROWS_MANY = 10, 1_000_000
MERGED_TABLE_ROWS, MERGED_ROWS = 100_000, 10_000
SMALLER = 10
"""How many times fewer changed rows, or rows in the table, the merges beside that one have."""
COMMITS = (1_000, 10_000, 100_000)
KEYS, WATCHED_CHANGES = 100, 50
BATCH = 2_000
READS, PAGE = 1_000, 50
SAMPLES = 9

BRANCH_TARGET_MS, MERGE_TARGET_MS, HISTORY_TARGET_MS = 20.0, 500.0, 5.0
GROWTH_MAX = 1.5

P = ParamSpec("P")


def measure(bench: Bench) -> Iterator[Result]:
    """Branches, merges, and reads of histories of three lengths."""
    engine = Engine(bench.scratch / "versioning")
    try:
        yield _branches(bench, engine)
        yield from _merges(bench, engine)
        yield from _histories(bench, engine)
    finally:
        engine.store.close()


# Branches


def _branches(bench: Bench, engine: Engine) -> Result:
    few, many = ROWS_FEW, bench.sizes.of(ROWS_MANY)
    groups = {f"rows-{count}": count for count in (few, many)}
    for group, count in groups.items():
        bench.say(f"filling {count:,} rows")
        _fill(engine, group, count)
    _settle(engine)
    taken: dict[str, list[float]] = {group: [] for group in groups}
    for number in bench.rounds("create a branch"):
        for group in groups:
            times = [_timed_ms(_create_branch, engine, group, name) for name in _names(number)]
            taken[group].append(median(times))
            if _key(0) not in {key for key, _ in _page(engine, group, f"branch-{number}-0")}:
                raise WrongResultError("a new branch does not show the rows of the one it was made from")
    on_few, on_many = (Series.of(times) for times in taken.values())
    checked = "the branch reads as the one it was made from"
    sides = (Side(f"on {few} rows", on_few, size=few),)
    name = f"create a branch on {many:,} rows, decided and stored"
    return Result(
        name, MILLISECONDS, on_many, checked, sides, BRANCH_TARGET_MS, "less", None, "rows in the group", many
    )


def _names(number: int) -> list[str]:
    return [f"branch-{number}-{sample}" for sample in range(SAMPLES)]


# Merges


def _merges(bench: Bench, engine: Engine) -> Iterator[Result]:
    rows, changed = bench.sizes.of(MERGED_TABLE_ROWS), bench.sizes.of(MERGED_ROWS)
    whole = _Merges(f"merge {changed:,} changed rows into a table of {rows:,}, decided and stored", rows, changed)
    fewer = _Merges(f"{changed // SMALLER:,} changed rows into the same", rows, changed // SMALLER)
    smaller = _Merges(f"{changed:,} changed rows into a table of {2 * changed:,}", 2 * changed, changed)
    for number in bench.rounds(f"merge {changed:,} rows"):
        for place, merges in enumerate((whole, fewer, smaller)):
            _merge_once(engine, f"merge-{place}-{number}", merges)
    checked = f"{changed:,} rows were brought, and as many that the branch had not were kept"
    sides = (
        Side("dry run of it", Series.of(whole.rehearsed)),
        Side(fewer.name, Series.of(fewer.clean), size=changed // SMALLER),
        Side(smaller.name, Series.of(smaller.clean)),
    )
    took = Series.of(whole.clean)
    yield Result(whole.name, MILLISECONDS, took, checked, sides, MERGE_TARGET_MS, "less", None, "changed rows", changed)
    name = f"find {changed:,} conflicts and tell the first {PAGE}"
    checked = f"there are {changed:,}, each of the one field that both sides changed"
    conflicts = (
        Side(f"{changed // SMALLER:,} conflicts", Series.of(fewer.conflicting), size=changed // SMALLER),
        Side(f"{changed:,} conflicts in a table of {2 * changed:,}", Series.of(smaller.conflicting)),
    )
    took = Series.of(whole.conflicting)
    yield Result(name, MILLISECONDS, took, checked, conflicts, MERGE_TARGET_MS, "less", None, "changed rows", changed)


class _Merges:
    """What the merges of one size took, in milliseconds, a value a round."""

    def __init__(self, name: str, rows: int, changed: int) -> None:
        self.name, self.rows, self.changed = name, rows, changed
        self.rehearsed: list[float] = []
        self.clean: list[float] = []
        self.conflicting: list[float] = []


def _merge_once(engine: Engine, group: str, took: _Merges) -> None:
    changed = took.changed
    _fill(engine, group, took.rows)
    for branch in ("clean", "conflicting"):
        _do(engine, group, "create-branch", name=branch)
    _change(engine, group, "clean", range(0, 2 * changed, 2), "here")
    _change(engine, group, "main", range(1, 2 * changed, 2), "here")
    _settle(engine)
    took.rehearsed.append(_timed_ms(_rehearse, engine, group, "clean"))
    took.clean.append(_timed_ms(_merge, engine, group, "clean"))
    _check_merged(engine, group, changed)
    _change(engine, group, "conflicting", range(1, 2 * changed, 2), "there")
    took.conflicting.append(_timed_ms(_check_conflicts, engine, group, changed))


def _check_merged(engine: Engine, group: str, changed: int) -> None:
    view = View(engine.store)
    rows = view.rows(view.resolve(group), [(TABLE, _key(number)) for number in range(2 * changed)])
    if any(row is None or row.text is None or b'"here"' not in row.text for row in rows):
        raise WrongResultError(f"the merge into {group} lost a row")


def _check_conflicts(engine: Engine, group: str, changed: int) -> None:
    try:
        _rehearse(engine, group, "conflicting")
    except Unmerged as conflict:
        told = [found.to_json() for found in conflict.every[:PAGE]]
        if len(conflict.every) == changed and all(found["path"] == ["at"] for found in told):
            return
    raise WrongResultError(f"{changed} conflicts were wanted in {group}")


def _rehearse(engine: Engine, group: str, source: str) -> None:
    plan(engine.overlay, Transaction(group).operation("merge", source=source).record()["parts"][0])


# Histories


class History(NamedTuple):
    """A group of some length."""

    group: str
    commits: int
    """On main."""
    head: int


def _histories(bench: Bench, engine: Engine) -> Iterator[Result]:
    fewest, *longer = COMMITS
    histories = [_history(bench, engine, commits) for commits in dict.fromkeys((fewest, *map(bench.sizes.of, longer)))]
    _settle(engine)
    questions: dict[str, tuple[Callable[[Engine, History], None], float | None]] = {
        f"{READS:,} rows read at head": (_read_head, None),
        f"{READS:,} rows read at an old version": (_read_old, None),
        f"a log page of {PAGE} commits": (_log_page, None),
        "the difference of versions 10 commits apart": (_near_difference, None),
        f"the history of a key, {WATCHED_CHANGES} changes": (_key_history, HISTORY_TARGET_MS),
        "a dry run of merging a branch as old as the history": (_old_merge, None),
    }
    taken: dict[str, list[list[float]]] = {name: [[] for _ in histories] for name in questions}
    for _ in bench.rounds("histories"):
        for name, (ask, _target) in questions.items():
            samples: list[list[float]] = [[] for _ in histories]
            for _sample in range(SAMPLES):
                for place, history in enumerate(histories):
                    samples[place].append(_timed_ms(ask, engine, history))
            for place, times in enumerate(samples):
                taken[name][place].append(median(times))
    for name, (_ask, target) in questions.items():
        *shorter, longest = map(Series.of, taken[name])
        sides = tuple(
            Side(f"the same after {history.commits:,} commits", took, size=history.commits)
            for history, took in zip(histories, shorter, strict=False)
        )
        limit = min(GROWTH_MAX * shorter[0].median, target or float("inf"))
        commits = histories[-1].commits
        checked = "each answer has the rows or commits that were written"
        yield Result(
            f"{name}, after {commits:,} commits", MILLISECONDS, longest, checked, sides, limit, "less", None,
            "commits in the group's history", commits,
        )  # fmt: skip


def _history(bench: Bench, engine: Engine, commits: int) -> History:
    """A group of so many commits on main, each of one row, and a branch from its beginning with ten rows of its own."""
    bench.say(f"making a history of {commits:,} commits")
    group, every = f"history-{commits}", commits // WATCHED_CHANGES
    _send(engine, [Transaction(group).put(TABLE, "watched", {"at": -1})])
    _do(engine, group, "create-branch", name="old")
    _change(engine, group, "old", range(10), "old")
    transactions: list[Transaction] = []
    rows = 0
    for number in range(1, commits):
        rows += number % every != 0
        key = _key(10 + (rows - 1) % KEYS) if number % every else "watched"
        transactions.append(Transaction(group, author="bench").put(TABLE, key, {"at": number}))
        if len(transactions) == BATCH:
            _send(engine, transactions)
            transactions = []
    _send(engine, transactions)
    head = engine.store.head(group)
    assert head is not None, "it was just written"
    return History(group, commits, head.version)


def _read_head(engine: Engine, history: History) -> None:
    _read(engine, history, history.head)


def _read_old(engine: Engine, history: History) -> None:
    _read(engine, history, history.head - history.commits // 4)


def _read(engine: Engine, history: History, version: int) -> None:
    view, chosen = View(engine.store), random.Random(7)
    at = view.resolve(history.group, str(version))
    present = min(KEYS, history.commits // 2)
    for _ in range(READS):
        row = view.row(at, TABLE, _key(10 + chosen.randrange(present)))
        if row is None:
            raise WrongResultError(f"a row of {history.group} is not there at version {version}")


def _log_page(engine: Engine, history: History) -> None:
    view = View(engine.store)
    page = log(view, view.resolve(history.group, "main"), limit=PAGE)
    if [commit["version"] for commit in page.commits] != list(range(history.head, history.head - PAGE, -1)):
        raise WrongResultError(f"the log of {history.group} is another")


def _near_difference(engine: Engine, history: History) -> None:
    view = View(engine.store)
    before, after = (view.resolve(history.group, str(version)) for version in (history.head - 10, history.head))
    if len(view.diff(before, after, limit=PAGE).rows) not in (9, 10):
        raise WrongResultError(f"ten commits of {history.group} changed another number of rows")


def _key_history(engine: Engine, history: History) -> None:
    view = View(engine.store)
    found = view.history(view.resolve(history.group, "main"), TABLE, "watched", limit=1_000)
    if abs(len(found.changes) - WATCHED_CHANGES) > 1:
        raise WrongResultError(f"the key has {len(found.changes)} changes in {history.group}")


def _old_merge(engine: Engine, history: History) -> None:
    part = Transaction(history.group).operation("merge", source="old").record()["parts"][0]
    line, _ = plan(engine.overlay, part)
    if len(line.changed) != 10:
        raise WrongResultError(f"the merge would bring {len(line.changed)} rows")


# Writing


def _key(number: int) -> str:
    return f"key-{number:08}"


def _fill(engine: Engine, group: str, rows: int) -> None:
    _change(engine, group, "main", range(rows), "start")


def _change(engine: Engine, group: str, branch: str, numbers: Sequence[int], at: str) -> None:
    for start in range(0, len(numbers), BATCH):
        tx = Transaction(group, branch=branch)
        for number in numbers[start : start + BATCH]:
            tx.put(TABLE, _key(number), {"pk": number, "name": f"row {number}", "share": number / 2, "at": at})
        _send(engine, [tx])


def _do(engine: Engine, group: str, kind: str, **arguments: object) -> None:
    _send(engine, [Transaction(group).operation(kind, **arguments)])


def _send(engine: Engine, transactions: Sequence[Transaction]) -> None:
    """Decide, and write to the store. What is logged is let go of: nobody folds it again."""
    decisions = [engine.decide(tx) for tx in transactions]
    engine.flush()
    for decision in decisions:
        if decision.code:
            raise WrongResultError(Outcome.from_avro(codec.decode(OUTCOME, decision.outcome)).detail)


def _create_branch(engine: Engine, group: str, name: str) -> None:
    _do(engine, group, "create-branch", name=name)


def _merge(engine: Engine, group: str, source: str) -> None:
    _do(engine, group, "merge", source=source)


def _settle(engine: Engine) -> None:
    """Have all that was written in files: what is in memory is quicker to read, and short histories all are."""
    engine.store.close()
    engine.open()


def _page(engine: Engine, group: str, at: str) -> list[tuple[str, object]]:
    view = View(engine.store)
    return list(view.scan(view.resolve(group, at), TABLE, limit=PAGE).rows)


def _timed_ms(do: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> float:
    begun = time.perf_counter()
    do(*arguments, **named)
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    """Measure without a broker, and print the table."""
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory(prefix="versolog-bench-") as scratch:
        sizes = Sizes(rounds=3, scale=scale)
        bench = Bench("", Path(scratch), sizes, lambda line: print(line, file=sys.stderr, flush=True))
        print("\n".join(report.table(measure(bench))))


if __name__ == "__main__":
    main()
