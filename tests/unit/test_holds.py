"""Who waits for whom: only for who came before and touches the same, and in the order of the log."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.streams.holds import Holds, Name

G, H, J = ("group", "g"), ("group", "h"), ("group", "j")


def test_what_nobody_holds_is_free() -> None:
    holds = Holds()
    assert not holds.blocks([G, H])
    assert holds.enter(1, [G])
    assert not holds.waits(1)
    assert holds.blocks([H, G])
    assert not holds.blocks([H])


def test_an_id_and_a_group_of_one_name_are_two() -> None:
    holds = Holds()
    holds.enter(1, [("id", "x")])
    assert not holds.blocks([("group", "x")])


def test_who_waits_holds_all_its_names_too() -> None:
    holds = Holds()
    holds.enter(1, [G])
    assert not holds.enter(2, [G, H])
    assert holds.blocks([H])
    assert not holds.enter(3, [H])
    assert holds.leave(1) == [2]
    assert holds.waits(3)
    assert holds.leave(2) == [3]
    assert holds.leave(3) == []
    assert not holds.blocks([G, H])


def test_one_that_waits_for_several_has_its_turn_after_the_last() -> None:
    holds = Holds()
    for offset, name in ((1, G), (2, H), (3, J)):
        assert holds.enter(offset, [name])
    assert not holds.enter(4, [G, H, J])
    assert holds.leave(2) == []
    assert holds.leave(1) == []
    assert holds.leave(3) == [4]


def test_many_are_freed_in_the_order_of_the_log() -> None:
    holds = Holds()
    holds.enter(1, [G, H, J])
    for offset, name in ((2, J), (3, G), (4, H)):
        holds.enter(offset, [name])
    assert holds.leave(1) == [2, 3, 4]


def test_what_touches_nothing_has_its_turn_at_once() -> None:
    holds = Holds()
    holds.enter(1, [G])
    assert not holds.blocks(())
    assert holds.enter(2, ())
    assert holds.leave(2) == []


def test_only_whose_turn_it_is_can_leave() -> None:
    holds = Holds()
    holds.enter(1, [G])
    holds.enter(2, [G])
    with pytest.raises(AssertionError):
        holds.leave(2)


names = st.sets(st.sampled_from([("group", name) for name in "abcde"]), max_size=3)


@given(st.lists(names, max_size=12), st.randoms())
def test_turns_come_as_the_first_of_all_that_touch_a_name(entering: list[set[Name]], random: object) -> None:
    """Against the plain definition: of those that are there, who has no name in common with any before it."""
    holds, there, offsets = Holds(), dict[int, set[Name]](), count()

    def turns() -> set[int]:
        return {one for one in there if not any(there[one] & there[other] for other in there if other < one)}

    while entering or there:
        before = turns()
        if entering and (not before or random.random() < 0.6):  # type: ignore[attr-defined]
            own = entering.pop()
            offset = next(offsets)
            assert holds.blocks(own) == any(own & held for held in there.values())
            there[offset] = own
            assert holds.enter(offset, sorted(own)) == (offset in turns())
        else:
            leaving = random.choice(sorted(before))  # type: ignore[attr-defined]
            del there[leaving]
            assert holds.leave(leaving) == sorted(turns() - before)
        assert all(holds.waits(one) == (one not in turns()) for one in there)
