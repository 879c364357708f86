"""The user chooses the names of recovered and test VMs; a name that another VM has is modified with a warning."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.db.schema import AzureVmRow
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running


async def named(vault: Vault, recovery: str | None = None, test: str | None = None) -> Job:
    return await ended(
        vault, await vault.protection.update_vm_properties(vm="web01", recovery_vm_name=recovery, test_vm_name=test)
    )


def result(job: Job) -> str:
    assert job.state == "Succeeded", job.errors
    assert job.result is not None
    return job.result.name


async def test_the_whole_way_there_and_back_with_chosen_names(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await named(vault, "dr", "drill")
        assert (job.state, job.scenarioName, job.errors) == ("Succeeded", "UpdateVmProperties", [])
        (item,) = await vault.status.items()
        assert (item.recovery_vm_name, item.test_vm_name) == ("dr", "drill")
        assert result(await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))) == "drill"
        assert sorted(world.azure) == ["drill"]
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        assert world.azure == {}
        assert result(await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))) == "dr"
        assert result(await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))) == "dr"
        for begin in (vault.failovers.commit_failover, vault.failovers.failback, vault.failovers.commit_failover):
            assert (await ended(vault, await begin(vm="web01"))).state == "Succeeded"
        assert world.azure == {}
        assert (await ended(vault, await vault.protection.reprotect(vm="web01"))).state == "Succeeded"
        assert result(await ended(vault, await vault.failovers.planned_failover(vm="web01"))) == "dr"


async def test_names_follow_each_other_and_return_to_the_defaults(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await named(vault, "dr")
        assert (await vault.status.items())[0].test_vm_name == "dr-test"
        await named(vault, "", "")
        (item,) = await vault.status.items()
        assert (item.recovery_vm_name, item.test_vm_name) == ("web01", "web01-test")


@pytest.mark.parametrize("of_another", [False, True])
@pytest.mark.parametrize("kind", ["test", "unplanned", "planned"])
async def test_a_name_that_another_vm_has_is_modified_with_a_warning(tmp_path: Path, kind: str, *, of_another: bool) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        taken = "web01-test" if kind == "test" else "web01"
        world.azure[taken] = {"os": world.disk(taken, "os", 1 << 20)}
        if of_another:  # protected VM db02 owns it
            row = AzureVmRow(name=taken, owner="db02", kind="Recovered")
            await vault.context.database.transact(lambda session: session.add(row))
        begins: dict[str, Callable[[], Awaitable[Job]]] = {
            "test": lambda: vault.failovers.test_failover(vm="web01", point="Latest"),
            "unplanned": lambda: vault.failovers.unplanned_failover(vm="web01", point="Latest"),
            "planned": lambda: vault.failovers.planned_failover(vm="web01"),
        }
        job = await ended(vault, await begins[kind]())
        name = result(job)
        assert re.fullmatch(rf"{taken}-[0-9a-f]{{8}}", name)
        assert job.stateDescription == "CompletedWithInformation"
        assert [(error.code, error.message) for error in job.errors] == [
            ("VmNameModified", f"the VM name {taken!r} was modified to {name!r} to avoid name conflicts")
        ]
        assert len(world.azure[taken]) == 1
        if kind == "test":
            await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
            assert sorted(world.azure) == [taken]


async def test_a_taken_name_is_a_remark_when_it_is_chosen_and_when_a_vm_is_protected(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        world.azure["web01"] = {"os": world.disk("web01", "os", 1 << 20)}
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=512)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        text = "the virtual machine name 'web01' is unavailable: a failover of VM 'web01' would modify it"
        assert [(error.code, error.message) for error in job.errors] == [("VmNameUnavailable", text)]
        await idle(vault)
        world.azure["dr-test"] = {"os": world.disk("dr-test", "os", 1 << 20)}
        job = await named(vault, "dr")
        assert (job.state, [error.code for error in job.errors]) == ("Succeeded", ["VmNameUnavailable"])


@pytest.mark.parametrize(
    ("recovery", "test", "code", "message"),
    [
        ("a/b", None, "InvalidName", "'a/b'"),
        ("recovery", None, "InvalidName", "VM is named 'recovery'"),
        (None, "x" * 300, "InvalidName", "allowed"),
        ("dr", "dr", "InvalidName", "test_vm_name is 'dr', the name of the recovery VM; allowed: another name"),
        (None, None, "BadRequest", "no value to change; allowed: recovery_vm_name, test_vm_name"),
    ],
)
async def test_a_name_that_is_not_allowed_changes_nothing(
    tmp_path: Path, recovery: str | None, test: str | None, code: str, message: str
) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=message) as caught:
            await named(vault, recovery, test)
        assert caught.value.code == code
        (item,) = await vault.status.items()
        assert (item.recovery_vm_name, item.test_vm_name) == ("web01", "web01-test")


async def test_a_kill_while_names_change_or_a_vm_is_made_leaves_no_other_vm(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["azure.list_disks"] = trio.Event()
        world.calls.clear()
        await vault.protection.update_vm_properties(vm="web01", recovery_vm_name="dr")
        while "azure.list_disks" not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await idle(vault)
        assert (await vault.status.items())[0].recovery_vm_name == "dr"
        world.held["azure.create_disk_from_point"] = trio.Event()
        world.calls.clear()
        await vault.failovers.unplanned_failover(vm="web01", point="Latest")
        while "azure.create_disk_from_point" not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        await named(vault, "other")
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        assert sorted(world.azure) == [result(job)] == ["dr"]  # the VM that was begun keeps its name
