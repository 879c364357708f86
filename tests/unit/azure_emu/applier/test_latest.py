"""``Latest`` and ``LatestProcessed`` on the very same parts, which wait in the cache account: real applier, real stores."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.applier import applier
from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.service import RecoveryService
from siterig.azure_emu.contracts.reports import SkippedBlob
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.control import CutInfo, TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.transfer.part_name import Watermark
from tests.support.disks.disk_history import SIZE_BYTES, SiteDisk
from tests.support.rigs import vault_fakes
from tests.support.rigs.applier_rig import FakeCache
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, FakeProvider, ended, idle, running

pytestmark = pytest.mark.slow


class Waiting(World):
    """Its parts wait in a cache account: nobody looks after the applier's disks, so only who asks has them applied."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.cache = FakeCache()
        self.disks: dict[str, SiteDisk] = {}
        self.asked: list[str] = []

    async def synced(self, vm: str) -> None:
        """The initial replication is uploaded, and applied."""
        for name, disk in self.site[vm].items():
            folder = self.folder / name
            folder.mkdir()
            made = SiteDisk(folder, random.Random(name), disk_id=disk.disk_id)
            made.scribble(5)
            made.close_log()
            self.cache.hold(made.sync())
            self.disks[name] = made
        self.position = max(disk.position for disk in self.disks.values())
        await self.process()

    async def process(self) -> None:
        """Apply all parts, as the applier would by itself."""
        assert self.vault is not None
        await self.vault.context.recovery.process_latest(disk_ids=[disk.disk_id for disk in self.disks.values()])

    def opened(self) -> dict[str, bytes]:
        """Return the content of the disks of a test failover's VM."""
        found = {}
        for name, disk in self.disks.items():
            view = open_view(self.folder / "disks" / disk.disk_id, self.opened_at[f"web01-test/{name}"])
            found[name] = view.pread(0, view.size_bytes)
            view.close()
        return found


class Reports:
    """The vault, which is made after the applier."""

    def __init__(self, world: Waiting) -> None:
        self._world = world

    async def applied(
        self, *, watermark: Watermark, tags: list[TagSeen], waiting_bytes: int | None = None
    ) -> Watermark | None:
        assert self._world.vault is not None
        return await self._world.vault.reports.applied(watermark=watermark, tags=tags, waiting_bytes=waiting_bytes)

    async def store_older(self, *, watermark: Watermark) -> None:
        raise AssertionError(watermark)

    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        assert self._world.vault is not None
        await self._world.vault.reports.apply_failed(disk_id=disk_id, code=code, message=message, recoverable=recoverable)

    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        assert self._world.vault is not None
        await self._world.vault.reports.account_seen(
            disk_id=disk_id, waiting_bytes=waiting_bytes, skipped=skipped, skipped_count=skipped_count
        )

    async def send_again(self, *, disk_id: str, parts: list[str], is_temporary: bool) -> None:
        self._world.asked += parts

    async def replicating_disks(self) -> list[str]:
        raise AssertionError("nobody looks after the disks")


class Provider(FakeProvider):
    """A cycle: writes, a tag in all disks, their parts in the cache account."""

    world: Waiting

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str, request_id: str | None = None) -> CutInfo:
        world = self.world
        assert world.vault is not None
        for disk in world.disks.values():
            disk.scribble(6)
        world.position = max(disk.position for disk in world.disks.values()) + 1
        tag = TagSeen(
            tag_id=str(uuid.uuid4()), kind=kind, name=name, position=world.position, time_ns=START_NS + world.position
        )
        for disk in world.disks.values():
            disk.put_tag(tag)
            world.cache.hold([disk.close_log()])
        cut = CutInfo(vm=vm, **tag.model_dump())
        await world.vault.reports.point_sent(**cut.model_dump())
        if world.apply:
            await world.process()
        return cut


def service_of(tmp_path: Path, world: Any) -> RecoveryService:
    return RecoveryService(Applier(tmp_path / "disks", world.cache, Reports(world)), world.cache)


async def test_latest_applies_waiting_parts_and_latest_processed_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Waiting(tmp_path)
    monkeypatch.setattr(vault_fakes, "FakeProvider", Provider)
    monkeypatch.setattr(vault_fakes, "FakeRecovery", lambda world: service_of(tmp_path, world))
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=name, size_bytes=SIZE_BYTES) for name in ("data", "os")])
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        (first,) = await vault.recovery_points.points(vm="web01")
        before = {name: bytes(disk.data) for name, disk in world.disks.items()}
        assert world.cache.blobs == {}

        world.apply = False
        cut = await vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="waits")
        after = {name: bytes(disk.data) for name, disk in world.disks.items()}
        waiting = dict(world.cache.blobs)
        assert len(waiting) == 2
        for choice, position, shown, left in (
            ("LatestProcessed", first.position, before, waiting),
            ("LatestProcessed", first.position, before, waiting),
            ("Latest", cut.position, after, {}),
            ("LatestProcessed", cut.position, after, {}),
        ):
            assert (await ended(vault, await vault.failovers.test_failover(vm="web01", point=choice))).state == "Succeeded"
            assert set(world.opened_at.values()) == {position}, choice
            assert world.opened() == shown, choice
            assert world.cache.blobs == left, choice
            assert len(await vault.recovery_points.points(vm="web01")) == (1 if left else 2)
            await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))


async def test_latest_uses_the_usable_parts_and_reports_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Waiting(tmp_path)
    monkeypatch.setattr(applier, "REPAIR_WAIT_S", 0.0)
    monkeypatch.setattr(vault_fakes, "FakeProvider", Provider)
    monkeypatch.setattr(vault_fakes, "FakeRecovery", lambda world: service_of(tmp_path, world))
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=name, size_bytes=SIZE_BYTES) for name in ("data", "os")])
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        (first,) = await vault.recovery_points.points(vm="web01")
        world.apply = False
        await vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="lost")
        part = min(world.cache.blobs)
        world.cache.blobs[part] = b"spoilt"
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
        assert (job.state, job.stateDescription) == ("Succeeded", "CompletedWithInformation")
        assert [error.code for error in job.errors] == ["LatestIncomplete"]
        assert part.blob() in job.errors[0].message
        assert job.recovery_point is not None
        assert job.recovery_point.position == first.position
        assert part.blob() in world.asked
