"""A user cancels jobs: where that is allowed, what it leaves, and that the operation can be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.jobs import failback_tasks, failover_tasks, protection_tasks, vm_tasks
from siterig.azure_emu.vault.jobs.engine import Scenario
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running

Begin = Callable[[Vault], Awaitable[Job]]


async def begun(vault: Vault, world: World, call: str, begin: Begin) -> Job:
    """Begin a job, and wait until it waits in this call."""
    world.calls.clear()
    world.held[call] = trio.Event()
    job = await begin(vault)
    while call not in world.calls:
        await trio.lowlevel.checkpoint()
    return await vault.status.job(name=job.name)


async def cancelled(vault: Vault, world: World, job: Job) -> None:
    assert job.allowedActions == ["Cancel"]
    done = await vault.jobs.cancel_job(name=job.name[:8])
    world.held.clear()
    assert (done.state, done.allowedActions, done.endTime is not None) == ("Cancelled", [], True)
    assert [(error.code, error.message) for error in done.errors] == [("Cancelled", "the job was cancelled by a user")]
    assert f"{done.scenarioName}Cancelled" in [event.eventCode for event in await vault.status.events()]


CASES: list[tuple[str, Begin, str, bool]] = [
    ("site.resync", lambda vault: vault.protection.resync(vm="web01"), "Protected", True),
    ("site.check_vm", lambda vault: vault.protection.resync(vm="web01"), "Protected", True),
    ("site.pause", lambda vault: vault.protection.pause_replication(vm="web01"), "Protected", False),
    (
        "site.change_schedule",
        lambda vault: vault.protection.change_policy(vm="web01", interval_s=300),
        "Protected",
        False,
    ),
    (
        "azure.create_disk_from_point",
        lambda vault: vault.failovers.test_failover(vm="web01", point="LatestProcessed"),
        "Protected",
        False,
    ),
    (
        "azure.create_disk_from_point",
        lambda vault: vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"),
        "UnplannedFailoverFailed",
        False,
    ),
    (
        "site.shutdown_vm",
        lambda vault: vault.failovers.planned_failover(vm="web01"),
        "PlannedFailoverFailed",
        False,
    ),
]


@pytest.mark.parametrize(("call", "begin", "state", "stops"), CASES)
async def test_a_cancelled_job_leaves_a_state_from_which_it_is_repeated(
    tmp_path: Path, call: str, begin: Begin, state: str, *, stops: bool
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await begun(vault, world, call, begin)
        await cancelled(vault, world, job)
        (item,) = await vault.status.items()
        assert (item.protectionState, item.policy_interval_s, item.paused_since) == (state, 30, None)
        assert ("site.stop_copy" in world.calls) == stops
        assert (await ended(vault, await begin(vault))).state == "Succeeded"


async def test_a_cancelled_protection_continues_with_the_next_one(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        job = await begun(
            vault,
            world,
            "site.initial_replication",
            lambda vault: vault.protection.enable_protection(vm="web01", interval_s=30),
        )
        await cancelled(vault, world, job)
        assert (await vault.status.items())[0].protectionState == "InitialReplicationFailed"
        assert "site.stop_copy" in world.calls
        await vault.protection.enable_protection(vm="web01", interval_s=30)
        await idle(vault)
        assert (await vault.status.items())[0].protectionState == "Protected"


async def test_a_task_that_must_be_completed_refuses(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        job = await begun(vault, world, "azure.hydrate_vm", lambda vault: vault.failovers.commit_failover(vm="web01"))
        assert job.allowedActions == []
        with pytest.raises(
            RigError,
            match=r"\(Commit\) cannot be cancelled in task VmCommit, which must be completed; it can be cancelled in: "
            "VmCommitPrerequisitesCheck$",
        ) as caught:
            await vault.jobs.cancel_job(name=job.name)
        assert caught.value.code == "InvalidState"
        world.held["azure.hydrate_vm"].set()
        assert (await ended(vault, job)).state == "Succeeded"
        with pytest.raises(RigError, match="has ended: its state is Succeeded; allowed: a job that is InProgress"):
            await vault.jobs.cancel_job(name=job.name)
        with pytest.raises(RigError, match="there is no job 'nope'"):
            await vault.jobs.cancel_job(name="nope")


async def test_a_kill_after_a_cancellation_does_not_bring_the_job_back(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await begun(vault, world, "site.resync", lambda vault: vault.protection.resync(vm="web01"))
        await cancelled(vault, world, job)
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert (await vault.status.job(name=job.name)).state == "Cancelled"
        assert (await vault.status.items())[0].resynchronizationRequired == "ResynchronizationFailed"


async def test_a_kill_during_a_cancellation_leaves_the_job_or_ends_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await begun(vault, world, "site.resync", lambda vault: vault.protection.resync(vm="web01"))
        world.held["site.stop_copy"] = trio.Event()
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await vault.jobs.cancel_job(name=job.name)

            nursery.start_soon(cancel)
            while "site.stop_copy" not in world.calls:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert (await vault.status.job(name=job.name)).state == "Succeeded"


def test_the_first_task_of_each_scenario_can_be_cancelled() -> None:
    modules = (failback_tasks, failover_tasks, protection_tasks, vm_tasks)
    scenarios = [each for module in modules for each in vars(module).values() if isinstance(each, Scenario)]
    assert len(scenarios) >= 14
    assert all(scenario.tasks[0].cancellable for scenario in scenarios)
