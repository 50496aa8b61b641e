"""The `where` language."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.projections.queries import Predicate
from versolog.schemas.errors import Malformed

ROW: dict[str, Any] = {
    "status": "departed",
    "delay": 3,
    "share": 0.5,
    "late": True,
    "gate": None,
    "crew": {"captain": "Ada", "size": 4, "1": "one"},
    "tags": ["a"],
    "odd name": "x",
    "day": "2013-01-01",
    "größe": 1,
}


@pytest.mark.parametrize(
    "holds",
    [
        "status=departed",
        'status = "departed"',
        "status = 'departed'",
        "status != landed",
        "delay = 3",
        "delay = 3.0",
        "delay >= 3 and delay<=3",
        "delay > 2.5",
        "delay > -1",
        "share < 1e0",
        "late = true",
        "late != 1",
        "gate = null",
        "exists gate",
        "not exists nothing",
        "nothing != 1",
        "crew.captain = Ada",
        "crew.captain.more != 1",
        "crew.1 = one",
        "not exists crew.captain.more",
        "`odd name` = x",
        "crew.`captain` = Ada",
        "status in (landed, departed)",
        "delay in (1, 2, 3)",
        "gate in (null)",
        'status < "e"',
        "day = 2013-01-01",
        "day < 2013-02-01",
        "delay = 4 or delay = 3",
        "delay = 3 or delay = 4 and status = landed",
        "not (delay = 4 and status = departed)",
        "not delay = 4",
        "not not delay = 3",
        "größe = 1",
        'status = "d\\u0065parted"',
        "  delay  =  3  ",
    ],
)
def test_what_holds(holds: str) -> None:
    assert Predicate.parse(holds)(ROW)
    assert not Predicate.parse(f"not ({holds})")(ROW)


@pytest.mark.parametrize(
    "fails",
    [
        "status = landed",
        'delay = "3"',
        "delay > departed",
        "status > 3",
        "late = 1",
        "late > 0",
        "delay = true",
        "nothing = null",
        "nothing < 3",
        "nothing in (null, 3)",
        "gate < 3",
        "gate = false",
        "crew = 3",
        "tags = a",
        "status = 'd\\u0065parted'",
        "(delay = 3 or delay = 4) and status = landed",
    ],
)
def test_what_fails(fails: str) -> None:
    assert not Predicate.parse(fails)(ROW)


@pytest.mark.parametrize(
    ("broken", "position"),
    [
        ("", 1),
        ("   ", 4),
        ("status", 7),
        ("status =", 9),
        ("status = departed delay = 3", 19),
        ("status == departed", 9),
        ("status = 'departed", 10),
        ("3 = delay", 1),
        ("and = 3", 1),
        ("status = and", 10),
        ("delay in 3", 10),
        ("delay in (3", 12),
        ("delay in ()", 11),
        ("(delay = 3", 11),
        ("delay = 3)", 10),
        ("not", 4),
        ("exists 3", 8),
        ("delay = `x`", 9),
        ("delay ; 3", 7),
        ('status = "\\q"', 10),
        ("a..b = 1", 2),
    ],
)
def test_what_is_broken_is_refused_with_its_position(broken: str, position: int) -> None:
    with pytest.raises(Malformed) as raised:
        Predicate.parse(broken)
    assert raised.value.facts["field"] == "where"
    assert raised.value.facts["position"] == position
    assert f"character {position}" in raised.value.detail


def test_depth_and_length_are_bounded() -> None:
    Predicate.parse("(" * 49 + "a = 1" + ")" * 49)
    with pytest.raises(Malformed, match="50 levels"):
        Predicate.parse("(" * 1_000 + "a = 1")
    with pytest.raises(Malformed, match="50 levels"):
        Predicate.parse("not " * 1_000 + "a = 1")
    with pytest.raises(Malformed, match="4,096 characters"):
        Predicate.parse("a = '" + "x" * 4_096 + "'")


@given(
    st.lists(st.sampled_from([*"a1.`'\"()=<>!, ", "and", "or", "not", "in", "exists", "null", "-2"])).map("".join)
    | st.text()
)
def test_any_text_is_a_condition_or_malformed(text: str) -> None:
    try:
        predicate = Predicate.parse(text)
    except Malformed:
        return
    assert predicate(ROW) in (True, False)
