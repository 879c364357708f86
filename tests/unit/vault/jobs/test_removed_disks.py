"""Disks that are removed from the protection of a VM: older points keep them, later ones lack them and name them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running

HOUR_NS = 3_600_000_000_000


async def taken(vault: Vault, name: str) -> RecoveryPoint:
    return await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)


async def lacking_by_name(vault: Vault) -> dict[str, tuple[str, ...]]:
    return {point.name: point.lacking_disks for point in await vault.recovery_points.points(vm="web01")}


async def disks_after_failover(vault: Vault, point: str) -> tuple[list[str], tuple[str, ...]]:
    job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point=point))
    assert job.result is not None
    assert job.recovery_point is not None
    assert job.recovery_point.lacking_disks == job.result.lacking_disks
    return sorted(disk.name for disk in job.result.disks), job.result.lacking_disks


@pytest.mark.slow
async def test_older_points_keep_a_removed_disk_and_later_ones_lack_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await taken(vault, "older")
        job = await ended(vault, await vault.protection.remove_disks(vm="web01", disks=["data"]))
        assert (job.scenarioName, job.state) == ("RemoveDisks", "Succeeded")
        await taken(vault, "later")
        assert await lacking_by_name(vault) == {"first": (), "older": (), "disks-removed": (), "later": ("data",)}
        (item,) = await vault.status.items()
        assert (item.excluded_disks, item.applied_lag_s) == (["data"], 0.0)
        assert [mark.disk_id for mark in await vault.reports.watermarks(vm="web01")] == [world.site["web01"]["os"].disk_id]
        for name, there in (("older", ["data", "os"]), ("later", ["os"])):
            mounted = await vault.mounts.mount_point(vm="web01", point=name)
            assert [disk.name for disk in mounted.disks] == there
            assert mounted.lacking_disks == tuple({"data", "os"} - set(there))
            await vault.mounts.unmount_point(vm="web01", name=mounted.name)
        assert await disks_after_failover(vault, "older") == (["data", "os"], ())
        assert await disks_after_failover(vault, "later") == (["os"], ("data",))
        assert await disks_after_failover(vault, "Latest") == (["os"], ("data",))
        assert await disks_after_failover(vault, "older") == (["data", "os"], ())
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        await ended(vault, await vault.failovers.failback(vm="web01"))
        assert sorted(disk.name for disk in world.coming) == ["data", "os"]
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        await ended(vault, await vault.protection.reprotect(vm="web01"))
        assert world.replicated["web01"] == ["os"]
        assert [disk.name for disk in await vault.status.managed_disks()] == ["os"]


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        (["tmp"], r"^disk 'tmp' of VM 'web01' is not replicated; allowed: data, os$"),
        (["data", "os"], r"^disks: data, os; allowed: one or more of data, os of VM 'web01', and at least one must stay"),
        ([], r"^disks: none; allowed: "),
    ],
)
async def test_a_bad_removal_is_refused_and_changes_nothing(tmp_path: Path, disks: list[str], message: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=message):
            await vault.protection.remove_disks(vm="web01", disks=disks)
        assert "site.remove_disks" not in world.calls


@pytest.mark.slow
async def test_a_kill_after_the_removal_at_the_site_is_resumed_and_points_wait_for_it(tmp_path: Path) -> None:
    world = World()
    world.held["site.remove_disks"] = trio.Event()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.protection.remove_disks(vm="web01", disks=["data"])
        while "site.remove_disks" not in world.calls:
            await trio.lowlevel.checkpoint()
        await world.vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="between")  # type: ignore[union-attr]
        assert "between" not in await lacking_by_name(vault), "it lacks a disk that the vault takes for replicated"
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert await lacking_by_name(vault) == {"first": (), "disks-removed": (), "between": ("data",)}
        assert (await vault.status.jobs())[0].state == "Succeeded"


@pytest.mark.slow
async def test_a_removed_disk_lasts_until_no_state_needs_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await taken(vault, "older")
        await ended(vault, await vault.protection.remove_disks(vm="web01", disks=["data"]))
        removed = world.site["web01"]["data"].disk_id
        mounted = await vault.mounts.mount_point(vm="web01", point="older")
        world.now_ns += 30 * HOUR_NS
        await taken(vault, "later")
        await vault.retention.round()
        assert removed in [disk.disk_id for disk in await vault.status.managed_disks()], "a mounted point has it"
        await vault.mounts.unmount_point(vm="web01", name=mounted.name)
        world.failing_once["recovery.delete_managed_disk"] = RigError("RoleUnavailable", "gone", recoverable=True)  # type: ignore[arg-type]
        assert not await vault.retention.round()
        assert await vault.retention.round()
        assert list(await lacking_by_name(vault)) == ["later"]
        assert [disk.name for disk in await vault.status.managed_disks()] == ["os"]
        assert removed not in world.managed
