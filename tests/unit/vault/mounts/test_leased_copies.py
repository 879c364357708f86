"""Copies that are lent to a process: gone when it is, and before what they lie over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.vault.mounts import leases
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.host_process import HostProcess
from tests.support.rigs.borrower import Borrower
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

pytestmark = pytest.mark.slow

NAME = "bisect-1"


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    made = Borrower()
    yield made
    made.kill()


async def copies(vault: Vault) -> list[str]:
    return [vm.name for vm in await vault.vms.list_vms() if vm.state == "Copy"]


async def until_gone(vault: Vault) -> None:
    with trio.fail_after(30):
        while await copies(vault):  # noqa: ASYNC110 (another process's end begins it)
            await trio.sleep(0.005)


def hold(world: World, handles: int) -> None:
    """Somebody has the copy's disks open."""
    disks = world.azure[NAME]
    for name, disk in disks.items():
        disks[name] = disk.model_copy(update={"open_handles": handles})


async def test_a_copy_is_all_disks_at_the_position_and_goes_with_its_process(tmp_path: Path, borrower: Borrower) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        made = await vault.mounts.open_copy(vm="web01", name=NAME, position=7, process=borrower.process)
        assert (made.state, [disk.name for disk in made.disks]) == ("Copy", ["data", "os"])
        assert world.opened_at == {f"{NAME}/data": 7, f"{NAME}/os": 7}
        await vault.mounts.open_copy(vm="web01", name=NAME, position=9, process=borrower.process)
        await vault.mounts.open_copy(vm="web01", name="mine", position=9, process=HostProcess.own())
        assert world.opened_at[f"{NAME}/os"] == 9, "in place of the former one"
        borrower.kill()
        with trio.fail_after(30):
            while await copies(vault) != ["mine"]:  # noqa: ASYNC110 (see until_gone)
                await trio.sleep(0.005)
        await vault.mounts.remove_copy(vm="web01", name="mine")
        await vault.mounts.remove_copy(vm="web01", name="mine")
        assert world.azure == {}


async def test_one_whose_process_ended_with_the_vault_down_is_released_at_its_start(
    tmp_path: Path, borrower: Borrower
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.open_copy(vm="web01", name=NAME, position=7, process=borrower.process)
    async with running(world, tmp_path) as vault:
        await trio.testing.wait_all_tasks_blocked()
        assert await copies(vault) == [NAME], "its process is there"
    borrower.kill()
    async with running(world, tmp_path) as vault:
        await until_gone(vault)
        assert world.azure == {}


async def test_one_that_is_open_is_tried_again_until_it_is_not(
    tmp_path: Path, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RETRY_S", 0.001)
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.open_copy(vm="web01", name=NAME, position=7, process=borrower.process)
        hold(world, 1)
        borrower.kill()
        with trio.fail_after(30):
            while world.calls.count("azure.remove_vm") < 3:  # noqa: ASYNC110 (see until_gone)
                await trio.sleep(0.005)
        assert await copies(vault) == [NAME]
        hold(world, 0)
        await until_gone(vault)


@pytest.mark.parametrize("call", ["azure.create_disk_from_point", "azure.open_mounted_point"])
async def test_a_state_that_opens_while_its_process_ends_is_reclaimed_completely(
    tmp_path: Path, borrower: Borrower, call: str
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01", position=10, name="first", process=borrower.process)  # it is watched now
        world.held[call] = trio.Event()
        world.calls.clear()
        async with trio.open_nursery() as nursery:

            async def open_both() -> None:
                await vault.mounts.open_copy(vm="web01", name=NAME, position=10, process=borrower.process)
                await vault.mounts.mount_point(vm="web01", position=10, name="second", process=borrower.process)

            nursery.start_soon(open_both)
            while call not in world.calls:
                await trio.lowlevel.checkpoint()
            borrower.kill()
            with trio.fail_after(30):
                await borrower.process.ended()
            await trio.testing.wait_all_tasks_blocked()  # the reclaim begins at the same event, and waits
            assert "azure.close_mounted_point" not in world.calls
            world.held[call].set()
        await until_gone(vault)
        with trio.fail_after(30):
            while await vault.mounts.mounted_points(vm="web01"):  # noqa: ASYNC110 (see until_gone)
                await trio.sleep(0.005)
        assert (world.azure, world.mounted_points) == ({}, {})


async def test_unprotect_takes_copies_away_before_the_managed_disks(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.open_copy(vm="web01", name=NAME, position=7, process=HostProcess.own())
        hold(world, 1)
        with pytest.raises(RigError, match="open handles: 1") as refused:
            await vault.protection.disable_protection(vm="web01")
        assert (refused.value.code, len(world.managed)) == ("DiskInUse", 2)
        hold(world, 0)
        world.calls.clear()
        assert (await ended(vault, await vault.protection.disable_protection(vm="web01"))).state == "Succeeded"
        assert world.calls.index("azure.remove_vm") < world.calls.index("recovery.delete_managed_disk")
        assert (world.azure, world.managed, await copies(vault)) == ({}, {}, [])


async def test_a_copy_takes_no_other_vms_name_and_no_other_vm_is_removed_as_one(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        with pytest.raises(RigError, match="has a VM 'web01-test' already; it belongs to 'web01'") as failed:
            await vault.mounts.open_copy(vm="web01", name="web01-test", position=7, process=HostProcess.own())
        assert failed.value.code == "VmExists"
        await vault.mounts.remove_copy(vm="web01", name="web01-test")
        assert list(world.azure) == ["web01-test"]
        with pytest.raises(RigError, match="VM 'web02' is not protected"):
            await vault.mounts.open_copy(vm="web02", name=NAME, position=7, process=HostProcess.own())
