"""The vault is killed, or a role around it is absent for a moment: nothing is lost, and work continues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running

pytestmark = pytest.mark.slow

GONE = RigError(Code.RoleUnavailable, "role site cannot be reached", recoverable=True)


async def reach(world: World, call: str) -> None:
    """Until the vault has made this call and waits in it."""
    while call not in world.calls:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "call",
    [
        "site.check_prerequisites",
        "recovery.create_managed_disk",
        "site.create_relationship",
        "site.initial_replication",
        "site.replicate_now",
    ],
)
async def test_a_kill_at_any_step_of_protection_is_resumed(tmp_path: Path, call: str) -> None:
    world = World()
    world.held[call] = trio.Event()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await reach(world, call)
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert [job.state for job in await vault.status.jobs()] == ["Succeeded", "Succeeded"]
        assert (await vault.status.items())[0].protectionState == "Protected"
        assert len(await vault.recovery_points.points(vm="web01")) == 1


Begin = Callable[[Vault], Awaitable[Job]]


@pytest.mark.parametrize(
    ("call", "begin", "task", "state"),
    [
        (
            "azure.create_disk_from_point",
            lambda vault: vault.failovers.unplanned_failover(vm="web01", point="Latest"),
            "FailoverTask",
            "UnplannedFailoverFailed",
        ),
        (
            "site.shutdown_vm",
            lambda vault: vault.failovers.planned_failover(vm="web01"),
            "ShutdownVmOnPrimary",
            "PlannedFailoverFailed",
        ),
    ],
)
async def test_a_kill_in_a_failover_fails_it_by_task_and_it_can_be_tried_again(
    tmp_path: Path, call: str, begin: Begin, task: str, state: str
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held[call] = trio.Event()
        job = await begin(vault)
        await reach(world, call)
    world.held.clear()
    async with running(world, tmp_path) as vault:
        job = await vault.status.job(name=job.name)
        assert job.state == "Failed"
        assert [(error.code, error.message) for error in job.errors] == [
            (
                "VaultStopped",
                f"the vault was stopped while task {task} of job {job.name} ({job.friendlyName}) was in progress; start "
                "the operation again",
            )
        ]
        assert [t.state for t in job.tasks if t.name == task] == ["Failed"]
        assert (await vault.status.items())[0].protectionState == state
        assert (await ended(vault, await begin(vault))).state == "Succeeded"
        assert len(world.azure["web01"]) == 2


async def test_a_kill_while_a_failback_is_committed_is_resumed(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        await ended(vault, await vault.failovers.failback(vm="web01"))
        world.calls.clear()
        world.held["azure.remove_vm"] = trio.Event()
        await vault.failovers.commit_failover(vm="web01")
        await reach(world, "azure.remove_vm")
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        (item,) = await vault.status.items()
        assert (item.protectionState, item.activeLocation) == ("CommitFailoverCompleted", "Primary")
        assert world.azure == {}


async def test_tags_reported_before_a_kill_count_after_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        with trio.move_on_after(0.2):
            await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="split")
        ((_, cut),) = world.cached
        first, second = world.site["web01"].values()
        world.managed[first.disk_id] = world.mark(first.disk_id, 1, cut.position, 20)
        await world.report(first.disk_id, cut)
    async with running(world, tmp_path) as vault:
        world.managed[second.disk_id] = world.mark(second.disk_id, 1, cut.position, 20)
        await world.report(second.disk_id, cut)
        assert [point.name for point in await vault.recovery_points.points(vm="web01")] == ["split", "first"]
        assert {mark.complete_position for mark in await vault.reports.watermarks(vm="web01")} == {cut.position}


async def test_a_role_that_is_away_for_a_moment_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        world.failing_once["site.initial_replication"] = GONE
        world.failing_once["recovery.create_managed_disk"] = GONE
        await protected(vault)
        assert [error for job in await vault.status.jobs() for error in job.errors] == []


async def test_a_role_that_stays_away_fails_the_job_and_enabling_again_continues(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        world.failing["site.initial_replication"] = GONE
        began = trio.current_time()
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        assert 120 <= trio.current_time() - began < 150
        (job,) = await vault.status.jobs()
        assert (job.state, job.errors[0].code) == ("Failed", "RoleUnavailable")
        assert (await vault.status.items())[0].protectionState == "InitialReplicationFailed"
        world.stop_failing()
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        assert (await vault.status.items())[0].protectionState == "Protected"


async def test_a_site_that_hangs_does_not_hold_up_an_unplanned_failover(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["site.shutdown_vm"] = world.held["site.suspend"] = trio.Event()
        job = await vault.failovers.unplanned_failover(vm="web01", point="Latest", source_actions=True)
        await idle(vault)
        job = await vault.status.job(name=job.name)
        assert job.state == "Succeeded"
        assert job.errors[0].message == "the site did not shut the VM down within 30 s"


async def test_a_refused_part_ends_the_wait_of_the_initial_replication(tmp_path: Path) -> None:
    world = World()
    world.apply = False
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        job = await vault.protection.enable_protection(vm="web01", interval_s=30)
        await reach(world, "site.initial_replication")
        disk_id = world.site["web01"]["os"].disk_id
        await vault.reports.apply_failed(disk_id=disk_id, code="PartCorrupt", message="part 3: checksum", recoverable=False)
        job = await ended(vault, job)
        assert (job.state, job.errors[0].code) == ("Failed", "PartCorrupt")
        (item,) = await vault.status.items()
        assert (item.protectionState, item.replicationHealth) == ("InitialReplicationFailed", "Critical")
        assert await vault.reports.replicating_disks() == [disk_id]
        world.apply = True
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        (item,) = await vault.status.items()
        assert (item.protectionState, item.replicationHealth) == ("Protected", "Normal")


async def test_disabling_protection_cancels_a_wait_that_would_never_end(tmp_path: Path) -> None:
    world = World()
    world.apply = False
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        job = await vault.protection.enable_protection(vm="web01", interval_s=30)
        await reach(world, "site.initial_replication")
        world.lose_site()
        gone = await ended(vault, await vault.protection.disable_protection(vm="web01"))
        assert (gone.state, gone.stateDescription) == ("Succeeded", "CompletedWithInformation")
        assert (await vault.status.job(name=job.name)).state == "Cancelled"
        assert await vault.status.items() == []
        assert not await vault.reports.may_replicate(vm="web01")
