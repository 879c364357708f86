"""Everything about one protected VM: figures of all roles, roles that do not answer, and the wait for changes."""

from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.context.change_feed import ChangeFeed
from siterig.azure_emu.vault.model.vm_status import ChangeCount
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from tests.support.clocks import FakeClock
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, ended, protected, running


async def test_the_status_of_a_vm_has_the_figures_of_all_roles(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app")
        disk = world.site["web01"]["os"]
        world.site["web01"]["os"] = disk.model_copy(
            update={"unsent_log_bytes": 700, "open_handles": 2, "free_bytes": 5000, "dirty_bytes": 9}
        )
        await vault.reports.account_seen(disk_id=disk.disk_id, waiting_bytes=300, skipped=[], skipped_count=0)
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        world.now_ns = START_NS + 40 * SECOND_NS
        found = await vault.observation.vm_status(vm="web01")
        assert (found.item.name, found.item.lastRpoInSeconds, found.unanswered) == ("web01", 40.0, [])
        (shown,) = found.disks
        assert (shown.unsent_log_bytes, shown.unapplied_bytes, shown.account_bytes) == (700, 300, 4096)
        assert (shown.open_handles, shown.dirty_bytes, shown.applied_lag_s) == (2, 9, 0.0)
        assert (shown.base_bytes, shown.journal_bytes, found.site_free_bytes) == (0, 0, 5000)
        assert [(vm.vm, vm.kind, vm.age_s) for vm in found.recovery_vms] == [("web01-test", "TestFailover", 40.0)]
        points = found.points
        assert (points.count, points.newest_age_s, points.newest_app_consistent_age_s) == (2, 40.0, 40.0)
        assert points.newest_app_consistent is not None
        assert points.newest_app_consistent.name == "app"
        assert found.job is None
        assert found.events[0].eventCode == "TestFailoverSucceeded"


async def test_the_lag_of_a_disk_is_its_own(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        cut = await vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="late")
        data = world.site["web01"]["data"].disk_id
        world.managed[data] = world.mark(data, 1, cut.position, cut.position)
        await world.report(data, cut)
        lags = {disk.name: disk.applied_lag_s for disk in (await vault.observation.vm_status(vm="web01")).disks}
        assert lags == {"data": 0.0, "os": 10 / SECOND_NS}


async def test_a_role_that_does_not_answer_is_named_and_delays_nothing_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        world.held["site.list_vms"] = trio.Event()
        world.failing["recovery.disk_state"] = RigError(Code.RoleUnavailable, "role applier cannot be reached")
        began_s = trio.current_time()
        found = await vault.observation.vm_status(vm="web01")
        assert trio.current_time() - began_s < 3
        assert {each.role: each.reason for each in found.unanswered} == {
            "agent": "role agent did not answer within 2 s",
            "applier": "role applier cannot be reached",
        }
        (disk,) = found.disks
        assert (disk.unsent_log_bytes, disk.base_bytes, disk.account_bytes, found.site_free_bytes) == (None,) * 4
        assert found.progress is not None


async def test_a_role_that_is_known_to_be_away_is_not_asked(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        away = RoleStatus(name="agent", state="failed", pid=None, restarts=3, detail="broken", since_ns=0, waits=[])
        await vault.reports.report_roles(roles=[away])
        world.calls.clear()
        (missing,) = (await vault.observation.vm_status(vm="web01")).unanswered
        assert (missing.role, "failed" in missing.reason) == ("agent", True)
        assert not [call for call in world.calls if call.startswith("site.")]


async def test_many_changes_are_one_answer_a_second() -> None:
    clock = FakeClock()
    feed = ChangeFeed(clock)
    first = await feed.wait(epoch="", after=0, patience_s=4)
    answers: list[tuple[float, int]] = []

    async def follow() -> None:
        known = first
        while True:
            known = await feed.wait(epoch=known.epoch, after=known.count, patience_s=4)
            answers.append((clock.trio_time_s(), known.count))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for _ in range(30):  # three seconds
            feed.note()
            await clock.run_for(0.1)
        assert [count for _, count in answers] == [1, 2, 3, 4][: len(answers)]
        assert 3 <= len(answers) <= 4
        del answers[:]
        await clock.run_for(3.5)
        assert len(answers) <= 1
        nursery.cancel_scope.cancel()


async def test_a_wait_without_a_change_ends_with_the_same_count() -> None:
    clock = FakeClock()
    feed = ChangeFeed(clock)
    known = await feed.wait(epoch="", after=0, patience_s=4)
    answers: list[ChangeCount] = []

    async def wait() -> None:
        answers.append(await feed.wait(epoch=known.epoch, after=known.count, patience_s=2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await clock.run_for(1.9)
        assert answers == []
        await clock.run_for(0.2)
        assert answers == [known]


async def test_a_report_about_a_vm_ends_the_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        known = await vault.observation.wait_for_change(epoch="", after=0, patience_s=4)
        known = await vault.observation.wait_for_change(epoch=known.epoch, after=known.count, patience_s=4)
        await vault.reports.resync_required(vm="web01", reason="PowerLoss")
        assert (await vault.observation.wait_for_change(epoch=known.epoch, after=known.count, patience_s=4)) != known


async def test_an_event_of_no_vm_ends_the_wait(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with running(World(), tmp_path) as vault:
        known = await vault.observation.wait_for_change(epoch="", after=0, patience_s=4)
        known = await vault.observation.wait_for_change(epoch=known.epoch, after=known.count, patience_s=4)
        await vault.status.events()
        assert await vault.observation.wait_for_change(epoch=known.epoch, after=known.count, patience_s=4) == known
        await vault.record_server_event("PeerRefused", "Warning", "vault", "an unknown peer")
        assert await vault.observation.wait_for_change(epoch=known.epoch, after=known.count, patience_s=4) != known


async def test_a_resize_is_an_event_and_the_status_has_the_new_size(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        disk_id = world.site["web01"]["os"].disk_id

        async def sent(position: int, size_bytes: int) -> None:
            await vault.reports.point_sent(
                vm="web01",
                tag_id=str(position),
                kind="CrashConsistent",
                name="",
                position=position,
                time_ns=world.now_ns,
                disk_bytes={disk_id: size_bytes, "of another VM": 1},
            )

        for position, size_bytes in ((1000, 1 << 30), (1010, 2 << 30), (1005, 1 << 30), (1020, 2 << 30)):
            await sent(position, size_bytes)  # the third report comes late
        assert [disk.size_bytes for disk in (await vault.observation.vm_status(vm="web01")).disks] == [2 << 30]
        resizes = [event.description for event in await vault.status.events() if event.eventCode == "DiskResized"]
        assert resizes == [f"disk 'os' of VM 'web01' was resized from {1 << 30} to {2 << 30} bytes"]
