"""The result of a verification: both sides of a VM were compared at one position."""

from __future__ import annotations

from siterig.blockfs.core.wire_model import WireModel

RANGES_MAX = 1000
"""Limit of the differing ranges that are named of one disk; ``differing_bytes`` counts all of them."""


class DifferingRange(WireModel):
    """A range of a disk, in bytes, that is not equal on both sides."""

    offset: int
    length: int


class VerifiedDisk(WireModel):
    """A disk that was compared.

    ``data_bytes`` are the bytes at the site that may be other than zeros; everything else was compared as a hole.
    """

    name: str
    size_bytes: int
    data_bytes: int
    differing_bytes: int
    differing: list[DifferingRange]


class Verification(WireModel):
    """A verification of the disks of a VM at ``position``, whose wall time at the site is ``time_ns``."""

    vm: str
    position: int
    time_ns: int
    disks: list[VerifiedDisk]

    @property
    def differing_bytes(self) -> int:
        """The bytes that differ on all disks."""
        return sum(disk.differing_bytes for disk in self.disks)
