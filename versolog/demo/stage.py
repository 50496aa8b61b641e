"""Where the demo speaks: headings, the command that does the same, what was checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text


class WrongAnswerError(Exception):
    """What versolog answered is not what it must be. The demo ends here, and not well."""


class Stage:
    """Tells the story on a console, one numbered step after the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def title(self, text: str) -> None:
        self._console.print(Text(text, style="bold"), soft_wrap=True)

    def step(self, text: str) -> None:
        """A new step of the story."""
        self._steps += 1
        self._console.print()
        self._console.print(Rule(Text(f" {self._steps}  {text} ", style="bold"), align="left", style="dim"))

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def command(self, text: str) -> None:
        """What does the same on the command line, or in Python."""
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        self._console.print(what)

    def check(self, holds: bool, what: str) -> None:
        """Say that `what` was checked. Raises WrongAnswerError where it does not hold."""
        if not holds:
            raise WrongAnswerError(what)
        self._console.print(Text("✓ ", style="bold green") + Text(what, style="default"), soft_wrap=True)

    def fail(self, text: str) -> None:
        self._console.print(Text("✗ ", style="bold red") + Text(text, style="red"), soft_wrap=True)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """While something takes its time."""
        with self._console.status(what):
            yield

    @contextmanager
    def counting(self, total: int) -> Iterator[Count]:
        """A bar that counts to `total` and shows how many a second that is."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            yield Count(progress, total)


class Count:
    """How far a bar is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(f"{'':12}", total=total)

    def advance(self, by: int, reached: datetime) -> None:
        """`by` more are done; the story's own clock shows `reached`."""
        self._progress.update(self._task, advance=by, description=f"{reached:%b %d %H:%M}")


class Rate(ProgressColumn):
    """How many a second, since the beginning."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.finished_time if task.finished else task.elapsed
        return Text(f"{task.completed / elapsed_s:7,.0f}/s" if elapsed_s else f"{'':9}", style="cyan")
