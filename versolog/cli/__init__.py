"""The command line: run a versolog, write and look, restore the past. Each command stands in the room it belongs to."""

from __future__ import annotations

from collections.abc import Callable

import stamina.instrumentation
import typer

from versolog.cli import branching, looking, restoring, running, writing
from versolog.cli.shown import tell_retry

app = typer.Typer(
    name="versolog",
    help="An event-sourced, versioned, transactional table store on Apache Kafka.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_ROOMS: dict[str, list[Callable[..., None]]] = {
    "Run": [running.up, running.worker],
    "Write": [
        writing.put, writing.patch, writing.delete, writing.send, writing.tag, writing.tag_store, writing.checks,
        writing.rollback, writing.drop,
    ],
    "Branch and merge": [
        branching.branch, branching.merge, branching.conflicts, branching.revert, branching.cherry_pick,
    ],
    "Look": [
        looking.get, looking.rows, looking.read, looking.history, looking.blame, looking.log, looking.show,
        looking.diff, looking.groups, looking.tags, looking.outcome, looking.transactions,
    ],
    "Prove and restore": [restoring.replay, restoring.serve, restoring.digest, restoring.verify],
}  # fmt: skip
for _room, _commands in _ROOMS.items():
    for _command in _commands:
        app.command(rich_help_panel=_room)(_command)
app.add_typer(running.broker_app, name="broker", rich_help_panel="Run")
app.add_typer(running.topics_app, name="topics", rich_help_panel="Run")
stamina.instrumentation.set_on_retry_hooks([tell_retry])

__all__ = ["app"]
