"""What must hold before a VM can be protected."""

from __future__ import annotations

import os
from pathlib import Path

from blockfs.control import DiskInfo
from blockfs.errors import RigError
from blockfs.os_errors import reason


def check_space(vm: str, disks: list[DiskInfo]) -> None:
    """``NotEnoughSpace`` unless the host can hold the snapshot of the initial replication.

    A guest that overwrites all it has while the copy runs makes the snapshot keep a second copy of every
    *allocated* byte (holes were zeros before and need none): so 100 % of what the disks occupy must be free.  The
    logs come out of the same space, but they are bounded by themselves: past 50 % of a disk's size they are given up
    for a resync.
    """
    free_by_device: dict[int, tuple[int, str]] = {}
    needed_by_device: dict[int, int] = {}
    for disk in disks:
        what = f"disk {disk.name!r} of VM {vm!r}"
        own = Path(disk.folder) / f"{disk.name}.{'img' if disk.parent is None else 'top'}"
        try:
            device = own.stat().st_dev
            occupied_bytes = sum(path.stat().st_blocks * 512 for path in (own, *_parents(disk)))
            space = os.statvfs(disk.folder)
        except OSError as exc:
            raise RigError("DiskUnhealthy", f"{what}: {reason(exc, what)}") from exc
        free_by_device[device] = (space.f_bavail * space.f_frsize, disk.folder)
        needed_by_device[device] = needed_by_device.get(device, 0) + occupied_bytes
    for device, needed in needed_by_device.items():
        free, folder = free_by_device[device]
        if free < needed:
            raise RigError(
                "NotEnoughSpace",
                f"VM {vm!r}: {free} bytes are free at {folder}; a snapshot of its disks may need {needed}",
                recoverable=True,
            )


def _parents(disk: DiskInfo) -> list[Path]:
    """What a thin disk has not of its own, a snapshot must keep too."""
    return [] if disk.parent is None else [Path(disk.parent)]
