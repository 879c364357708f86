"""A screen for narrators that keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from siterig.cli.tables import Line
from siterig.scenarios.contracts.rig import Screen, Update


class TextScreen(Screen):
    """Lines without styles in ``lines``; all updates of bars in ``bars``."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, int]] = []

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Keep a line."""
        self.lines.append("".join(part if isinstance(part, str) else part[0] for part in parts))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Keep a table as lines whose columns are separated by tabs."""
        self.lines += ["\t".join(map(str, row)) for row in (columns, *rows)]

    @contextmanager
    def bar(self, title: str) -> Iterator[Update]:
        """Keep the updates of a bar."""
        yield lambda done_bytes, total_bytes: self.bars.append((title, done_bytes, total_bytes))


def text_of(line: Line) -> str:
    """Return the text of a line without its styles."""
    return line if isinstance(line, str) else "".join(part if isinstance(part, str) else part[0] for part in line)
