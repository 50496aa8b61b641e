"""Draws a commit graph with text, in the manner of `git log --graph`: a track for each line of commits that is open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """A commit to draw."""

    version: int
    parents: Sequence[int]
    label: str


def draw(nodes: Iterable[Node]) -> Iterator[str]:
    """The lines of the drawing. Nodes come with every child before its parents, as those with the newest first do.

    A track is two characters wide. `*` is a commit, `|` a track, `\\` one that a merge opens or pushes aside, and `/`
    one that goes where the same commit is waited for already. What never comes stays open at the end. Each node is
    drawn when it comes, so a long graph can be drawn page by page.
    """
    tracks: list[int] = []  # the version that each waits for, no two the same
    for node in nodes:
        if node.version not in tracks:
            tracks.append(node.version)
        column = tracks.index(node.version)
        width = len(tracks) + max(0, len(node.parents) - 1)
        marks = ["*" if track == column else "|" for track in range(len(tracks))]
        yield f"{' '.join(marks).ljust(2 * width - 1)} {node.label}".rstrip()
        edges = [*tracks[:column], *node.parents, *tracks[column + 1 :]]
        yield from _opened(len(tracks), column, len(node.parents))
        places = list(range(len(edges)))
        if not node.parents:
            places[column:] = range(column + 1, len(tracks))
        tracks = list(dict.fromkeys(edges))
        yield from _joined(edges, places, tracks)


def _opened(tracks: int, column: int, parents: int) -> Iterator[str]:
    """The tracks of the second and further parents open, beside that of the first, one a line."""
    for more in range(1, parents):
        at = column + more
        characters = _blank(tracks + more)
        for place in range(tracks + more):
            characters[2 * place if place < at else 2 * place - 1] = "|" if place < at else "\\"
        yield _text(characters)


def _joined(edges: Sequence[int], places: list[int], tracks: Sequence[int]) -> Iterator[str]:
    """Each edge goes to the track of the commit it leads to, one place to the left a line, behind those in its way."""
    wanted = [tracks.index(edge) for edge in edges]
    while places != wanted:
        characters = _blank(max(places) + 1)
        for edge, place in enumerate(places):
            if place > wanted[edge]:
                characters[2 * place - 1] = "/"
                places[edge] = place - 1
            else:
                characters[2 * place] = "|"
        yield _text(characters)


def _blank(tracks: int) -> list[str]:
    return [" "] * (2 * tracks)


def _text(characters: Sequence[str]) -> str:
    return "".join(characters).rstrip()
