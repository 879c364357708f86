"""The fault atlas: random faults never destroy all copies of one block.

The idea is TigerBeetle's ClusterFaultAtlas: where faults may do damage is fixed before the run, so the processes of a rig
need not agree about blocks.  A block of a protected disk has copies: on the site's disk, in the change log, in the cache
account, on the managed disk.  Every disk is divided into regions.  Faults with ``recoverable = true`` may damage the site's
disk in regions of the kind ``site`` only, and the copies on the way and on the recovery side in regions of the kind
``copies`` only.  Regions come in pairs, one of each kind; the seed and the name of the disk decide which one is which.

The size of a region depends on its offset only, so a disk that grows keeps its regions: 1 MiB below 1 GiB, and twice as much
in each octave above, which has 512 regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

from siterig.scenarios.faults.operations import OperationRange

RegionKind = Literal["site", "copies"]
ATLAS_REGION_BYTES = 1 << 20
"""The size of the smallest regions."""
_FIRST_OCTAVE_BITS = 30
"""Regions of the smallest size are below this power of two."""
_OCTAVE_REGIONS = 512


def region_of(offset: int) -> tuple[int, int, int]:
    """Return the number of the region that a byte of a disk is in, its first byte, and the byte after its last one."""
    octave = max(0, offset.bit_length() - _FIRST_OCTAVE_BITS)
    size = ATLAS_REGION_BYTES << octave
    begin, numbered = (0, 0) if not octave else (1 << _FIRST_OCTAVE_BITS + octave - 1, (octave + 1) * _OCTAVE_REGIONS)
    inside = (offset - begin) // size
    return numbered + inside, begin + inside * size, begin + (inside + 1) * size


class FaultAtlas:
    """The kinds of the regions of every disk.

    Args:
        seed: decides which region of each pair is of which kind; one for all rules of a rig.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def kind_of(self, disk: str, offset: int) -> RegionKind:
        """Return the kind of the region that a byte of a disk is in.

        Args:
            disk: the disk, as ``VM/NAME``.
            offset: the byte.
        """
        number, _, _ = region_of(offset)
        return "site" if number % 2 == self._site_region(disk, number // 2) else "copies"

    def _site_region(self, disk: str, pair: int) -> int:
        """Return 0 or 1: the region of a pair that is of the kind ``site``."""
        return hashlib.blake2b(f"{self._seed} {pair} {disk}".encode(), digest_size=1).digest()[0] & 1

    def within(self, kind: RegionKind, disk: str, start: int, length: int) -> Iterator[OperationRange]:
        """Yield start and length of the parts of a range that are in regions of a kind, ascending; none touches another."""
        at, end = start, start + length
        first = at
        while at < end:
            is_wanted = self.kind_of(disk, at) == kind
            if not is_wanted and first < at:
                yield first, at - first
            _, _, at = region_of(at)
            if not is_wanted:
                first = at
        if first < end:
            yield first, end - first

    def has_only(self, kind: RegionKind, disk: str, start: int, length: int) -> bool:
        """Return True if a range has bytes, and all of them are in regions of a kind."""
        return list(self.within(kind, disk, start, length)) == [(start, length)]
