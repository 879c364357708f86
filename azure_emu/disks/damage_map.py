"""Ranges of a managed disk that cannot be read, followed through the journal until later records overwrite them.

Memory and output are bounded.  The first ``REPORTED_MAX`` ranges of a kind are reported one by one and the others in one.
After ``RANGES_MAX`` ranges no further range is followed; it is reported as damaged at all later positions.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from siterig.azure_emu.contracts.recovery_side import Damage

ClassifiedDamage = tuple[str, Damage]
"""The kind of a damage, by which rows are counted, and the damage."""

REPORTED_MAX = 100
RANGES_MAX = 1 << 20


@dataclass(slots=True)
class _DamageRow:
    """One row of the report.

    ``damage`` describes the first of ``ranges`` ranges.  ``left`` counts the bytes that no later record has overwritten.
    """

    damage: Damage
    first_position: int
    ranges: int = 0
    bytes: int = 0
    left: int = 0
    last_position: int | None = None


class DamageMap:
    """Tracks ranges unreadable at the current replay position, and ranges that were unreadable earlier.

    A range that is overwritten and damaged again counts twice; call :meth:`overwrite` before adding the new damage.
    """

    def __init__(self) -> None:
        self._starts, self._stops, self._rows_of = array("Q"), array("Q"), array("L")
        self._rows: list[_DamageRow] = []
        self._of_kind: dict[str, list[int]] = {}
        self.complete = True
        """False if a range was not followed, because there were too many."""

    @property
    def has_current(self) -> bool:
        """True if a range is unreadable at the current replay position."""
        return bool(self._starts)

    def __bool__(self) -> bool:
        """Return whether any damage was added."""
        return bool(self._rows)

    def ranges(self) -> list[tuple[int, int]]:
        """Return (offset, length) of the ranges that are unreadable now, in ascending order."""
        return [(start, stop - start) for start, stop in zip(self._starts, self._stops, strict=True)]

    def add(self, kind: str, start: int, stop: int, damage: Damage, *, is_current: bool = True) -> None:
        """Add bytes ``start`` to ``stop`` of the disk, which are unreadable from ``damage.first_position`` on.

        Args:
            kind: groups the ranges; all damage of one kind has the same ``is_current``.
            start: first byte.
            stop: byte after the last one.
            damage: the report of this range alone.
            is_current: False if no position needs the bytes.
        """
        first_position = damage.first_position or 0
        rows = self._of_kind.setdefault(kind, [])
        if len(rows) <= REPORTED_MAX:
            rows.append(len(self._rows))
            self._rows.append(_DamageRow(damage, first_position))
        row = self._rows[rows[-1]]
        row.first_position = min(row.first_position, first_position)
        row.ranges += 1
        row.bytes += stop - start
        row.last_position = None if is_current else -1
        if not is_current:
            return
        row.left += stop - start
        if len(self._starts) >= RANGES_MAX:
            self.complete = False
            return
        at = bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._stops.insert(at, stop)
        self._rows_of.insert(at, rows[-1])

    def overwrite(self, start: int, stop: int, position: int) -> None:
        """Remove bytes ``start`` to ``stop``, which the record at ``position`` wrote."""
        i = bisect_right(self._stops, start)
        j = bisect_left(self._starts, stop, i)
        if i >= j:
            return
        remaining = []
        for first, last, number in zip(self._starts[i:j], self._stops[i:j], self._rows_of[i:j], strict=True):
            row = self._rows[number]
            row.left -= min(last, stop) - max(first, start)
            if not row.left:
                row.last_position = position - 1
            if first < start:
                remaining.append((first, start, number))
            if last > stop:
                remaining.append((stop, last, number))
        self._starts[i:j] = array("Q", [each[0] for each in remaining])
        self._stops[i:j] = array("Q", [each[1] for each in remaining])
        self._rows_of[i:j] = array("L", [each[2] for each in remaining])

    def report(self, oldest_position: int) -> Iterator[ClassifiedDamage]:
        """Yield one damage for each row; positions below ``oldest_position`` do not exist any more."""
        for number, row in enumerate(self._rows):
            first, last = row.first_position, row.last_position
            if last is not None and last < max(first, oldest_position):
                positions: tuple[int | None, int | None] = None, None  # no valid position shows it
            else:
                positions = first, last
            update: dict[str, object] = dict(zip(("first_position", "last_position"), positions, strict=True))
            if row.ranges > 1:
                what = f"and {row.ranges} more ranges from here on, {row.bytes} bytes in all, at some of these positions"
                update["what"] = f"{what}; the first: {row.damage.what}"
            yield f"range {number}", row.damage.model_copy(update=update)
