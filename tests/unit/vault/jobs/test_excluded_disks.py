"""Disks that are excluded from protection: points and VMs lack them and name them, over the whole way and kills."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.cli.views.vm_view import lines_of
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, running

DISKS = ("data", "os", "swap")


async def made(vault: Vault) -> None:
    await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=name, size_bytes=1 << 30) for name in DISKS])


async def protected_without_swap(vault: Vault) -> None:
    await made(vault)
    await vault.protection.enable_protection(vm="web01", interval_s=30, exclude=["swap"])
    await idle(vault)


@pytest.mark.slow
async def test_an_excluded_disk_stays_excluded_on_the_whole_way(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected_without_swap(vault)
        (item,) = await vault.status.items()
        assert (item.protectionState, item.excluded_disks) == ("Protected", ["swap"])
        (point,) = await vault.recovery_points.points(vm="web01")
        assert point.lacking_disks == ("swap",)
        assert sorted(disk.name for disk in await vault.status.managed_disks()) == ["data", "os"]
        shown = await vault.observation.vm_status(vm="web01")
        assert [disk.name for disk in shown.disks] == ["data", "os"]
        assert any("swap" in str(line) for line in lines_of(shown))

        test = await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        assert test.result is not None
        assert ([disk.name for disk in test.result.disks], test.result.lacking_disks) == (["data", "os"], ("swap",))
        assert test.recovery_point is not None
        assert test.recovery_point.lacking_disks == ("swap",)
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        mounted = await vault.mounts.mount_point(vm="web01", point="LatestProcessed")
        assert ([disk.name for disk in mounted.disks], mounted.lacking_disks) == (["data", "os"], ("swap",))
        assert (await vault.mounts.mounted_points(vm="web01"))[0].lacking_disks == ("swap",)
        await vault.mounts.unmount_point(vm="web01", name=mounted.name)

        planned = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        assert planned.recovery_point is not None
        assert planned.recovery_point.lacking_disks == ("swap",)
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        world.written_bytes = {"swap": None}  # it is used at the site, and a failback does not replace it
        failback = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert (failback.state, failback.errors) == ("Succeeded", [])
        assert sorted(disk.name for disk in world.coming) == ["data", "os"]
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        await ended(vault, await vault.protection.reprotect(vm="web01"))
        assert world.replicated["web01"] == ["data", "os"]
        (item,) = await vault.status.items()
        assert (item.protectionState, item.excluded_disks) == ("Protected", ["swap"])
        assert (await vault.recovery_points.points(vm="web01"))[0].lacking_disks == ("swap",)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["tmp"], r"^exclude: VM 'web01' has no disk 'tmp'; allowed: data, os, swap$"),
        (
            ["os", "data", "swap"],
            r"^exclude: VM 'web01' has no other disk than os, data, swap; at least one must be replicated$",
        ),
    ],
)
async def test_a_bad_exclusion_is_refused_before_anything_is_made(tmp_path: Path, exclude: list[str], message: str) -> None:
    async with running(World(), tmp_path) as vault:
        await made(vault)
        with pytest.raises(RigError, match=message):
            await vault.protection.enable_protection(vm="web01", interval_s=30, exclude=exclude)
        assert await vault.status.items() == []


@pytest.mark.slow
@pytest.mark.parametrize("call", ["site.check_prerequisites", "site.create_relationship", "site.initial_replication"])
async def test_a_kill_at_any_step_of_protection_keeps_the_exclusion(tmp_path: Path, call: str) -> None:
    world = World()
    world.held[call] = trio.Event()
    async with running(world, tmp_path) as vault:
        await made(vault)
        await vault.protection.enable_protection(vm="web01", interval_s=30, exclude=["swap"])
        while call not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert world.replicated["web01"] == ["data", "os"]
        assert (await vault.recovery_points.points(vm="web01"))[0].lacking_disks == ("swap",)
