"""Writing: rows, whole transactions, and operations on a group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from versolog.cli.looking import DEFAULT_URL, Group, Json, Key, TableName, Url, connected
from versolog.cli.shown import print_json, print_table, rows_told
from versolog.client import Rehearsal
from versolog.schemas.documents import from_text, row_from_text
from versolog.schemas.errors import Invalid, Malformed
from versolog.schemas.outcome import Outcome
from versolog.streams.state import MAIN
from versolog.streams.transaction import Transaction

RowText = Annotated[str, typer.Argument(metavar="JSON", help="The row, a JSON object.", show_default=False)]
Branch = Annotated[str, typer.Option("--branch", help="The branch.")]
Author = Annotated[str, typer.Option(help="Who does this.")]
Message = Annotated[str, typer.Option("--message", "-m", help="Why.")]
ExpectHead = Annotated[int | None, typer.Option(min=0, help="Only while the branch's head is this version.")]


def put(
    group: Group, table: TableName, key: Key, row: RowText, branch: Branch = MAIN, author: Author = "",
    message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Put a row."""
    with connected(url, as_json) as client:
        about = {"branch": branch, "author": author, "message": message}
        show_outcome(client.put(group, table, key, row_from_text(row), **about), as_json)


def patch(
    group: Group, table: TableName, key: Key, row: RowText, branch: Branch = MAIN, author: Author = "",
    message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Change some fields of a row (RFC 7396: null takes a field away)."""
    with connected(url, as_json) as client:
        about = {"branch": branch, "author": author, "message": message}
        show_outcome(client.patch(group, table, key, row_from_text(row), **about), as_json)


def delete(
    group: Group, table: TableName, key: Key, branch: Branch = MAIN, author: Author = "", message: Message = "",
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Delete a row; its past stays."""
    with connected(url, as_json) as client:
        show_outcome(client.delete(group, table, key, branch=branch, author=author, message=message), as_json)


def send(
    file: Annotated[Path, typer.Argument(help="A transaction as JSON; - for standard input.", show_default=False)],
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Send one transaction, written as HTTP takes it."""
    with connected(url, as_json) as client:
        show_outcome(client.send(Transaction.from_json(from_text(_text_in(file)))), as_json)


def tag(
    group: Group, name: Annotated[str, typer.Argument(help="The tag.", show_default=False)],
    at: Annotated[str | None, typer.Option(help="What it names. Default: the newest.")] = None,
    move: Annotated[bool, typer.Option("--move", help="Let a tag that exists name another version.")] = False,
    gone: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
    author: Author = "", message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Name a version."""
    with connected(url, as_json) as client:
        about = {"author": author, "message": message}
        done = client.delete_tag(group, name, **about) if gone else client.tag(group, name, at, move=move, **about)
        show_outcome(done, as_json)


def tag_store(
    name: Annotated[str, typer.Argument(help="The tag.", show_default=False)],
    at: Annotated[str | None, typer.Option(help="A time. Default: the newest moment.")] = None,
    gone: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
    author: Author = "", message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Name a moment of the whole store, to read and replay all groups as they stood then."""
    with connected(url, as_json) as client:
        about = {"author": author, "message": message}
        done = client.delete_store_tag(name, **about) if gone else client.tag_store(name, at, **about)
        show_outcome(done, as_json)


def rollback(
    group: Group, to: Annotated[str, typer.Option(help="The version, tag or time to go back to.", show_default=False)],
    branch: Branch = MAIN,
    table: Annotated[str | None, typer.Option(help="Only this table.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this row of --table.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only keys that begin so.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would change, and change nothing.")] = False,
    expect_head: ExpectHead = None, author: Author = "", message: Message = "", url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a branch equal a past version, by a new commit."""
    with connected(url, as_json) as client:
        tx = client.transaction(group, branch=branch, author=author, message=message, expect_head=expect_head)
        tx.operation("rollback", to=to, table=table, key=key, prefix=prefix)
        if dry_run:
            show_rehearsal(client.rehearse(tx), as_json)
        else:
            show_outcome(tx.send(), as_json)


def checks(
    group: Group, table: TableName,
    file: Annotated[Path | None, typer.Argument(
        help="The checks to set, as JSON; - for standard input. Without it, those of now are shown.",
        show_default=False,
    )] = None,
    gone: Annotated[bool, typer.Option("--delete", help="Take the checks away.")] = False,
    branch: Branch = MAIN, author: Author = "", message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """What the rows of a table are held to: show it, set it, take it away."""
    with connected(url, as_json) as client:
        if file is not None or gone:
            if file is not None and gone:
                raise Invalid("a file of checks and --delete can't be meant together", field="file")
            given = None if file is None else row_from_text(_text_in(file))
            show_outcome(client.set_checks(group, table, given, branch=branch, author=author, message=message), as_json)
            return
        found = client.checks(group, table, branch=branch)
        if as_json:
            print_json(found)
            return
        print_table(("check", "rule"), found.checks.items())


def drop(
    group: Group, yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False, author: Author = "",
    message: Message = "", url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Drop a group. Its log stays, and its past can be read by version."""
    if not yes:
        typer.confirm(f"Drop {group}?", abort=True)
    with connected(url, as_json) as client:
        show_outcome(client.drop_group(group, author=author, message=message), as_json)


def _text_in(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        raise Invalid(f"{file} can't be read: {error.strerror}", field="file") from error
    except UnicodeDecodeError as error:
        raise Malformed(f"{file} is not UTF-8: {error}", field="file") from error


def show_rehearsal(found: Rehearsal, as_json: bool) -> None:
    """What an operation would change."""
    if as_json:
        print_json(found)
        return
    print(rows_told(found.counts.rows, "would change"))
    if not found.rows:
        return
    print_table(("table", "key", "change", "after"), (
        (row.table, row.key, row.change, row.after) for row in found.rows
    ))  # fmt: skip


def show_outcome(outcome: Outcome, as_json: bool) -> None:
    """What a write made."""
    if as_json:
        print_json(outcome.to_json())
        return
    for part in outcome.parts:
        print(f"version {part.version} of {part.group} on {part.branch}  {part.hash.hex()[:16]}")
