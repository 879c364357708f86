"""The vault fences a VM at the site, and shows it: in health, in events, until a user or a failback ends it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running


async def item_of(vault: Vault) -> ProtectedItem:
    (item,) = await vault.status.items()
    return item


async def codes(vault: Vault) -> list[str]:
    return [event.eventCode for event in await vault.status.events() if event.eventCode.startswith("Source")]


async def test_a_fence_is_shown_until_it_is_ended(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for _ in range(2):
            fence = await vault.fences.fence_source(vm="web01")
            assert (fence.fenced, fence.disks) == (True, sorted(world.site["web01"]))
    async with running(world, tmp_path) as vault:
        item = await item_of(vault)
        assert item.replicationHealth == "Warning"
        assert [error.summaryMessage for error in item.healthErrors] == [
            f"its disks at the site refuse all writes since {item.fenced_since}; siterig site unfence web01 allows them"
        ]
        for _ in range(2):
            assert not (await vault.fences.unfence_source(vm="web01")).fenced
        item = await item_of(vault)
        assert (item.replicationHealth, item.healthErrors, item.fenced_since) == ("Normal", [], None)
        assert await codes(vault) == ["SourceUnfenced", "SourceFenced"]


async def test_a_site_that_refuses_leaves_the_former_state_shown(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.fence"] = RigError(Code.DiskFull, "no room")
        with pytest.raises(RigError, match="no room"):
            await vault.fences.fence_source(vm="web01")
        assert (await item_of(vault)).fenced_since is None
        assert await codes(vault) == []
        del world.failing["site.fence"]
        with pytest.raises(RigError, match="nosuch"):
            await vault.fences.fence_source(vm="nosuch")


async def test_no_fence_is_set_while_a_job_of_the_vm_runs(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["site.pause"] = trio.Event()
        job = await vault.protection.pause_replication(vm="web01")
        with pytest.raises(RigError) as caught:
            await vault.fences.fence_source(vm="web01")
        assert caught.value.code == Code.JobInProgress
        assert "site.fence" not in world.calls
        world.held["site.pause"].set()
        await ended(vault, job)


async def test_a_failback_ends_a_fence(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        await vault.fences.fence_source(vm="web01")
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        item = await item_of(vault)
        assert [error.errorCode for error in item.healthErrors] == ["SourceFenced"]
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert job.state == "Succeeded", job.errors
        assert (await item_of(vault)).fenced_since is None
        await idle(vault)


async def test_a_vm_that_was_fenced_before_its_protection_is_shown(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=1 << 20)])
        await vault.fences.fence_source(vm="web01")
        assert await codes(vault) == ["SourceFenced"]
        await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert (await item_of(vault)).fenced_since is not None
