"""A disk host: all disks of all VMs of one side, and the control operations on them.

Folder layout: ``root/VM/NAME.img`` (or ``.top``), ``.disk``, ``.NNNNNN.hrl``, ``.snapshot``, ``.staging``, ``kept/``;
``root/position`` is the position counter; ``root/recovery`` is of :mod:`siterig.blockfs.host.recoveries`, on a recovery
host.

Fault contract: a VM's folder is made under a dot name and renamed when its first disk is whole, and renamed to a dot
name before it is deleted; dot names are swept away at start.  One process at a time has the root folder
(``AlreadyServed``).  A disk whose files cannot be read fails alone: it is reported by :meth:`DiskHost.broken`, the others
are served.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog
import trio

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.control import (
    BackingImage,
    CutInfo,
    DiskInfo,
    DownloadedDisk,
    ManagedDiskId,
    RecoveryInfo,
    RecoverySource,
    SegmentInfo,
    SnapshotDisk,
    SnapshotInfo,
    SourceUse,
    StagingInfo,
    TagKind,
)
from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.contracts.shares import STORE_SHARE_MAX
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.disk import parent_image, promotion, replacing
from siterig.blockfs.disk.disk import Disk, begin_snapshots_of
from siterig.blockfs.disk.disk_files import HOLDER_KIND, DiskPlace, MakeFiles, make_first, make_overlay, make_raw, make_top
from siterig.blockfs.disk.disk_report import count, describe, describe_broken
from siterig.blockfs.disk.disk_rules import DiskRules, log_changed
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.replacing import check_idle
from siterig.blockfs.disk.views import OpenedView, Views, open_counted
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import rename_new, sync_folder
from siterig.blockfs.files.host_errors import host_error, os_errors_as
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.host.host_folder import RECOVERY_FOLDER, check_name, lock_folder
from siterig.blockfs.host.recoveries import Recoveries
from siterig.blockfs.host.tree import ROOT, run_maintenance
from siterig.blockfs.layers.layer import Layer
from siterig.blockfs.watch.file_watch import FileWatch

_log = structlog.get_logger("siterig.blockfs.host.disk_host")


class DiskHost:
    """Implements :class:`siterig.blockfs.contracts.control.DiskHostControl` and :class:`siterig.blockfs.host.tree.DiskTree`.

    Runs on one trio thread (see :mod:`siterig.blockfs.disk.disk`).
    """

    def __init__(
        self,
        root: Path,
        mountpoint: Path,
        *,
        views: Views | None = None,
        policy: LogPolicy | None = None,
        snapshot_share_max: float = STORE_SHARE_MAX,
        waits: Waits | None = None,
        tell_changed: Callable[[DiskPlace, str], None] = log_changed,
    ) -> None:
        """``waits``: where the host registers what it waits for.

        ``tell_changed``: called with each disk that another program has changed, or that cannot be opened.
        """
        self.root = root
        self.mountpoint = mountpoint
        self._views = views
        self._opening: set[str] = set()
        self._locks = KeyedLock()  # at a disk's place, while what it lies on is held or let go
        safe_files.make_folder(root, parents=True)
        self._lock_fd = lock_folder(root)
        self.positions = PositionCounter(root / "position")
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch = FileWatch()
        self._tell_changed = tell_changed
        self._rules = DiskRules(
            self.positions, self._event_fd, policy or LogPolicy(), snapshot_share_max, watch=self._watch,
            tell_changed=tell_changed,
        )  # fmt: skip
        self._promoter = promotion.Promoter(self._all_disks, self._release_view, self._locks, waits)
        self._tell_grown: Callable[[Disk], None] = lambda _disk: None
        self.vms: dict[str, dict[str, Disk]] = {}
        self.broken: dict[str, str] = {}
        """Disks that could not be opened (``VM/NAME``), and why."""
        self._broken_chains: dict[str, DiskInfo] = {}
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder.name != RECOVERY_FOLDER:
                self._load(folder)
        self._recoveries = None
        if views is not None:  # by name, for what a disk that cannot be opened lies on must not go either
            over = (disk.place for disk in self._all_disks() if disk.state.managed_disk is not None)
            names = self.broken.keys() | set(map(str, over))
            views.reconcile(HOLDER_KIND, {f"{HOLDER_KIND} {name}" for name in names})
            rules = DiskRules(self.positions, can_grow=False, read_only=True)
            self._recoveries = Recoveries(root / RECOVERY_FOLDER, mountpoint, views=views, rules=rules)

    def _load(self, folder: Path) -> None:
        if folder.name.startswith("."):  # half-made or half-deleted
            shutil.rmtree(folder)
            return
        disks = self.vms[folder.name] = {}
        for state in sorted(folder.glob("*.disk")):
            place = DiskPlace(folder, folder.name, state.stem)
            try:
                disks[state.stem] = Disk.open(place, self._rules, self._views)
            except (RigError, OSError) as exc:
                self.broken[str(place)] = str(exc)
                if isinstance(exc, RigError) and exc.code == parent_image.CODE:
                    described = describe_broken(place, DiskState.load(place.file("disk")), exc.message, self.mountpoint)
                    self._broken_chains[str(place)] = described
                _log.error("disk_not_opened", disk=str(place), error=str(exc))
                self._tell_changed(place, f"cannot be opened: {exc}")

    async def run_maintenance(self) -> None:
        """Implements :class:`siterig.blockfs.host.tree.DiskTree`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._promoter.run)
            await run_maintenance(self._event_fd, self._watch, self._all_disks)

    def _release_view(self, managed_disk: str | None, place: DiskPlace) -> None:
        if self._views is not None and managed_disk is not None:
            self._views.release(managed_disk, place.holder)

    def _all_disks(self) -> list[Disk]:
        return [disk for disks in self.vms.values() for disk in disks.values()]

    def close(self) -> None:
        """Close all disks in order."""
        for disks in self.vms.values():
            for disk in disks.values():
                try:
                    disk.close()
                except OSError as exc:  # the others are to be closed in order all the same
                    disk.abandon()
                    _log.error("disk_not_closed_in_order", disk=str(disk.place), error=reason(exc))
        if self._recoveries is not None:
            self._recoveries.end()
        self.positions.close()
        self._close_files()

    def abandon(self) -> None:
        """Let go of all files without a sync, as a kill would."""
        for disks in self.vms.values():
            for disk in disks.values():
                disk.abandon()
        self.vms.clear()
        if self._recoveries is not None:
            self._recoveries.end()
        self._close_files()

    def _close_files(self) -> None:
        self._watch.close()
        for fd in (self._event_fd, self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._event_fd = self._lock_fd = -1

    # --- finding ------------------------------------------------------------------------------------------------

    def folders(self, within: str) -> Collection[str]:
        """Implements :class:`siterig.blockfs.host.tree.DiskTree`: a folder a VM, and ``recovery``."""
        found = list(self.vms) if within == ROOT else []
        return found if self._recoveries is None else [*found, *self._recoveries.folders(within)]

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        """Implements :class:`siterig.blockfs.host.tree.DiskTree`."""
        if folder == ROOT:
            return {}
        if folder in self.vms or self._recoveries is None:
            return self.vms.get(folder)
        return self._recoveries.disks_in(folder)

    def kept_in(self, folder: str) -> Path:
        """Implements :class:`siterig.blockfs.host.tree.DiskTree`."""
        if folder in self.vms or self._recoveries is None or folder == ROOT:
            return self.root / folder
        return self._recoveries.kept_in(folder)

    def on_grown(self, tell: Callable[[Disk], None]) -> None:
        """Implements :class:`siterig.blockfs.host.tree.DiskTree`."""
        self._tell_grown = tell

    def disks(self, vm: str) -> list[Disk]:
        """A VM's disks; ``VmNotFound``, or ``DiskCorrupt`` if one of them could not be opened."""
        if vm not in self.vms:
            known = ", ".join(sorted(self.vms)) or "none"
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r} here; there are: {known}")
        for place, why in self.broken.items():
            if place.startswith(f"{vm}/"):
                code = parent_image.CODE if place in self._broken_chains else Code.DiskCorrupt
                raise RigError(code, f"disk {place} cannot be opened: {why}")
        return list(self.vms[vm].values())

    def _whole_disks(self, vm: str) -> list[Disk]:
        """:meth:`disks`; ``BrokenVhdChain`` if the parent of one was changed since it was opened."""
        found = self.disks(vm)
        for disk in found:
            if (why := parent_image.broken_chain(disk.state, disk.layer)) is not None:
                raise RigError(parent_image.CODE, f"disk {disk.place}: {why}")
        return found

    def disk(self, vm: str, name: str) -> Disk:
        """One disk; ``VmNotFound``, ``DiskNotFound``."""
        for disk in self.disks(vm):
            if disk.place.name == name:
                return disk
        raise RigError(Code.DiskNotFound, f"VM {vm!r} has no disk {name!r}; it has: {', '.join(self.vms[vm])}")

    async def list_disks(self, *, vm: str | None = None) -> list[DiskInfo]:
        """Implements :class:`DiskHostControl`."""
        if vm is not None:
            return [describe(disk, self.mountpoint) for disk in self.disks(vm)]
        served = [describe(disk, self.mountpoint) for disk in self._all_disks()]
        return [*served, *self._broken_chains.values()]

    async def position(self) -> int:
        """Implements :class:`DiskHostControl`."""
        return self.positions.value

    # --- disks --------------------------------------------------------------------------------------------------

    async def create_disk(
        self,
        *,
        vm: str,
        name: str,
        size_bytes: int,
        sector_bytes: SectorBytes = 512,
        backing: BackingImage | None = None,
    ) -> DiskInfo:
        """Implements :class:`DiskHostControl`."""
        self._check_new(vm, name)
        if backing is not None:
            return await self._create_thin(vm, name, size_bytes, sector_bytes, backing)
        with os_errors_as(f"disk {vm}/{name} of {size_bytes} bytes"):
            disk = self._add(vm, name, lambda place: make_raw(place, size_bytes, sector_bytes), None)
        return describe(disk, self.mountpoint)

    async def _create_thin(
        self, vm: str, name: str, size_bytes: int, sector_bytes: SectorBytes, backing: BackingImage
    ) -> DiskInfo:
        if Path(backing.path).is_relative_to(self.mountpoint):
            raise RigError(Code.ImageUnusable, f"{backing.path}: is in the mount of this host, which cannot lie over itself")
        # In a thread: the image's file system may be slow, and the disks that are served meanwhile must not wait.
        parent = await trio.to_thread.run_sync(parent_image.describe_parent, backing)
        self._check_new(vm, name)  # again: another call may have been faster
        with os_errors_as(f"disk {vm}/{name} of {size_bytes} bytes"):
            disk = self._add(vm, name, lambda place: make_overlay(place, parent, size_bytes, sector_bytes), None)
        return describe(disk, self.mountpoint)

    async def open_point(
        self, *, vm: str, name: str, managed_disk: ManagedDiskId, position: int, sector_bytes: SectorBytes = 512
    ) -> DiskInfo:
        """Implements :class:`DiskHostControl`."""
        views = self._views
        if views is None:
            raise RigError(Code.NotARecoveryHost, f"cannot open managed disk {managed_disk} here: this host serves a site")
        self._check_new(vm, name)
        place = DiskPlace(self.root / vm, vm, name)
        self._opening.add(str(place))
        try:
            async with self._locks.hold(str(place)):
                # In a thread: it waits for the host's disk, and the disks that are served meanwhile must not.
                view = await trio.to_thread.run_sync(open_counted, views, managed_disk, position, place.holder)
                try:
                    disk = self._over_point(place, managed_disk, position, view, sector_bytes)
                except BaseException:
                    views.release(managed_disk, place.holder)
                    raise
        finally:
            self._opening.discard(str(place))
        return describe(disk, self.mountpoint)

    def _over_point(
        self, place: DiskPlace, managed_disk: str, position: int, view: Layer, sector_bytes: SectorBytes
    ) -> Disk:
        """A new tracked disk over a view, which is closed if that fails; then nothing is left of the disk."""
        try:
            disk = self._add(
                place.vm,
                place.name,
                lambda made: make_top(
                    made, managed_disk=managed_disk, position=position, size_bytes=view.size_bytes, sector_bytes=sector_bytes
                ),
                OpenedView(view),
            )
        except OSError as exc:
            view.close()
            raise host_error(f"disk {place}", exc) from exc
        except BaseException:
            view.close()
            raise
        try:
            disk.start_tracking(new_generation=False)
        except OSError as exc:
            disk.abandon()
            del self.vms[place.vm][place.name]
            self._discard(place)
            raise host_error(f"change log of disk {place}", exc) from exc
        return disk

    async def open_recovery(
        self, *, vm: str, name: str, position: int, disks: list[RecoverySource], time_ns: int | None = None
    ) -> RecoveryInfo:
        """Implements :class:`DiskHostControl`."""
        if self._recoveries is None:
            raise RigError(Code.NotARecoveryHost, f"cannot open a state of VM {vm} here: this host serves a site")
        check_name("VM", vm)
        for disk in disks:
            check_name("disk", disk.name)
        with os_errors_as(f"{RECOVERY_FOLDER}/{vm}/{name}"):
            info = await self._recoveries.open(vm=vm, name=name, position=position, disks=disks, time_ns=time_ns)
        return info  # noqa: RET504 (a type checker does not know that os_errors_as swallows nothing)

    async def close_recovery(self, *, vm: str, name: str) -> None:
        """Implements :class:`DiskHostControl`."""
        if self._recoveries is not None:
            with os_errors_as(f"{RECOVERY_FOLDER}/{vm}/{name}"):
                await self._recoveries.close(vm=vm, name=name)

    async def list_recoveries(self, *, vm: str | None = None) -> list[RecoveryInfo]:
        """Implements :class:`DiskHostControl`."""
        return [] if self._recoveries is None else self._recoveries.infos(vm)

    def _check_vm_name(self, vm: str) -> None:
        check_name("VM", vm)
        if vm == RECOVERY_FOLDER:
            raise RigError(Code.InvalidName, f"VM is named {vm!r}: a recovery side's mount has its mounted points there")

    def _check_new(self, vm: str, name: str) -> None:
        self._check_vm_name(vm)
        check_name("disk", name)
        if name in self.vms.get(vm, {}) or f"{vm}/{name}" in self.broken or f"{vm}/{name}" in self._opening:
            raise RigError(Code.DiskExists, f"VM {vm!r} has a disk {name!r} already")

    def _add(self, vm: str, name: str, make: MakeFiles, views: Views | None) -> Disk:
        """Make a disk's files in the VM's folder, and open it."""
        place = DiskPlace(self.root / vm, vm, name)
        if vm in self.vms:
            try:
                make(place)
            except BaseException:
                self._discard(place)
                raise
        else:
            make_first(self.root, place, make)
        try:
            disk = Disk.open(place, self._rules, views)
        except BaseException:
            self._discard(place)
            raise
        self.vms.setdefault(vm, {})[name] = disk
        return disk

    def _discard(self, place: DiskPlace) -> None:
        """Take away what is there of a disk that could not be made, and its folder if it was the first of its VM."""
        for path in place.folder.glob(f"{place.name}.*"):
            path.unlink()
        if not self.vms.get(place.vm):
            self.vms.pop(place.vm, None)
            place.folder.rmdir()

    async def check_promotion(self, *, vm: str) -> None:
        """Implements :class:`DiskHostControl`."""
        with os_errors_as(f"promotion of VM {vm}"):
            await trio.to_thread.run_sync(promotion.check_room, vm, self.disks(vm))

    async def promote_vm(self, *, vm: str) -> list[DiskInfo]:
        """Implements :class:`DiskHostControl`."""
        disks = self.disks(vm)
        with os_errors_as(f"promotion of VM {vm}"):
            for disk in disks:
                disk.begin_promotion()
        self._promoter.wake()
        return [describe(disk, self.mountpoint) for disk in disks]

    async def resize_disk(self, *, vm: str, disk: str, size_bytes: int) -> DiskInfo:
        """Implements :class:`DiskHostControl`."""
        target = self.disk(vm, disk)
        with os_errors_as(f"disk {target.place} of {size_bytes} bytes"):
            target.resize(size_bytes)
        self._tell_grown(target)
        return describe(target, self.mountpoint)

    async def counters(self, *, vm: str, disk: str) -> DiskCounters:
        """Implements :class:`DiskHostControl`."""
        return count(self.disk(vm, disk))

    async def remove_vm(self, *, vm: str) -> None:
        """Implements :class:`DiskHostControl`."""
        if vm not in self.vms:
            self.disks(vm)
        for disk in self.vms[vm].values():
            check_idle(disk)
        held = [(disk.state.managed_disk, disk.place) for disk in self.vms[vm].values()]
        for disk in self.vms.pop(vm).values():
            disk.abandon()
        for broken in [name for name in self.broken if name.startswith(f"{vm}/")]:
            del self.broken[broken]
            self._broken_chains.pop(broken, None)
        doomed = self.root / f".gone-{uuid.uuid4()}"
        (self.root / vm).rename(doomed)
        sync_folder(self.root)
        shutil.rmtree(doomed)
        for managed_disk, held_for in held:  # what a disk that could not be opened lay on is let go at the next start
            self._release_view(managed_disk, held_for)

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Implements :class:`DiskHostControl`.  The folder's name is the VM's: a kill leaves the old one or the new one."""
        if vm not in self.vms and name in self.vms:
            return
        disks = self.disks(vm)
        self._check_vm_name(name)
        if name in self.vms:
            raise RigError(Code.VmExists, f"VM {vm!r} cannot be renamed: there is a VM {name!r} already")
        for disk in disks:
            check_idle(disk)
            if disk.state.promoting:
                raise RigError(
                    Code.VmBusy, f"disk {disk.place} is becoming independent (promotion): wait for its end", recoverable=True
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
            self._release_view(disk.state.managed_disk, disk.place)

    # --- tracking -----------------------------------------------------------------------------------------------

    async def check_tracking(self, *, vm: str) -> None:
        """Implements :class:`DiskHostControl`."""
        for disk in self._whole_disks(vm):
            if disk.guard is not None:
                await disk.guard.check_no_loops()

    async def start_tracking(
        self, *, vm: str, new_generation: bool = False, after: dict[str, int] | None = None, after_position: int = 0
    ) -> list[DiskInfo]:
        """Implements :class:`DiskHostControl`."""
        disks = self._whole_disks(vm)
        generations = after or {}
        self.positions.advance(after_position)
        await self.check_tracking(vm=vm)
        with os_errors_as(f"change log of VM {vm}"):
            for disk in disks:
                disk.start_tracking(new_generation=new_generation, after=generations.get(disk.state.disk_id, 0))
        return [describe(disk, self.mountpoint) for disk in disks]

    async def stop_tracking(self, *, vm: str) -> None:
        """Implements :class:`DiskHostControl`."""
        for disk in self.disks(vm):
            disk.end_snapshot()
            disk.stop_tracking()

    async def cut(self, *, vm: str, kind: TagKind, name: str, not_after_ns: int | None = None) -> CutInfo:
        """Implements :class:`DiskHostControl`.

        The tag's position is drawn once; each disk's TAG record comes after all of its records up to that position, for
        those were drawn before, under the disk's lock.  No checkpoint between the look at the clock and the last TAG.
        """
        disks = self._whole_disks(vm)
        with os_errors_as(f"change log of VM {vm}"):
            for disk in disks:
                await disk.make_ready_to_cut()  # NotTracked, before anything is tagged
        if not_after_ns is not None and time.monotonic_ns() > not_after_ns:
            raise RigError(
                Code.FreezeTimedOut, f"VM {vm!r}: its guests were no longer surely frozen at the cut", recoverable=True
            )
        tag = TagSeen(tag_id=str(uuid.uuid4()), kind=kind, name=name, position=self.positions.draw(), time_ns=time.time_ns())
        with os_errors_as(f"change log of VM {vm}"):
            for disk in disks:
                disk.tag(tag)
            for disk in disks:
                await disk.flush()
        return CutInfo(vm=vm, tag_id=tag.tag_id, kind=kind, name=name, position=tag.position, time_ns=tag.time_ns)

    async def segments(self, *, vm: str) -> list[SegmentInfo]:
        """Implements :class:`DiskHostControl`."""
        return [segment for disk in self.disks(vm) for segment in disk.segments()]

    async def applied(self, *, disk_id: str, generation: int, last_seq: int) -> None:
        """Implements :class:`DiskHostControl`."""
        for disks in self.vms.values():
            for disk in disks.values():
                if disk.state.disk_id == disk_id:
                    disk.applied(generation, last_seq)

    # --- snapshot -----------------------------------------------------------------------------------------------

    async def begin_snapshot(self, *, vm: str) -> SnapshotInfo:
        """Implements :class:`DiskHostControl`."""
        disks = self._whole_disks(vm)
        now = time.time_ns()
        with os_errors_as(f"snapshot of VM {vm}"):
            for disk in disks:
                await disk.make_ready_to_cut()
            snapshots = begin_snapshots_of(disks)
        for disk in disks:
            await disk.flush()
        parts = [
            SnapshotDisk(
                disk_id=disk.state.disk_id,
                name=disk.place.name,
                path=str(self.mountpoint / vm / f"{disk.place.name}.snapshot"),
                size_bytes=snapshot.size_bytes,
                generation=disk.state.generation,
                first_seq=snapshot.first_seq,
                data_ranges=snapshot.data_ranges,
            )
            for disk, snapshot in zip(disks, snapshots, strict=True)
        ]
        return SnapshotInfo(vm=vm, position=snapshots[0].position, time_ns=now, disks=parts)

    async def release_snapshot(self, *, vm: str, disk: str, upto: int) -> None:
        """Implements :class:`DiskHostControl`."""
        snapshot = self.disk(vm, disk).snapshot
        if snapshot is not None:
            snapshot.release(upto)

    async def end_snapshot(self, *, vm: str) -> None:
        """Implements :class:`DiskHostControl`."""
        for disk in self.disks(vm):
            disk.end_snapshot()

    # --- failback -----------------------------------------------------------------------------------------------

    async def begin_replace(self, *, vm: str, disk: str, size_bytes: int) -> StagingInfo:
        """Implements :class:`DiskHostControl`."""
        target = self.disk(vm, disk)
        check_idle(target)
        size_bytes = max(size_bytes, target.size_bytes)
        with os_errors_as(f"staging file of disk {target.place}"), target.staging.open("wb") as file:
            file.truncate(size_bytes)
        return StagingInfo(vm=vm, disk=disk, path=str(target.staging), size_bytes=size_bytes)

    async def commit_replace(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        """Implements :class:`DiskHostControl`."""
        disks = self.disks(vm)
        staged = [disk for disk in disks if disk.staging.exists()]
        with os_errors_as(f"disks of VM {vm} that come back"):
            for disk in staged:
                check_idle(disk)
                if disk.place.name in keep:
                    await trio.to_thread.run_sync(replacing.keep_image, disk)
            for disk in staged:
                check_idle(disk)
            for disk in staged:
                disk.replace()
                self._tell_grown(disk)
        return [describe(disk, self.mountpoint) for disk in disks]

    async def check_replace(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        """Implements :class:`DiskHostControl`."""
        with os_errors_as(f"disks of VM {vm}"):
            known = {disk.place.name: disk for disk in self.disks(vm)}
            await trio.to_thread.run_sync(replacing.check_replace, vm, known, disks)

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        """Implements :class:`DiskHostControl`."""
        return [await trio.to_thread.run_sync(replacing.source_use, disk, after) for disk in self.disks(vm)]

    async def delete_kept(self, *, vm: str, file: str) -> None:
        """Implements :class:`DiskHostControl`."""
        self.disks(vm)
        with os_errors_as(f"kept image {file} of VM {vm}"):
            replacing.delete_kept(vm, self.root / vm, file)
