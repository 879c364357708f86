"""Checks of the space that a VM needs at the site, before it is created from images and before it is protected."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.files.free_space import lacking_space, require_free_space
from siterig.blockfs.files.os_errors import reason


def check_space(vm: str, disks: list[DiskInfo]) -> None:
    """Check that the host has space for the snapshot of the initial replication, as :func:`space_obstacles` does.

    Raises:
        RigError: ``NotEnoughSpace``, ``DiskUnhealthy``.
    """
    for error in space_obstacles(vm, disks):
        raise error


def space_obstacles(vm: str, disks: list[DiskInfo]) -> list[RigError]:
    """Return all reasons for which the snapshot of the initial replication may not fit.

    They are errors ``NotEnoughSpace`` and ``DiskUnhealthy``.

    If a guest overwrites all of its data while the copy runs, the snapshot keeps a second copy of every *allocated* byte
    (holes were zeros and need no copy).  So as many bytes must be free as the disks occupy.  The logs use the same space,
    but they have a limit of their own: past 50 % of the disk's size a log is abandoned, and a resync follows.
    """
    needs, found = [], []
    for disk in disks:
        what = f"disk {disk.name!r} of VM {vm!r}"
        folder = Path(disk.folder)
        try:
            own = folder / f"{disk.name}.{'img' if disk.parent is None else 'top'}"
            needed_bytes = sum(path.stat().st_blocks * STAT_BLOCK_BYTES for path in (own, *_parents(disk)))
            os.statvfs(folder)
        except OSError as exc:
            found.append(RigError(Code.DiskUnhealthy, f"{what}: {reason(exc, what)}"))
        else:
            needs.append((folder, needed_bytes))
    return found + lacking_space(needs, f"VM {vm!r}", "a snapshot of its disks may need")


def check_room_for_images(vm: str, images: list[tuple[DiskInfo, Path]]) -> None:
    """Check that the host has space for the contents of the images; compressed images may need more than is checked.

    A block device does not show how much of it is in use, so it is not counted.

    Raises:
        RigError: ``NotEnoughSpace``.
    """
    needs = []
    for disk, image in images:
        with suppress(OSError):  # the copy reports an image that cannot be read
            needs.append((Path(disk.folder), min(image.stat().st_blocks * STAT_BLOCK_BYTES, disk.size_bytes)))
    require_free_space(needs, f"VM {vm!r}", "the contents of its images need")


def _parents(disk: DiskInfo) -> list[Path]:
    """Return the parent image of a thin disk, if it has one: a snapshot keeps its chunks, too."""
    return [] if disk.parent is None else [Path(disk.parent)]
