"""Enabling protection with offline seeds: their checks, the order of the steps, kills, and the progress."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.contracts.prerequisites import UnmetPrerequisite
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, running

GIB = 1 << 30
SEEDS = [SeedSource(disk="os", image="/seeds/os.img"), SeedSource(disk="data", image="/seeds/data.vhdx", format="vhdx")]
AWAY = RigError(Code.RoleUnavailable, "role applier is away", recoverable=True)


async def protect(vault: Vault, seeds: list[SeedSource], *names: str) -> Job:
    disks = [DiskSpec(name=name, size_bytes=GIB) for name in names or ("os", "data")]
    await vault.vms.create_vm(vm="web01", disks=disks)
    return await vault.protection.enable_protection(vm="web01", interval_s=30, seeds=seeds)


async def test_each_seed_fills_its_disk_before_a_resync_replaces_the_copy(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        job = await ended(vault, await protect(vault, SEEDS))
        await idle(vault)
        assert job.state == "Succeeded"
        assert (await vault.status.items())[0].protectionState == "Protected"
    ids = {name: disk.disk_id for name, disk in world.site["web01"].items()}
    assert sorted(world.seeded) == sorted([(ids["os"], "/seeds/os.img"), (ids["data"], "/seeds/data.vhdx")])
    steps = ["recovery.create_managed_disk", "recovery.seed_disk", "site.create_relationship", "site.resync"]
    order = [call for call in world.calls if call in steps]
    assert order == [steps[0], steps[0], steps[1], steps[1], steps[2], steps[3]]
    assert "site.initial_replication" not in world.calls


async def test_unusable_seeds_are_reported_with_all_other_prerequisites(tmp_path: Path) -> None:
    world = World()
    world.unmet = [UnmetPrerequisite(code="BrokenVhdChain", message="disk os: its parent changed")]
    world.bad_seeds = {
        "/seeds/os.img": RigError(Code.ImageBusy, "/seeds/os.img: is in use by qemu (1)"),
        "/seeds/data.vhdx": RigError(Code.DiskTooSmall, "/seeds/data.vhdx: is too large"),
    }
    async with running(world, tmp_path) as vault:
        job = await ended(vault, await protect(vault, SEEDS))
        assert [error.code for error in job.errors] == ["BrokenVhdChain", "ImageBusy", "DiskTooSmall"]
        assert job.errors[1].message == "seed of disk 'os': /seeds/os.img: is in use by qemu (1)"
        assert (world.managed, world.seeded) == ({}, [])


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([SeedSource(disk=None, image="/a")], "VM 'web01' has the disks .*: write NAME=IMAGE"),
        ([SeedSource(disk="log", image="/a")], "VM 'web01' has no such disk; it has: "),
        ([SeedSource(disk="os", image="/a"), SeedSource(disk="os", image="/b")], "disk 'os' has the seed /a already"),
    ],
)
async def test_a_wrong_disk_name_is_refused_before_there_is_a_job(
    tmp_path: Path, seeds: list[SeedSource], message: str
) -> None:
    async with running(World(), tmp_path) as vault:
        with pytest.raises(RigError, match=message) as caught:
            await protect(vault, seeds)
        assert caught.value.code == "InvalidDisk"
        assert await vault.status.jobs() == []


async def test_a_seed_without_a_name_is_that_of_the_only_disk(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await ended(vault, await protect(vault, [SeedSource(disk=None, image="/a")], "os"))
        assert [image for _, image in world.seeded] == ["/a"]


async def test_a_seed_continues_without_the_applier_and_after_a_kill_of_the_vault(tmp_path: Path) -> None:
    world = World()
    world.failing_once["recovery.check_seed"] = AWAY
    world.failing_once["recovery.seed_disk"] = AWAY
    held = world.held["recovery.seed_disk"] = trio.Event()
    async with running(world, tmp_path) as vault:
        await protect(vault, SEEDS)
        while "recovery.seed_disk" not in world.calls:
            await trio.lowlevel.checkpoint()
        progress = await vault.status.progress(vm="web01")
        assert (progress.phase, progress.detail) == ("OfflineSeed", "reading /seeds/data.vhdx")
        (disk,) = progress.disks
        assert (disk.disk, disk.done_bytes, disk.total_bytes, disk.sent_bytes) == ("data", 512, GIB, 0)
    held.set()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert (await vault.status.items())[0].protectionState == "Protected"
        assert {image for _, image in world.seeded} == {"/seeds/os.img", "/seeds/data.vhdx"}
