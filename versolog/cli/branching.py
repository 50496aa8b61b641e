"""Branching: branches, merges and what they conflict in, undoing commits and doing them again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from versolog.cli.looking import DEFAULT_URL, Group, Json, Limit, Url, connected
from versolog.cli.shown import err, print_json, print_refusal, print_table, rows_told, spelled
from versolog.cli.writing import Author, Branch, ExpectHead, Message, show_outcome, show_rehearsal
from versolog.client import ABSENT, Apart, Client, Conflict, MergeConflict, Rehearsal, Resolution
from versolog.schemas.documents import from_text
from versolog.schemas.errors import Invalid, VersologError
from versolog.schemas.outcome import Outcome
from versolog.streams.state import MAIN

EXIT_CONFLICTS = 3
"""The exit status where there are conflicts, so that a script can tell them from mistakes."""
CONFLICTS_SHOWN_MAX = 20

Into = Annotated[str, typer.Option("--into", help="The branch to merge into.")]
Source = Annotated[str, typer.Argument(help="The branch, tag, version or time to merge.", show_default=False)]
Versions = Annotated[list[int] | None, typer.Argument(metavar="[VERSION]...", help="The commits.", show_default=False)]
From = Annotated[str | None, typer.Option("--from", help="Or: all commits after this place …")]
To = Annotated[str | None, typer.Option("--to", help="… up to and with this one. Default: the branch's head.")]
Parent = Annotated[int | None, typer.Option(min=1, help="Of a merge: towards which of its parents.")]
Policy = Annotated[str, typer.Option(help="Conflicts that have no resolution: fail, ours or theirs.")]
NoFastForward = Annotated[bool, typer.Option("--no-ff", help="Make a merge where the branch could just move on.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would change, and change nothing.")]
Resolve = Annotated[
    Path | None,
    typer.Option(help="Resolutions: what `conflicts --json` shows, with a `take` in each; - for standard input."),
]
Take = Annotated[
    list[str] | None,
    typer.Option(metavar="SIDE=TABLE/KEY[/PATH]", help="End a conflict with `ours` or `theirs`. Can be repeated."),
]


def branch(
    group: Group, name: Annotated[str | None, typer.Argument(help="The branch; none to list them.")] = None,
    at: Annotated[str | None, typer.Option("--from", help="Where it begins. Default: main.")] = None,
    gone: Annotated[bool, typer.Option("--delete", help="Take its name away; its commits stay readable.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --delete: though it has commits of its own.")] = False,
    against: Annotated[str | None, typer.Option(help="In a list: how each stands to this place.")] = None,
    author: Author = "", message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """List branches, make one, delete one."""
    with connected(url, as_json) as client:
        about = {"author": author, "message": message}
        if name is None:
            if gone or force or at is not None:
                raise Invalid("name the branch to make or to delete", field="name")
            _list_branches(client, group, against, as_json)
        elif gone:
            show_outcome(client.delete_branch(group, name, force=force, **about), as_json)
        elif against is not None:
            _list_apart([client.compare(group, name, against)], against, as_json)
        elif force:
            raise Invalid("--force goes with --delete", field="force")
        else:
            show_outcome(client.branch(group, name, at, **about), as_json)


def merge(
    group: Group, source: Source, into: Into = MAIN, policy: Policy = "fail", no_ff: NoFastForward = False,
    resolve: Resolve = None, take: Take = None, dry_run: DryRun = False, expect_head: ExpectHead = None,
    author: Author = "", message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Bring what a branch did onto another. Exit status 3 where there are conflicts."""
    about = {"branch": into, "author": author, "message": message, "expect_head": expect_head}
    asked = {"source": source, "no_ff": no_ff or None, "policy": policy}
    with connected(url, as_json) as client, _conflicts_told(client, as_json):
        _settle(client, *_joining(client, "merge", group, asked, about), resolve, take, dry_run, as_json)


def revert(
    group: Group, versions: Versions = None, begin: From = None, end: To = None, branch: Branch = MAIN,
    parent: Parent = None, policy: Policy = "fail", resolve: Resolve = None, take: Take = None,
    dry_run: DryRun = False, expect_head: ExpectHead = None, author: Author = "", message: Message = "",
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Undo commits by a new one. Exit status 3 where there are conflicts."""
    about = {"branch": branch, "author": author, "message": message, "expect_head": expect_head}
    asked = {"versions": versions, "from": begin, "to": end, "parent": parent, "policy": policy}
    with connected(url, as_json) as client, _conflicts_told(client, as_json):
        _settle(client, *_joining(client, "revert", group, asked, about), resolve, take, dry_run, as_json)


def cherry_pick(
    group: Group, versions: Versions = None, begin: From = None, end: To = None, branch: Branch = MAIN,
    parent: Parent = None, policy: Policy = "fail", resolve: Resolve = None, take: Take = None,
    dry_run: DryRun = False, expect_head: ExpectHead = None, author: Author = "", message: Message = "",
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Do again on a branch what commits elsewhere did. Exit status 3 where there are conflicts."""
    about = {"branch": branch, "author": author, "message": message, "expect_head": expect_head}
    asked = {"versions": versions, "from": begin, "to": end, "parent": parent, "policy": policy}
    with connected(url, as_json) as client, _conflicts_told(client, as_json):
        _settle(client, *_joining(client, "cherry-pick", group, asked, about), resolve, take, dry_run, as_json)


def conflicts(
    group: Group, source: Source, into: Into = MAIN, limit: Limit = 1_000, url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:  # fmt: skip
    """What a merge would conflict in. Exit status 3 where there is anything."""
    with connected(url, as_json) as client:
        try:
            found = client.rehearse_merge(group, source, into)
        except MergeConflict as refused:
            listed = islice(client.conflicts(refused), limit)
            if as_json:
                for conflict in listed:
                    print_json(conflict.to_json())
            else:
                _show_conflicts(listed)
                _say_how_many(refused.total, limit)
            raise typer.Exit(EXIT_CONFLICTS) from refused
        if not as_json:
            print(f"no conflicts: {rows_told(found.counts.rows, 'would change')}")


# How conflicts end


def _joining(
    client: Client, kind: str, group: str, asked: dict[str, Any], about: dict[str, Any]
) -> tuple[Callable[[list[Any]], Rehearsal], Callable[[list[Any]], Outcome]]:
    """How a merge, a revert or a cherry-pick is rehearsed, and how it is done."""

    def transaction(resolutions: list[Any]) -> Any:
        arguments = asked | {"resolutions": resolutions}
        given = {name: value for name, value in arguments.items() if value not in (None, []) and value != "fail"}
        return client.transaction(group, **about).operation(kind, **given)

    return (
        lambda resolutions: client.rehearse(transaction(resolutions)),
        lambda resolutions: client.send(transaction(resolutions)),
    )


def _settle(
    client: Client, rehearse: Callable[[list[Any]], Rehearsal], do: Callable[[list[Any]], Outcome],
    resolve: Path | None, take: list[str] | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Do it, or say what it would do, with the resolutions that were given."""
    resolutions: list[Any] = [] if resolve is None else _read_resolutions(resolve)
    if take:
        resolutions += _taken(take, _met(client, rehearse, resolutions))
    if dry_run:
        show_rehearsal(rehearse(resolutions), as_json)
    else:
        show_outcome(do(resolutions), as_json)


def _met(client: Client, rehearse: Callable[[list[Any]], Rehearsal], resolutions: list[Any]) -> list[Conflict]:
    try:
        rehearse(resolutions)
    except MergeConflict as refused:
        return list(client.conflicts(refused))
    return []


def _taken(take: Iterable[str], met: list[Conflict]) -> list[Resolution]:
    """The resolutions that `--take` means among the conflicts there are. Raises Invalid where it means none."""
    ends: dict[tuple[str, str, tuple[str, ...]], Resolution] = {}
    for text in take:
        side, equals, place = text.partition("=")
        if not equals or side not in ("ours", "theirs"):
            raise Invalid(f"--take {text}: ours=TABLE/KEY or theirs=TABLE/KEY/PATH is wanted", field="take")
        meant = [conflict for conflict in met if place in (_row_of(conflict), _place_of(conflict))]
        if not meant:
            known = ", ".join(map(_place_of, met[:3])) or "none"
            raise Invalid(f"--take {text}: there is no such conflict; there are: {known}", field="take")
        for conflict in meant:
            end = conflict.take_ours() if side == "ours" else conflict.take_theirs()
            ends[conflict.table, conflict.key, conflict.path] = end
    return list(ends.values())


def _read_resolutions(file: Path) -> list[dict[str, Any]]:
    """Resolutions in a file: a JSON list, one a line, or a refusal's own JSON. Raises Malformed and Invalid."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        raise Invalid(f"--resolve {file}: {error.strerror}", field="resolve") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"--resolve {file}: it is no text in UTF-8", field="resolve") from error
    try:
        told = from_text(text)
    except VersologError:
        try:
            told = [from_text(line) for line in text.splitlines() if line.strip()]
        except VersologError as error:
            raise Invalid(f"--resolve {file}: {error.detail}", field="resolve") from error
    if isinstance(told, dict):
        told = told.get("conflicts", [told])
    if not isinstance(told, list) or not all(isinstance(one, dict) and "take" in one for one in told):
        raise Invalid(f"--resolve {file}: each resolution is a conflict with a `take` of its own", field="resolve")
    return told


# What is shown


@contextmanager
def _conflicts_told(client: Client, as_json: bool) -> Iterator[None]:
    """Conflicts as a table and a line, or the problem object that HTTP answers, and an exit status of their own."""
    try:
        yield
    except MergeConflict as refused:
        if as_json:
            print_json(refused.problem())
        else:
            _show_conflicts(islice(client.conflicts(refused), CONFLICTS_SHOWN_MAX))
            _say_how_many(refused.total, CONFLICTS_SHOWN_MAX)
            print_refusal(refused.code, refused.detail)
            _say_how_to_end(refused)
        raise typer.Exit(EXIT_CONFLICTS) from refused


def _show_conflicts(found: Iterable[Conflict]) -> None:
    titles = ("place", "conflict", "base", "ours", "theirs")
    print_table(titles, (
        (_place_of(one), f"{one.code}, stale" if one.stale else one.code, *map(_side, (one.base, one.ours, one.theirs)))
        for one in found
    ))  # fmt: skip


def _say_how_many(total: int, shown: int) -> None:
    if total > shown:
        print(f"{shown:,} of {total:,} conflicts; `versolog conflicts --limit {total}` lists all of a merge")


def _say_how_to_end(refused: MergeConflict) -> None:
    """The options that end conflicts, with the first one as the example."""
    ends = [conflict for conflict in refused.conflicts if conflict.code != "no-conflict"]
    if ends:
        example = shlex.quote(f"ours={_place_of(ends[0])}")
        err.print(
            f"· --take {example} ends one, --resolve FILE any (this with --json, and a `take` in each), --policy ours "
            "all that are left",
            soft_wrap=True,
        )


def _side(value: Any) -> str:
    return "absent" if value is ABSENT else "null" if value is None else spelled(value)


def _row_of(conflict: Conflict) -> str:
    return f"{conflict.table}/{conflict.key}"


def _place_of(conflict: Conflict) -> str:
    """The place as `--take` names it."""
    return "/".join((conflict.table, conflict.key, *conflict.path))


def _list_branches(client: Client, group: str, against: str | None, as_json: bool) -> None:
    found = client.branches(group)
    if against is not None:
        _list_apart([client.compare(group, one.name, against) for one in found], against, as_json)
    elif as_json:
        for one in found:
            print_json(one)
    else:
        print_table(("branch", "head", "committed at", "from", "at"), (
            (one.name, one.head, one.committed_at, one.parent, one.fork) for one in found
        ))  # fmt: skip


def _list_apart(found: Iterable[Apart], against: str, as_json: bool) -> None:
    if as_json:
        for one in found:
            print_json(one)
    else:
        print_table(("branch", "head", "committed at", f"ahead of {against}", "behind", "merge base"), (
            (one.branch.name, one.branch.head, one.branch.committed_at, one.ahead, one.behind,
             " ".join(map(str, one.bases))) for one in found
        ))  # fmt: skip
