"""Output of siterig: everything that it prints to standard output or standard error passes through this module.

Results go to stdout; progress, notes and errors go to stderr.  Each text is escaped
(:mod:`siterig.blockfs.core.printable`), so that a name or a message of another program cannot draw on the terminal or begin
a line of its own.  With ``--json`` stdout has JSON, and each line on stderr is a JSON object: ``{"progress": TEXT}``,
``{"note": TEXT}`` or ``{"error": {...}}``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable, printable_lines
from siterig.blockfs.files.json_text import json_text
from siterig.cli import tables
from siterig.cli.tables import Line, Part

if TYPE_CHECKING:
    from rich.console import Console

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ROWS_FITTED_MAX = 1000
"""A longer table is printed as it is in a pipe: its lines are for searching, not for looking at."""
_json_mode = False
_wall_ahead_ns = 0


def set_json(is_json: bool) -> bool:
    """Note whether the command has ``--json``: then notes and errors are JSON, too."""
    global _json_mode  # noqa: PLW0603 (one command a process)
    _json_mode = is_json
    return is_json


# --- terminals ----------------------------------------------------------------------------------------------------


def is_terminal(stream: TextIO) -> bool:
    """Return True if lines on ``stream`` can be drawn again and tables are fitted to its width."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def may_draw(stream: TextIO) -> bool:
    """Return True if ``stream`` is a terminal that can move its cursor."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def has_colour(stream: TextIO) -> bool:
    """Return True if colours are used: ``NO_COLOR`` and ``FORCE_COLOR`` decide, otherwise only a terminal has them."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or may_draw(stream)


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, 20)


def _console(stream: TextIO) -> Console:
    """For a terminal on which :func:`may_draw` allows to draw the same lines again."""
    from rich.console import Console  # it takes longer to load than most commands to run

    colours: Literal["auto"] | None = "auto" if has_colour(stream) else None
    return Console(file=stream, force_terminal=True, highlight=False, markup=False, color_system=colours)


def _text(line: Line, stream: TextIO) -> str:
    parts: list[Part] = [line] if isinstance(line, str) else line
    colour = has_colour(stream)
    return "".join(printable(part) if isinstance(part, str) else _styled(*part, colour=colour) for part in parts)


def _styled(text: str, style: str, *, colour: bool) -> str:
    if (text, style) == tables.TAB:
        return text
    codes = ";".join(_CODES[word] for word in style.split()) if colour else ""
    return f"\x1b[{codes}m{printable(text)}\x1b[0m" if codes and text else printable(text)


# --- results ------------------------------------------------------------------------------------------------------


def line(*parts: Part) -> None:
    """Print one line of a result at once."""
    print_lines([list(parts)])


def print_lines(lines: Iterable[Line]) -> None:
    """Print the lines of a result."""
    text = "".join(f"{_text(each, sys.stdout)}\n" for each in lines)
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(value: object) -> None:
    """Print one JSON document; models become objects of their fields."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


def print_json_line(value: object) -> None:
    """Print one JSON document of several, in one line and at once."""
    sys.stdout.write(json_text(value) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print a table, or ``empty`` if it has no row (in a pipe: nothing)."""
    if rows:
        print_lines(table(columns, rows))
    elif is_terminal(sys.stdout):
        line(empty)
    else:
        notice(empty)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[Line]:
    """Return the lines of a table for stdout: fitted to a terminal, or separated by tabs."""
    if is_terminal(sys.stdout) and len(rows) <= _ROWS_FITTED_MAX:
        return tables.fitted(columns, rows, _columns())
    return list(tables.piped(columns, rows))


def row(cells: Sequence[object], widths: Sequence[int]) -> None:
    """Print one row of a table whose rows are not known yet, in columns of at least these widths (negative: to the left)."""
    if is_terminal(sys.stdout):
        print_lines([tables.aligned(cells, widths)])
    else:
        print_lines(list(tables.piped_rows([cells])))


def fits(width: int) -> bool:
    """Return True if a row of ``width`` characters fits on the terminal; a pipe takes any row."""
    return not is_terminal(sys.stdout) or width <= _columns()


def detail(name: str, text: str) -> list[Line]:
    """Print the lines with details of one row of a table, below it."""
    if not is_terminal(sys.stdout):
        return [f"{name}: {text}"]
    first, *more = tables.wrapped(f"{name}: {text}", _columns() - 2, "  ")
    return [f"  {each}" for each in (first, *more)]


# --- on the way there ---------------------------------------------------------------------------------------------


def progress(text: str) -> None:
    """Report a step on the way to the result."""
    _say("progress", text, text)


def notice(text: str) -> None:
    """Print a remark that is not a result."""
    _say("note", text, f"siterig: note: {text}")


def error(failure: RigError) -> None:
    """Report why the command failed; the caller sets the exit status."""
    text = f"siterig: error: {failure.message} ({failure.code})"
    _say("error", error_json(failure), text, text=text)


def advice(cause: str, action: str) -> None:
    """Print the cause of the error above, and what a user does about it; with ``--json`` the result has both."""
    if not _json_mode:
        for name, text in (("cause", cause), ("action", action)):
            if text:
                _to_stderr(printable(f"  {name}: {text}"))


def error_json(failure: RigError) -> dict[str, object]:
    """Return the JSON form of an error."""
    return {"code": failure.code, "message": failure.message, "recoverable": failure.recoverable}


def interrupted() -> None:
    """Report that a signal ended the command."""
    _say("error", error_json(RigError(Code.Interrupted, "interrupted", recoverable=True)), "siterig: interrupted")


def usage_error(message: str, usage: str) -> None:
    """Report a command line that cannot be read; ``usage`` is shown before the error, its line breaks kept."""
    if usage and not _json_mode:
        help_text(usage)
    error(RigError(Code.Usage, " ".join(message.split())))  # its lines are the parser's


def help_text(text: str) -> None:
    """Print the help of a group of commands that was called without one."""
    _to_stderr(printable_lines(text))


def foreign(output: bytes) -> None:
    """Print another program's output on stderr: its line breaks stay, all else is escaped."""
    text = output.decode(errors="surrogateescape").rstrip("\n")
    if _json_mode:
        _say("output", text, "")
    else:
        _to_stderr(printable_lines(text))


def _say(kind: str, value: object, shown: str, **more: str) -> None:
    _to_stderr(json_text({kind: value, **more}) if _json_mode else printable(shown))


def _to_stderr(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be closed: that must not end a command at work
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def set_wall_ahead(ahead_ns: int) -> None:
    """Let :func:`age` count by a clock whose wall time is ahead of the system's by so much."""
    global _wall_ahead_ns  # noqa: PLW0603 (one command is about one rig)
    _wall_ahead_ns = ahead_ns


def wall_ahead_ns() -> int:
    """Return the lead of the clock that ages count by over the system's wall time."""
    return _wall_ahead_ns


def age(since_ns: int) -> str:
    """Return the time since a wall-clock time, in at most two units: ``3 s``, ``2 min 5 s``, ``4 h 10 min``."""
    return duration(max(0, (SYSTEM_CLOCK.wall_ns() + _wall_ahead_ns - since_ns) // 1_000_000_000))


def duration(seconds: int) -> str:
    """Return a time in at most two units: ``3 s``, ``2 min 5 s``, ``4 h 10 min``."""
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


# --- drawn on a terminal ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One progress bar of a :class:`Drawing`; ``note`` follows its figures."""

    title: str
    done_bytes: int
    total_bytes: int
    note: str = ""


class Drawing:
    """Lines and bars that are drawn again and again in one place of a terminal; elsewhere they are printed each time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Any = None
        self._bars: Any = None

    def __enter__(self) -> Drawing:
        if may_draw(self._stream):
            from rich.live import Live

            self._live = Live(console=_console(self._stream), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def draw(self, lines: Iterable[Line], bars: Sequence[Bar] = ()) -> None:
        """Show these lines, and the bars below them, in place of the ones before."""
        texts = [_text(each, self._stream) for each in lines]
        if self._live is None:
            texts += [f"  {printable(bar.title)}  {bar.done_bytes} of {bar.total_bytes} bytes" for bar in bars]
            self._stream.write("".join(f"{text}\n" for text in [*texts, ""]))
            self._stream.flush()
            return
        from rich.console import Group
        from rich.text import Text

        shown: list[Any] = [Text.from_ansi("\n".join(texts))]
        if bars:
            shown.append(self._drawn_bars(bars))
        self._live.update(Group(*shown), refresh=True)

    def _drawn_bars(self, bars: Sequence[Bar]) -> object:
        """Return the bars as a table of rich, which keeps one task for each title, and with it the speed."""
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bars is None:
            columns = (
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=30),
                DownloadColumn(binary_units=True),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self._bars = Progress(*columns, console=self._live.console, auto_refresh=False)
        known = {task.description: task.id for task in self._bars.tasks}
        wanted = {printable(bar.title): bar for bar in bars}
        for title in known.keys() - wanted.keys():
            self._bars.remove_task(known[title])
        for title, bar in wanted.items():
            task = known[title] if title in known else self._bars.add_task(title, note="")
            self._bars.update(task, completed=bar.done_bytes, total=bar.total_bytes, note=printable(bar.note))
        return self._bars.get_renderable()


class BarAdvance(Protocol):
    """``done_bytes`` were done since the last call; ``total_bytes`` if that is known only now."""

    def __call__(self, done_bytes: int, total_bytes: int | None = None) -> None: ...


def _not_drawn(done_bytes: int, total_bytes: int | None = None) -> None:
    """No terminal, no bar."""


@contextmanager
def bar(what: str, total_bytes: int | None) -> Iterator[BarAdvance]:
    """Show a progress bar on stderr if it is a terminal; otherwise show nothing."""
    if not may_draw(sys.stderr):
        yield _not_drawn
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(sys.stderr), transient=True) as drawn:
        task = drawn.add_task(printable(what), total=total_bytes)

        def advance(done_bytes: int, total_bytes: int | None = None) -> None:
            drawn.update(task, advance=done_bytes, total=total_bytes)

        yield advance
