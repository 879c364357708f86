"""The disks of a disk host: its folder, its VMs, and the files and options that its disks share.

Folder layout: ``root/VM/NAME.img`` (or ``.top``), ``.disk``, ``.NNNNNN.hrl``, ``.snapshot``, ``.staging``, ``kept/``;
``root/position`` is the position counter.

Fault contract: a VM's folder is created under a dot name and renamed when its first disk is complete; it is renamed to a
dot name before it is deleted; folders with dot names are deleted at start.  One process at a time owns the root folder
(``AlreadyServed``).  A disk whose files cannot be read fails alone: it is in :attr:`DiskRegistry.broken`, and the other
disks are served.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import structlog

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.names import check_name
from siterig.blockfs.contracts.shares import STORE_SHARE_MAX
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk import parent_image
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import HOLDER_KIND, DiskPaths, MakeFiles, make_first
from siterig.blockfs.disk.disk_options import DiskOptions, log_changed
from siterig.blockfs.disk.disk_report import describe, describe_broken
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.replacing import check_idle
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import rename_new, sync_folder
from siterig.blockfs.files.host_errors import host_error, os_errors_as
from siterig.blockfs.files.os_errors import FULL, reason
from siterig.blockfs.host.host_folder import RECOVERY_FOLDER, lock_folder
from siterig.blockfs.watch.file_watch import FileWatch

_PASSING = frozenset({*FULL, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""The errors of the host after which a disk can be opened later, because nothing is wrong with its files."""
_log = structlog.get_logger("siterig.blockfs.host.disk_host")


class DiskRegistry:
    """All VMs of one disk host, and their open disks.  Use it on one trio thread.

    Attributes:
        vms: the open disks by name, by the name of their VM.
        broken: for each disk that could not be opened (``VM/NAME``), the reason.
        broken_chains: descriptions of the thin disks in ``broken`` whose parent image is missing or changed.
        views: opens views of managed disks; None at a site.
        event_fd: an eventfd that the disks raise when they need maintenance.
        report_opened: called with each disk that is opened, before its guest can use it.
    """

    def __init__(
        self,
        root: Path,
        mountpoint: Path,
        *,
        views: Views | None = None,
        policy: LogPolicy | None = None,
        snapshot_share_max: float = STORE_SHARE_MAX,
        report_changed: Callable[[DiskPaths, str], None] = log_changed,
        report_opened: Callable[[Disk], None] = lambda _disk: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Lock the folder and open all disks in it.

        Args:
            root: the folder of the disks; it is created if it does not exist.
            mountpoint: the folder at which the disks are mounted.
            views: opens views of managed disks, at a recovery side.
            policy: the limits of each change log.
            snapshot_share_max: the share of a disk's size that its snapshot may occupy.
            report_changed: called with each disk that another program changed, or that cannot be opened.
            report_opened: called with each disk that is opened, before its guest can use it.
            clock: the time of these disks.

        Raises:
            RigError: ``AlreadyServed`` if another process owns the folder.
        """
        self.root = root
        self.mountpoint = mountpoint
        self.views = views
        safe_files.make_folder(root, parents=True)
        self._lock_fd = lock_folder(root)
        self.positions = PositionCounter(root / "position")
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch = FileWatch()
        self._report_changed = report_changed
        self.report_opened = report_opened
        self._options = DiskOptions(
            self.positions,
            self.event_fd,
            policy or LogPolicy(),
            snapshot_share_max,
            watch=self.watch,
            report_changed=report_changed,
            clock=clock,
        )
        self.vms: dict[str, dict[str, Disk]] = {}
        self.broken: dict[str, str] = {}
        self.broken_chains: dict[str, DiskInfo] = {}
        self._waiting: dict[str, tuple[DiskPaths, Code]] = {}
        """The disks in ``broken`` that can be opened later, each with the code of the error."""
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder.name != RECOVERY_FOLDER:
                self._load(folder)
        if views is not None:
            # By name, because a disk that cannot be opened keeps its pins, too.
            over = (disk.paths for disk in self.all_disks() if disk.state.managed_disk is not None)
            names = self.broken.keys() | set(map(str, over))
            views.reconcile(HOLDER_KIND, {f"{HOLDER_KIND} {name}" for name in names})

    def _load(self, folder: Path) -> None:
        if folder.name.startswith("."):  # creation or deletion was interrupted
            shutil.rmtree(folder)
            return
        self.vms[folder.name] = {}
        for state in sorted(folder.glob("*.disk")):
            paths = DiskPaths(folder, folder.name, state.stem)
            try:
                self._open(paths)
            except (RigError, OSError) as exc:
                self._note_broken(paths, exc)
                _log.error("disk_not_opened", disk=str(paths), error=str(exc))
                self._report_changed(paths, f"cannot be opened: {exc}")

    def _open(self, paths: DiskPaths) -> None:
        disk = Disk.open(paths, self._options, self.views)
        self.report_opened(disk)
        self.vms[paths.vm][paths.name] = disk

    def _note_broken(self, paths: DiskPaths, exc: RigError | OSError) -> None:
        self.broken[str(paths)] = str(exc)
        if not isinstance(exc, RigError):
            if exc.errno in _PASSING:
                self._waiting[str(paths)] = paths, host_error(f"disk {paths}", exc).code
            return
        if exc.recoverable or exc.code in (Code.KeyRevoked, Code.KeyMissing):
            self._waiting[str(paths)] = paths, exc.code
        if exc.code == parent_image.CODE:
            described = describe_broken(paths, DiskState.load(paths.file("disk")), exc.message, self.mountpoint)
            self.broken_chains[str(paths)] = described

    def waiting(self) -> list[DiskPaths]:
        """Return the disks that could not be opened because of a key, or for a reason that may pass."""
        return [paths for paths, _ in self._waiting.values()]

    def open_again(self, paths: DiskPaths) -> None:
        """Open a disk of :meth:`waiting`; if it cannot be opened yet, note the reason."""
        try:
            self._open(paths)
        except (RigError, OSError) as exc:
            self._note_broken(paths, exc)
        else:
            del self.broken[str(paths)], self._waiting[str(paths)]
            _log.info("disk_opened_later", disk=str(paths))

    def close(self) -> None:
        """Close all disks cleanly, then the folder."""
        for disk in self.all_disks():
            try:
                disk.close()
            except OSError as exc:  # the other disks are closed cleanly all the same
                disk.abandon()
                _log.error("disk_not_closed_cleanly", disk=str(disk.paths), error=reason(exc))
        self.positions.close()
        self._close_files()

    def abandon(self) -> None:
        """Release all files without a sync, as a kill does."""
        for disk in self.all_disks():
            disk.abandon()
        self.vms.clear()
        self._close_files()

    def _close_files(self) -> None:
        self.watch.close()
        for fd in (self.event_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self.event_fd = self._lock_fd = -1

    # --- finding ------------------------------------------------------------------------------------------------

    def all_disks(self) -> list[Disk]:
        """Return the open disks of all VMs."""
        return [disk for disks in self.vms.values() for disk in disks.values()]

    def disks(self, vm: str, names: Sequence[str] | None = None) -> list[Disk]:
        """Return the disks of a VM, or those of these names.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``; if one of the disks could not be opened: ``DiskCorrupt``,
                ``BrokenVhdChain``, ``KeyRevoked`` or ``KeyMissing``.
        """
        self._require(vm)
        for error in self._broken_of(vm, lambda name: names is None or name in names):
            raise error
        found = self.vms[vm]
        for name in names or ():
            if name not in found:
                raise RigError(Code.DiskNotFound, f"VM {vm!r} has no disk {name!r}; it has: {', '.join(found)}")
        return [disk for name, disk in found.items() if names is None or name in names]

    def _require(self, vm: str) -> None:
        if vm not in self.vms:
            known = ", ".join(sorted(self.vms)) or "none"
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r} here; there are: {known}")

    def _broken_of(self, vm: str, counts: Callable[[str], bool]) -> list[RigError]:
        """Return the errors of the disks of a VM that could not be opened, of those whose name counts."""
        return [
            self._error_of_broken(name, why)
            for name, why in self.broken.items()
            if name.startswith(f"{vm}/") and counts(name.partition("/")[2])
        ]

    def _error_of_broken(self, name: str, why: str) -> RigError:
        code = self._code_of_broken(name)
        passes = code in (Code.DiskFull, Code.LowMemory, Code.HostIoError)
        return RigError(code, f"disk {name} cannot be opened: {why}", recoverable=passes)

    def _code_of_broken(self, name: str) -> Code:
        if name in self.broken_chains:
            return parent_image.CODE
        return self._waiting[name][1] if name in self._waiting else Code.DiskCorrupt

    def obstacles(self, vm: str, excluded: Collection[str] = ()) -> list[RigError]:
        """Return the errors of all disks of a VM that cannot be opened, or whose parent image changed.

        ``excluded``: the names of disks that do not count.

        Raises:
            RigError: ``VmNotFound``.
        """
        self._require(vm)
        found = self._broken_of(vm, lambda name: name not in excluded)
        for name, disk in self.vms[vm].items():
            if name not in excluded and (why := parent_image.broken_chain(disk.state, disk.layer)) is not None:
                found.append(RigError(parent_image.CODE, f"disk {disk.paths}: {why}"))
        return found

    def unbroken_disks(self, vm: str, names: Sequence[str] | None = None) -> list[Disk]:
        """Return the disks of a VM, as :meth:`disks` does, after a check of their parent images.

        Raises:
            RigError: ``BrokenVhdChain`` if the parent of one of them changed after it was opened.
        """
        found = self.disks(vm, names)
        for disk in found:
            if (why := parent_image.broken_chain(disk.state, disk.layer)) is not None:
                raise RigError(parent_image.CODE, f"disk {disk.paths}: {why}")
        return found

    def disk(self, vm: str, name: str) -> Disk:
        """Return one disk.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``.
        """
        return self.disks(vm, [name])[0]

    def describe(self, disks: list[Disk]) -> list[DiskInfo]:
        """Return the descriptions of disks for other roles."""
        return [describe(disk, self.mountpoint) for disk in disks]

    # --- creating and removing ----------------------------------------------------------------------------------

    def check_new(self, vm: str, name: str) -> None:
        """Check the name of a new disk, and of its VM.

        Raises:
            RigError: ``InvalidName``, ``DiskExists``.
        """
        _check_vm_name(vm)
        check_name("disk", name)
        if name in self.vms.get(vm, {}) or f"{vm}/{name}" in self.broken:
            raise RigError(Code.DiskExists, f"VM {vm!r} has a disk {name!r} already")

    def add(self, vm: str, name: str, make: MakeFiles, views: Views | None) -> Disk:
        """Create the files of a disk in the folder of its VM, and open it; if that fails, no file of it is left."""
        paths = DiskPaths(self.root / vm, vm, name)
        if vm in self.vms:
            try:
                make(paths)
            except BaseException:
                self._delete_files(paths)
                raise
        else:
            make_first(self.root, paths, make)
        try:
            disk = Disk.open(paths, self._options, views)
        except BaseException:
            self._delete_files(paths)
            raise
        self.report_opened(disk)
        self.vms.setdefault(vm, {})[name] = disk
        return disk

    def discard(self, disk: Disk) -> None:
        """Delete a disk that was added and could not be completed."""
        disk.abandon()
        del self.vms[disk.paths.vm][disk.paths.name]
        self._delete_files(disk.paths)

    def remove_disk(self, disk: Disk) -> None:
        """Delete a disk that nothing uses.

        Raises:
            RigError: ``DiskInUse``; ``InvalidState`` if it is tracked.
        """
        check_idle(disk)
        if disk.state.tracked:
            raise RigError(Code.InvalidState, f"disk {disk.paths} is tracked, and cannot be deleted")
        self.discard(disk)

    def _delete_files(self, paths: DiskPaths) -> None:
        """Delete the files of a disk, and the folder of its VM if it was the first disk."""
        for path in paths.folder.glob(f"{paths.name}.*"):
            path.unlink()
        if not self.vms.get(paths.vm):
            self.vms.pop(paths.vm, None)
            paths.folder.rmdir()

    def remove_vm(self, vm: str) -> None:
        """Delete the disks, logs and folder of a VM, and then release its pins.

        Raises:
            RigError: ``VmNotFound``, ``DiskInUse``.
        """
        if vm not in self.vms:
            self.disks(vm)
        for disk in self.vms[vm].values():
            check_idle(disk)
        held = [(disk.state.managed_disk, disk.paths) for disk in self.vms[vm].values()]
        for disk in self.vms.pop(vm).values():
            disk.abandon()
        for name in [name for name in self.broken if name.startswith(f"{vm}/")]:
            del self.broken[name]
            self.broken_chains.pop(name, None)
            self._waiting.pop(name, None)
        doomed = self.root / f".gone-{uuid.uuid4()}"
        (self.root / vm).rename(doomed)
        sync_folder(self.root)
        shutil.rmtree(doomed)
        for managed_disk, paths in held:  # the pins of disks that could not be opened are released at the next start
            self.release_view(managed_disk, paths)

    def rename_vm(self, vm: str, name: str) -> None:
        """Rename a VM; does nothing if that was done already.

        The name of the folder is the name of the VM, so a kill leaves the old name or the new name.

        Raises:
            RigError: ``VmNotFound``, ``VmExists``, ``InvalidName``, ``DiskInUse``, ``VmBusy``.
        """
        if vm not in self.vms and name in self.vms:
            return
        disks = self.disks(vm)
        _check_vm_name(name)
        if name in self.vms:
            raise RigError(Code.VmExists, f"VM {vm!r} cannot be renamed: there is a VM {name!r} already")
        for disk in disks:
            check_idle(disk)
            if disk.state.promoting:
                raise RigError(
                    Code.VmBusy, f"disk {disk.paths} is being hydrated after a commit: wait for the end", recoverable=True
                )
        for disk in disks:
            disk.close()
        del self.vms[vm]
        try:
            with os_errors_as(f"folder of VM {vm}"):
                rename_new(self.root / vm, self.root / name)
                sync_folder(self.root)
        finally:
            self._load(self.root / (name if (self.root / name).exists() else vm))
        for disk in disks:
            self.release_view(disk.state.managed_disk, disk.paths)

    def release_view(self, managed_disk: str | None, paths: DiskPaths) -> None:
        """Release the pin that a disk has on a managed disk; does nothing if ``managed_disk`` is None."""
        if self.views is not None and managed_disk is not None:
            self.views.release(managed_disk, paths.holder)


def _check_vm_name(vm: str) -> None:
    check_name("VM", vm)
    if vm == RECOVERY_FOLDER:
        raise RigError(Code.InvalidName, f"VM is named {vm!r}: a recovery side's mount has its mounted points there")
