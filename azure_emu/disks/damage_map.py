"""Bytes of a managed disk that cannot be read, followed through the journal until something is written over them.

However much is hurt, what is told and what is kept of it have a bound: the first ``TOLD_MAX`` ranges of a kind are told
one by one, the others together; beyond ``RANGES_MAX`` ranges none is followed, and said to be hurt for good.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from siterig.azure_emu.contracts.ports import Damage

Found = tuple[str, Damage]
"""A kind of damage, of which not everything is told one by one, and one of it."""

TOLD_MAX = 100
RANGES_MAX = 1 << 20


@dataclass(slots=True)
class _Row:
    """What is told at once: ``damage`` is that of the first of ``ranges`` ranges; ``left``: bytes not written over yet."""

    damage: Damage
    first_position: int
    ranges: int = 0
    bytes: int = 0
    left: int = 0
    last_position: int | None = None


class Hurt:
    """What cannot be read at the position that was come to, and what could not before.

    What is written over and hurt again is two: each range has been written over before it is added again.
    """

    def __init__(self) -> None:
        self._starts, self._stops, self._rows_of = array("Q"), array("Q"), array("L")
        self._rows: list[_Row] = []
        self._of_kind: dict[str, list[int]] = {}
        self.is_all = True
        """Whether every range is followed."""

    @property
    def shows(self) -> bool:
        """Whether anything is hurt now."""
        return bool(self._starts)

    def __bool__(self) -> bool:
        """Whether anything was ever hurt."""
        return bool(self._rows)

    def ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of what is hurt now, in order."""
        return [(start, stop - start) for start, stop in zip(self._starts, self._stops, strict=True)]

    def add(self, kind: str, start: int, stop: int, damage: Damage, *, shows: bool = True) -> None:
        """Bytes ``start`` to ``stop`` of the disk cannot be read from ``damage.first_position`` on.

        Not ``shows``: no position needs them (all of one kind).
        """
        first_position = damage.first_position or 0
        mine = self._of_kind.setdefault(kind, [])
        if len(mine) <= TOLD_MAX:
            mine.append(len(self._rows))
            self._rows.append(_Row(damage, first_position))
        row = self._rows[mine[-1]]
        row.first_position = min(row.first_position, first_position)
        row.ranges += 1
        row.bytes += stop - start
        row.last_position = None if shows else -1
        if not shows:
            return
        row.left += stop - start
        if len(self._starts) >= RANGES_MAX:
            self.is_all = False
            return
        at = bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._stops.insert(at, stop)
        self._rows_of.insert(at, mine[-1])

    def write_over(self, start: int, stop: int, position: int) -> None:
        """The record at ``position`` changed bytes ``start`` to ``stop``."""
        i = bisect_right(self._stops, start)
        j = bisect_left(self._starts, stop, i)
        if i >= j:
            return
        kept = []
        for first, last, number in zip(self._starts[i:j], self._stops[i:j], self._rows_of[i:j], strict=True):
            row = self._rows[number]
            row.left -= min(last, stop) - max(first, start)
            if not row.left:
                row.last_position = position - 1
            if first < start:
                kept.append((first, start, number))
            if last > stop:
                kept.append((stop, last, number))
        self._starts[i:j] = array("Q", [each[0] for each in kept])
        self._stops[i:j] = array("Q", [each[1] for each in kept])
        self._rows_of[i:j] = array("L", [each[2] for each in kept])

    def found(self, floor: int) -> Iterator[Found]:
        """What is to be told; states below position ``floor`` are none."""
        for number, row in enumerate(self._rows):
            first, last = row.first_position, row.last_position
            if last is not None and last < max(first, floor):
                positions: tuple[int | None, int | None] = None, None  # nothing shows it
            else:
                positions = first, last
            update: dict[str, object] = dict(zip(("first_position", "last_position"), positions, strict=True))
            if row.ranges > 1:
                what = f"and {row.ranges} more ranges from here on, {row.bytes} bytes in all, at some of these positions"
                update["what"] = f"{what}; the first: {row.damage.what}"
            yield f"hurt {number}", row.damage.model_copy(update=update)
