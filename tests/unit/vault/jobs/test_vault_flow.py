"""The whole way: protect, drill, lose the site, commit, fail back, commit, protect again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.vault.inventory import inventory
from siterig.azure_emu.vault.jobs import failback_tasks
from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.rpc import server
from siterig.rpc.contract import method_names
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, ended, idle, protected, running

pytestmark = pytest.mark.slow


def task_states(job: Job) -> list[tuple[str, str, str | None]]:
    return [(task.name, task.state, task.stateDescription) for task in job.tasks]


async def state_of(world: World) -> tuple[str, str, str]:
    assert world.vault is not None
    (item,) = await world.vault.status.items()
    return item.protectionState, item.activeLocation, item.testFailoverState


async def test_protection_has_the_official_jobs_and_tasks(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        finalize, enable = await vault.status.jobs()
        assert (enable.scenarioName, enable.friendlyName, enable.state, enable.stateDescription) == (
            "EnableDr",
            "Enable replication",
            "Succeeded",
            "Completed",
        )
        assert [task.name for task in enable.tasks] == [
            "EnableProtectionPreflightChecksTask",
            "CreateProtectionTargetTask",
            "EnableProtectionTask",
            "StartInitialReplicationTask",
            "UpdateDraStateTask",
        ]
        assert (finalize.friendlyName, finalize.state) == ("Finalize protection on the virtual machine", "Succeeded")
        assert enable.startTime == "2027-01-15T08:00:00.000000Z"
        (point,) = await vault.recovery_points.points(vm="web01")
        assert (point.name, point.type, point.position) == ("first", "CrashConsistent", 10)
        assert await vault.reports.may_replicate(vm="web01")


async def test_a_rig_only_interval_is_allowed_and_reported(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=2))
        assert (job.state, job.stateDescription) == ("Succeeded", "CompletedWithInformation")
        await idle(vault)
        texts = [event.description for event in await vault.status.events()]
        assert "interval_s 2 of VM 'web01' is rig-only: the service has 30, 300 and 900" in texts


@pytest.mark.parametrize(
    ("interval_s", "app_s", "message"),
    [
        (0, None, "interval_s is 0; allowed: 30, 300 or 900 as in the service; in this rig any value from 1 to 86400"),
        (30, 5, "app_consistent_every_s is 5; allowed: from interval_s (30) to 86400, or none"),
    ],
)
async def test_a_policy_out_of_range_names_key_value_and_range(
    tmp_path: Path, interval_s: float, app_s: float | None, message: str
) -> None:
    async with running(World(), tmp_path) as vault:
        with pytest.raises(RigError) as caught:
            await vault.protection.enable_protection(vm="web01", interval_s=interval_s, app_consistent_every_s=app_s)
        assert (caught.value.code, caught.value.message) == ("InvalidPolicy", message)


async def test_an_unknown_vm_is_named_with_those_there_are(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=r"^there is no VM 'nope' at the site; VMs there: web01$"):
            await vault.protection.enable_protection(vm="nope", interval_s=30)
        with pytest.raises(RigError, match=r"^VM 'nope' is not protected; protected VMs: web01$"):
            await vault.failovers.failback(vm="nope")


async def test_a_point_is_available_only_when_every_disk_has_its_tag(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        made = []

        async def create() -> None:
            made.append(await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            while not world.cached:
                await trio.lowlevel.checkpoint()
            ((_, cut),) = world.cached
            first, second = world.site["web01"].values()
            world.managed[first.disk_id] = world.mark(first.disk_id, 1, cut.position, 20)
            await world.report(first.disk_id, cut)
            await world.report(first.disk_id, cut)  # a repeat is not the other disk
            assert len(await vault.recovery_points.points(vm="web01")) == 1
            assert not made
            await world.report(second.disk_id, cut)
        assert (made[0].id, made[0].name, made[0].type) == (cut.tag_id, "app", "ApplicationConsistent")
        assert [point.name for point in await vault.recovery_points.points(vm="web01")] == ["app", "first"]


async def test_test_failover_makes_a_second_vm_and_cleanup_removes_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        point = await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app")
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestApplicationConsistent"))
        assert task_states(job) == [
            ("TestFailoverPreflightChecksTask", "Succeeded", "Completed"),
            ("BeginTestFailoverTask", "Other", "Skipped"),
            ("PrepareTestProtectedEntitiesTask", "Succeeded", "Completed"),
            ("BootTestProtectedEntitiesTask", "Succeeded", "Completed"),
        ]
        assert job.result is not None
        assert (job.result.name, job.result.side, job.result.state) == ("web01-test", "azure", "TestFailover")
        assert [disk.path for disk in job.result.disks] == ["/mnt/web01-test/data.img", "/mnt/web01-test/os.img"]
        assert job.recovery_point == point
        assert set(world.opened_at.values()) == {point.position}
        assert await state_of(world) == ("Protected", "Primary", "Completed")
        assert ("web01-test", "azure", "TestFailover") in [(v.name, v.side, v.state) for v in await vault.vms.list_vms()]
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        assert await state_of(world) == ("Protected", "Primary", "None")
        assert world.azure == {}


async def test_the_whole_way_there_and_back(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.position = 100
        world.apply = False
        await FakeCycle(world).send("unapplied")
        world.lose_site()

        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest", source_actions=True))
        assert task_states(job)[1] == ("ShutdownVmOnPrimaryForUFO", "Failed", None)
        assert (job.state, job.stateDescription) == ("Succeeded", "CompletedWithInformation")
        assert job.recovery_point is not None
        assert job.recovery_point.position == 110
        assert job.result is not None
        assert job.result.state == "Recovered"
        assert set(world.opened_at.values()) == {110}
        assert await state_of(world) == ("UnplannedFailoverCompleted", "Primary", "None")
        assert not await vault.reports.may_replicate(vm="web01")  # the site that comes back must not resume

        older = (await vault.recovery_points.points(vm="web01"))[-1]
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point=older.id))
        assert job.state == "Succeeded"
        assert set(world.opened_at.values()) == {10}
        assert (await state_of(world))[0] == "ChangeRecoveryPointCompleted"

        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        assert await state_of(world) == ("CommitFailoverCompleted", "Recovery", "None")
        assert await vault.recovery_points.points(vm="web01") == []
        (item,) = await vault.status.items()
        assert item.lastRpoInSeconds is None

        world.stop_failing()
        world.apply = True
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert (job.state, job.scenarioName) == ("Succeeded", "PlannedFailover")
        assert job.result is not None
        assert job.result.side == "site"
        assert await state_of(world) == ("PlannedFailoverCompleted", "Recovery", "None")
        assert "web01" in world.azure
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        assert await state_of(world) == ("CommitFailoverCompleted", "Primary", "None")
        assert world.azure == {}
        assert not await vault.reports.may_replicate(vm="web01")

        job = await ended(vault, await vault.protection.reprotect(vm="web01"))
        assert (job.friendlyName, job.state) == ("Reverse replication", "Succeeded")
        assert await state_of(world) == ("Protected", "Primary", "None")
        assert await vault.reports.may_replicate(vm="web01")
        assert len(await vault.recovery_points.points(vm="web01")) == 1

        await ended(vault, await vault.protection.disable_protection(vm="web01"))
        assert await vault.status.items() == []
        assert world.managed == {}


class FakeCycle:
    """A delta cycle of the site's agent."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def send(self, name: str) -> None:
        from tests.support.rigs.vault_fakes import FakeProvider

        await FakeProvider(self.world).replicate_now(vm="web01", kind="CrashConsistent", name=name)


async def test_planned_failover_does_not_run_if_the_vm_is_not_shut_down(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.shutdown_vm"] = RigError(Code.VmBusy, "VM 'web01': /srv is in use by postgres (pid 7)")
        job = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        assert job.state == "Failed"
        assert [(error.code, error.message) for error in job.errors] == [
            ("VmBusy", "VM 'web01': /srv is in use by postgres (pid 7)")
        ]
        assert [task.state for task in job.tasks] == ["Succeeded", "Failed", "NotStarted", "NotStarted", "NotStarted"]
        assert world.azure == {}
        assert (await state_of(world))[0] == "PlannedFailoverFailed"
        assert await vault.reports.may_replicate(vm="web01")
        world.stop_failing()
        job = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        assert job.state == "Succeeded"
        assert job.recovery_point is not None
        assert job.recovery_point.position == world.position
        assert not await vault.reports.may_replicate(vm="web01")


async def test_after_a_failed_unplanned_failover_a_resync_is_the_way_back(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["azure.create_disk_from_point"] = RigError(Code.DiskFull, "no space")
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        world.stop_failing()
        assert await state_of(world) == ("UnplannedFailoverFailed", "Primary", "None")
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert await state_of(world) == ("Protected", "Primary", "None")
        assert await vault.reports.may_replicate(vm="web01")
        assert world.azure == {}


async def test_planned_failover_refuses_a_position_that_was_not_applied(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk = world.site["web01"]["os"]
        world.apply = False

        async def lose_cached() -> None:
            world.cached.clear()

        world.apply_cached = lose_cached  # type: ignore[method-assign]
        job = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        assert job.errors[0].code == "NotSynchronized"
        assert "is applied up to position 10; a planned failover needs position 20, the last before the shutdown" in (
            job.errors[0].message
        )
        assert world.managed[disk.disk_id].complete_position == 10


@pytest.mark.parametrize("code", ["PartNotFound", "PartUnreadable", "PartCorrupt"])
async def test_failback_repeats_an_export_after_a_lost_part_a_few_times(tmp_path: Path, code: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        world.failing["site.receive_disk"] = RigError(Code.of(code), "part 3 is lost")
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert (job.state, job.errors[0].code) == ("Failed", code)
        assert world.calls.count("recovery.export_disk") == failback_tasks.EXPORTS_MAX
        world.stop_failing()
        world.calls.clear()
        world.failing_once["site.receive_disk"] = RigError(Code.of(code), "part 3 is lost")
        assert (await ended(vault, await vault.failovers.failback(vm="web01"))).state == "Succeeded"
        assert world.calls.count("recovery.export_disk") == 2


async def test_failback_refuses_a_disk_in_use_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failback_tasks, "_CLOSE_TIMEOUT_S", 0.05)
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        disk = world.azure["web01"]["os"]
        world.azure["web01"]["os"] = disk.model_copy(update={"open_handles": 1})
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert (job.errors[0].code, job.errors[0].message) == (
            "VmBusy",
            "disk 'os' of Azure VM 'web01' is in use: /mnt/web01/os.img (open handles: 1); unmount it and detach its loop "
            "devices before failing back",
        )
        assert await state_of(world) == ("PlannedFailoverFailed", "Recovery", "None")
        world.azure["web01"]["os"] = disk
        world.calls.clear()
        assert (await ended(vault, await vault.failovers.failback(vm="web01"))).state == "Succeeded"
        order = [call for call in world.calls if call.startswith(("shut_down", "recovery.export_disk"))]
        assert order[0] == f"shut_down {len(world.site['web01'])} disks", "first shut down, then download"


async def test_how_far_an_import_is_can_be_asked_of_a_vm_that_is_not_protected(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        assert (await vault.status.progress(vm="new")).phase is None
        assert world.calls == ["site.progress"]


async def test_failback_of_a_disk_written_meanwhile_never_replaces_the_site(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        world.held["site.receive_disk"] = trio.Event()
        job = await vault.failovers.failback(vm="web01")
        while "site.receive_disk" not in world.calls:
            await trio.lowlevel.checkpoint()
        progress = await vault.status.progress(vm="web01")
        assert (progress.phase, progress.disks[0].done_bytes) == ("Failback", 512)
        world.azure["web01"]["os"] = world.azure["web01"]["os"].model_copy(update={"last_seq": 5})
        world.held["site.receive_disk"].set()
        job = await ended(vault, job)
        assert job.errors[0].message == (
            "disk 'os' of Azure VM 'web01' was written to while it was downloaded; keep it unmounted and fail back again"
        )
        assert "site.commit_failback" not in world.calls


async def test_latest_during_a_due_resync_is_the_newest_named_point(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for disk in world.site["web01"].values():
            world.managed[disk.disk_id] = world.mark(disk.disk_id, 1, 9999, 99)
        await vault.reports.resync_required(vm="web01", reason="PowerLoss")
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        assert set(world.opened_at.values()) == {10}
        assert job.recovery_point is not None
        assert job.recovery_point.name == "first"


async def test_resync_clears_its_mark_but_not_one_that_came_meanwhile(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        (item,) = await vault.status.items()
        assert (item.resynchronizationRequired, item.replicationHealth) == ("LogOverflow", "Warning")
        world.held["site.resync"] = trio.Event()
        job = await vault.protection.resync(vm="web01")
        while "site.resync" not in world.calls:
            await trio.lowlevel.checkpoint()
        await vault.reports.resync_required(vm="web01", reason="PowerLoss")
        world.held.pop("site.resync").set()
        assert (await ended(vault, job)).state == "Succeeded"
        assert (await vault.status.items())[0].resynchronizationRequired == "PowerLoss"
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert (await vault.status.items())[0].resynchronizationRequired is None


async def test_a_second_operation_names_the_job_in_progress(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["site.resync"] = trio.Event()
        job = await vault.protection.resync(vm="web01")
        with pytest.raises(RigError) as caught:
            await vault.failovers.test_failover(vm="web01", point="Latest")
        assert (caught.value.code, caught.value.message) == (
            "JobInProgress",
            f"job {job.name} (Resynchronize the virtual machine) of VM 'web01' is in progress; a VM has one job at a time: "
            "wait for its end",
        )
        # The site is lost in the middle of it: the failover does not wait for the resync.
        assert (
            await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        ).state == "Succeeded"
        assert (await vault.status.job(name=job.name)).state == "Cancelled"


async def test_the_error_of_an_unknown_point_names_the_known_ones(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        (point,) = await vault.recovery_points.points(vm="web01")
        with pytest.raises(RigError) as caught:
            await vault.failovers.unplanned_failover(vm="web01", point="LatestApplicationConsistent")
        assert (caught.value.code, caught.value.message) == (
            "NoSuchPoint",
            f"VM 'web01' has no recovery point 'latest-app'; the newest is {point.id} (CrashConsistent); allowed: latest, "
            "latest-processed, latest-app, the id or the name of one of its 1 points, @POSITION, or a time",
        )
        assert (await vault.status.items())[0].protectionState == "Protected"


async def test_somebody_elses_vm_of_that_name_is_never_replaced(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.azure["web01-test"] = {"mine": world.disk("web01-test", "mine", 512)}
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
        assert (job.state, job.errors[0].code) == ("Succeeded", "VmNameModified")
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        assert list(world.azure["web01-test"]) == ["mine"]


async def test_the_vault_fulfils_the_contract_of_each_role(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        faces: tuple[VaultApi, ApplierReports, VaultLink] = (
            server.joined(VaultApi, vault.operations),
            vault.reports,
            vault.reports,
        )  # the type checker is the test
        for face, protocol in zip(faces, (VaultApi, ApplierReports, VaultLink), strict=True):
            assert [name for name in method_names(protocol) if not hasattr(face, name)] == []


async def test_the_vms_of_a_lost_site_are_listed_as_last_seen(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        before = await vault.vms.list_vms()
        world.lose_site()
        assert await vault.vms.list_vms() == before
        assert [(vm.name, vm.side, vm.state) for vm in before] == [("web01", "site", "Protected")]


async def test_a_vm_is_listed_also_when_there_is_no_room_to_remember_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise RigError(Code.DiskFull, "the host's disk is full", recoverable=True)

    async with running(World(), tmp_path) as vault:
        await protected(vault)
        for name in ("cache_vm", "_cache_fabric"):
            monkeypatch.setattr(inventory, name, full)
        made = await vault.vms.create_vm(vm="web02", disks=[DiskSpec(name="os", size_bytes=1 << 20)])
        assert [(vm.name, vm.state) for vm in await vault.vms.list_vms()] == [
            ("web01", "Protected"),
            ("web02", "Unprotected"),
        ]
        assert made in await vault.vms.list_vms()


async def test_a_bug_in_a_task_fails_its_job_only(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["azure.create_disk_from_point"] = ZeroDivisionError("oops")  # type: ignore[assignment]
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
        assert (job.errors[0].code, job.errors[0].message) == (
            "InternalError",
            "task PrepareTestProtectedEntitiesTask crashed: ZeroDivisionError('oops')",
        )
        world.stop_failing()
        assert (await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))).state == "Succeeded"


@pytest.mark.parametrize("set_by_s", [-100_000, -10, 0, 10, 200_000])
async def test_rpo_is_the_time_that_passed_whatever_the_clock_is_set_to(tmp_path: Path, set_by_s: int) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.now_ns = START_NS + 3_000_000_000
        assert (await vault.status.items())[0].lastRpoInSeconds == pytest.approx(3.0)
        world.clock.step_wall_ns(set_by_s * 1_000_000_000)
        world.clock.advance_ns(4_000_000_000)
        assert (await vault.status.items())[0].lastRpoInSeconds == pytest.approx(7.0)


async def test_the_sector_size_of_a_disk_goes_with_it_to_points_and_recovered_vms(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        disks = [DiskSpec(name="os", size_bytes=1 << 30), DiskSpec(name="data", size_bytes=1 << 30, sector_bytes=4096)]
        made = await vault.vms.create_vm(vm="web01", disks=disks)
        assert {disk.name: disk.sector_bytes for disk in made.disks} == {"os": 512, "data": 4096}
        await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=300))
        await idle(vault)
        mounted = await vault.mounts.mount_point(vm="web01", point="LatestProcessed")
        assert {disk.name: disk.sector_bytes for disk in mounted.disks} == {"os": 512, "data": 4096}
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        (recovered,) = [vm for vm in await vault.vms.list_vms() if vm.side == "azure"]
        assert {disk.name: disk.sector_bytes for disk in recovered.disks} == {"os": 512, "data": 4096}
