"""A managed disk whose folder was restored from an older copy: whole in itself, and less than was applied to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from siterig.blockfs.transfer.part_name import Watermark
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import idle, protected, running

OLDER = "ManagedDiskOlder"


@pytest.fixture
def fast_clock() -> trio.testing.MockClock:
    """An applier as in test_applier."""
    return trio.testing.MockClock(rate=500)


async def applied_upto(rig: Rig, position: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.service.run)
        await rig.vault.wait_position(position)
        await rig.vault.wait_rounds(1)
        nursery.cancel_scope.cancel()


async def restored(rig: Rig, folder: Path) -> Watermark:
    """Apply two parts of a log, and restore the copy that was made between them; return the watermark that the vault has."""
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.disk.scribble(20)
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await applied_upto(rig, rig.disk.position)
    shutil.copytree(rig.disks, folder / "copy")
    rig.cache.hold([rig.log("two")])
    rig.restart()
    await applied_upto(rig, rig.disk.position)
    later = rig.vault.marks[-1]
    shutil.rmtree(rig.disks)
    (folder / "copy").rename(rig.disks)
    rig.restart()
    rig.vault.later = later
    return later


async def test_nothing_is_applied_to_an_older_store_before_a_resync(
    tmp_path: Path, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    later = await restored(rig, tmp_path)
    lost = rig.log("three")
    rig.cache.hold([lost])
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    assert rig.vault.failed[0][0] == OLDER
    assert rig.vault.older[0].complete_position < later.complete_position
    assert lost[0] in rig.cache.blobs, "it may be needed"
    rig.disk.generation += 1
    rig.disk.seq = 0
    rig.cache.hold(rig.disk.sync())
    await rig.vault.wait_position(rig.disk.position)
    assert rig.state(rig.disk.position) == rig.disk.data


async def test_an_older_store_is_reported_before_the_parts_of_a_resync_that_has_begun(
    tmp_path: Path, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    later = await restored(rig, tmp_path)
    rig.disk.generation += 1
    rig.disk.seq = 0
    rig.cache.hold(rig.disk.sync())
    await nursery.start(rig.service.run)
    await rig.vault.wait_position(rig.disk.position)
    assert rig.vault.older[0].complete_position < later.complete_position


async def test_a_damaged_store_that_a_resync_replaces_is_reported_as_an_older_one(
    tmp_path: Path, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig = Rig(tmp_path)
    await rig.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await applied_upto(rig, rig.disk.position)
    later = rig.vault.marks[-1]
    (rig.disks / DISK_ID / "progress").write_bytes(b"damage")
    rig.restart()
    rig.vault.later = later
    rig.disk.generation += 1
    rig.disk.seq = 0
    rig.cache.hold(rig.disk.sync())
    await nursery.start(rig.service.run)
    await rig.vault.wait_position(rig.disk.position)
    assert (rig.vault.older[0].generation, rig.vault.older[0].complete_position) == (0, 0)
    assert rig.state(rig.disk.position) == rig.disk.data


async def marked(world: World, disk_id: str, mark: Watermark) -> None:
    assert world.vault is not None
    assert await world.vault.reports.applied(watermark=mark, tags=[]) is not None
    await world.vault.reports.store_older(watermark=mark)


@pytest.mark.slow
async def test_an_older_store_is_critical_an_event_and_a_resync_that_is_due(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for name in ("kept", "lost"):
            await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)
            await idle(vault)
        kept = next(point for point in await vault.recovery_points.points(vm="web01") if point.name == "kept")
        disk_id = world.site["web01"]["os"].disk_id
        older = world.mark(disk_id, world.managed[disk_id].generation, kept.position, kept.position)
        for _ in range(2):
            await marked(world, disk_id, older)
        (item,) = await vault.status.items()
        assert (item.replicationHealth, item.resynchronizationRequired) == ("Critical", OLDER)
        assert OLDER in [error.errorCode for error in item.healthErrors]
        assert "lost" not in [point.name for point in await vault.recovery_points.points(vm="web01")]
        assert "kept" in [point.name for point in await vault.recovery_points.points(vm="web01")]
        codes = [event.eventCode for event in await vault.status.events() if event.eventType == "VmHealth"]
        assert codes.count(OLDER) == 1
        await vault.protection.resync(vm="web01")
        await idle(vault)
        (item,) = await vault.status.items()
        assert (item.replicationHealth, item.resynchronizationRequired) == ("Normal", None)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_older_store_is_compared_as_a_whole_also_after_an_abandoned_log(tmp_path: Path, begun: bool) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="lost")
        await idle(vault)
        disk_id = world.site["web01"]["os"].disk_id
        older = world.mark(disk_id, world.managed[disk_id].generation, 1, 1)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        if begun:
            world.held["site.resync"] = trio.Event()
            await vault.protection.resync(vm="web01")
            while "site.resync" not in world.calls:
                await trio.testing.wait_all_tasks_blocked()
        await marked(world, disk_id, older)
        if begun:
            world.held.pop("site.resync").set()
            await idle(vault)
        (item,) = await vault.status.items()
        assert item.resynchronizationRequired == OLDER
        await vault.protection.resync(vm="web01")
        await idle(vault)
        assert world.limited[-1] is False
        (item,) = await vault.status.items()
        assert item.resynchronizationRequired is None


@pytest.mark.slow
async def test_a_report_that_came_late_is_no_older_store(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id
        before = world.managed[disk_id]
        await vault.reports.applied(watermark=before.model_copy(update={"log_seq": before.log_seq + 5}), tags=[])
        assert await vault.reports.applied(watermark=before, tags=[]) is not None, (
            "only the store's owner knows that it is older"
        )
        (item,) = await vault.status.items()
        assert (item.replicationHealth, item.resynchronizationRequired) == ("Normal", None)
