"""Enabling protection reports every prerequisite that is not met, and records its calls to the Provider."""

from __future__ import annotations

from pathlib import Path

import trio

from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import UnmetPrerequisite
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.vault_fakes import World, ended, running

GIB = 1 << 30
DISKS = [DiskSpec(name="os", size_bytes=5000 * GIB), DiskSpec(name="data", size_bytes=40_000 * GIB)]
BROKEN = UnmetPrerequisite(code="BrokenVhdChain", message="disk os: its parent changed")
NO_SPACE = UnmetPrerequisite(code="NotEnoughSpace", message="no room for a snapshot", recoverable=True)


async def test_all_unmet_prerequisites_are_reported_at_once_with_cause_and_action(tmp_path: Path) -> None:
    world = World()
    world.unmet = [BROKEN, NO_SPACE]
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=DISKS)
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert (job.state, [task.state for task in job.tasks]) == ("Failed", ["Failed"] + ["NotStarted"] * 4)
        codes = [error.code for error in job.errors]
        assert codes == ["BrokenVhdChain", "NotEnoughSpace", "DiskSizeUnsupported", "DiskSizeUnsupported"]
        assert [error.message for error in job.errors][:2] == [BROKEN.message, NO_SPACE.message]
        for error in job.errors:
            known = Code.of(error.code)
            assert (error.possibleCauses, error.recommendedAction) == (known.text, known.remedy)
        (event,) = [event for event in await vault.status.events() if event.eventCode == "EnableDrFailed"]
        assert "4 prerequisites are not met" in event.description
        assert world.managed == {}
        assert "site.create_relationship" not in world.calls

        world.unmet = []
        world.site["web01"] = {n: d.model_copy(update={"size_bytes": GIB}) for n, d in world.site["web01"].items()}
        again = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert again.state == "Succeeded"


async def test_one_unmet_prerequisite_is_reported_as_it_is(tmp_path: Path) -> None:
    world = World()
    world.unmet = [NO_SPACE]
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=GIB)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert [(error.code, error.message) for error in job.errors] == [("NotEnoughSpace", NO_SPACE.message)]


async def test_the_two_calls_to_the_provider_are_shown_in_the_job(tmp_path: Path) -> None:
    world = World()
    held = world.held["site.initial_replication"] = trio.Event()
    world.failing_once["site.create_relationship"] = RigError(Code.RoleUnavailable, "role agent is away", recoverable=True)
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=GIB)])
        job = await vault.protection.enable_protection(vm="web01", interval_s=30)
        while "site.initial_replication" not in world.calls:
            await trio.lowlevel.checkpoint()
        tasks = {task.name: task for task in (await vault.status.job(name=job.name)).tasks}
        (first,) = tasks["EnableProtectionTask"].provider_calls
        assert (first.name, first.attempts, first.error) == ("CreateReplicationRelationship", 2, None)
        (second,) = tasks["StartInitialReplicationTask"].provider_calls
        assert (second.name, second.attempts, second.endTime) == ("StartReplication", 1, None)
        held.set()
        done = await ended(vault, job)
        (second,) = done.tasks[3].provider_calls
        assert second.endTime is not None and second.startTime <= second.endTime


async def test_a_failed_call_to_the_provider_shows_its_error(tmp_path: Path) -> None:
    world = World()
    world.failing["site.initial_replication"] = RigError(Code.CacheAuthentication, "the key is refused")
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=GIB)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        (call,) = job.tasks[3].provider_calls
        assert (job.state, call.name, call.error) == ("Failed", "StartReplication", "CacheAuthentication")
        assert call.endTime is not None
