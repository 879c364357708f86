"""The logical sector size that a disk declares: its guests' tools ask for it, and images of it carry it."""

from __future__ import annotations

from typing import Literal, get_args

from siterig.blockfs.core.errors import Code, RigError

SectorBytes = Literal[512, 4096]
SECTOR_SIZES: tuple[SectorBytes, ...] = get_args(SectorBytes)
SECTOR_BYTES_DEFAULT: SectorBytes = 512


def check_sectors(what: str, size_bytes: int, sector_bytes: int) -> None:
    """``InvalidDiskSize`` unless a disk has whole sectors."""
    if size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"{what}: has {size_bytes} bytes, which is no multiple of its sectors of {sector_bytes} bytes",
        )


def known_size(stored: int) -> SectorBytes:
    """A sector size as it was stored as a plain number."""
    return 4096 if stored == 4096 else 512
