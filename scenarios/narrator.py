"""What a drill says while it runs: lines with the time elapsed, and a bar for long work where there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from scenarios.results import Check, TimelineEvent

Update = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread."""

_MARKS = {"info": "[dim]·[/]", "good": "[green]✓[/]", "bad": "[bold red]✗[/]"}


class Narrator:
    """Writes to a rich console; the times are given by the caller."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, number: int, count: int, title: str) -> None:
        """A new step begins."""
        self._console.print(f"\n[bold cyan]{number}/{count}[/] [bold]{escape(title)}[/]")

    def event(self, event: TimelineEvent) -> None:
        """One line of the timeline."""
        self._line(event.at_s, _MARKS[event.severity], escape(event.text))

    def check(self, at_s: float, check: Check) -> None:
        """The outcome of a check with its evidence."""
        mark = _MARKS["good" if check.ok else "bad"]
        self._line(at_s, mark, f"{escape(check.name)} [dim]- {escape(check.evidence)}[/]")

    def _line(self, at_s: float, mark: str, text: str) -> None:
        self._console.print(f"[dim]{at_s:7.1f} s[/]  {mark} {text}", highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Update]:
        """A bar for work in bytes; without a terminal nothing is drawn."""
        columns = (
            TextColumn("           {task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
        )
        if not self._console.is_terminal:
            yield lambda _done, _total: None
            return
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)
