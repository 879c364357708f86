"""Replication that a user paused: shown as such, no cycle missed, resumed after a kill, and ended by a failover."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running


async def item_of(vault: Vault) -> ProtectedItem:
    (item,) = await vault.status.items()
    return item


async def paused(vault: Vault) -> None:
    job = await ended(vault, await vault.protection.pause_replication(vm="web01"))
    assert (job.state, job.scenarioName) == ("Succeeded", "PauseReplication")


async def test_a_paused_vm_is_shown_as_paused_and_misses_no_cycle(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        assert ((await item_of(vault)).replication_state, (await item_of(vault)).paused_since) == ("Replicating", None)
        await paused(vault)
        world.now_ns += 2 * 3600 * 10**9
        await vault.watch.round()
        item = await item_of(vault)
        assert (item.protectionState, item.replication_state, item.replicationHealth) == (
            "Protected",
            "Suspended",
            "Warning",
        )
        assert [error.errorCode for error in item.healthErrors] == ["ReplicationPaused"]
        assert item.healthErrors[0].summaryMessage == (
            f"replication is paused since {item.paused_since}; siterig resume web01 continues it"
        )
        assert item.lastRpoInSeconds is not None and item.lastRpoInSeconds > 7199
        job = await ended(vault, await vault.protection.resume_replication(vm="web01"))
        assert (job.state, job.scenarioName) == ("Succeeded", "ResumeReplication")
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="after")
        await vault.watch.round()
        item = await item_of(vault)
        assert (item.replicationHealth, item.healthErrors, item.paused_since) == ("Normal", [], None)
        codes = [event.eventCode for event in await vault.status.events()]
        assert {"ReplicationPaused", "ReplicationResumed"} <= set(codes)
        assert "NoRecentRecoveryPoint" not in codes


async def test_a_resumed_vm_without_a_new_point_is_reported_only_after_the_bound(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await paused(vault)
        world.now_ns += 3600 * 10**9
        await ended(vault, await vault.protection.resume_replication(vm="web01"))
        await vault.watch.round()
        assert "NoRecentRecoveryPoint" not in [error.errorCode for error in (await item_of(vault)).healthErrors]
        world.now_ns += 200 * 10**9
        await vault.watch.round()
        assert "NoRecentRecoveryPoint" in [error.errorCode for error in (await item_of(vault)).healthErrors]


async def test_while_paused_a_failover_is_possible_and_a_cycle_is_refused(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await paused(vault)
        for operation in (
            vault.failovers.planned_failover(vm="web01"),
            vault.protection.resync(vm="web01"),
            vault.protection.pause_replication(vm="web01"),
            vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="x"),
        ):
            with pytest.raises(RigError, match=r"testFailoverState None, replication is paused; allowed now: .*resume$"):
                await operation
        assert (await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))).state == (
            "Succeeded"
        )
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        assert (await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))).state == (
            "Succeeded"
        )
        item = await item_of(vault)
        assert (item.paused_since, item.replication_state) == (None, "Recovered")


async def test_a_vm_that_is_not_paused_is_not_resumed(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=r"resume of VM 'web01' is not possible: .*allowed now: .*, pause$") as caught:
            await vault.protection.resume_replication(vm="web01")
        assert caught.value.code == "InvalidState"


@pytest.mark.parametrize(("operation", "paused_in_the_end"), [("pause", True), ("resume", False)])
async def test_a_kill_while_a_vm_is_paused_or_resumed_is_continued(
    tmp_path: Path, operation: str, *, paused_in_the_end: bool
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        if operation == "resume":
            await paused(vault)
        world.held[f"site.{operation}"] = trio.Event()
        call = vault.protection.pause_replication if operation == "pause" else vault.protection.resume_replication
        world.calls.clear()
        await call(vm="web01")
        while f"site.{operation}" not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    world.calls.clear()
    async with running(world, tmp_path) as vault:
        settings = await vault.reports.settings(vm="web01")
        assert settings is not None and settings.paused == paused_in_the_end  # for an agent that was killed as well
        await idle(vault)
        assert world.calls.count(f"site.{operation}") == 1
        assert ((await item_of(vault)).paused_since is not None) == paused_in_the_end


@pytest.mark.parametrize("operation", ["pause", "resume"])
async def test_a_refusal_of_the_site_leaves_the_vm_as_it_was(tmp_path: Path, operation: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        if operation == "resume":
            await paused(vault)
        before = await item_of(vault)
        world.failing[f"site.{operation}"] = RigError(Code.InvalidState, "not now")
        call = vault.protection.pause_replication if operation == "pause" else vault.protection.resume_replication
        job = await ended(vault, await call(vm="web01"))
        assert (job.state, [error.message for error in job.errors]) == ("Failed", ["not now"])
        after = await item_of(vault)
        assert (after.paused_since, after.replication_state) == (before.paused_since, before.replication_state)
