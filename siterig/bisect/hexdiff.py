"""The difference between a range of two files, in the style of ``hexdump -C``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROW_BYTES = 16
ROWS_MAX = 8
LOOKED_BYTES_MAX = 16 << 20
_PIECE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Row:
    """Up to 16 bytes at ``offset``, before and after; the row of a file that ends within it is shorter."""

    offset: int
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """The first rows that differ, and how many bytes and rows differ in the ``looked_bytes`` that were compared."""

    changed_bytes: int
    changed_rows: int
    rows: tuple[Row, ...]
    looked_bytes: int

    def lines(self) -> list[str]:
        """Return the rows as lines: ``-`` for before, ``+`` for after."""
        return [f"{sign} {row_text(row.offset, data)}" for row in self.rows for sign, data in _signed(row)]


def _signed(row: Row) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return ("-", row.before), ("+", row.after)


def row_text(offset: int, data: bytes) -> str:
    """Return a row as a line of ``hexdump -C``."""
    halves = "  ".join(" ".join(f"{byte:02x}" for byte in data[at : at + 8]) for at in (0, 8))
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{offset:08x}  {halves:<49} |{text}|"


def compare(before: Path, after: Path, offset: int, length: int) -> Difference:
    """Compare a range of two files, at most its first ``LOOKED_BYTES_MAX`` bytes; raise ``OSError`` if a read fails."""
    looked = min(length, LOOKED_BYTES_MAX)
    changed_bytes = changed_rows = 0
    rows: list[Row] = []
    fds = []
    try:
        fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (before, after)]
        for at, end in _pieces(offset, offset + looked):
            old, new = (os.pread(fd, end - at, at) for fd in fds)
            if old == new:
                continue
            for row in range(0, max(len(old), len(new)), ROW_BYTES):
                a, b = old[row : row + ROW_BYTES], new[row : row + ROW_BYTES]
                if a != b:
                    changed_rows += 1
                    changed_bytes += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))
                    if len(rows) < ROWS_MAX:
                        rows.append(Row(at + row, a, b))
    finally:
        for fd in fds:
            os.close(fd)
    return Difference(changed_bytes, changed_rows, tuple(rows), looked)


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    """Split the range into pieces; all but the first begin at a whole row."""
    cuts = [start, *range((start // _PIECE_BYTES + 1) * _PIECE_BYTES, end, _PIECE_BYTES), end]
    first = start // ROW_BYTES * ROW_BYTES + ROW_BYTES
    if start % ROW_BYTES and start < first < end and first not in cuts:
        cuts.insert(1, first)
    return [(at, stop) for at, stop in pairwise(cuts) if at < stop]
