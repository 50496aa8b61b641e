"""Looking: rows at any version, what happened to them, and who did it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Annotated, Any
from urllib.parse import unquote

import typer

from versolog.cli.graph import Node, draw
from versolog.cli.shown import errors_told, more_told, out, print_json, print_table, spelled
from versolog.client import Client, Counts, LoggedCommit, Moment, Range, Read, RowChange, TableChanges
from versolog.client.calls import PAGE_COMMITS
from versolog.schemas.errors import Invalid
from versolog.schemas.times import micros_from, millis_to_text

DEFAULT_URL = "http://127.0.0.1:8080"
LOG_LIMIT = 20
TABLE_ROWS_MAX = 1_000

Group = Annotated[str, typer.Argument(help="The group.", show_default=False)]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="The table.", show_default=False)]
Key = Annotated[str, typer.Argument(help="The row's key.", show_default=False)]
At = Annotated[str | None, typer.Option(help="A version, branch, tag, name~n or time. Default: the newest.")]
BranchOption = Annotated[str | None, typer.Option("--branch", help="Goes with a time, or alone.")]
Url = Annotated[str, typer.Option(envvar="VERSOLOG_URL", help="Where versolog answers.")]
Json = Annotated[bool, typer.Option("--json", help="JSON, one line each.")]
Limit = Annotated[int, typer.Option(min=1, help="How many at the most.")]
DiffLimit = Annotated[int, typer.Option(min=1, max=1_000, help="How many rows at the most.")]


@contextmanager
def connected(url: str, as_json: bool) -> Iterator[Client]:
    """A client; its typed errors become one line, or one JSON object."""
    with errors_told(as_json), Client(url) as client:
        yield client


def get(
    group: Group, table: TableName, key: Key, at: At = None, branch: BranchOption = None, url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:  # fmt: skip
    """The row as it stands, or stood."""
    with connected(url, as_json) as client:
        row = client.row(group, table, key, at, branch)
        print_json(row if as_json else row.row)


def rows(
    group: Group, table: TableName, at: At = None, branch: BranchOption = None,
    prefix: Annotated[str | None, typer.Option(help="Keys that begin so.")] = None,
    where: Annotated[str | None, typer.Option(help="Fields, such as: delay > 15 and status = \"departed\"")] = None,
    limit: Limit = 100, url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The rows of a table, all of one version."""
    with connected(url, as_json) as client:
        found = _some(client.rows(group, table, at, branch=branch, prefix=prefix, where=where), limit, "rows")
        _show(found, as_json, ("key", "version", "row"), lambda row: (row.key, row.version, row.row))


def history(
    group: Group, table: TableName, key: Key, at: At = None, branch: BranchOption = None, limit: Limit = LOG_LIMIT,
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """What happened to a row, the newest first."""
    with connected(url, as_json) as client:
        found = _some(client.history(group, table, key, at, branch=branch), limit, "changes")
        titles = ("version", "committed at", "author", "type", "message", "row")
        _show(found, as_json, titles, lambda past: (
            past.version, past.committed_at, past.author, past.type or past.operation, past.message,
            "deleted" if past.row is None else past.row,
        ))  # fmt: skip


def blame(
    group: Group, table: TableName, key: Key, at: At = None, branch: BranchOption = None, url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:  # fmt: skip
    """For each field of a row, the commit that set it."""
    with connected(url, as_json) as client:
        found = client.blame(group, table, key, at, branch)
        titles = ("field", "value", "version", "committed at", "author", "message")
        _show(found, as_json, titles, lambda field: (
            ".".join(field.path), field.value, field.version, field.committed_at, field.author, field.message,
        ))  # fmt: skip


def log(
    group: Group, at: At = None, branch: BranchOption = None,
    table: Annotated[str | None, typer.Option(help="Only commits that changed this table.")] = None,
    key: Annotated[str | None, typer.Option(help="Only commits that changed this row of --table.")] = None,
    author: Annotated[str | None, typer.Option(help="Only commits by this author.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only events that their service calls so.")] = None,
    operation: Annotated[str | None, typer.Option(help="Only commits of this kind: write, merge, …")] = None,
    grep: Annotated[str | None, typer.Option(help="Only commits with this in their message.")] = None,
    since: Annotated[str | None, typer.Option(help="Only commits at this time or later.")] = None,
    until: Annotated[str | None, typer.Option(help="Only commits at this time or earlier.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every commit of the group, on all branches.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Draw branches and merges, as Git does.")] = False,
    limit: Limit = LOG_LIMIT, url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The commits that led to a place, the newest first, or those of them that are searched for."""
    with connected(url, as_json) as client:
        chosen = {"table": table, "key": key, "author": author, "type": kind, "operation": operation, "message": grep}
        if graph and any(chosen.values()):
            raise Invalid("--graph draws every commit; to choose some of them, leave it out")
        listed = client.log(
            group, at, branch=branch, **chosen, since=since, until=until, all=every, graph=graph,
            page=min(limit, PAGE_COMMITS),
        )  # fmt: skip
        if graph and not as_json:
            for line in draw(map(_node, _some(listed, limit, "commits"))):
                out.print(line, soft_wrap=True)
            return
        titles = ("version", "branch", "committed at", "author", "operation", "type", "message")
        _show(_some(listed, limit, "commits"), as_json, titles, lambda entry: (
            entry.version, entry.branch, entry.committed_at, entry.author, entry.operation, entry.type, entry.message,
        ))  # fmt: skip


def show(
    group: Group, version: Annotated[int, typer.Argument(help="The commit's version.", show_default=False)],
    table: Annotated[str | None, typer.Option(help="Only this table.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only keys that begin so.")] = None,
    limit: DiffLimit = 100, url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """One commit with all that it changed, field by field."""
    with connected(url, as_json) as client:
        found = client.changes(group, version, table=table, prefix=prefix, limit=limit)
        if as_json:
            print_json(found)
            return
        commit = found.commit
        facts = {
            "version": commit.version, "branch": commit.branch, "parents": list(commit.parents), "hash": commit.hash,
            "previous": commit.previous_hash, "transaction": commit.transaction_id, "author": commit.author,
            "committed at": commit.committed_at, "operation": commit.operation, "arguments": commit.arguments,
            "type": commit.type, "message": commit.message,
        }  # fmt: skip
        print_table(("", ""), ((name, fact) for name, fact in facts.items() if fact not in (None, "")))
        _show_changes(found.counts, ("changed", "changed"), found.rows)


def diff(
    group: Group,
    before: Annotated[str, typer.Argument(
        metavar="FROM", help="A version, branch, tag or time; or FROM...TO, as with --merge-base.", show_default=False,
    )],
    after: Annotated[str | None, typer.Argument(metavar="TO", help="Default: the newest.")] = None,
    branch: BranchOption = None,
    merge_base: Annotated[bool, typer.Option("--merge-base", help="What TO has since it parted from FROM.")] = False,
    table: Annotated[str | None, typer.Option(help="Only this table.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Only keys that begin so.")] = None,
    limit: DiffLimit = 100, url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """What differs between two versions: counts, then rows and fields."""
    if after is None and "..." in before:
        before, _, to = before.partition("...")
        after, merge_base = to or None, True
    with connected(url, as_json) as client:
        found = client.diff(
            group, before, after, branch=branch, merge_base=merge_base, table=table, prefix=prefix, limit=limit
        )
        if as_json:
            print_json(found)
            return
        print(f"version {found.before.version} → {found.after.version}")
        _show_changes(found.counts, ("differs", "differ"), found.rows)


def groups(
    prefix: Annotated[str, typer.Option(help="Names that begin so.")] = "", limit: Limit = 1_000,
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The groups there are."""
    with connected(url, as_json) as client:
        found = _some(client.groups(prefix), limit, "groups")
        titles = ("group", "version", "committed at")
        _show(found, as_json, titles, lambda group: (group.group, group.version, group.committed_at))


def tags(
    group: Annotated[str | None, typer.Argument(help="Default: those of the whole store.", show_default=False)] = None,
    at: At = None, url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The tags of a group, or of the whole store."""
    with connected(url, as_json) as client:
        if group is None:
            titles = ("tag", "moment", "committed at")
            _show(client.store_tags(), as_json, titles, lambda tag: (tag.name, tag.at, tag.committed_at))
            return
        titles = ("tag", "version", "committed at")
        _show(client.tags(group, at), as_json, titles, lambda tag: (tag.name, tag.version, tag.committed_at))


def read(
    rows: Annotated[list[str], typer.Argument(
        metavar="GROUP/TABLE/KEY…", help="Rows, of any groups; a / in a name as %2F. Without a key, the whole table.",
        show_default=False,
    )],
    at: Annotated[str | None, typer.Option(help="A time or a store-wide tag. Default: the newest moment.")] = None,
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Rows of many groups at one moment, each transaction whole or not at all."""
    with connected(url, as_json) as client:
        found = _whole(client, [_read_named(name) for name in rows], at)
        if as_json:
            print_json(found)
            return
        print(f"at {millis_to_text(micros_from(found.at) // 1000)}")
        listed = [row for result in found.results for row in (result.rows if isinstance(result, Range) else [result])]
        print_table(("group", "table", "key", "version", "row"), (
            (row.group, row.table, row.key, row.version, row.row) for row in listed if row is not None
        ))  # fmt: skip


def transactions(
    waiting: Annotated[bool, typer.Option("--waiting", help="Those that are not decided yet, and why.")] = False,
    url: Url = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """The transactions that wait: for votes of other partitions, or for transactions before them."""
    with connected(url, as_json) as client:
        if not waiting:
            raise Invalid("say --waiting: what is decided is listed by `log`, group by group", field="waiting")
        titles = ("id", "partition", "groups", "since", "waited", "for")
        _show(client.waiting(), as_json, titles, lambda one: (
            one.id, one.partition, ", ".join(one.groups), one.since, f"{one.waited_s:.1f} s",
            "votes of " + ", ".join(map(str, one.awaited)) if one.awaited else "those before it",
        ))  # fmt: skip


def outcome(
    transaction_id: Annotated[str, typer.Argument(metavar="ID", help="The transaction's id.", show_default=False)],
    group: Annotated[str | None, typer.Option(help="Its group, so that only one partition is asked.")] = None,
    url: Url = DEFAULT_URL,
) -> None:  # fmt: skip
    """How a transaction ended, as JSON."""
    with connected(url, as_json=True) as client:
        print_json(client.outcome(transaction_id, group).to_json())


def _whole(client: Client, reads: Sequence[Read], at: str | None) -> Moment:
    """What is read, the ranges to their ends."""
    found = client.read(*reads, at=at)
    results = [
        _to_its_end(client, asked, one, found.at) if isinstance(one, Range) else one
        for asked, one in zip(reads, found.results, strict=True)
    ]
    return replace(found, results=results)


def _to_its_end(client: Client, asked: Read, first: Range, at: datetime) -> Range:
    rows, after = list(first.rows), first.after
    while after is not None:
        more = client.read(replace(asked, after=after), at=at).range(0)
        rows += more.rows
        after = more.after
    return replace(first, rows=rows, after=None)


def _some(found: Iterator[Any], limit: int, what: str) -> Iterator[Any]:
    """The first of them; that there are more is told beside."""
    yield from islice(found, limit)
    if next(found, None) is not None:
        more_told(what)


def _node(entry: LoggedCommit) -> Node:
    """A commit as `log --graph` draws it, with the names that stand there."""
    place = entry.graph
    assert place is not None, "it was asked for"
    names = [*place.branches, *(f"tag: {tag}" for tag in place.tags)]
    told = (
        str(entry.version), f"({', '.join(names)})" if names else "", spelled(entry.committed_at), entry.author,
        entry.type or entry.operation, entry.message.partition("\n")[0],
    )  # fmt: skip
    return Node(entry.version, place.parents, "  ".join(filter(None, told)))


def _show_changes(counts: Counts, verbs: tuple[str, str], rows: Sequence[RowChange]) -> None:
    """How many rows there are, in all and by table, then each by its fields."""
    told = f"1 row {verbs[0]}" if counts.rows == 1 else f"{counts.rows:,} rows {verbs[1]}"
    print(f"{'' if counts.complete else 'at least '}{told}{_kinds(counts)}")
    if len(counts.tables) > 1:
        for table in counts.tables:
            print(f"  {table.table}: {table.rows:,}{_kinds(table)}")
    if rows:
        print_table(("table", "key", "field", "before", "after"), _fields_of(rows))
    if len(rows) < counts.rows:
        print(f"… {counts.rows - len(rows):,} more; --limit, --table and --prefix show others")


def _kinds(counts: Counts | TableChanges) -> str:
    kinds = {"added": counts.added, "changed": counts.changed, "removed": counts.removed}
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    return f" ({told})" if told else ""


def _fields_of(rows: Iterable[RowChange]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        if row.before is None or row.after is None:
            before, after = (state and spelled(state.row) for state in (row.before, row.after))
            yield row.table, row.key, row.change, before, after
            continue
        for field in row.fields:
            before = spelled(field.before) if field.in_before else "absent"
            yield row.table, row.key, ".".join(field.path), before, spelled(field.after) if field.in_after else "absent"


def _show(found: Iterable[Any], as_json: bool, titles: tuple[str, ...], line: Any) -> None:
    if as_json:
        for item in found:
            print_json(item)
    else:
        print_table(titles, map(line, found))


def _read_named(place: str) -> Read:
    """A row or a table, written as a path."""
    names = [unquote(name) for name in place.split("/")]
    if len(names) not in (2, 3) or not all(names):
        raise Invalid(f"{place!r} is not GROUP/TABLE/KEY or GROUP/TABLE", field="rows")
    if len(names) == 2:
        return Read(names[0], names[1], limit=TABLE_ROWS_MAX)
    return Read(names[0], names[1], names[2])
