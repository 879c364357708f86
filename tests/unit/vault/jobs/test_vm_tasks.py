"""Deleting and renaming VMs: what forbids it, what goes with it, and that a kill in between leaves nothing half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from siterig.azure_emu.vault.db.schema import AzureVmRow
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running
from tests.support.threads import without_threads

SIZE = 64 * 1024


async def made(vault: Vault, vm: str = "web01") -> None:
    await vault.vms.create_vm(vm=vm, disks=[DiskSpec(name="os", size_bytes=1 << 20)])


async def test_an_unprotected_vm_is_deleted(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await made(vault)
        await made(vault, "db02")
        job = await ended(vault, await vault.vms.delete_vm(vm="web01"))
        assert (job.state, job.scenarioName) == ("Succeeded", "DeleteVm")
        assert [vm.name for vm in await vault.vms.list_vms()] == ["db02"]
        await made(vault)  # the name can be used again


@pytest.mark.slow
async def test_a_protected_vm_is_not_deleted_until_it_is_unprotected(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=r"it is protected .*; siterig unprotect web01 ends that") as caught:
            await vault.vms.delete_vm(vm="web01")
        assert caught.value.code == "InvalidState"
        assert "web01" in world.site
        await ended(vault, await vault.protection.disable_protection(vm="web01"))
        await ended(vault, await vault.vms.delete_vm(vm="web01"))
        assert world.site == {}


@pytest.mark.slow
async def test_a_test_vm_is_not_deleted_but_an_orphan_is(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
        with pytest.raises(RigError, match="it is the TestFailover VM of 'web01'; siterig cleanup web01 removes it"):
            await vault.vms.delete_vm(vm="web01-test")
        world.azure["left"] = {"os": world.disk("left", "os", 1 << 20)}
        assert (await ended(vault, await vault.vms.delete_vm(vm="left"))).state == "Succeeded"
        assert sorted(world.azure) == ["web01-test"]


async def test_of_two_vms_of_one_name_the_side_is_required(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await made(vault)
        world.azure["web01"] = {"os": world.disk("web01", "os", 1 << 20)}
        with pytest.raises(RigError, match="both sides have a VM 'web01'") as caught:
            await vault.vms.delete_vm(vm="web01")
        assert caught.value.code == "BadRequest"
        await ended(vault, await vault.vms.delete_vm(vm="web01", side="azure"))
        assert (sorted(world.site), sorted(world.azure)) == (["web01"], [])


async def test_a_vm_that_is_not_there_or_in_use_is_refused(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        with pytest.raises(RigError, match=r"there is no VM 'web01'; VMs: none; .* --side site or --side azure$") as caught:
            await vault.vms.delete_vm(vm="web01")
        assert caught.value.code == "VmNotFound"
        world.azure["left"] = {"os": world.disk("left", "os", 1 << 20).model_copy(update={"open_handles": 1})}
        job = await ended(vault, await vault.vms.delete_vm(vm="left"))
        assert [error.code for error in job.errors] == ["DiskInUse"]
        assert "left" in world.azure


async def test_a_vm_that_only_the_other_side_has_is_looked_for_there(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        world.azure["left"] = {"os": world.disk("left", "os", 1 << 20)}
        job = await ended(vault, await vault.vms.delete_vm(vm="left", side="site"))
        assert [error.message for error in job.errors] == [
            "side site: there is no VM 'left' here; side azure has one: --side azure"
        ]
        job = await ended(vault, await vault.vms.delete_vm(vm="nope", side="site"))
        assert [error.message for error in job.errors] == ["side site: there is no VM 'nope' here"]


async def test_a_vm_is_not_renamed_to_its_own_name(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        with pytest.raises(RigError, match="VM 'web01' is to be renamed to 'web01': the names are the same"):
            await vault.vms.rename_vm(vm="web01", name="web01")


@pytest.mark.slow
async def test_warnings_of_a_recovered_vm_stay_its_own_when_it_is_renamed(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        await vault.reports.vm_disk_changed(vm="web01", disk="os", what="it was cut")
        await ended(vault, await vault.vms.rename_vm(vm="web01", name="web02"))
        await vault.reports.vm_disk_changed(vm="web02", disk="os", what="it was cut")
        (item,) = await vault.status.items()
        assert [error.errorCode for error in item.healthErrors] == ["ImageChanged"], "one, under the new name"
        await ended(vault, await vault.failovers.unplanned_failover(vm="web02", point="LatestProcessed"))
        assert (await vault.status.items())[0].healthErrors == [], "that VM is gone"


async def test_a_deletion_that_a_kill_interrupted_is_completed(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await made(vault)
        world.failing["site.delete_vm"] = RigError(Code.RoleUnavailable, "away", recoverable=True)
        job = await vault.vms.delete_vm(vm="web01")
        while "site.delete_vm" not in world.calls:
            await vault.status.job(name=job.name)
    world.stop_failing()
    del world.site["web01"]  # it was done before the kill
    async with running(world, tmp_path) as vault:
        assert (await ended(vault, job)).state == "Succeeded"


@pytest.mark.slow
async def test_a_protected_vm_is_renamed_with_everything_that_refers_to_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        points = await vault.recovery_points.points(vm="web01")
        jobs_before = len(await vault.status.jobs())
        job = await ended(vault, await vault.vms.rename_vm(vm="web01", name="web02"))
        assert (job.state, job.targetObjectName) == ("Succeeded", "web02")
        assert [item.name for item in await vault.status.items()] == ["web02"]
        assert await vault.recovery_points.points(vm="web02") == points
        assert {found.targetObjectName for found in await vault.status.jobs()} == {"web02"}
        assert len(await vault.status.jobs()) == jobs_before + 1
        assert {event.affectedObject for event in await vault.status.events()} == {"web02"}
        assert [vm.name for vm in await vault.vms.list_vms()] == ["web02"]
        assert await vault.reports.may_replicate(vm="web02")
        assert not await vault.reports.may_replicate(vm="web01")
        await ended(vault, await vault.failovers.unplanned_failover(vm="web02", point="Latest"))
        await ended(vault, await vault.vms.rename_vm(vm="web02", name="web03"))
        assert (sorted(world.site), sorted(world.azure)) == (["web03"], ["web03"])
        assert (await ended(vault, await vault.failovers.commit_failover(vm="web03"))).state == "Succeeded"


@pytest.mark.slow
@pytest.mark.parametrize("why", ["name", "taken", "taken over there", "mounted", "test VM", "copy", "in use", "itself"])
async def test_a_vm_is_not_renamed(tmp_path: Path, why: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        new, code = "web02", "VmExists"
        if why == "name":
            new, code = "recovery", "InvalidName"
        elif why == "itself":
            new = "web01"
        elif why == "taken":
            await made(vault, "web02")
        elif why == "taken over there":
            world.azure["web02"] = {"os": world.disk("web02", "os", 1 << 20)}
        elif why == "mounted":
            await vault.mounts.mount_point(vm="web01")
            code = "RecoveryInUse"
        elif why == "test VM":
            await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
            code = "InvalidState"
        elif why == "copy":
            row = AzureVmRow(name="look", owner="web01", kind="Copy")
            await vault.context.database.transact(lambda session: session.add(row))
            code = "InvalidState"
        else:
            disks = world.site["web01"]
            disks["os"] = disks["os"].model_copy(update={"open_handles": 1})
            code = "DiskInUse"
        try:
            job = await ended(vault, await vault.vms.rename_vm(vm="web01", name=new))
            codes = [error.code for error in job.errors]
        except RigError as error:
            codes = [error.code]
        assert codes == [code]
        assert "web01" in world.site
        assert [item.name for item in await vault.status.items()] == ["web01"]


@pytest.mark.slow
async def test_a_rename_that_fails_at_the_second_side_is_taken_back(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        world.failing_once["site.rename_vm"] = RigError(Code.HostIoError, "no")
        job = await ended(vault, await vault.vms.rename_vm(vm="web01", name="web02"))
        assert (job.state, sorted(world.site), sorted(world.azure)) == ("Failed", ["web01"], ["web01"])
        assert (await ended(vault, await vault.vms.rename_vm(vm="web01", name="web02"))).state == "Succeeded"


@pytest.mark.slow
async def test_while_a_vm_is_renamed_its_agent_may_replicate_under_either_name(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        asked = []
        real = world.called

        async def called(name: str) -> None:
            if name == "site.rename_vm":
                asked.extend([await vault.reports.may_replicate(vm="web01"), await vault.reports.may_replicate(vm="web02")])
            await real(name)

        world.called = called  # type: ignore[method-assign]
        await ended(vault, await vault.vms.rename_vm(vm="web01", name="web02"))
        await idle(vault)
        assert asked == [True, True]


# --- the site -----------------------------------------------------------------------------------------------------


async def test_a_renamed_vm_keeps_its_bytes_and_its_log(tmp_path: Path) -> None:
    host = DiskHost(tmp_path / "site", tmp_path / "mnt")
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    (before,) = await host.start_tracking(vm="web01")
    host.disk("web01", "os").write(0, b"abc")
    await host.rename_vm(vm="web01", name="web02")
    await host.rename_vm(vm="web01", name="web02")  # after a kill
    (after,) = await host.list_disks()
    assert (after.vm, after.disk_id, after.generation, after.needs_resync) == (
        "web02",
        before.disk_id,
        before.generation,
        None,
    )
    assert after.path.endswith("/mnt/web02/os.img")
    assert host.disk("web02", "os").read(0, 3) == b"abc"
    assert sorted(path.name for path in host.root.iterdir() if path.is_dir()) == ["web02"]
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    with pytest.raises(RigError, match="there is a VM 'web01' already"):
        await host.rename_vm(vm="web02", name="web01")
    host.close()


async def test_replication_continues_under_the_new_name_without_a_resync(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        await rig.cycle(agent)
        await agent.rename_vm(vm=VM, name="renamed")
        cut = await agent.replicate_now(vm="renamed", kind="CrashConsistent", name="after")
        assert cut.vm == "renamed"
        assert rig.vault.resyncs == []
    book = json.loads((tmp_path / "agent" / "relationships.json").read_text())
    assert [record["vm"] for record in book["relationships"]] == ["renamed"]


async def test_a_deleted_vm_is_forgotten_by_the_agent(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await agent.check_delete(vm=VM)
        await agent.delete_vm(vm=VM)
        assert await agent.list_vms() == []
        with pytest.raises(RigError, match="there is no VM"):
            await agent.delete_vm(vm=VM)
    book = json.loads((tmp_path / "agent" / "relationships.json").read_text())
    assert book["relationships"] == []
