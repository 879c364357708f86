"""The fault atlas: random faults never destroy all copies of one block.

The idea is TigerBeetle's ClusterFaultAtlas.  A block of a disk has copies: on the site's disk, in the change log, in the
cache account, on the managed disk.  The atlas knows which copies of each block are intact.  A rule with
``recoverable = true`` asks :meth:`FaultAtlas.try_destroy` before it damages bytes, and does nothing if the answer is no.

A part of a block counts as the whole block.  Threads: every method may be called from every thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict

ATLAS_BLOCK_BYTES = 4096


class BlockRanges:
    """A set of block numbers, kept as disjoint ranges in ascending order that do not touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add the blocks from ``start`` to ``end - 1``."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        """Remove the blocks from ``start`` to ``end - 1``."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        kept = [(self._starts[first], start), (end, self._ends[last - 1])]
        kept = [(from_, upto) for from_, upto in kept if from_ < upto]
        self._starts[first:last] = [from_ for from_, _ in kept]
        self._ends[first:last] = [upto for _, upto in kept]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of the set that are in the blocks from ``start`` to ``end - 1``."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        pairs = zip(self._starts[first:last], self._ends[first:last], strict=True)
        return [(max(from_, start), min(upto, end)) for from_, upto in pairs]


class FaultAtlas:
    """The intact copies of every block of every disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intact: defaultdict[str, defaultdict[str, BlockRanges]] = defaultdict(lambda: defaultdict(BlockRanges))

    def add_copy(self, copy: str, disk: str, start: int, length: int) -> None:
        """Note that a copy of a range is intact: it was made, repaired, or written again from another copy.

        Args:
            copy: the copy; faults name it by their layer (``disk``, ``log``, ``store``, ``blob``).
            disk: the disk, as ``VM/NAME``.
            start: the first byte; only whole blocks of the range count.
            length: number of bytes.
        """
        with self._lock:
            self._intact[disk][copy].add(-(-start // ATLAS_BLOCK_BYTES), (start + length) // ATLAS_BLOCK_BYTES)

    def note_write(self, copy: str, disk: str, start: int, length: int) -> None:
        """Note that new bytes were written to one copy: the others are old, and count no longer."""
        first, end = _blocks(start, length)
        with self._lock:
            copies = self._intact[disk]
            for other in copies.values():
                other.remove(first, end)
            copies[copy].add(first, end)

    def try_destroy(self, copy: str, disk: str, start: int, length: int) -> bool:
        """Destroy a copy of a range if every block keeps an intact copy elsewhere.

        A range whose copy is not intact may be destroyed again.  Nothing is known of a disk without copies, so nothing of it
        may be destroyed.

        Args:
            copy: the copy that the fault would damage.
            disk: the disk, as ``VM/NAME``.
            start: the first byte.
            length: number of bytes.

        Returns:
            True if the fault may happen; the copy of the range counts as destroyed from now on.
        """
        first, end = _blocks(start, length)
        with self._lock:
            if disk not in self._intact:
                return False
            copies = self._intact[disk]
            others = [ranges for name, ranges in copies.items() if name != copy]
            alone = BlockRanges()
            for from_, upto in copies[copy].within(first, end):
                alone.add(from_, upto)
            for other in others:
                for from_, upto in other.within(first, end):
                    alone.remove(from_, upto)
            if alone.within(first, end):
                return False
            copies[copy].remove(first, end)
            return True

    def intact_copies(self, disk: str, offset: int) -> list[str]:
        """Return the names of the intact copies of the block at an offset in bytes."""
        block = offset // ATLAS_BLOCK_BYTES
        with self._lock:
            if disk not in self._intact:
                return []
            return sorted(name for name, ranges in self._intact[disk].items() if ranges.within(block, block + 1))


def _blocks(start: int, length: int) -> tuple[int, int]:
    """Return the first block of a range, and the block after its last one; a part of a block is the whole block."""
    return start // ATLAS_BLOCK_BYTES, -(-(start + length) // ATLAS_BLOCK_BYTES)
