"""What is where in a mount: the seam between the file system and whoever has disks."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.watch.file_watch import FileWatch

ROOT = ""
"""Path of the mount's own folder."""

_log = structlog.get_logger("siterig.blockfs.host.tree")


class DiskTree(Protocol):
    """Folders of disks, asked anew for each request: what is there may change from one to the next.

    A folder is named by its path in the mount, without a slash at either end.  A disk's files (``NAME.img`` and so on)
    follow from its place, whose ``vm`` is that path, and are the file system's business.
    :class:`siterig.blockfs.host.disk_host.DiskHost` has a folder a VM, and one for each mounted recovery point.
    """

    @property
    def root(self) -> Path:
        """A folder of the host's file system that the disks share; its free space is the mount's."""
        ...

    def folders(self, within: str) -> Collection[str]:
        """Names of the folders in a folder; ``ROOT`` is the mount's own."""
        ...

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        """The disks of a folder by name; None: there is no such folder."""
        ...

    def kept_in(self, folder: str) -> Path:
        """The file or folder on the host that changes whenever a name in a folder of the mount comes or goes."""
        ...

    def on_grown(self, report: Callable[[Disk], None]) -> None:
        """Call ``report`` with each disk that has grown by another way than the mount, whose kernel does not know it."""
        ...

    async def run_maintenance(self) -> None:
        """Do what the disks' writers ask for, until cancelled; runs as long as the disks are served."""
        ...


async def run_maintenance(event_fd: int, watch: FileWatch | None, disks: Callable[[], list[Disk]]) -> None:
    """:meth:`Disk.maintain` for all disks whenever ``event_fd`` is raised, and what ``watch`` notices, until cancelled."""
    async with trio.open_nursery() as nursery:
        if watch is not None:
            nursery.start_soon(watch.run)
        await _maintain_on_event(event_fd, disks)


async def _maintain_on_event(event_fd: int, disks: Callable[[], list[Disk]]) -> None:
    while True:
        await trio.lowlevel.wait_readable(event_fd)
        os.eventfd_read(event_fd)
        await maintain_once(disks())


async def maintain_once(disks: list[Disk]) -> None:
    """:meth:`Disk.maintain` for each; what fails is logged, and tried again at the next event."""
    for disk in disks:
        if disk.guard is not None:
            disk.guard.look_again()
        try:
            disk.note_events()
            await trio.to_thread.run_sync(disk.tracking.maintain)
        except (OSError, RigError) as exc:
            if disk.guard is not None and disk.guard.check_log() is not None:
                continue
            # No spare: the current segment grows on, as long as there is room at all.
            error = reason(exc) if isinstance(exc, OSError) else exc.message
            _log.warning("log_maintenance_failed", disk=str(disk.paths), error=error)


class SingleDisk:
    """One disk in the mount's own folder, and no other.  ``event_fd``, ``watch``: those that the disk was opened with."""

    def __init__(self, disk: Disk, event_fd: int, watch: FileWatch | None = None) -> None:
        self.root = disk.paths.folder
        self._disk = disk
        self._event_fd = event_fd
        self._watch = watch

    def folders(self, within: str) -> Collection[str]:
        """None."""
        return ()

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        """The disk, in the mount's own folder."""
        return {self._disk.paths.name: self._disk} if folder == ROOT else None

    def kept_in(self, folder: str) -> Path:
        """The folder of the disk's files."""
        return self.root

    def on_grown(self, report: Callable[[Disk], None]) -> None:
        """Nobody else can make it grow."""

    async def run_maintenance(self) -> None:
        """See :class:`DiskTree`."""
        await run_maintenance(self._event_fd, self._watch, lambda: [self._disk])
