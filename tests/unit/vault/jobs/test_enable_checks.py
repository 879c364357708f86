"""Enabling protection reports every prerequisite that is not met, and records its calls to the Provider."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.vault.jobs.start_time import parse_start
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import UnmetPrerequisite
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, running

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


async def test_a_scheduled_copy_begins_at_its_time_after_a_kill_of_the_vault(tmp_path: Path) -> None:
    world = World()
    begin_ns = world.clock.wall_ns() + 3600 * SECOND_NS
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=GIB)])
        await vault.protection.enable_protection(vm="web01", interval_s=30, start_at=rfc3339(begin_ns))
        await trio.testing.wait_all_tasks_blocked()
        assert world.tracked is False  # no log grows meanwhile
        assert [wait.code for wait in vault.context.waits.list()] == ["ScheduledStart"]
        (job,) = await vault.status.jobs()
        assert job.tasks[3].waiting_for == f"the initial replication is to begin at {rfc3339(begin_ns)}"
        world.clock.advance_ns(3599 * SECOND_NS)
        await trio.testing.wait_all_tasks_blocked()
        assert "site.initial_replication" not in world.calls
    async with running(world, tmp_path) as vault:
        await trio.testing.wait_all_tasks_blocked()
        assert "site.initial_replication" not in world.calls
        world.clock.advance_ns(31 * SECOND_NS)
        await idle(vault)
        assert (await vault.status.items())[0].protectionState == "Protected"


NOON_NS = 1_796_040_000 * SECOND_NS
"""2026-11-30 12:00:00 UTC."""


@pytest.mark.parametrize(
    ("text", "after_s"), [("12:01", 60), ("11:59", 86_340), ("12:00", 86_400), ("2026-11-30T12:00:01Z", 1)]
)
def test_the_start_is_the_next_time_of_day_or_a_time(text: str, after_s: int) -> None:
    assert parse_start(text, NOON_NS) == NOON_NS + after_s * SECOND_NS


@pytest.mark.parametrize("text", ["24:00", "12:60", "noon", "", "2026-11-30T11:59:59Z", "2026-11-30T12:00:00Z"])
def test_a_start_that_is_no_time_or_has_passed_is_refused(text: str) -> None:
    with pytest.raises(RigError) as failed:
        parse_start(text, NOON_NS)
    assert failed.value.code == "InvalidTime"
