"""What every command shares: consoles, settings, errors as one line, tables or JSON, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from stamina.instrumentation import RetryDetails

from versolog.config import Settings
from versolog.schemas.errors import Invalid, VersologError

# No markup: what people wrote into rows and messages is shown as they wrote it, `[bold]` and `:x:` too.
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)

DEFAULT_DATA = Path("versolog-data")

Bootstrap = Annotated[str | None, typer.Option(help="Kafka brokers, host:port and commas between.")]
Data = Annotated[Path, typer.Option(help="The directory that everything is kept in.")]
Prefix = Annotated[str | None, typer.Option(help="Begins the names of the topics.")]
Partitions = Annotated[int | None, typer.Option(help="Partitions of the topics, fixed when they are created.")]
Replication = Annotated[int | None, typer.Option(help="Replication factor of topics that are created.")]
Fsync = Annotated[bool | None, typer.Option(help="Flush every record to the disk before it is acknowledged.")]
KafkaOption = Annotated[
    list[str] | None, typer.Option("--kafka", help="One more setting of the Kafka clients, as name=value.")
]
RegistryUrl = Annotated[str | None, typer.Option(help="A Schema Registry to use.")]


@contextlib.contextmanager
def errors_told(as_json: bool = False) -> Iterator[None]:
    """A typed error becomes one line, or the problem object that HTTP would answer, and exit status 1."""
    try:
        yield
    except VersologError as error:
        if as_json:
            print_json(error.problem())
        else:
            print_refusal(error.code, error.detail)
        raise typer.Exit(1) from error


def print_refusal(code: str, detail: str) -> None:
    """Why something was not done, in one line."""
    err.print(Text(code, style="bold red") + Text(f": {detail}", style="default"), soft_wrap=True)


def tell_retry(details: RetryDetails) -> None:
    """Say once, beside the answers, that something is tried again."""
    if details.retry_num == 1:
        err.print(f"· {details.caused_by}; trying again", soft_wrap=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Any]:
    """A progress bar on the terminal, told (done, about)."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, about: shown.update(task, completed=done, total=max(about, done))


def settings_of(**given: Any) -> Settings:
    """Settings from the environment and, above it, from the options that were given."""
    given["kafka"] = _kafka_settings(given.get("kafka"))
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise Invalid(f"a setting does not fit: {error}") from error


def print_json(value: Any) -> None:
    """One line of JSON."""
    print(orjson.dumps(_plain(value), option=orjson.OPT_UTC_Z).decode())


def print_table(titles: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """A table for people: no borders, so that it can be cut and pasted, and nothing cut off. On a terminal what is too
    wide is folded; else each row stands on one line."""
    cells = [[spelled(cell) for cell in line] for line in lines]
    if not out.is_terminal:
        _print_plain(titles, cells)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for line in cells:
        table.add_row(*line)
    out.print(table)


def _print_plain(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    lines = [[cell.replace("\n", " ") for cell in line] for line in ([titles, *cells] if any(titles) else cells)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print(
            "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def more_told(what: str) -> None:
    """That not all there is was shown, beside the answers."""
    err.print(f"· there are more {what}; --limit shows more", soft_wrap=True)


def rows_told(count: int, verb: str) -> str:
    """How many rows do something."""
    return f"{count:,} {'row' if count == 1 else 'rows'} {verb}"


def spelled(cell: Any) -> str:
    """A value as a person reads it."""
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return cell.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return cell if isinstance(cell, str) else orjson.dumps(_plain(cell)).decode()


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _kafka_settings(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    split = [pair.partition("=") for pair in pairs]
    if bad := [name for name, equals, _ in split if not equals or not name]:
        raise Invalid(f"--kafka {bad[0]} is not name=value")
    return {name: value for name, _, value in split}
