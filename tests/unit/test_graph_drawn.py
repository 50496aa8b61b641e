"""Drawn graphs, as they look: branches, merges, nested and crossed ones, and what is not listed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versolog.cli.graph import Node, draw

Parents = dict[int, Sequence[int]]


def drawn(parents: Parents) -> list[str]:
    return list(draw(Node(version, parents[version], f"v{version}") for version in sorted(parents, reverse=True)))


LINE: Parents = {3: [2], 2: [1], 1: []}
MERGED: Parents = {8: [6, 5], 6: [3], 5: [2], 3: [2], 2: [1], 1: []}
OPEN: Parents = {6: [4], 5: [3], 4: [2], 3: [2], 2: []}
MANY_FROM_ONE: Parents = {4: [1], 3: [1], 2: [1], 1: []}
NESTED: Parents = {9: [4, 8], 8: [6, 7], 7: [5], 6: [5], 5: [3], 4: [3], 3: []}
CROSSED: Parents = {9: [7], 8: [6], 7: [5, 4], 6: [4, 5], 5: [3], 4: [3], 3: []}
TWO_BEGINNINGS: Parents = {6: [5], 5: [3], 4: [], 3: []}
ENDS_ON_THE_LEFT: Parents = {6: [4], 5: [3], 4: [], 3: [2], 2: []}
TWO_MERGES_AT_ONCE: Parents = {9: [8, 2], 8: [7, 3], 7: [6], 6: [1], 3: [1], 2: [1], 1: []}
MERGED_FROM_THE_LEFT: Parents = {8: [5], 7: [6, 5], 6: [4], 5: [4], 4: []}
MORE_TO_COME: Parents = {9: [7, 8], 8: [6]}


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        (
            LINE,
            r"""
            * v3
            * v2
            * v1
            """,
        ),
        (
            MERGED,
            r"""
            *   v8
            |\
            * | v6
            | * v5
            * | v3
            |/
            * v2
            * v1
            """,
        ),
        (
            OPEN,
            r"""
            * v6
            | * v5
            * | v4
            | * v3
            |/
            * v2
            """,
        ),
        (
            MANY_FROM_ONE,
            r"""
            * v4
            | * v3
            |/
            | * v2
            |/
            * v1
            """,
        ),
        (
            NESTED,
            r"""
            *   v9
            |\
            | *   v8
            | |\
            | | * v7
            | * | v6
            | |/
            | * v5
            * | v4
            |/
            * v3
            """,
        ),
        (
            CROSSED,
            r"""
            * v9
            | * v8
            * |   v7
            |\ \
            | | *   v6
            | | |\
            | |/ /
            | |/
            |/|
            * | v5
            | * v4
            |/
            * v3
            """,
        ),
        (
            TWO_BEGINNINGS,
            r"""
            * v6
            * v5
            | * v4
            * v3
            """,
        ),
        (
            ENDS_ON_THE_LEFT,
            r"""
            * v6
            | * v5
            * | v4
             /
            * v3
            * v2
            """,
        ),
        (
            TWO_MERGES_AT_ONCE,
            r"""
            *   v9
            |\
            * |   v8
            |\ \
            * | | v7
            * | | v6
            | * | v3
            |/ /
            | * v2
            |/
            * v1
            """,
        ),
        (
            MERGED_FROM_THE_LEFT,
            r"""
            * v8
            | *   v7
            | |\
            | |/
            |/|
            | * v6
            * | v5
            |/
            * v4
            """,
        ),
        (
            MORE_TO_COME,
            r"""
            *   v9
            |\
            | * v8
            """,
        ),
    ],
)
def test_a_graph_is_drawn(parents: Parents, expected: str) -> None:
    assert drawn(parents) == dedent(expected).strip("\n").splitlines()


@st.composite
def histories(draw_: st.DrawFn) -> Parents:
    """Commits with up to two parents among those before them."""
    parents: Parents = {}
    for version in range(1, draw_(st.integers(1, 20)) + 1):
        parents[version] = draw_(st.lists(st.sampled_from(sorted(parents)), max_size=2, unique=True)) if parents else []
    return parents


@given(histories())
def test_every_line_of_a_drawing_leads_on_to_the_next(parents: Parents) -> None:
    """Each commit has one line, in order, and where a line says that something goes, the next one has something."""
    lines = drawn(parents)
    told = [line for line in lines if "*" in line]
    assert [line.rpartition(" ")[2] for line in told] == [f"v{version}" for version in sorted(parents, reverse=True)]
    graphs = [line.partition(" v")[0] for line in lines]
    for line, following in pairwise(graphs):
        for place, character in enumerate(line):
            ends = {"|": place, "/": place - 1, "\\": place + 1}.get(character)
            if ends is not None:
                around = following.ljust(ends + 2)[max(0, ends - 1) : ends + 2]
                assert around.strip(), "\n".join(lines)


@given(histories(), st.integers(0, 20))
def test_a_drawing_begins_as_that_of_its_first_page(parents: Parents, count: int) -> None:
    newest = sorted(parents, reverse=True)[:count]
    whole, page = drawn(parents), drawn({version: parents[version] for version in newest})
    assert whole[: len(page)] == page


@given(histories())
def test_a_drawing_is_as_wide_as_there_are_lines_side_by_side(parents: Parents) -> None:
    newest, open_, widest = sorted(parents, reverse=True), set[int](), 0
    for version in newest:
        open_ |= {version}
        widest = max(widest, len(open_) + max(0, len(parents[version]) - 1))
        open_ = (open_ - {version}) | set(parents[version])
    assert all(len(line.partition(" v")[0].rstrip()) < 2 * widest for line in drawn(parents))
