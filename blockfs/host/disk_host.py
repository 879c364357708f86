"""A disk host: the control operations on all disks of one side, and its mount as a tree of folders.

:class:`siterig.blockfs.host.disk_registry.DiskRegistry` owns the disks and their folder, and states the fault contract.
``root/recovery`` belongs to :mod:`siterig.blockfs.host.mounted_points`, on a recovery host.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import trio

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.control import (
    AppliedLog,
    BackingImage,
    CutInfo,
    DiskHostControl,
    DiskInfo,
    DownloadedDisk,
    HostObstacle,
    LackingChanges,
    LogState,
    ManagedDiskId,
    MountedPointInfo,
    MountedPointSource,
    SegmentInfo,
    SnapshotDisk,
    SnapshotInfo,
    SourceUse,
    StagingInfo,
    TagKind,
)
from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.contracts.names import check_name
from siterig.blockfs.contracts.shares import STORE_SHARE_MAX
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.keyed_lock import KeyedLock
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.disk import hydration, replacing
from siterig.blockfs.disk.disk import Disk, begin_snapshots_of
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions, log_changed
from siterig.blockfs.disk.disk_report import count, describe
from siterig.blockfs.disk.replacing import check_idle
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files.host_errors import os_errors_as
from siterig.blockfs.host.disk_maker import DiskMaker
from siterig.blockfs.host.disk_registry import DiskRegistry
from siterig.blockfs.host.disk_tree import ROOT, DiskTree, run_maintenance
from siterig.blockfs.host.host_folder import RECOVERY_FOLDER
from siterig.blockfs.host.mounted_points import MountedPoints

OPEN_AGAIN_S = 5.0
"""The time between two attempts to open disks and mounted points whose key could not be had."""


class DiskHost(DiskHostControl, DiskTree):
    """The operations of a disk host.  Use it on one trio thread (see :mod:`siterig.blockfs.disk.disk`).

    In its tree each VM has a folder, and so has each mounted point.

    Attributes:
        hydrator: copies from the managed disks what the disks of hydrated VMs lack.
        registry: the disks, their folder and their shared options.
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
        report_changed: Callable[[DiskPaths, str], None] = log_changed,
        report_opened: Callable[[Disk], None] = lambda _disk: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Open all disks in ``root``, and all mounted points.

        Args:
            root: the folder of the disks.
            mountpoint: the folder at which they are mounted.
            views: opens views of managed disks, at a recovery side; None at a site.
            policy: the limits of each change log.
            snapshot_share_max: the share of a disk's size that its snapshot may occupy.
            waits: the list in which the host records what it waits for.
            report_changed: called with each disk that another program changed, or that cannot be opened.
            report_opened: called with each disk that is opened, before its guest can use it.
            clock: the time of this host.

        Raises:
            RigError: ``AlreadyServed`` if another process owns the folder.
        """
        self.mountpoint = mountpoint
        self._clock = clock
        self.registry = DiskRegistry(
            root,
            mountpoint,
            views=views,
            policy=policy,
            snapshot_share_max=snapshot_share_max,
            report_changed=report_changed,
            report_opened=report_opened,
            clock=clock,
        )
        locks = KeyedLock()  # by name of a disk, while its view is pinned or released
        self._maker = DiskMaker(self.registry, locks)
        self.hydrator = hydration.Hydrator(self.registry.all_disks, self.registry.release_view, locks, waits, clock=clock)
        self._report_grown: Callable[[Disk], None] = lambda _disk: None
        self._mounted_points = None
        if views is not None:
            options = DiskOptions(self.positions, can_grow=False, read_only=True, clock=clock)
            self._mounted_points = MountedPoints(root / RECOVERY_FOLDER, mountpoint, views=views, options=options)

    @property
    def root(self) -> Path:
        return self.registry.root

    @property
    def positions(self) -> PositionCounter:
        """The position counter of this host."""
        return self.registry.positions

    @property
    def vms(self) -> dict[str, dict[str, Disk]]:
        """The open disks by name, by the name of their VM."""
        return self.registry.vms

    @property
    def broken(self) -> dict[str, str]:
        """The reason for each disk that could not be opened (``VM/NAME``)."""
        return self.registry.broken

    def disk(self, vm: str, name: str) -> Disk:
        """Return one disk.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``.
        """
        return self.registry.disk(vm, name)

    def close(self) -> None:
        """Close all disks cleanly."""
        if self._mounted_points is not None:
            self._mounted_points.end()
        self.registry.close()

    def abandon(self) -> None:
        """Release all files without a sync, as a kill does."""
        if self._mounted_points is not None:
            self._mounted_points.end()
        self.registry.abandon()

    # --- the tree -----------------------------------------------------------------------------------------------

    async def open_waiting(self) -> None:
        """Open disks and mounted points that lacked a key, or met a full host, when that has passed; until cancelled."""
        while True:
            await self._clock.real.sleep(OPEN_AGAIN_S)
            await self._maker.open_waiting()
            if self._mounted_points is not None:
                await self._mounted_points.open_waiting()

    async def run_maintenance(self) -> None:
        async with trio.open_nursery() as nursery:
            if self._mounted_points is not None or self.registry.waiting():
                nursery.start_soon(self.open_waiting)
            nursery.start_soon(self.hydrator.run)
            await run_maintenance(self.registry.event_fd, self.registry.watch, self.registry.all_disks)

    def folders(self, within: str) -> Collection[str]:
        found = list(self.vms) if within == ROOT else []
        return found if self._mounted_points is None else [*found, *self._mounted_points.folders(within)]

    def disks_in(self, folder: str) -> Mapping[str, Disk] | None:
        if folder == ROOT:
            return {}
        if folder in self.vms or self._mounted_points is None:
            return self.vms.get(folder)
        return self._mounted_points.disks_in(folder)

    def kept_in(self, folder: str) -> Path:
        if folder in self.vms or self._mounted_points is None or folder == ROOT:
            return self.root / folder
        return self._mounted_points.kept_in(folder)

    def on_grown(self, report: Callable[[Disk], None]) -> None:
        self._report_grown = report

    # --- disks --------------------------------------------------------------------------------------------------

    async def list_disks(self, *, vm: str | None = None, disks: list[str] | None = None) -> list[DiskInfo]:
        if vm is not None:
            return self.registry.describe(self.registry.disks(vm, disks))
        return [*self.registry.describe(self.registry.all_disks()), *self.registry.broken_chains.values()]

    async def position(self) -> int:
        return self.positions.value

    async def create_disk(
        self,
        *,
        vm: str,
        name: str,
        size_bytes: int,
        sector_bytes: SectorBytes = 512,
        backing: BackingImage | None = None,
    ) -> DiskInfo:
        if backing is None:
            disk = self._maker.make_empty(vm, name, size_bytes, sector_bytes)
        else:
            disk = await self._maker.make_thin(vm, name, size_bytes, sector_bytes, backing)
        return describe(disk, self.mountpoint)

    async def create_disk_from_point(
        self, *, vm: str, name: str, managed_disk: ManagedDiskId, position: int, sector_bytes: SectorBytes = 512
    ) -> DiskInfo:
        disk = await self._maker.make_over_point(vm, name, managed_disk, position, sector_bytes)
        return describe(disk, self.mountpoint)

    async def resize_disk(self, *, vm: str, disk: str, size_bytes: int) -> DiskInfo:
        target = self.disk(vm, disk)
        with os_errors_as(f"disk {target.paths} of {size_bytes} bytes"):
            target.resize(size_bytes)
        self._report_grown(target)
        return describe(target, self.mountpoint)

    async def counters(self, *, vm: str, disk: str) -> DiskCounters:
        return count(self.disk(vm, disk))

    async def remove_disk(self, *, vm: str, disk: str) -> None:
        self.registry.remove_disk(self.disk(vm, disk))

    async def remove_vm(self, *, vm: str) -> None:
        self.registry.remove_vm(vm)

    async def rename_vm(self, *, vm: str, name: str) -> None:
        self.registry.rename_vm(vm, name)

    async def check_hydration(self, *, vm: str) -> None:
        with os_errors_as(f"hydration of VM {vm}"):
            await trio.to_thread.run_sync(hydration.check_room, vm, self.registry.disks(vm))

    async def hydrate_vm(self, *, vm: str) -> list[DiskInfo]:
        disks = self.registry.disks(vm)
        with os_errors_as(f"hydration of VM {vm}"):
            for disk in disks:
                disk.hydration.begin()
        self.hydrator.wake()
        return self.registry.describe(disks)

    # --- mounted points -----------------------------------------------------------------------------------------

    async def open_mounted_point(
        self, *, vm: str, name: str, position: int, disks: list[MountedPointSource], time_ns: int | None = None
    ) -> MountedPointInfo:
        if self._mounted_points is None:
            raise RigError(Code.NotARecoveryHost, f"cannot open a state of VM {vm} here: this host serves a site")
        check_name("VM", vm)
        for disk in disks:
            check_name("disk", disk.name)
        with os_errors_as(f"{RECOVERY_FOLDER}/{vm}/{name}"):
            info = await self._mounted_points.open(vm=vm, name=name, position=position, disks=disks, time_ns=time_ns)
        return info  # noqa: RET504 (a type checker does not know that os_errors_as swallows nothing)

    async def close_mounted_point(self, *, vm: str, name: str) -> None:
        if self._mounted_points is not None:
            with os_errors_as(f"{RECOVERY_FOLDER}/{vm}/{name}"):
                await self._mounted_points.close(vm=vm, name=name)

    async def list_mounted_points(self, *, vm: str | None = None) -> list[MountedPointInfo]:
        return [] if self._mounted_points is None else self._mounted_points.infos(vm)

    # --- tracking -----------------------------------------------------------------------------------------------

    async def check_tracking(self, *, vm: str, disks: list[str] | None = None) -> None:
        for disk in self.registry.unbroken_disks(vm, disks):
            if disk.guard is not None:
                await disk.guard.check_no_loops()

    async def tracking_obstacles(self, *, vm: str, excluded: list[str] | None = None) -> list[HostObstacle]:
        found = self.registry.obstacles(vm, excluded or ())
        for name, disk in list(self.registry.vms[vm].items()):
            if disk.guard is not None and name not in (excluded or ()):
                try:
                    await disk.guard.check_no_loops()
                except RigError as error:
                    found.append(error)
        return [HostObstacle(code=error.code, message=error.message) for error in found]

    async def start_tracking(
        self,
        *,
        vm: str,
        disks: list[str] | None = None,
        new_generation: bool = False,
        after: dict[str, int] | None = None,
        after_position: int = 0,
    ) -> list[DiskInfo]:
        tracked = self.registry.unbroken_disks(vm, disks)
        generations = after or {}
        self.positions.advance(after_position)
        await self.check_tracking(vm=vm, disks=disks)
        with os_errors_as(f"change log of VM {vm}"):
            for disk in tracked:
                disk.tracking.start(new_generation=new_generation, after=generations.get(disk.state.disk_id, 0))
        return self.registry.describe(tracked)

    async def stop_tracking(self, *, vm: str, disks: list[str] | None = None) -> None:
        for disk in self.registry.disks(vm, disks):
            disk.end_snapshot()
            disk.tracking.stop()

    async def cut(
        self, *, vm: str, kind: TagKind, name: str, not_after_ns: int | None = None, disks: list[str] | None = None
    ) -> CutInfo:
        # The position of the tag is drawn once.  The TAG record of each disk comes after all of its records up to that
        # position, because those were drawn before, under the lock of the disk.  Between reading the clock and the last
        # TAG there is no checkpoint.
        tagged = self.registry.unbroken_disks(vm, disks)
        with os_errors_as(f"change log of VM {vm}"):
            for disk in tagged:
                await disk.tracking.make_ready_to_cut()  # NotTracked, before anything is tagged
        if not_after_ns is not None and self._clock.real.monotonic_ns() > not_after_ns:
            raise RigError(
                Code.FreezeTimedOut,
                f"VM {vm!r}: the file-system freeze expired before the recovery point was taken",
                recoverable=True,
            )
        tag = TagSeen(
            tag_id=str(uuid.uuid4()), kind=kind, name=name, position=self.positions.draw(), time_ns=self._clock.wall_ns()
        )
        with os_errors_as(f"change log of VM {vm}"):
            for disk in tagged:
                disk.tracking.tag(tag)
            for disk in tagged:
                await disk.flush()
        return CutInfo(
            vm=vm,
            tag_id=tag.tag_id,
            kind=kind,
            name=name,
            position=tag.position,
            time_ns=tag.time_ns,
            disk_bytes={disk.state.disk_id: disk.size_bytes for disk in tagged},
        )

    async def segments(self, *, vm: str, disks: list[str] | None = None) -> list[SegmentInfo]:
        with os_errors_as(f"change log of VM {vm}"):
            return [segment for disk in self.registry.disks(vm, disks) for segment in disk.tracking.segments()]

    async def log_state(self, *, vm: str, applied: list[AppliedLog], disks: list[str] | None = None) -> LogState:
        found, by_id = self.registry.disks(vm, disks), {each.disk_id: each for each in applied}
        with os_errors_as(f"change log of VM {vm}"):
            for disk in found:
                known = by_id.get(disk.state.disk_id)
                if known is not None and known.opening == disk.opening:
                    disk.tracking.trim(known.generation, known.last_seq)
            segments = [segment for disk in found for segment in disk.tracking.segments()]
        return LogState(disks=self.registry.describe(found), segments=segments)

    async def trim_log(self, *, disk_id: str, generation: int, last_seq: int) -> None:
        for disk in self.registry.all_disks():
            if disk.state.disk_id == disk_id:
                with os_errors_as(f"change log of disk {disk.paths}"):
                    disk.tracking.trim(generation, last_seq)

    # --- snapshot -----------------------------------------------------------------------------------------------

    async def begin_snapshot(self, *, vm: str, disks: list[str] | None = None) -> SnapshotInfo:
        frozen = self.registry.unbroken_disks(vm, disks)
        now = self._clock.wall_ns()
        with os_errors_as(f"snapshot of VM {vm}"):
            for disk in frozen:
                await disk.tracking.make_ready_to_cut()
            snapshots = begin_snapshots_of(frozen)
        for disk in frozen:
            await disk.flush()
        parts = [
            SnapshotDisk(
                disk_id=disk.state.disk_id,
                name=disk.paths.name,
                path=str(self.mountpoint / vm / f"{disk.paths.name}.snapshot"),
                size_bytes=snapshot.size_bytes,
                generation=disk.state.generation,
                first_seq=snapshot.first_seq,
                data_ranges=snapshot.data_ranges,
            )
            for disk, snapshot in zip(frozen, snapshots, strict=True)
        ]
        return SnapshotInfo(vm=vm, position=snapshots[0].position, time_ns=now, disks=parts)

    async def lacking_changes(self, *, vm: str) -> list[LackingChanges]:
        found = []
        for disk in self.registry.vms.get(vm, {}).values():
            snapshot = disk.snapshot
            if snapshot is None:
                continue
            lacking = await trio.to_thread.run_sync(disk.tracking.lacking_before, snapshot.first_seq)
            if lacking is not None:
                found.append(
                    LackingChanges(disk_id=disk.state.disk_id, generation=lacking.generation, ranges=lacking.ranges)
                )
        return found

    async def release_snapshot(self, *, vm: str, disk: str, upto: int) -> None:
        snapshot = self.disk(vm, disk).snapshot
        if snapshot is not None:
            snapshot.release(upto)

    async def end_snapshot(self, *, vm: str, disks: list[str] | None = None) -> None:
        for disk in self.registry.disks(vm, disks):
            disk.end_snapshot()

    # --- failback -----------------------------------------------------------------------------------------------

    async def begin_replace(self, *, vm: str, disk: str, size_bytes: int) -> StagingInfo:
        target = self.disk(vm, disk)
        check_idle(target)
        size_bytes = max(size_bytes, target.size_bytes)
        with os_errors_as(f"staging file of disk {target.paths}"), target.staging.open("wb") as file:
            file.truncate(size_bytes)
        return StagingInfo(vm=vm, disk=disk, path=str(target.staging), size_bytes=size_bytes)

    async def commit_replace(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        disks = self.registry.disks(vm)
        staged = [disk for disk in disks if disk.staging.exists()]
        with os_errors_as(f"disks of VM {vm} that come back"):
            for disk in staged:
                check_idle(disk)
                if disk.paths.name in keep:
                    await trio.to_thread.run_sync(replacing.keep_image, disk)
            for disk in staged:
                check_idle(disk)
            for disk in staged:
                disk.replace()
                self._report_grown(disk)
            for disk in disks:  # the VM is at home again
                disk.fence(fenced=False)
        return self.registry.describe(disks)

    async def check_replace(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        with os_errors_as(f"disks of VM {vm}"):
            known = {disk.paths.name: disk for disk in self.registry.disks(vm)}
            await trio.to_thread.run_sync(replacing.check_replace, vm, known, disks)

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        return [await trio.to_thread.run_sync(replacing.source_use, disk, after) for disk in self.registry.disks(vm)]

    async def fence(self, *, vm: str, fenced: bool) -> list[DiskInfo]:
        disks = self.registry.disks(vm)
        with os_errors_as(f"fence of VM {vm}"):
            for disk in disks:
                disk.fence(fenced=fenced)
        return self.registry.describe(disks)

    async def delete_kept(self, *, vm: str, file: str) -> None:
        self.registry.disks(vm)
        with os_errors_as(f"kept image {file} of VM {vm}"):
            replacing.delete_kept(vm, self.root / vm, file)
