"""Makes the disks of new VMs, and further disks of a VM; a disk that was not completed is removed.

Fault contract
--------------
Before a disk is created, its name is durable in the folder ``unfinished/VM`` (an empty file).  When all disks of a call
are complete, and before the answer is given, the folder is renamed to a name with a dot.  So a disk without such a file is
complete.  Disks that a killed agent left are removed by the next one as soon as the disk host answers; until then the VM
is busy.  A call without an answer therefore made all its disks or none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.names import check_name
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_synced
from siterig.blockfs.files.host_errors import os_errors_as
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.hyperv.prerequisites import check_room_for_images

_CLEAN_UP_S = 30.0
_REMOVE_AGAIN_S = 0.5
_GONE = (Code.VmNotFound, Code.DiskNotFound)
_log = structlog.get_logger(__name__)


class DiskCreation:
    """The disks of one host that are being made; a VM has one call at a time."""

    def __init__(self, context: AgentContext, folder: Path) -> None:
        """Read which disks a killed agent left unfinished.

        Args:
            context: the surroundings of the agent.
            folder: the folder for the names of unfinished disks; it is created if it does not exist.
        """
        self._context = context
        self._folder = folder
        self._trackers: dict[str, ProgressTracker] = {}
        safe_files.make_folder(folder)
        for path in folder.iterdir():
            if path.name.startswith("."):  # the disks are complete
                shutil.rmtree(path)
        self._unfinished = {path.name for path in folder.iterdir()}
        self._left = trio.Event()

    @property
    def vms(self) -> set[str]:
        """The VMs for which disks are being made."""
        return set(self._trackers)

    def progress(self, vm: str) -> VmProgress:
        """Return the progress of a VM of ``vms``."""
        return self._trackers[vm].snapshot()

    def require_made(self, vm: str) -> None:
        """Check that no disk of the VM is being made, and that none is to be removed because it was not completed.

        Raises:
            RigError: ``VmBusy``.
        """
        if vm in self._trackers:
            raise RigError(Code.VmBusy, f"VM {vm!r} is being created on this host", recoverable=True)
        if vm in self._unfinished:
            text = f"VM {vm!r} has a disk that was not completed; it is being removed"
            raise RigError(Code.VmBusy, text, recoverable=True)

    @contextmanager
    def making(self, vm: str) -> Iterator[ProgressTracker]:
        """Reserve the VM for a call of :meth:`make`."""
        self.require_made(vm)
        self._trackers[vm] = ProgressTracker(vm, self._context.clock)
        try:
            yield self._trackers[vm]
        finally:
            del self._trackers[vm]

    async def make(self, vm: str, disks: Sequence[DiskSpec]) -> list[DiskInfo]:
        """Create disks of a reserved VM, and fill them; after a failure none of them remains.  Return all disks of the VM.

        Raises:
            RigError: ``InvalidName``, ``DiskExists``, ``DiskFull``, or another error of the creation.
        """
        tracker = self._trackers[vm]
        tracker.begin("Import", [(disk.name, 0, disk.size_bytes) for disk in disks if disk.image is not None])
        check_name("VM", vm)
        try:
            infos = [await self._create(vm, disk) for disk in disks]
            images = [(info, Path(disk.image)) for info, disk in zip(infos, disks, strict=True) if disk.image is not None]
            await trio.to_thread.run_sync(check_room_for_images, vm, images)
            for info, disk in zip(infos, disks, strict=True):
                if disk.image is not None:
                    more = partial(tracker.more, disk.name)
                    await self._context.guests.fill(Path(info.path), Path(disk.image), more, format_=disk.image_format)
                    tracker.done(disk.name, disk.size_bytes)  # the disk may be larger than the image
                if disk.filesystem is not None:
                    await self._context.guests.format(
                        Path(info.path), disk.filesystem, disk.name, sector_bytes=disk.sector_bytes
                    )
            present = await self._context.host.list_disks(vm=vm)
            self._forget(vm)
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(_CLEAN_UP_S):
                await self._remove(vm)
            self._left.set()
            raise
        return present

    async def _create(self, vm: str, disk: DiskSpec) -> DiskInfo:
        check_name("disk", disk.name)
        self._note(vm, disk.name)
        try:
            return await self._context.host.create_disk(
                vm=vm, name=disk.name, size_bytes=disk.size_bytes, sector_bytes=disk.sector_bytes, backing=disk.backing
            )
        except RigError as error:
            if error.code == Code.DiskExists:  # it is not of this call, and must stay
                (self._folder / vm / disk.name).unlink()
            raise

    def _note(self, vm: str, name: str) -> None:
        folder = self._folder / vm
        with os_errors_as(f"the names of unfinished disks of VM {vm!r}"):
            if not folder.exists():
                safe_files.make_folder(folder)
                sync_folder(self._folder)
            write_synced(folder / name, b"")
            sync_folder(folder)

    def _forget(self, vm: str) -> None:
        """Record that no disk of the VM is unfinished."""
        folder = self._folder / vm
        if folder.exists():
            done = self._folder / f".{vm}"
            folder.rename(done)
            sync_folder(self._folder)
            shutil.rmtree(done, ignore_errors=True)
        self._unfinished.discard(vm)

    async def remove_unfinished(self) -> None:
        """Remove the disks that a killed agent left, and those that a call could not remove in time; until cancelled."""
        while True:
            for vm in sorted(self._unfinished - self.vms):
                await self._remove(vm)
            self._left = trio.Event()
            await self._left.wait()

    async def _remove(self, vm: str) -> None:
        """Remove the unfinished disks of a VM, as soon as the disk host answers."""
        folder = self._folder / vm
        self._unfinished.add(vm)
        for path in sorted(folder.iterdir(), reverse=True) if folder.exists() else ():
            while True:
                try:
                    await self._context.host.remove_disk(vm=vm, disk=path.name)
                    _log.info("unfinished_disk_removed", vm=vm, disk=path.name)
                except RigError as error:
                    if error.code in (Code.RoleUnavailable, Code.DiskInUse):  # a program that fills it is about to end
                        await self._context.clock.real.sleep(_REMOVE_AGAIN_S)
                        continue
                    if error.code not in _GONE:
                        _log.warning("unfinished_disk_not_removed", vm=vm, disk=path.name, reason=error.message)
                break
        self._forget(vm)
