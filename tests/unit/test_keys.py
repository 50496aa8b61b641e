"""Keys sort as the tuples in them, whatever the texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.projections import keys
from versolog.schemas.errors import Invalid

texts = st.text(st.sampled_from("\0\1ab\x7f\x80\u07ff\uffff\U00010000\U0010ffff"), max_size=4) | st.text(max_size=6)
numbers = st.integers(0, keys.NUMBER_MAX)


def encoded(first: str, number: int, second: str, descending: int) -> bytes:
    return keys.text(first) + keys.number(number) + keys.text(second) + keys.descending(descending)


@given(st.tuples(texts, numbers, texts, numbers), st.tuples(texts, numbers, texts, numbers))
def test_keys_sort_as_their_tuples(one: tuple[str, int, str, int], other: tuple[str, int, str, int]) -> None:
    in_order = (*one[:3], -one[3]) < (*other[:3], -other[3])
    assert (encoded(*one) < encoded(*other)) == in_order


@given(texts, numbers, texts, numbers)
def test_keys_read_back(first: str, number: int, second: str, descending: int) -> None:
    key = encoded(first, number, second, descending)
    found, end = keys.read_text(key)
    assert (found, keys.read_number(key, end)) == (first, number)
    found, end = keys.read_text(key, end + 8)
    assert (found, keys.read_descending(key, end)) == (second, descending)
    assert keys.only_text(keys.text(first)) == first


@given(texts, texts, numbers)
def test_the_range_of_an_element_holds_all_that_start_with_it_and_nothing_else(one: str, other: str, n: int) -> None:
    prefix, key = keys.text(one), keys.text(other) + keys.number(n)
    assert (prefix <= key < keys.end(prefix)) == (one == other)


@given(texts.filter(bool), texts)
def test_the_range_of_a_beginning_holds_all_that_begin_so_and_nothing_else(beginning: str, text: str) -> None:
    lower = keys.beginning(beginning)
    assert (lower <= keys.text(text) < keys.end_of_beginning(lower)) == text.startswith(beginning)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(Invalid, match="surrogate"):
        keys.text("a\ud800")
