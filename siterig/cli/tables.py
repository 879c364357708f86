"""Tables as lines: on a terminal in columns that fit its width, elsewhere with one tab between two values.

On a terminal no id, time or word is broken.  A table that is too wide is made narrower in this order: times lose their
fraction of a second; ids (UUIDs) are shortened to the first characters that differ; the last column is wrapped
between words; columns without any value are left out; columns move from the right to a line below their row; in the end
each value has its own line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from siterig.blockfs.core.printable import printable
from siterig.blockfs.core.short_ids import UUID, shortened

Part = str | tuple[str, str]
"""Text, or text with a style."""
Line = str | list[Part]
Cells = Sequence[Sequence[str]]

GAP: Part = "  "
TAB: Part = ("\t", "tab")
"""The only character that is printed without being printable."""
INDENT = "  "
TAIL_CHARS_MIN = 24
"""The last column may be wrapped to this, or to its longest word if that is shorter."""
_TIME = re.compile(r"(?<!\S)(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+(Z|[+-]\d\d:\d\d)(?!\S)")
_STYLES = {"Succeeded": "green", "Failed": "red", "InProgress": "yellow", "Critical": "red", "Warning": "yellow"}
_STYLES |= {"Normal": "green", "ready": "green", "failed": "red", "restarting": "yellow", "held": "yellow", "hung": "red"}
_STYLES |= {"ok": "green", "MISSING": "red"}


def style_of(value: str) -> str:
    """Return the style of a value with a meaning (a state); empty for every other."""
    return _STYLES.get(value, "")


def piped(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[Line]:
    """Return one line for each row with whole values, separated by tabs; the first line has the names of the columns."""
    yield from piped_rows([columns, *rows])


def piped_rows(rows: Sequence[Sequence[object]]) -> Iterator[Line]:
    """Return one line for each row with whole values, separated by tabs."""
    for row in _texts(rows):
        yield _joined(row, TAB)


def aligned(cells: Sequence[object], widths: Sequence[int]) -> Line:
    """Return a row for a terminal, in columns of fixed widths (negative: to the left).

    A time that is wider than its column loses its fraction of a second.
    """
    texts = [printable(str(cell)) for cell in cells]
    texts = [_TIME.sub(r"\1\2", text) if len(text) > abs(size) else text for text, size in zip(texts, widths, strict=True)]
    padded = [text.rjust(size) if size > 0 else text.ljust(-size) for text, size in zip(texts, widths, strict=True)]
    return " ".join(padded).rstrip()


def fitted(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> list[Line]:
    """Return the lines for a terminal of ``width`` columns."""
    texts: Cells = _texts(rows)
    if not _fits(columns, texts, width):
        texts = [[_TIME.sub(r"\1\2", cell) for cell in row] for row in texts]
    if not _fits(columns, texts, width):
        texts = _with_short_ids(texts)
    if not _fits(columns, texts, width):
        columns, texts = _without(columns, texts, [n for n in range(1, len(columns)) if all(row[n] == "-" for row in texts)])
    below: list[int] = []  # columns that moved below their row, the last one first
    while not _fits(*_without(columns, texts, below), width, wrap_last=True):
        below.insert(0, len(columns) - 1 - len(below))
        if 2 * len(below) > len(columns):
            return _blocks(columns, texts, width)
    return _in_columns(columns, texts, below, width)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Return lines of at most ``width`` characters, broken between words; a word that is longer has a line of its own.

    Lines after the first begin with ``indent``.
    """
    lines, line = [], ""
    for word in printable(text).split(" "):
        if line.strip() and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _texts(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[printable(str(value)) or "-" for value in row] for row in rows]


def _with_short_ids(texts: Cells) -> list[list[str]]:
    short = shortened(match[0] for row in texts for cell in row for match in UUID.finditer(cell))
    return [[UUID.sub(lambda match: short[match[0]], cell) for cell in row] for row in texts]


def _without(columns: Sequence[str], texts: Cells, below: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    kept = [n for n in range(len(columns)) if n not in below]
    return [columns[n] for n in kept], [[row[n] for n in kept] for row in texts]


def _widths(columns: Sequence[str], texts: Cells) -> list[int]:
    return [max(len(columns[n]), *(len(row[n]) for row in texts)) for n in range(len(columns))]


def _fits(columns: Sequence[str], texts: Cells, width: int, *, wrap_last: bool = False) -> bool:
    """``wrap_last``: the values of the last column may be wrapped, or moved below their row if a word is very long."""
    *widths, last = _widths(columns, texts)
    if wrap_last:
        words = max(len(word) for row in texts for word in row[-1].split(" "))
        last = min(last, TAIL_CHARS_MIN, max(words, TAIL_CHARS_MIN // 2))
    return sum(widths) + last + 2 * (len(columns) - 1) <= width


def _in_columns(columns: Sequence[str], texts: Cells, below: Sequence[int], width: int) -> list[Line]:
    heads, cells = _without(columns, texts, below)
    widths = _widths(heads, cells)
    head = "  ".join(name.ljust(size) for name, size in zip(heads, widths, strict=True)).rstrip()
    lines: list[Line] = [[(head, "bold")]]
    left = sum(widths[:-1]) + 2 * (len(heads) - 1)
    for row, whole in zip(cells, texts, strict=True):
        padded = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        first, *more = wrapped(row[-1], width - left)
        moved = [f"{columns[n]}: {whole[n]}" for n in below if whole[n] != "-"]
        if len(heads) > 1 and left + max(map(len, (first, *more))) > width:
            padded, more = [*padded[:-2], row[-2]], []
            moved = [f"{heads[-1]}: {row[-1]}", *moved]
        else:
            padded[-1] = first
        lines += [_joined(padded, GAP), *(" " * left + text for text in more)]
        if moved:
            lines += [INDENT + each for each in wrapped("; ".join(moved), width - len(INDENT), INDENT)]
    return lines


def _joined(cells: Sequence[str], gap: Part) -> Line:
    line: list[Part] = []
    for number, cell in enumerate(cells):
        value = cell.rstrip()
        style = style_of(value)
        line += [gap] if number else []
        line += [(value, style), cell[len(value) :]] if style else [cell]
    return line


def _blocks(columns: Sequence[str], texts: Cells, width: int) -> list[Line]:
    """A line for each value, and an empty line between two rows."""
    lines: list[Line] = []
    for row in texts:
        lines += [""] if lines else []
        for name, cell in zip(columns, row, strict=True):
            head = f"{name}: " if name else ""
            first, *more = wrapped(head + cell, width, INDENT)
            style = style_of(cell)
            lines += [[head, (cell, style)] if style else first, *more]
    return lines
