"""A disk that is opened without a disk host."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_options import DiskOptions

SIZE = 1 << 20


def reopen(disk: Disk, positions: PositionCounter) -> Disk:
    """Open the disk again after a kill: nothing is closed cleanly."""
    disk.abandon()
    return Disk.open(disk.paths, DiskOptions(positions), None)


def logs(disk: Disk) -> list[Path]:
    """Return the segments of the disk's change log."""
    return [path for _, path in find_segments(disk.paths.folder, "os")]
