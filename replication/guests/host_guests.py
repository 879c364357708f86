"""The VMs of this host, as the Provider uses them: creating file systems, freezing, shutting down."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.images import importer
from siterig.blockfs.images.image_formats import ImageFormat

_ROOM_BYTES = 4 * 1024 * 1024
"""If mkfs fails and the host has fewer free bytes than this, the reason is the lack of space."""


class Guests(Protocol):
    """The operations on guests of this host that the agent needs."""

    async def mountpoints(self, disks: list[Path]) -> list[str]:
        """Return one mount point of each file system that is mounted from these disks."""
        ...

    def frozen(self, mountpoints: list[str], *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        """Freeze file systems for the time of the block.

        Raises:
            RigError: ``FreezeFailed``; ``FreezeTimedOut`` if they had to be thawed before the end of the block.
        """
        ...

    async def check_shutdown(self, disks: list[Path]) -> None:
        """Raise ``VmBusy`` if it is known that :meth:`shutdown` would be refused."""
        ...

    async def shutdown(self, disks: list[Path]) -> None:
        """Unmount and detach all uses of the disks.

        Raises:
            RigError: ``VmBusy``.
        """
        ...

    async def format(self, disk: Path, filesystem: str, label: str, *, sector_bytes: int = 512) -> None:
        """Create a file system on a disk with sectors of that size."""
        ...

    async def fill(self, disk: Path, image: Path, advance: Advance, *, format_: ImageFormat | None = None) -> None:
        """Write the contents of an image to a new disk; ``format_`` None: the format of the image is detected."""
        ...


class HostGuests(Guests):
    """Guests that are loop devices and mounts on this machine."""

    async def mountpoints(self, disks: list[Path]) -> list[str]:
        """Return one mount point of each file system, because freezing one twice is an error."""
        by_device: dict[int, str] = {}
        for disk in disks:
            for use in await loop_devices.uses(disk):
                for where in use.mountpoints:
                    device = (await trio.to_thread.run_sync(os.stat, where)).st_dev
                    by_device.setdefault(device, where)
        return list(by_device.values())

    def frozen(self, mountpoints: list[str], *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        return loop_devices.frozen(mountpoints, timeout_s=timeout_s)

    async def check_shutdown(self, disks: list[Path]) -> None:
        await loop_devices.check_shutdown(disks)

    async def shutdown(self, disks: list[Path]) -> None:
        await loop_devices.shutdown(disks)

    async def format(self, disk: Path, filesystem: str, label: str, *, sector_bytes: int = 512) -> None:
        loop = await loop_devices.attach(disk, sector_bytes=sector_bytes)
        try:
            await loop_devices.mkfs(loop, filesystem, label)
        except RigError as error:
            room = await trio.to_thread.run_sync(os.statvfs, disk)
            if error.code == Code.MkfsFailed and room.f_bavail * room.f_frsize < _ROOM_BYTES:
                # The guest got an I/O error, as it should; the caller gets the reason.
                raise RigError(
                    Code.DiskFull,
                    f"no space for the file system {filesystem} on {disk}: the host's disk is full",
                    recoverable=True,
                ) from error
            raise RigError(error.code, error.message.replace(loop, str(disk))) from error
        finally:
            with trio.CancelScope(shield=True):
                await loop_devices.detach(loop)

    async def fill(self, disk: Path, image: Path, advance: Advance, *, format_: ImageFormat | None = None) -> None:
        await importer.fill(image, disk, advance=advance, format_=format_)
