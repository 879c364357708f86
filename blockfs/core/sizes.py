"""Sizes of disks and sectors: each constant stands here once."""

from __future__ import annotations

from typing import Literal, get_args

from siterig.blockfs.core.errors import Code, RigError

SectorBytes = Literal[512, 4096]
"""The logical sector size that a disk declares: its guests' tools use it, and images of the disk record it."""
SECTOR_SIZES: tuple[SectorBytes, ...] = get_args(SectorBytes)
SECTOR_BYTES = 512
"""The smallest sector, and the default: every disk's size is a multiple of it."""
STAT_BLOCK_BYTES = 512
"""Unit of ``st_blocks`` (inode(7)), whatever the file system's block size is."""
NUMBER_MAX = (1 << 63) - 1
"""The largest offset, position or number in a file of siterig: C has it as a signed integer of 64 bits, too."""
DISK_BYTES_MAX = 64 << 40
"""The largest disk: the maps of the C core have room for it (``SR_DISK_BYTES_MAX`` in cext/src/layers/layer.h)."""


def check_sectors(what: str, size_bytes: int, sector_bytes: int) -> None:
    """Check that a disk has whole sectors.

    Args:
        what: names the disk in the message.
        size_bytes: size of the disk.
        sector_bytes: its logical sector size.
    Raises:
        RigError: ``InvalidDiskSize`` if the last sector is incomplete.
    """
    if size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"{what}: has {size_bytes} bytes, which is no multiple of its sectors of {sector_bytes} bytes",
        )


def known_size(stored: int) -> SectorBytes:
    """Return a sector size that was stored as a plain number; an unknown number counts as 512."""
    return 4096 if stored == 4096 else 512
