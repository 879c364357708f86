"""The state of the roles around the vault, in memory, for the fakes of tests."""

from __future__ import annotations

import uuid
from pathlib import Path

import trio

from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.app_script import AppScript
from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.contracts.control import (
    CutInfo,
    DiskInfo,
    DownloadedDisk,
    MountedPointInfo,
)
from siterig.blockfs.contracts.prerequisites import UnmetPrerequisite
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.sides.provider import Provider
from siterig.blockfs.transfer.part_name import Watermark
from tests.support import clocks

START_NS = clocks.START_NS


class World:
    """The site, the recovery side and its disk host, as far as the vault sees them."""

    def __init__(self) -> None:
        self.clock = clocks.SettableClock()
        self.position = 0
        self.site: dict[str, dict[str, DiskInfo]] = {}
        self.azure: dict[str, dict[str, DiskInfo]] = {}
        self.opened_at: dict[str, int] = {}
        self.managed: dict[str, Watermark] = {}
        self.cached: list[tuple[str, CutInfo]] = []
        self.calls: list[str] = []
        self.failing: dict[str, RigError] = {}  # call -> the error that it raises, until removed
        self.failing_once: dict[str, RigError] = {}
        self.held: dict[str, trio.Event] = {}  # call -> the event for which it waits
        self.downgrading: str | None = None  # the reason why no point is application-consistent
        self.apply = True  # the applier works without a command
        self.vault: Vault | None = None
        self.verification: Verification | None = None
        self.app_scripts: dict[str, AppScript | None] = {}
        self.tracked: bool | None = None  # of the last relationship
        self.replicated: dict[str, list[str]] = {}  # VM -> the disks of its relationship
        self.removed: dict[str, int] = {}  # disk -> the position of the last cut with it
        self.unmet: list[UnmetPrerequisite] = []
        self.bad_seeds: dict[str, RigError] = {}  # image -> the error of its check
        self.seeded: list[tuple[str, str]] = []  # disk and image of each call
        self.limited: list[bool] = []  # the orders of resyncs
        self.retained: dict[str, int] = {}
        self.news: list[list[str]] = []  # the disks of each call parts_put
        self.asked_again: list[tuple[str, list[str]]] = []
        self.floors: dict[str, int] = {}  # disk -> oldest position; 1 if missing
        self.unencrypted: set[str] = set()
        self.times: dict[str, dict[int, int]] = {}  # disk -> position -> time of the record there
        self.written_bytes: dict[str, int | None] = {}  # disk -> bytes written at the site after a failover
        self.asked_after: list[int] = []
        self.coming: list[DownloadedDisk] = []  # the disks of the last check of a failback
        self.bandwidth: BandwidthLimit | None = None
        self.progress: list[VmProgress] = []  # of all VMs with a copy
        self.mounted_points: dict[tuple[str, str], MountedPointInfo] = {}

    @property
    def now_ns(self) -> int:
        """The wall time."""
        return self.clock.wall_ns()

    @now_ns.setter
    def now_ns(self, wall_ns: int) -> None:
        """Let time pass until a wall time."""
        self.clock.advance_ns(wall_ns - self.clock.wall_ns())

    async def called(self, name: str) -> None:
        """Record a call, and let it wait or fail if the test wants that."""
        self.calls.append(name)
        await trio.lowlevel.checkpoint()
        if name in self.held:
            await self.held[name].wait()
        for failures in (self.failing, self.failing_once):
            if name in failures:
                error = failures[name]
                self.failing_once.pop(name, None)
                raise error

    async def check_shut_down(self, disks: list[Path]) -> None:
        """Record a check that the disks' guests can be shut down."""
        await self.called("check_shut_down")

    async def shut_down(self, disks: list[Path]) -> None:
        """Record a shutdown of the disks' guests."""
        await self.called(f"shut_down {len(disks)} disks")

    def rename(self, side: dict[str, dict[str, DiskInfo]], vm: str, name: str) -> None:
        """Rename a VM of one side."""
        if vm in side:
            side[name] = {disk.name: disk.model_copy(update={"vm": name}) for disk in side.pop(vm).values()}

    def lose_site(self) -> None:
        """Let all calls of the site fail."""
        error = RigError(Code.RoleUnavailable, "role site cannot be reached", recoverable=True)
        for name in vars(Provider):
            self.failing[f"site.{name}"] = error

    def stop_failing(self) -> None:
        """Let all calls succeed again."""
        self.failing.clear()
        self.failing_once.clear()

    def disk(self, vm: str, name: str, size_bytes: int, disk_id: str | None = None) -> DiskInfo:
        """Return the description of a new disk."""
        return DiskInfo(
            vm=vm,
            name=name,
            disk_id=disk_id or str(uuid.uuid4()),
            size_bytes=size_bytes,
            path=f"/mnt/{vm}/{name}.img",
            folder=f"/disks/{vm}",
            tracked=True,
            generation=1,
            last_seq=0,
            last_position=0,
            unsent_log_bytes=0,
            log_bytes_max=None,
            dirty_bytes=0,
            snapshot_bytes=0,
            snapshot_bytes_max=None,
            snapshot=False,
            needs_resync=None,
            open_handles=0,
        )

    async def report(self, disk_id: str, cut: CutInfo | None = None) -> None:
        """Report the watermark of a disk to the vault, with a cut's tag if there is one."""
        assert self.vault is not None
        tags = []
        if cut is not None:
            tags = [TagSeen(tag_id=cut.tag_id, kind=cut.kind, name=cut.name, position=cut.position, time_ns=cut.time_ns)]
        await self.vault.reports.applied(watermark=self.managed[disk_id], tags=tags)

    def replicated_disks(self, vm: str) -> list[DiskInfo]:
        """Return the disks of a VM of the site that are replicated."""
        return [disk for disk in self.site[vm].values() if disk.name in self.replicated.get(vm, self.site[vm])]

    async def synced(self, vm: str) -> None:
        """Report that the sync of the VM's current generation is applied."""
        for disk in self.replicated_disks(vm):
            self.managed[disk.disk_id] = self.mark(disk.disk_id, disk.generation, self.position, 0)
            await self.report(disk.disk_id)

    def mark(self, disk_id: str, generation: int, position: int, log_seq: int) -> Watermark:
        """Return a watermark of a disk whose sync is complete."""
        return Watermark(
            disk_id=disk_id,
            generation=generation,
            sync_parts=1,
            sync_complete=True,
            log_seq=log_seq,
            complete_position=position,
            complete_time_ns=START_NS + position,
        )

    async def apply_cached(self) -> None:
        """Apply all cuts that are in the cache account, and report them."""
        cached, self.cached = self.cached, []
        for vm, cut in cached:
            for disk in self.replicated_disks(vm):
                self.managed[disk.disk_id] = self.mark(disk.disk_id, disk.generation, cut.position, cut.position)
                await self.report(disk.disk_id, cut)
