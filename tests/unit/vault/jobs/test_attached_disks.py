"""Disks that are attached to VMs: the vault and the site know the same disks, whatever is killed or fails meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

NEW = DiskSpec(name="new", size_bytes=1 << 30)


async def known(vault: Vault) -> tuple[list[str], list[str], list[str]]:
    """Return the excluded disks, the codes of the health errors, and the codes of the events about attached disks."""
    (item,) = await vault.status.items()
    codes = [event.eventCode for event in await vault.status.events() if event.eventCode == "DiskAttached"]
    return item.excluded_disks, [error.errorCode for error in item.healthErrors], codes


NOTED = (["new"], ["DisksAvailableForProtection"], ["DiskAttached"])


async def attach(vault: Vault) -> None:
    await vault.vms.attach_disk(vm="web01", disk=NEW)


async def test_a_disk_that_is_attached_twice_is_recorded_once(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        made = await vault.vms.attach_disk(vm="web01", disk=NEW)
        assert (made.state, [disk.name for disk in made.disks]) == ("Protected", ["data", "os", "new"])
        assert await known(vault) == NOTED
        with pytest.raises(RigError, match="has a disk 'new' already"):
            await attach(vault)
        with pytest.raises(RigError, match="has a disk 'os' already"):
            await vault.vms.attach_disk(vm="web01", disk=DiskSpec(name="os", size_bytes=1 << 30))
        assert await known(vault) == NOTED
        await ended(vault, await vault.protection.add_disks(vm="web01", disks=["new"]))
        with pytest.raises(RigError, match="has a disk 'new' already"):
            await attach(vault)
        assert await known(vault) == ([], [], ["DiskAttached"])


@pytest.mark.parametrize("again", ["command", "start"])
async def test_a_vault_killed_before_its_record_makes_it_later(tmp_path: Path, again: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.context.site.attach_disk(vm="web01", disk=NEW)  # the vault is killed before it records the answer
    async with running(world, tmp_path) as vault:
        assert await known(vault) == ([], [], [])
        if again == "command":
            with pytest.raises(RigError, match="has a disk 'new' already"):
                await attach(vault)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vault.run_policies)
                while not (await known(vault))[0]:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert await known(vault) == NOTED
        point = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        assert point.lacking_disks == ("new",)


async def test_a_full_database_of_the_vault_delays_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def full(*_arguments: object) -> None:
        raise RigError(Code.DiskFull, "no room for the test", recoverable=True)

    async with running(world, tmp_path) as vault:
        await protected(vault)
        with monkeypatch.context() as patch:
            patch.setattr("siterig.azure_emu.vault.inventory.attached_disks._record", full)
            with pytest.raises(RigError, match="no room for the test"):
                await attach(vault)
        assert await known(vault) == ([], [], [])
        with pytest.raises(RigError, match="has a disk 'new' already"):
            await attach(vault)
        assert await known(vault) == NOTED


async def test_a_failed_attachment_records_nothing(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for code in (Code.DiskFull, Code.MkfsFailed):
            world.failing["site.attach_disk"] = RigError(code, "for the test")
            with pytest.raises(RigError, match="for the test"):
                await attach(vault)
        assert await known(vault) == ([], [], [])
        world.stop_failing()
        await attach(vault)
        assert await known(vault) == NOTED


async def test_disks_of_an_unprotected_or_another_vm_are_not_recorded(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=1 << 30)])
        made = await vault.vms.attach_disk(vm="web01", disk=NEW)
        assert (made.state, [disk.name for disk in made.disks]) == ("Unprotected", ["os", "new"])
        assert await vault.status.items() == []
        with pytest.raises(RigError, match="has a disk 'new' already"):
            await attach(vault)
        await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        world.site["web01"] = {"odd": world.disk("web01", "odd", 1 << 30)}  # another VM with this name
        await attach(vault)
        assert await known(vault) == ([], [], [])
