"""The Azure Site Recovery Provider and the Recovery Services agent of a Hyper-V host, as one service."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import structlog
import trio

from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.contracts.control import (
    CLOSE_IT,
    CutInfo,
    DiskHostControl,
    DiskInfo,
    DownloadedDisk,
    SourceUse,
    TagKind,
)
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import SiteReadiness, UnmetPrerequisite
from siterig.blockfs.contracts.upload_limits import UploadLimits
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.files import safe_files
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_cipher import keep_keys
from siterig.blockfs.transfer.part_name import PartName
from siterig.replication.engine import failback
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import Relationship, RelationshipBook
from siterig.replication.engine.retry import OFFICIAL_DELAYS_S, RetryTable
from siterig.replication.engine.snapshots import MountedSnapshot, SnapshotFile
from siterig.replication.guests.app_scripts import AppScripts, check_script
from siterig.replication.guests.host_guests import Guests, HostGuests
from siterig.replication.hyperv.disk_creation import DiskCreation
from siterig.replication.hyperv.prerequisites import check_space, space_obstacles
from siterig.replication.parts.bandwidth import Bandwidth
from siterig.replication.parts.byte_budget import ByteBudget
from siterig.replication.parts.joint_puts import JointPuts
from siterig.replication.parts.put_news import PutNews
from siterig.replication.parts.spool import clear_spool
from siterig.replication.replicas.replica import Replica

MEMORY_BYTES = 96 << 20
"""Memory for the parts that are in work: six parts of a copy of 8 MiB each."""

_log = structlog.get_logger(__name__)


class HyperVAgent(Provider):
    """The agent of one host.  Any task may call its methods while :meth:`run` runs."""

    def __init__(
        self,
        *,
        host: DiskHostControl,
        cache: CacheAccount,
        vault: VaultLink,
        folder: Path,
        clock: Clock = SYSTEM_CLOCK,
        retry_delays_s: tuple[float, ...] = OFFICIAL_DELAYS_S,
        guests: Guests | None = None,
        open_snapshot: Callable[[Path], SnapshotFile] = MountedSnapshot,
        waits: Waits | None = None,
        drop_keys: Callable[[str | None], None] = keep_keys,
        uploads: UploadLimits | None = None,
    ) -> None:
        """Read the agent's state.

        Args:
            host: the disk host of the site.
            cache: the cache account.
            vault: the vault.
            folder: folder of the agent's state and spool.
            clock: the time of the agent.
            retry_delays_s: the official table, or a shorter one for a drill with an interval below 30 s
                (docs/reference/retries.md).
            guests: operations on the guests of this host.
            open_snapshot: opens the snapshot of a disk.
            waits: the list in which the agent records what it waits for.
            drop_keys: drops the data keys of a disk, or all keys, that the cache account uses.
            uploads: limits of the uploads in flight.

        Raises:
            RigError: ``AgentStateUnreadable``.
        """
        safe_files.make_folder(folder, parents=True)
        limits = uploads or UploadLimits()
        spool = folder / "spool"
        safe_files.make_folder(spool)
        book, waits = RelationshipBook(folder), waits or Waits(clock)
        uploads_of_host = trio.CapacityLimiter(limits.per_host)
        self._context = AgentContext(
            host=host,
            cache=cache,
            vault=vault,
            book=book,
            guests=guests if guests is not None else HostGuests(),
            open_snapshot=open_snapshot,
            spool=spool,
            uploads=uploads_of_host,
            uploads_per_vm=limits.per_vm,
            put_news=PutNews(vault, clock.real),
            joint_puts=JointPuts(cache, uploads_of_host, clock.real),
            bandwidth=Bandwidth(lambda: book.bandwidth, clock, waits),
            packing=trio.CapacityLimiter(os.cpu_count() or 1),
            memory=ByteBudget(MEMORY_BYTES),
            scripts=AppScripts(folder / "app-scripts", waits),
            retry=RetryTable(retry_delays_s),
            clock=clock,
            waits=waits,
        )
        self._drop_keys = drop_keys
        self._replicas: dict[str, Replica] = {}
        self._creation = DiskCreation(self._context, folder / "unfinished")
        self._failbacks: dict[tuple[str, str], ProgressTracker] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Resume every relationship, and work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._context.put_news.run)
            nursery.start_soon(self._context.joint_puts.run)
            nursery.start_soon(self._context.scripts.finish_all)
            nursery.start_soon(self._creation.remove_unfinished)
            for record in self._context.book.all():
                self._start(record.vm, resumed=True)
            task_status.started()
            await trio.sleep_forever()

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> list[DiskInfo]:
        if vm in self._creation.vms:
            raise RigError(Code.VmExists, f"VM {vm!r} is being created on this host")
        with self._creation.making(vm):
            if await self._disks_or_none(vm):
                raise RigError(Code.VmExists, f"VM {vm!r} exists already on this host")
            return await self._creation.make(vm, disks)

    async def attach_disk(self, *, vm: str, disk: DiskSpec) -> list[DiskInfo]:
        with self._creation.making(vm):
            present = [known.name for known in await self._context.host.list_disks(vm=vm)]
            if disk.name in present:
                raise RigError(Code.DiskExists, f"VM {vm!r} has a disk {disk.name!r} already")
            record = self._context.book.find(vm)
            if record is not None and record.replicated is None:  # all disks, which are the present ones
                self._context.book.update(vm, replicated=sorted(present))
            return await self._creation.make(vm, [disk])

    async def list_vms(self) -> list[DiskInfo]:
        return await self._context.host.list_disks()

    async def check_delete(self, *, vm: str) -> None:
        self._creation.require_made(vm)
        try:
            disks = await self._context.host.list_disks(vm=vm)
        except RigError as exc:
            if exc.code != Code.DiskCorrupt:
                raise
            return
        for disk in disks:
            if disk.open_handles:
                raise RigError(
                    Code.DiskInUse,
                    f"disk {vm}/{disk.name} is in use: {disk.path} (open handles: {disk.open_handles}); {CLOSE_IT}",
                )
            if disk.kept:
                raise RigError(
                    Code.InvalidState,
                    f"VM {vm!r} cannot be deleted: {disk.kept[0].path} was kept by a failback; siterig disk kept delete "
                    f"{vm} {disk.kept[0].file} deletes it",
                )

    async def delete_vm(self, *, vm: str) -> None:
        self._creation.require_made(vm)
        replica = self._replicas.pop(vm, None)
        if replica is not None:
            await replica.stop()
        try:
            await self._context.host.remove_vm(vm=vm)
        except RigError as exc:
            if exc.code == Code.VmNotFound:
                self._forget(vm)
            raise
        else:
            self._forget(vm)
            self._context.book.set_app_script(vm, None)
        finally:
            if self._context.book.find(vm) is not None:
                self._start(vm, resumed=True)

    async def rename_vm(self, *, vm: str, name: str) -> None:
        self._creation.require_made(vm)
        replica = self._replicas.pop(vm, None)
        if replica is not None:
            await replica.stop()
        try:
            await self._context.host.rename_vm(vm=vm, name=name)
            self._context.book.rename(vm, name)
        finally:
            for known in (vm, name):
                if self._context.book.find(known) is not None and known not in self._replicas:
                    self._start(known, resumed=True)

    async def check_vm(self, *, vm: str, excluded: list[str] | None = None) -> list[DiskInfo]:
        names = await self._names(vm, excluded or [])
        disks = await self._context.host.list_disks(vm=vm, disks=names)
        await self._context.host.check_tracking(vm=vm, disks=names)
        await trio.to_thread.run_sync(check_space, vm, disks)
        return disks

    async def _names(self, vm: str, excluded: list[str]) -> list[str] | None:
        """Return the names of the disks of a VM without the excluded ones; None if none is excluded."""
        if not excluded:
            return None
        # Disks that cannot be opened are obstacles, whether or not the host lists them.
        for obstacle in await self._context.host.tracking_obstacles(vm=vm, excluded=excluded):
            raise RigError(Code.of(obstacle.code), obstacle.message)
        found = [disk.name for disk in await self._context.host.list_disks() if disk.vm == vm]
        return [name for name in found if name not in excluded]

    async def check_prerequisites(self, *, vm: str, excluded: list[str] | None = None) -> SiteReadiness:
        obstacles = await self._context.host.tracking_obstacles(vm=vm, excluded=excluded)
        disks = [disk for disk in await self._context.host.list_disks() if disk.vm == vm]
        intact = [disk for disk in disks if disk.broken_chain is None and disk.name not in (excluded or ())]
        lacking = await trio.to_thread.run_sync(space_obstacles, vm, intact)
        unmet = [UnmetPrerequisite(code=each.code, message=each.message) for each in obstacles]
        unmet += [UnmetPrerequisite.of(error) for error in lacking]
        try:
            await self._context.cache.check()
        except RigError as error:
            unmet.append(UnmetPrerequisite.of(error))
        return SiteReadiness(disks=disks, unmet=unmet)

    async def create_relationship(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None,
        tracked: bool = True,
        disks: list[str] | None = None,
    ) -> list[DiskInfo]:
        _log.info("provider_called", vm=vm, call="CreateReplicationRelationship")
        replica = self._replicas.get(vm)
        known = self._context.book.find(vm)
        names = sorted(disks) if disks is not None else None if known is None else known.replicated
        # Only a resync begins a new log after an abandoned one: cycles that still run would see a new log as a loss.
        if not tracked or (replica is not None and replica.has_copied):
            infos = await self._context.host.list_disks(vm=vm, disks=names)
        else:
            infos = await self._context.host.start_tracking(vm=vm, disks=names)
        if replica is not None:
            replica.set_disks(names)
            await replica.set_schedule(interval_s=interval_s, app_consistent_every_s=app_consistent_every_s)
            return infos
        for info in infos:
            self._drop_keys(info.disk_id)  # the vault deletes them with the managed disk
        record = Relationship(vm=vm, interval_s=interval_s, app_consistent_every_s=app_consistent_every_s, replicated=names)
        self._context.book.save(record)
        self._start(vm, resumed=False)
        return infos

    async def initial_replication(self, *, vm: str) -> None:
        _log.info("provider_called", vm=vm, call="StartReplication")
        await self._replica(vm).copy("initial")

    async def resync(self, *, vm: str, limited: bool = False) -> None:
        await self._replica(vm).copy("resync", limited=limited)

    async def verify(self, *, vm: str) -> Verification:
        return await self._replica(vm).verify()

    async def stop_verification(self, *, vm: str) -> None:
        if vm in self._replicas:
            await self._replicas[vm].stop_verification()

    async def stop_copy(self, *, vm: str) -> None:
        if vm in self._replicas:
            await self._replicas[vm].stop_copy()

    async def send_again(self, *, vm: str, parts: list[str]) -> None:
        await self._replica(vm).send_again(PartName.parse(name) for name in parts)

    async def progress(self, *, vm: str) -> VmProgress:
        found, replica = self._progress(vm), self._replicas.get(vm)
        return found if replica is None else found.model_copy(update={"uploaded_bytes": replica.uploaded_bytes})

    def _progress(self, vm: str) -> VmProgress:
        coming_back = [tracker.snapshot() for (of_vm, _), tracker in self._failbacks.items() if of_vm == vm]
        if coming_back:
            disks = [disk for item in coming_back for disk in item.disks]
            left_s = [item.left_s for item in coming_back]
            longest_s = None if None in left_s else max(filter(None, left_s), default=0.0)
            return VmProgress(vm=vm, phase="Failback", disks=disks, left_s=longest_s)
        if vm in self._replicas:
            return self._replicas[vm].progress()
        if vm in self._creation.vms:
            return self._creation.progress(vm)
        return VmProgress(vm=vm, phase=None, disks=[])

    async def progress_of_all(self) -> list[VmProgress]:
        coming_back = {vm for vm, _ in self._failbacks}
        return [await self.progress(vm=vm) for vm in sorted({*self._replicas, *self._creation.vms, *coming_back})]

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str, request_id: str | None = None) -> CutInfo:
        return await self._replica(vm).replicate_now(kind, name, request_id)

    async def shutdown_vm(self, *, vm: str) -> None:
        disks = await self._context.host.list_disks(vm=vm)
        await self._context.guests.shutdown([Path(disk.path) for disk in disks])

    async def check_shutdown(self, *, vm: str) -> None:
        disks = await self._context.host.list_disks(vm=vm)
        await self._context.guests.check_shutdown([Path(disk.path) for disk in disks])

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        return await self._context.host.source_use(vm=vm, after=after)

    async def fence(self, *, vm: str, fenced: bool) -> list[DiskInfo]:
        return await self._context.host.fence(vm=vm, fenced=fenced)

    async def check_failback(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        await self._context.host.check_replace(vm=vm, disks=disks)

    def retry_now(self, why: str) -> None:
        """Let every VM that waits for a retry repeat its work at once, because its cause may have ended."""
        waiting = [vm for vm, replica in self._replicas.items() if replica.retry_now()]
        _log.info("retries_at_once", reason=why, vms=waiting)

    async def forget_keys(self) -> None:
        self._drop_keys(None)

    async def suspend(self, *, vm: str) -> None:
        if vm in self._replicas:
            await self._replicas[vm].suspend()

    async def change_schedule(self, *, vm: str, interval_s: float, app_consistent_every_s: float | None) -> None:
        self._replica(vm).change_schedule(interval_s=interval_s, app_consistent_every_s=app_consistent_every_s)

    async def bandwidth(self) -> BandwidthLimit | None:
        return self._context.book.bandwidth

    async def set_bandwidth(self, *, limit: BandwidthLimit | None) -> None:
        if limit is not None:
            limit.check()
        self._context.book.set_bandwidth(limit)

    async def app_script(self, *, vm: str) -> AppScript | None:
        await self._context.host.list_disks(vm=vm)
        return self._context.book.app_script(vm)

    async def set_app_script(self, *, vm: str, script: AppScript | None) -> None:
        await self._context.host.list_disks(vm=vm)
        if script is not None:
            await trio.to_thread.run_sync(check_script, vm, script)
        self._context.book.set_app_script(vm, script)

    async def pause(self, *, vm: str) -> None:
        await self._replica(vm).pause()

    async def resume(self, *, vm: str) -> None:
        await self._replica(vm).unpause()

    async def remove_disks(self, *, vm: str, disks: list[str]) -> int:
        return await self._replica(vm).remove_disks(disks)

    async def add_disks(self, *, vm: str, disks: list[str]) -> int:
        return await self._replica(vm).add_disks(disks)

    async def withdraw_disks(self, *, vm: str, disks: list[str]) -> None:
        if vm in self._replicas:
            await self._replicas[vm].withdraw_disks(disks)

    async def remove_relationship(self, *, vm: str) -> None:
        replica = self._replicas.pop(vm, None)
        if replica is not None:
            await replica.stop()
        try:
            if await self._disks_or_none(vm):
                await self._context.host.end_snapshot(vm=vm)
                await self._context.host.stop_tracking(vm=vm)
        except BaseException:
            if replica is not None:
                self._start(vm, resumed=True)
            raise
        self._forget(vm)

    def _forget(self, vm: str) -> None:
        """Remove the relationship, the records of received disks, and the spool of a VM."""
        record = self._context.book.find(vm)
        self._context.book.remove(vm)
        self._context.book.clear_received(vm)
        joining = record.joining.disks if record is not None and record.joining is not None else []
        for disk in [*(record.disks if record is not None else []), *joining]:
            clear_spool(self._context.spool / disk.disk_id)

    async def receive_disk(self, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int) -> None:
        tracker = self._failbacks[vm, disk] = ProgressTracker(vm, self._context.clock)
        try:
            await failback.receive_disk(
                self._context, tracker, vm=vm, disk=disk, source_id=source_id, size_bytes=size_bytes, parts=parts
            )
        finally:
            self._failbacks.pop((vm, disk), None)

    async def commit_failback(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        return await failback.commit_failback(self._context, vm=vm, keep=keep)

    def _start(self, vm: str, *, resumed: bool) -> None:
        if self._nursery is None:
            raise RigError(Code.AgentNotRunning, "the agent is not running yet", recoverable=True)
        replica = Replica(self._context, vm, resumed=resumed, drop_keys=self._drop_keys)
        self._replicas[vm] = replica
        self._nursery.start_soon(replica.run, name=f"replica {vm}")

    def _replica(self, vm: str) -> Replica:
        self._context.book.get(vm)
        if vm not in self._replicas:
            raise RigError(Code.AgentNotRunning, "the agent is not running yet", recoverable=True)
        return self._replicas[vm]

    async def _disks_or_none(self, vm: str) -> list[DiskInfo]:
        try:
            return await self._context.host.list_disks(vm=vm)
        except RigError as exc:
            if exc.code != Code.VmNotFound:
                raise
            return []
