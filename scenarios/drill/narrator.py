"""Reports the progress of a drill: lines with the elapsed time, and on a terminal a progress bar for long work."""

from __future__ import annotations

from contextlib import AbstractContextManager

from siterig.scenarios.contracts.results import Check, TimelineEvent
from siterig.scenarios.contracts.rig import Screen, Update

_MARKS = {"info": ("·", "dim"), "good": ("✓", "green"), "bad": ("✗", "bold red")}


class Narrator:
    """Writes the lines of a drill to a screen; the caller gives the times."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def step(self, number: int, count: int, title: str) -> None:
        """Write the title of a new step."""
        self.screen.line("")
        self.screen.line((f"{number}/{count}", "bold cyan"), " ", (title, "bold"))

    def event(self, event: TimelineEvent) -> None:
        """Write one line of the timeline."""
        self._line(event.at_s, event.severity, event.text)

    def check(self, at_s: float, check: Check) -> None:
        """Write the result of a check with its evidence."""
        self._line(at_s, "good" if check.ok else "bad", check.name, (f" - {check.evidence}", "dim"))

    def _line(self, at_s: float, severity: str, *parts: str | tuple[str, str]) -> None:
        self.screen.line((f"{at_s:7.1f} s", "dim"), "  ", _MARKS[severity], " ", *parts)

    def progress(self, title: str) -> AbstractContextManager[Update]:
        """Show a progress bar for work in bytes; without a terminal nothing is drawn."""
        return self.screen.bar(title)
