"""The creation of disks: empty, thin over an image of the user, or over a managed disk at one position.

Fault contract: a creation that fails leaves no file of the disk, no open view and no pin.  After a kill the next start of
the host releases the pin of a disk that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.contracts.control import BackingImage, ManagedDiskId
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.disk import parent_image
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_image, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.views import OpenedView, Views, open_counted
from siterig.blockfs.files.host_errors import host_error, os_errors_as
from siterig.blockfs.host.disk_registry import DiskRegistry
from siterig.blockfs.layers.layer import Layer


@dataclass(frozen=True, slots=True)
class _NewDisk:
    """A disk that is to be made over a managed disk at a position."""

    paths: DiskPaths
    managed_disk: str
    position: int
    sector_bytes: SectorBytes


@dataclass(frozen=True, slots=True)
class _OpenedBacking:
    """The view under a new disk, as it is stored, and the id of the key that encrypts it; None if nothing does."""

    views: Views
    view: Layer
    key_id: str | None


def _open_backing(views: Views, over: _NewDisk) -> _OpenedBacking:
    """Open and pin the managed disk under a new disk; in a thread, because it waits for the host's disk and the vault."""
    key_id = views.key_id(over.managed_disk)
    if key_id is not None:
        views.cipher(over.managed_disk, key_id)  # a key that was revoked is an error before anything is pinned
    view = open_counted(views, over.managed_disk, over.position, over.paths.holder, stored=key_id is not None)
    return _OpenedBacking(views, view, key_id)


class DiskMaker:
    """Creates the disks of one disk host.  ``locks`` are by name of a disk, while its view is pinned or released."""

    def __init__(self, registry: DiskRegistry, locks: KeyedLock) -> None:
        self._registry = registry
        self._locks = locks
        self._opening: set[str] = set()

    def make_empty(self, vm: str, name: str, size_bytes: int, sector_bytes: SectorBytes) -> Disk:
        """Create a disk of zeros.

        Raises:
            RigError: ``DiskExists``, ``InvalidDiskSize``, ``DiskFull``.
        """
        self._check_new(vm, name)
        with os_errors_as(f"disk {vm}/{name} of {size_bytes} bytes"):
            disk = self._registry.add(vm, name, lambda paths: make_raw(paths, size_bytes, sector_bytes), None)
        return disk  # noqa: RET504 (a type checker does not know that os_errors_as swallows nothing)

    async def make_thin(self, vm: str, name: str, size_bytes: int, sector_bytes: SectorBytes, backing: BackingImage) -> Disk:
        """Create a thin disk over an image.

        Raises:
            RigError: as :meth:`make_empty`; ``ImageUnusable``.
        """
        self._check_new(vm, name)
        if Path(backing.path).is_relative_to(self._registry.mountpoint):
            raise RigError(Code.ImageUnusable, f"{backing.path}: is in the mount of this host, which cannot lie over itself")
        # In a thread: the image's file system may be slow, and requests on other disks must not wait for it.
        parent = await trio.to_thread.run_sync(parent_image.describe_parent, backing)
        self._check_new(vm, name)  # again: another call may have created it meanwhile
        with os_errors_as(f"disk {vm}/{name} of {size_bytes} bytes"):
            disk = self._registry.add(vm, name, lambda paths: make_over_image(paths, parent, size_bytes, sector_bytes), None)
        return disk  # noqa: RET504

    async def make_over_point(
        self, vm: str, name: str, managed_disk: ManagedDiskId, position: int, sector_bytes: SectorBytes
    ) -> Disk:
        """Create a tracked disk over a managed disk at one position.

        Raises:
            RigError: ``NotARecoveryHost``, ``DiskExists``; ``InvalidPosition`` and other errors of the managed disk.
        """
        views = self._registry.views
        if views is None:
            raise RigError(Code.NotARecoveryHost, f"cannot open managed disk {managed_disk} here: this host serves a site")
        self._check_new(vm, name)
        paths = DiskPaths(self._registry.root / vm, vm, name)
        await views.prepare(managed_disk)
        self._check_new(vm, name)  # again: another call may have created it meanwhile
        self._opening.add(str(paths))
        try:
            async with self._locks.hold(str(paths)):
                over = _NewDisk(paths, managed_disk, position, sector_bytes)
                opened = await trio.to_thread.run_sync(_open_backing, views, over)
                try:
                    return self._over_view(over, opened)
                except BaseException:
                    views.release(managed_disk, paths.holder)
                    raise
        finally:
            self._opening.discard(str(paths))

    async def open_waiting(self) -> None:
        """Open each disk that could not be opened because of a key, if the key can be had now."""
        for paths in self._registry.waiting():
            async with self._locks.hold(str(paths)):
                try:
                    await self._ask_for_key(paths)
                except (RigError, OSError):
                    continue  # the error of the last attempt still has the reason
                if paths in self._registry.waiting():  # otherwise it was removed meanwhile
                    self._registry.open_again(paths)

    async def _ask_for_key(self, paths: DiskPaths) -> None:
        state = DiskState.load(paths.file("disk"))
        views = self._registry.views
        if views is None:
            return
        if state.key is not None:
            await views.prepare(state.key.managed_disk, is_needed=True)
        elif state.managed_disk is not None:
            await views.prepare(state.managed_disk)

    def _check_new(self, vm: str, name: str) -> None:
        self._registry.check_new(vm, name)
        if f"{vm}/{name}" in self._opening:
            raise RigError(Code.DiskExists, f"VM {vm!r} has a disk {name!r} already")

    def _over_view(self, over: _NewDisk, opened: _OpenedBacking) -> Disk:
        """Make a tracked disk over a view; if that fails, close the view and leave no file of the disk."""
        paths, view = over.paths, opened.view
        try:
            disk = self._registry.add(
                paths.vm,
                paths.name,
                lambda made: make_over_managed_disk(
                    made,
                    managed_disk=over.managed_disk,
                    position=over.position,
                    size_bytes=view.size_bytes,
                    sector_bytes=over.sector_bytes,
                    key_id=opened.key_id,
                ),
                OpenedView(opened.views, view),
            )
        except OSError as exc:
            view.close()
            raise host_error(f"disk {paths}", exc) from exc
        except BaseException:
            view.close()
            raise
        try:
            disk.tracking.start(new_generation=False)
        except OSError as exc:
            self._registry.discard(disk)
            raise host_error(f"change log of disk {paths}", exc) from exc
        return disk
