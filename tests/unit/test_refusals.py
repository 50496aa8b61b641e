"""Refusals: whatever is sent, the outcome fits the log and the partition goes on; and each says what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from tests.group import Group
from versolog.schemas import codec as avro
from versolog.schemas.codec import Record
from versolog.schemas.documents import to_text
from versolog.schemas.limits import CHANGES_MAX, GROUPS_MAX, RECORD_BYTES_MAX
from versolog.schemas.outcome import Outcome
from versolog.streams.decide import OUTCOME
from versolog.streams.transaction import Transaction

HUGE = "99999999999999999999"
"""More than 64 bits hold."""
ESCAPED = "\U000e0001" * 120_000
"""Half a megabyte that is shown as more than one."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """Two commits on main, a third on `plan`, which is in conflict."""
    engine = Engine(tmp_path / "store")
    with closing(engine.store):
        group = Group(engine)
        group.put("k", {"a": 1})
        group.branch("plan")
        group.put("k", {"a": 2}, "plan")
        group.put("k", {"a": 3})
        yield group


def operation(kind: str, **arguments: Any) -> Record:
    record = Transaction("g").operation("tag").record()
    record["parts"][0]["operation"] = {"kind": kind, "arguments": to_text(arguments)}
    return record


def with_part(**part: Any) -> Record:
    record = Transaction("g").put("t", "k", {}).record()
    record["parts"][0] |= part
    return record


def over_groups(count: int) -> Record:
    record = Transaction("g").put("t", "k", {}).record()
    record["parts"] = [{**record["parts"][0], "group": f"g{number}"} for number in range(count)]
    return record


HOSTILE = {
    "a version over 64 bits to merge": (operation("merge", source=HUGE), "unknown-version"),
    "an ancestor of one": (operation("merge", source=f"{HUGE}~1"), "unknown-version"),
    "one to revert from": (operation("revert", **{"from": HUGE, "to": "1"}), "unknown-version"),
    "one to roll back to": (operation("rollback", to=HUGE), "unknown-version"),
    "one to branch at": (operation("create-branch", name="x", **{"from": HUGE}), "unknown-version"),
    "one to tag": (operation("tag", name="x", at=HUGE), "unknown-version"),
    "a policy of half a megabyte": (operation("merge", source="plan", policy=ESCAPED), "invalid"),
    "an argument of that name": (operation("merge", **{ESCAPED: 1}), "invalid"),
    "an operation of that name": (operation(ESCAPED), "unknown-operation"),
    "a resolution that takes it": (
        operation("merge", source="plan", resolutions=[{"table": "t", "key": "k", "take": ESCAPED}]), "invalid",
    ),
    "a group of that name": (with_part(group=ESCAPED * 3), "too-large"),
    "a branch of that name": (with_part(branch=ESCAPED * 3), "too-large"),
    "a system table of that name": (
        with_part(changes=[{"op": "delete", "table": f"${ESCAPED}", "key": "k", "row": None}]), "too-large",
    ),
    "tens of thousands of groups": (over_groups(30_000), "too-large"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_is_sent_the_outcome_fits_the_log_and_the_partition_goes_on(group: Group, what: str) -> None:
    asked, code = HOSTILE[what]
    decision = group.engine.decide(asked)
    assert len(decision.outcome) < RECORD_BYTES_MAX - 64 * 1024
    assert Outcome.from_avro(avro.decode(OUTCOME, decision.outcome)).code == code
    group.engine.flush()
    assert group.put("k", {"a": 4}) > 4


def test_as_many_groups_as_are_allowed_are_written_together(group: Group) -> None:
    decision = group.engine.decide(over_groups(GROUPS_MAX))
    assert decision.code == ""
    assert len(decision.commits) == GROUPS_MAX < CHANGES_MAX


TOLD: list[tuple[str, dict[str, Any], str, str]] = [
    ("create-branch", {"name": "plan"}, "ref-exists", "choose another name"),
    ("create-branch", {"name": "12"}, "invalid", "add a letter"),
    ("create-branch", {"name": "2026-01-01T00:00"}, "invalid", "begin it with a letter"),
    ("create-branch", {"name": "a~b"}, "invalid", "may not hold ~"),
    ("create-branch", {}, "invalid", "give at least one character"),
    ("create-branch", {"name": "x", "from": "9"}, "unknown-version", "the newest is 4"),
    ("create-branch", {"name": "x", "from": "plan^2"}, "unknown-version", "version 3 is no merge"),
    ("create-branch", {"name": "x", "from": "main~5"}, "unknown-version", "version 1 is the first of its line"),
    ("delete-branch", {"name": "nope"}, "unknown-branch", "list its branches"),
    ("delete-branch", {"name": "main"}, "invalid", "drop-group"),
    ("delete-branch", {"name": "plan"}, "not-merged", "merge it, or say `force`"),
    ("delete-tag", {"name": "nope"}, "unknown-ref", "list its tags"),
    ("merge", {"source": "nope"}, "unknown-ref", "list them"),
    ("merge", {"source": "main"}, "nothing-to-merge", "merge what has more"),
    ("merge", {}, "invalid", "merge needs `source`"),
    ("merge", {"source": "plan"}, "merge-conflict", "a resolution for each or a policy"),
    ("merge", {"source": "plan", "policy": "mine"}, "invalid", "fail, ours, theirs"),
    ("revert", {"versions": [2]}, "invalid", "name one that did"),
    ("revert", {"versions": [9]}, "unknown-version", "the newest is 4"),
    ("revert", {"versions": [4], "parent": 2}, "invalid", "version 4 is no merge"),
    ("revert", {}, "invalid", "at least one; or give `from` and `to`"),
    ("cherry-pick", {"versions": [3]}, "merge-conflict", "a resolution for each or a policy"),
    ("rollback", {}, "invalid", "rollback needs `to`"),
]


@pytest.mark.parametrize(("kind", "arguments", "code", "words"), TOLD)
def test_a_refused_operation_says_why_and_what_to_do(
    group: Group, kind: str, arguments: dict[str, Any], code: str, words: str
) -> None:
    refused = group.refused(kind, **arguments)
    assert refused.code == code
    assert words in refused.detail


def test_a_conflict_is_spelled_alike_wherever_it_is_told(group: Group) -> None:
    rehearsed = group.conflicts("merge", source="plan")
    decided = group.refused("merge", source="plan").problem()
    assert decided is not None
    assert [list(conflict.items()) for conflict in decided["conflicts"]] == [
        list(
            {"table": "t", "key": "k", "path": ["a"], "code": "both-changed", "base": 1, "ours": 3, "theirs": 2}.items()
        )
    ]
    assert decided["conflicts"] == rehearsed


def test_a_sum_with_more_digits_than_a_number_may_have_is_refused(group: Group) -> None:
    group.put("k", {"a": "9" * 60 + "." + "9" * 60})
    tx = Transaction("g").add("t", "k", {"a": "0." + "0" * 59 + "2"})
    assert group.decided(tx).code == "overflow"
