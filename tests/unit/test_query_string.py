"""Query strings: the short way for the plainest of them reads what the library reads."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from versolog.projections.http.request import AtQuery, read_query
from versolog.schemas.errors import Invalid, Malformed


def asked(text: str) -> AtQuery:
    return read_query(Request({"type": "http", "query_string": text.encode(), "headers": []}), AtQuery)


@given(
    st.lists(st.sampled_from(["41", "a", "=", "&", "+", "%20", "%C3%A9", "~", ";", "&b=1"]), max_size=6).map("".join)
)
def test_a_query_reads_as_the_library_splits_it(text: str) -> None:
    pairs = parse_qsl("at=" + text, keep_blank_values=True, errors="strict")
    if len(pairs) == 1:
        assert asked("at=" + text).at == dict(pairs)["at"]
    else:
        with pytest.raises((Invalid, Malformed)):
            asked("at=" + text)


@pytest.mark.parametrize(
    ("text", "error"), [("=41", Invalid), ("ta=41", Invalid), ("at=1&at=2", Malformed), ("at=%ff", Malformed)]
)
def test_what_is_no_query_of_a_read_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        asked(text)


def test_a_parameter_without_a_value_is_empty() -> None:
    assert asked("at") == asked("at=") == AtQuery(at="")
