"""The room that a VM needs at the site, before it is made of images, and before it is protected."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.files.free_space import require_free_space
from siterig.blockfs.files.os_errors import reason


def check_space(vm: str, disks: list[DiskInfo]) -> None:
    """``NotEnoughSpace`` unless the host can hold the snapshot of the initial replication.

    A guest that overwrites all it has while the copy runs makes the snapshot keep a second copy of every
    *allocated* byte (holes were zeros before and need none): so 100 % of what the disks occupy must be free.  The
    logs come out of the same space, but they are bounded by themselves: past 50 % of a disk's size they are given up
    for a resync.
    """
    needs = []
    for disk in disks:
        what = f"disk {disk.name!r} of VM {vm!r}"
        folder = Path(disk.folder)
        try:
            own = folder / f"{disk.name}.{'img' if disk.parent is None else 'top'}"
            needs.append((folder, sum(path.stat().st_blocks * STAT_BLOCK_BYTES for path in (own, *_parents(disk)))))
            os.statvfs(folder)
        except OSError as exc:
            raise RigError(Code.DiskUnhealthy, f"{what}: {reason(exc, what)}") from exc
    require_free_space(needs, f"VM {vm!r}", "a snapshot of its disks may need")


def check_room_for_images(vm: str, images: list[tuple[DiskInfo, Path]]) -> None:
    """``NotEnoughSpace`` unless the disks can hold what the images occupy; what is compressed in one may need more yet.

    A block device does not tell what it occupies.
    """
    needs = []
    for disk, image in images:
        with suppress(OSError):  # the copy names the image that cannot be looked at
            needs.append((Path(disk.folder), min(image.stat().st_blocks * STAT_BLOCK_BYTES, disk.size_bytes)))
    require_free_space(needs, f"VM {vm!r}", "the contents of its images need")


def _parents(disk: DiskInfo) -> list[Path]:
    """The parent image of a thin disk, if it has one: a snapshot keeps its chunks too."""
    return [] if disk.parent is None else [Path(disk.parent)]
