"""Stand-ins in memory for the roles around the vault.  Each call can fail once or always."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import (
    AppliedFigures,
    Change,
    ChangeStep,
    Damage,
    ManagedDiskState,
    RecoverySide,
)
from siterig.azure_emu.contracts.seeds import SeedImage
from siterig.azure_emu.vault.db.schema import JobRow
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.contracts.control import (
    CutInfo,
    DiskInfo,
    DownloadedDisk,
    KeptImage,
    MountedPointDisk,
    MountedPointInfo,
    MountedPointSource,
    SourceUse,
    TagKind,
)
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import SiteReadiness
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.part_name import Watermark
from tests.support import clocks
from tests.support.rigs.fake_world import World

START_NS = clocks.START_NS


class FakeProvider(Provider):
    """The site's provider, whose calls change the world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> list[DiskInfo]:
        await self.world.called("site.create_vm")
        self.world.site[vm] = {
            disk.name: self.world.disk(vm, disk.name, disk.size_bytes).model_copy(update={"sector_bytes": disk.sector_bytes})
            for disk in disks
        }
        return list(self.world.site[vm].values())

    async def attach_disk(self, *, vm: str, disk: DiskSpec) -> list[DiskInfo]:
        await self.world.called("site.attach_disk")
        if disk.name in self.world.site[vm]:
            raise RigError(Code.DiskExists, f"VM {vm!r} has a disk {disk.name!r} already")
        self.world.site[vm][disk.name] = self.world.disk(vm, disk.name, disk.size_bytes)
        return list(self.world.site[vm].values())

    async def list_vms(self) -> list[DiskInfo]:
        await self.world.called("site.list_vms")
        return [disk for disks in self.world.site.values() for disk in disks.values()]

    async def check_delete(self, *, vm: str) -> None:
        await self.world.called("site.check_delete")
        if vm not in self.world.site:
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r} here")

    async def delete_vm(self, *, vm: str) -> None:
        await self.world.called("site.delete_vm")
        if self.world.site.pop(vm, None) is None:
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r} here")

    async def rename_vm(self, *, vm: str, name: str) -> None:
        await self.world.called("site.rename_vm")
        self.world.rename(self.world.site, vm, name)

    async def check_vm(self, *, vm: str, excluded: list[str] | None = None) -> list[DiskInfo]:
        await self.world.called("site.check_vm")
        return [disk for disk in self.world.site[vm].values() if disk.name not in (excluded or ())]

    async def check_prerequisites(self, *, vm: str, excluded: list[str] | None = None) -> SiteReadiness:
        await self.world.called("site.check_prerequisites")
        return SiteReadiness(disks=list(self.world.site[vm].values()), unmet=self.world.unmet)

    async def create_relationship(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None,
        tracked: bool = True,
        disks: list[str] | None = None,
    ) -> list[DiskInfo]:
        await self.world.called("site.create_relationship")
        self.world.tracked = tracked
        self.world.replicated[vm] = list(self.world.site[vm]) if disks is None else disks
        return self.world.replicated_disks(vm)

    async def initial_replication(self, *, vm: str) -> None:
        await self.world.called("site.initial_replication")
        if self.world.apply:
            await self.world.synced(vm)

    async def resync(self, *, vm: str, limited: bool = False) -> None:
        await self.world.called("site.resync")
        self.world.limited.append(limited)
        disks = self.world.site[vm]
        for name, disk in disks.items():
            disks[name] = disk.model_copy(update={"generation": disk.generation + 1})
        if self.world.apply:
            await self.world.synced(vm)

    async def verify(self, *, vm: str) -> Verification:
        await self.world.called("site.verify")
        assert self.world.verification is not None
        return self.world.verification

    async def stop_verification(self, *, vm: str) -> None:
        await self.world.called("site.stop_verification")

    async def stop_copy(self, *, vm: str) -> None:
        await self.world.called("site.stop_copy")

    async def send_again(self, *, vm: str, parts: list[str]) -> None:
        await self.world.called("site.send_again")
        self.world.asked_again.append((vm, parts))

    async def progress(self, *, vm: str) -> VmProgress:
        await self.world.called("site.progress")
        return VmProgress(vm=vm, phase=None, disks=[])

    async def progress_of_all(self) -> list[VmProgress]:
        await self.world.called("site.progress_of_all")
        return list(self.world.progress)

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str, request_id: str | None = None) -> CutInfo:
        await self.world.called("site.replicate_now")
        world = self.world
        assert world.vault is not None
        world.position += 10
        time_ns = START_NS + world.position
        cut = CutInfo(vm=vm, tag_id=str(uuid.uuid4()), kind=kind, name=name, position=world.position, time_ns=time_ns)
        world.cached.append((vm, cut))
        if world.downgrading is not None:
            cut = cut.model_copy(update={"kind": "CrashConsistent", "downgraded_because": world.downgrading})
            world.cached[-1] = (vm, cut)
        await world.vault.reports.point_sent(
            vm=vm,
            tag_id=cut.tag_id,
            kind=cut.kind,
            name=name,
            position=cut.position,
            time_ns=time_ns,
            downgraded_because=cut.downgraded_because,
        )
        if world.apply:
            await world.apply_cached()
        return cut

    async def shutdown_vm(self, *, vm: str) -> None:
        await self.world.called("site.shutdown_vm")

    async def suspend(self, *, vm: str) -> None:
        await self.world.called("site.suspend")

    async def change_schedule(self, *, vm: str, interval_s: float, app_consistent_every_s: float | None) -> None:
        await self.world.called(f"site.change_schedule {interval_s:g} {app_consistent_every_s}")
        await self.world.called("site.change_schedule")

    async def bandwidth(self) -> BandwidthLimit | None:
        await self.world.called("site.bandwidth")
        return self.world.bandwidth

    async def set_bandwidth(self, *, limit: BandwidthLimit | None) -> None:
        await self.world.called("site.set_bandwidth")
        self.world.bandwidth = limit

    async def app_script(self, *, vm: str) -> AppScript | None:
        await self.world.called("site.app_script")
        return self.world.app_scripts.get(vm)

    async def set_app_script(self, *, vm: str, script: AppScript | None) -> None:
        await self.world.called("site.set_app_script")
        self.world.app_scripts[vm] = script

    async def pause(self, *, vm: str) -> None:
        await self.world.called("site.pause")

    async def resume(self, *, vm: str) -> None:
        await self.world.called("site.resume")

    async def remove_disks(self, *, vm: str, disks: list[str]) -> int:
        world = self.world
        if not world.removed.keys() >= set(disks):
            cut = await self.replicate_now(vm=vm, kind="CrashConsistent", name="disks-removed")
            world.removed |= dict.fromkeys(disks, cut.position)
            world.replicated[vm] = [name for name in world.replicated[vm] if name not in disks]
        await world.called("site.remove_disks")
        return max(world.removed[name] for name in disks)

    async def add_disks(self, *, vm: str, disks: list[str]) -> int:
        world = self.world
        await world.called("site.add_disks")
        world.removed = {name: at for name, at in world.removed.items() if name not in disks}
        world.replicated[vm] = sorted({*world.replicated[vm], *disks})
        for name in disks:
            disk = world.site[vm][name]
            world.managed[disk.disk_id] = world.mark(disk.disk_id, disk.generation, world.position, 0)
            await world.report(disk.disk_id)
        return world.position

    async def withdraw_disks(self, *, vm: str, disks: list[str]) -> None:
        await self.world.called("site.withdraw_disks")
        self.world.replicated[vm] = [name for name in self.world.replicated[vm] if name not in disks]

    async def remove_relationship(self, *, vm: str) -> None:
        await self.world.called("site.remove_relationship")

    async def receive_disk(self, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int) -> None:
        await self.world.called("site.receive_disk")

    async def check_shutdown(self, *, vm: str) -> None:
        await self.world.called("site.check_shutdown")

    async def forget_keys(self) -> None:
        await self.world.called("site.forget_keys")

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        await self.world.called("site.source_use")
        self.world.asked_after.append(after)
        return [
            SourceUse(name=name, written_bytes=self.world.written_bytes.get(name, 0), open_handles=disk.open_handles)
            for name, disk in self.world.site[vm].items()
        ]

    async def fence(self, *, vm: str, fenced: bool) -> list[DiskInfo]:
        await self.world.called("site.fence")
        if vm not in self.world.site:
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r}")
        for name, disk in self.world.site[vm].items():
            self.world.site[vm][name] = disk.model_copy(update={"fenced": fenced})
        return list(self.world.site[vm].values())

    async def check_failback(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        await self.world.called("site.check_failback")
        self.world.coming = disks

    async def commit_failback(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        await self.world.called("site.commit_failback")
        disks = self.world.site[vm]
        for name, disk in disks.items():
            kept = [KeptImage(file=f"{name}-1.img", path=f"/kept/{name}-1.img", disk=name, size_bytes=1, allocated_bytes=1)]
            old = [*disk.kept, *(kept if name in keep else [])]
            disks[name] = disk.model_copy(update={"generation": disk.generation + 1, "kept": old})
        return list(disks.values())


class FakeRecovery(RecoverySide):
    """The recovery side, whose calls change the world."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def create_managed_disk(self, *, disk_id: str, size_bytes: int) -> None:
        await self.world.called("recovery.create_managed_disk")
        self.world.managed.setdefault(
            disk_id, self.world.mark(disk_id, 0, 0, 0).model_copy(update={"sync_complete": False, "sync_parts": 0})
        )

    async def delete_managed_disk(self, *, disk_id: str) -> None:
        await self.world.called("recovery.delete_managed_disk")
        self.world.managed.pop(disk_id, None)

    async def parts_put(self, *, disk_ids: list[str]) -> None:
        await self.world.called("recovery.parts_put")
        self.world.news.append(disk_ids)

    async def process_latest(self, *, disk_ids: list[str]) -> list[Watermark]:
        await self.world.called("recovery.process_latest")
        await self.world.apply_cached()
        return [self.world.managed[disk_id] for disk_id in disk_ids]

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        await self.world.called("recovery.checksums")
        return ChunkTags(tags="")

    async def end_comparison(self, *, comparison_id: str) -> None:
        await self.world.called("recovery.end_comparison")

    async def forget_keys(self) -> None:
        await self.world.called("recovery.forget_keys")

    async def retain(self, *, positions: dict[str, int]) -> None:
        await self.world.called("recovery.retain")
        self.world.retained |= positions

    async def disk_state(self, *, disk_id: str) -> ManagedDiskState:
        await self.world.called("recovery.disk_state")
        first, last = self.world.floors.get(disk_id, 1), self.world.managed[disk_id].complete_position
        return ManagedDiskState(
            disk_id=disk_id,
            size_bytes=1 << 30,
            floor=first,
            floor_time_ns=START_NS,
            valid_ranges=[(first, last)],
            retain=0,
            pins=[],
            base_bytes=0,
            journal_bytes=0,
            encrypted=disk_id not in self.world.unencrypted,
        )

    async def applied_figures(self, *, disk_ids: list[str]) -> dict[str, AppliedFigures]:
        await self.world.called("recovery.applied_figures")
        return {disk_id: AppliedFigures(account_bytes=4096, applied_parts=3) for disk_id in disk_ids}

    async def account_bytes(self, *, disk_id: str) -> int:
        await self.world.called("recovery.account_bytes")
        return 4096

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        await self.world.called("recovery.changes")
        return []

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        await self.world.called("recovery.change_steps")
        times = self.world.times.get(disk_id, {})
        return [ChangeStep(position=at, time_ns=times[at], count=1) for at in sorted(times) if after < at <= upto]

    async def scrub(self, *, disk_id: str) -> list[Damage]:
        await self.world.called("recovery.scrub")
        return []

    async def repair(self, *, disk_id: str) -> None:
        await self.world.called("recovery.repair")

    async def position_at(self, *, disk_id: str, time_ns: int) -> int:
        await self.world.called("recovery.position_at")
        found = [position for position, at in self.world.times.get(disk_id, {}).items() if at <= time_ns]
        if not found:
            raise RigError(Code.InvalidPosition, f"disk {disk_id} has no state at that time")
        return max(found)

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        await self.world.called("recovery.export_disk")
        assert source_id not in self.world.managed
        return 3

    async def data_bytes(self, *, source: str) -> int:
        await self.world.called("recovery.data_bytes")
        return 4096

    async def check_seed(self, *, image: str, image_format: ImageFormat | None, size_bytes: int) -> SeedImage:
        await self.world.called("recovery.check_seed")
        if image in self.world.bad_seeds:
            raise self.world.bad_seeds[image]
        return SeedImage(format=image_format or "raw", size_bytes=size_bytes, data_bytes=size_bytes)

    async def seed_disk(self, *, disk_id: str, image: str, image_format: ImageFormat | None) -> Watermark:
        await self.world.called("recovery.seed_disk")
        self.world.seeded.append((disk_id, image))
        self.world.managed[disk_id] = self.world.mark(disk_id, 1, 0, 0).model_copy(
            update={"sync_complete": True, "sync_parts": 3}
        )
        return self.world.managed[disk_id]

    async def seed_progress(self, *, disk_id: str) -> int:
        await self.world.called("recovery.seed_progress")
        return 512

    async def export_progress(self, *, source_id: str) -> int:
        await self.world.called("recovery.export_progress")
        return 512


class FakeHost:
    """The recovery side's disk host, with the calls that the vault makes."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def list_disks(self, *, vm: str | None = None) -> list[DiskInfo]:
        """Return the disks of one VM or of all VMs."""
        await self.world.called("azure.list_disks")
        return [disk for name, disks in self.world.azure.items() if vm in (None, name) for disk in disks.values()]

    async def remove_vm(self, *, vm: str) -> None:
        """Remove a VM, whose disks must not be open."""
        await self.world.called("azure.remove_vm")
        if any(disk.open_handles for disk in self.world.azure[vm].values()):
            raise RigError(Code.DiskInUse, f"a disk of VM {vm!r} is open")
        del self.world.azure[vm]

    async def create_disk_from_point(
        self, *, vm: str, name: str, managed_disk: str, position: int, sector_bytes: SectorBytes = 512
    ) -> DiskInfo:
        """Create a disk at a position of a managed disk."""
        await self.world.called("azure.create_disk_from_point")
        disk = self.world.disk(vm, name, 1 << 30, str(uuid.uuid4())).model_copy(update={"sector_bytes": sector_bytes})
        assert name not in self.world.azure.setdefault(vm, {})
        self.world.azure[vm][name] = disk
        self.world.opened_at[f"{vm}/{name}"] = position
        return disk

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Rename a VM."""
        await self.world.called("azure.rename_vm")
        self.world.rename(self.world.azure, vm, name)

    async def check_hydration(self, *, vm: str) -> None:
        """Allow every hydration."""
        await self.world.called("azure.check_hydration")

    async def hydrate_vm(self, *, vm: str) -> list[DiskInfo]:
        """Return the VM's disks, which stay as they are."""
        await self.world.called("azure.hydrate_vm")
        return list(self.world.azure[vm].values())

    async def open_mounted_point(
        self, *, vm: str, name: str, position: int, disks: list[MountedPointSource], time_ns: int | None = None
    ) -> MountedPointInfo:
        """Mount a state of disks."""
        await self.world.called("azure.open_mounted_point")
        shown = [
            MountedPointDisk(
                name=disk.name,
                disk_id=disk.disk_id,
                size_bytes=1 << 30,
                path=f"/mnt/recovery/{vm}/{name}/{disk.name}.img",
                vhd_path=None,
                open_handles=0,
                sector_bytes=disk.sector_bytes,
            )
            for disk in disks
        ]
        self.world.mounted_points[vm, name] = MountedPointInfo(vm=vm, name=name, position=position, disks=shown, broken=None)
        return self.world.mounted_points[vm, name]

    async def close_mounted_point(self, *, vm: str, name: str) -> None:
        """Unmount a state."""
        await self.world.called("azure.close_mounted_point")
        self.world.mounted_points.pop((vm, name), None)

    async def list_mounted_points(self, *, vm: str | None = None) -> list[MountedPointInfo]:
        """Return the mounted states of one VM or of all VMs."""
        await self.world.called("azure.list_mounted_points")
        return [info for info in self.world.mounted_points.values() if vm in (None, info.vm)]


@asynccontextmanager
async def running(world: World, folder: Path, *, resync_window: ResyncWindow | None = None) -> AsyncIterator[Vault]:
    """Run a vault on the database in ``folder`` during the block, and kill it at the end."""
    host: Any = FakeHost(world)
    vault = Vault(
        f"sqlite:///{folder}/vault.db",
        keys=folder / "vault.keys",
        provider=FakeProvider(world),
        recovery=FakeRecovery(world),
        azure_host=host,
        shut_down=world.shut_down,
        check_shut_down=world.check_shut_down,
        clock=world.clock,
        resync_window=resync_window,
    )
    world.vault = vault
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vault.run)
            yield vault
            nursery.cancel_scope.cancel()
    finally:
        vault.close()


async def ended(vault: Vault, job: Job) -> Job:
    """Wait for the end of a job, as the vault's own tasks wait, and return it."""

    def over(session: Session) -> bool | None:
        row = session.scalars(select(JobRow).where(JobRow.name == job.name)).one()
        return row.end_ns is not None or None

    await vault.context.notifications.wait_until(job.targetObjectName, over)
    return await vault.status.job(name=job.name)


async def idle(vault: Vault) -> None:
    """Wait until no job is running; the end of one may have begun another."""
    while running_jobs := [job for job in await vault.status.jobs() if job.endTime is None]:
        for job in running_jobs:
            await ended(vault, job)


async def protected(
    vault: Vault, vm: str = "web01", disks: tuple[str, ...] = ("data", "os"), *, interval_s: float = 30
) -> None:
    """Create and protect a VM."""
    await vault.vms.create_vm(vm=vm, disks=[DiskSpec(name=name, size_bytes=1 << 30) for name in disks])
    await vault.protection.enable_protection(vm=vm, interval_s=interval_s)
    await idle(vault)
    (item,) = await vault.status.items()
    assert item.protectionState == "Protected"
