"""Contract between the file system and the owner of the disks: which disk is where in the mount."""

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
"""Path of the root folder of the mount."""

_log = structlog.get_logger("siterig.blockfs.host.disk_tree")


class DiskTree(Protocol):
    """Folders of disks.  The file system asks for each request again, because folders and disks come and go.

    A folder is named by its path in the mount, without a slash at either end.  The file system derives the names of a
    disk's files (``NAME.img`` and so on) from its ``DiskPaths``, whose ``vm`` is that path.
    :class:`siterig.blockfs.host.disk_host.DiskHost` has one folder for each VM and one for each mounted point.
    """

    @property
    def root(self) -> Path:
        """A folder of the host that all disks share; its free space is shown as the free space of the mount."""
        ...

    def folders(self, within: str) -> Collection[str]:
        """Return the names of the folders in a folder; ``ROOT`` is the root folder of the mount."""
        ...

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        """Return the disks of a folder by name; None if there is no such folder."""
        ...

    def kept_in(self, folder: str) -> Path:
        """Return the path on the host that changes whenever a name in this folder appears or disappears."""
        ...

    def on_grown(self, report: Callable[[Disk], None]) -> None:
        """Call ``report`` from now on with each disk that grows, unless a request through the mount made it grow."""
        ...

    async def run_maintenance(self) -> None:
        """Do the upkeep that the disks need, until cancelled; run it as long as the disks are served."""
        ...


def all_disks(tree: DiskTree) -> list[Disk]:
    """Return the disks of all folders of a tree."""
    found, folders = list[Disk](), [ROOT]
    while folders:
        folder = folders.pop()
        found += (tree.disks_in(folder) or {}).values()
        folders += [f"{folder}/{name}" if folder else name for name in tree.folders(folder)]
    return found


async def run_maintenance(event_fd: int, watch: FileWatch | None, disks: Callable[[], list[Disk]]) -> None:
    """Maintain the disks that have raised ``event_fd``, and run the watch of their files, until cancelled."""
    async with trio.open_nursery() as nursery:
        if watch is not None:
            nursery.start_soon(watch.run)
        await _maintain_on_event(event_fd, disks)


async def _maintain_on_event(event_fd: int, disks: Callable[[], list[Disk]]) -> None:
    failed: list[Disk] = []
    while True:
        await trio.lowlevel.wait_readable(event_fd)
        os.eventfd_read(event_fd)
        failed = await maintain_once([disk for disk in disks() if disk.take_event() or disk in failed])


async def maintain_once(disks: list[Disk]) -> list[Disk]:
    """Maintain each disk; return those of which that failed, which is logged, and is tried again at the next event.

    A disk that was closed meanwhile, for example because its VM was removed, is passed over.
    """
    failed = []
    for disk in disks:
        if not disk.is_open:
            continue
        if disk.guard is not None:
            disk.guard.look_again()
        try:
            disk.note_events()
            await trio.to_thread.run_sync(disk.tracking.maintain)
        except (OSError, RigError) as exc:
            if not disk.is_open or (disk.guard is not None and disk.guard.check_log() is not None):
                continue
            # Without a spare the current segment continues to grow, as long as there is space.
            error = reason(exc) if isinstance(exc, OSError) else exc.message
            _log.warning("log_maintenance_failed", disk=str(disk.paths), error=error)
            failed.append(disk)
    return failed


class SingleDisk(DiskTree):
    """A tree with one disk in its root folder."""

    def __init__(self, disk: Disk, event_fd: int, watch: FileWatch | None = None) -> None:
        """Use the event descriptor and the watch with which the disk was opened."""
        self._disk = disk
        self._event_fd = event_fd
        self._watch = watch

    @property
    def root(self) -> Path:
        return self._disk.paths.folder

    def folders(self, within: str) -> Collection[str]:
        return ()

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        return {self._disk.paths.name: self._disk} if folder == ROOT else None

    def kept_in(self, folder: str) -> Path:
        return self.root

    def on_grown(self, report: Callable[[Disk], None]) -> None:
        """Do nothing: only a request through the mount makes this disk grow."""

    async def run_maintenance(self) -> None:
        await run_maintenance(self._event_fd, self._watch, lambda: [self._disk])
