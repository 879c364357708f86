"""Disks that are added to the protection of a VM: later points have them, older ones lack them and name them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running


async def taken(vault: Vault, name: str) -> RecoveryPoint:
    return await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)


async def lacking_by_name(vault: Vault) -> dict[str, tuple[str, ...]]:
    return {point.name: point.lacking_disks for point in await vault.recovery_points.points(vm="web01")}


async def without_data(vault: Vault) -> None:
    """Protect the VM without its disk ``data``."""
    await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=name, size_bytes=1 << 30) for name in ("data", "os")])
    await vault.protection.enable_protection(vm="web01", interval_s=30, exclude=["data"])
    await idle(vault)


async def disks_after_failover(vault: Vault, point: str) -> tuple[list[str], tuple[str, ...]]:
    job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point=point))
    assert job.result is not None
    return sorted(disk.name for disk in job.result.disks), job.result.lacking_disks


@pytest.mark.slow
async def test_later_points_have_an_added_disk_and_older_ones_lack_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await without_data(vault)
        await taken(vault, "older")
        job = await ended(vault, await vault.protection.add_disks(vm="web01", disks=["data"]))
        assert (job.scenarioName, job.state, job.stateDescription) == ("AddDisks", "Succeeded", "Completed")
        await taken(vault, "later")
        known = await lacking_by_name(vault)
        assert known == {"first": ("data",), "older": ("data",), "disks-added": (), "later": ()}
        (item,) = await vault.status.items()
        assert (item.excluded_disks, item.applied_lag_s) == ([], 0.0)
        for name, there in (("older", ["os"]), ("later", ["data", "os"])):
            mounted = await vault.mounts.mount_point(vm="web01", point=name)
            assert [disk.name for disk in mounted.disks] == there
            assert mounted.lacking_disks == tuple({"data", "os"} - set(there))
            await vault.mounts.unmount_point(vm="web01", name=mounted.name)
        assert await disks_after_failover(vault, "older") == (["os"], ("data",))
        assert await disks_after_failover(vault, "later") == (["data", "os"], ())
        assert await disks_after_failover(vault, "Latest") == (["data", "os"], ())


@pytest.mark.slow
@pytest.mark.parametrize("first", ["data", "os"])
async def test_the_point_of_the_job_waits_for_the_tag_of_the_added_disk(tmp_path: Path, first: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await without_data(vault)
        world.apply = False
        job = await vault.protection.add_disks(vm="web01", disks=["data"])
        while not world.cached:
            await trio.lowlevel.checkpoint()
        ((_vm, cut),) = world.cached
        for name in sorted(("data", "os"), key=lambda name: name != first):
            assert "disks-added" not in await lacking_by_name(vault)
            disk = world.site["web01"][name]
            world.managed[disk.disk_id] = world.mark(disk.disk_id, disk.generation, cut.position, cut.position)
            await world.report(disk.disk_id, cut)
        assert (await ended(vault, job)).stateDescription == "Completed"
        assert await lacking_by_name(vault) == {"first": ("data",), "disks-added": ()}


@pytest.mark.slow
async def test_a_disk_is_removed_and_added_again_and_its_older_points_keep_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await taken(vault, "with")
        await ended(vault, await vault.protection.remove_disks(vm="web01", disks=["data"]))
        await taken(vault, "without")
        await ended(vault, await vault.protection.add_disks(vm="web01", disks=["data"]))
        await taken(vault, "again")
        assert await lacking_by_name(vault) == {
            "first": (), "with": (), "disks-removed": (), "without": ("data",), "disks-added": (), "again": (),
        }  # fmt: skip
        for name, there in (("with", ["data", "os"]), ("without", ["os"]), ("again", ["data", "os"])):
            mounted = await vault.mounts.mount_point(vm="web01", point=name)
            assert [disk.name for disk in mounted.disks] == there
            await vault.mounts.unmount_point(vm="web01", name=mounted.name)
        assert len(await vault.status.managed_disks()) == 2


@pytest.mark.parametrize(
    ("disks", "message"),
    [
        (["tmp"], r"^VM 'web01' has no disk 'tmp'; not protected are: data$"),
        (["os"], r"^disk 'os' of VM 'web01' is protected; not protected are: data$"),
        ([], r"^disks: none; allowed: one or more of data$"),
    ],
)
async def test_a_bad_addition_is_refused_and_changes_nothing(tmp_path: Path, disks: list[str], message: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await without_data(vault)
        with pytest.raises(RigError, match=message):
            await vault.protection.add_disks(vm="web01", disks=disks)
        assert "site.add_disks" not in world.calls


@pytest.mark.slow
async def test_a_kill_during_the_copy_is_resumed_and_points_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    world = World()
    world.held["site.add_disks"] = trio.Event()
    async with running(world, tmp_path) as vault:
        await without_data(vault)
        await vault.protection.add_disks(vm="web01", disks=["data"])
        while "site.add_disks" not in world.calls:
            await trio.lowlevel.checkpoint()
        await world.vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="between")  # type: ignore[union-attr]
        assert (await lacking_by_name(vault))["between"] == ("data",)
        for other in (vault.protection.add_disks, vault.protection.remove_disks):
            with pytest.raises(RigError) as caught:
                await other(vm="web01", disks=["os"])
            assert caught.value.code in (Code.JobInProgress, Code.BadRequest)
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert (await vault.status.jobs())[0].state == "Succeeded"
        await taken(vault, "later")
        assert (await lacking_by_name(vault))["later"] == ()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancel", "failover", "error"])
async def test_a_join_that_ends_before_its_end_leaves_a_vm_without_the_disk(tmp_path: Path, how: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await without_data(vault)
        if how == "error":
            world.failing["site.add_disks"] = RigError(Code.BrokenVhdChain, "for the test")
        else:
            world.held["site.add_disks"] = trio.Event()
        job = await vault.protection.add_disks(vm="web01", disks=["data"])
        while "site.add_disks" not in world.calls:
            await trio.lowlevel.checkpoint()
        if how == "failover":
            assert await disks_after_failover(vault, "Latest") == (["os"], ("data",))
            return
        if how == "cancel":
            await vault.jobs.cancel_job(name=job.name)
            assert "site.withdraw_disks" in world.calls
        await idle(vault)
        state = (await vault.status.jobs())[0].state
        assert state == ("Cancelled" if how == "cancel" else "Failed")
        await taken(vault, "without")
        assert (await lacking_by_name(vault))["without"] == ("data",)
        world.held.clear()
        world.stop_failing()
        await ended(vault, await vault.protection.add_disks(vm="web01", disks=["data"]))
        await taken(vault, "with")
        assert (await lacking_by_name(vault))["with"] == ()
