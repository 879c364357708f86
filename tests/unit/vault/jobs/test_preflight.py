"""Everything that can be known is checked before an operation does anything that cannot be undone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from siterig.azure_emu.vault.db.schema import AzureVmRow
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

pytestmark = pytest.mark.slow

CHANGES = {
    "site.shutdown_vm",
    "site.suspend",
    "site.remove_relationship",
    "site.commit_failback",
    "site.receive_disk",
    "site.create_relationship",
    "site.resync",
    "azure.remove_vm",
    "azure.create_disk_from_point",
    "azure.hydrate_vm",
    "azure.close_mounted_point",
    "recovery.delete_managed_disk",
    "recovery.create_managed_disk",
    "recovery.export_disk",
}
"""Calls that change something."""
Operate = Callable[[Vault], Awaitable[Job]]


def stranger(name: str) -> Callable[[World, Vault], Awaitable[None]]:
    """The recovery side has a VM of that name that nobody knows."""

    async def arrange(world: World, _vault: Vault) -> None:
        world.azure[name] = {"os": world.disk(name, "os", 1 << 20)}

    return arrange


async def points_unreadable(world: World, _vault: Vault) -> None:
    world.floors = dict.fromkeys(world.managed, 1000)


def failing(call: str, error: RigError) -> Callable[[World, Vault], Awaitable[None]]:
    async def arrange(world: World, _vault: Vault) -> None:
        world.failing[call] = error

    return arrange


def open_at_azure(vm: str) -> Callable[[World, Vault], Awaitable[None]]:
    async def arrange(world: World, _vault: Vault) -> None:
        world.azure[vm] = {n: d.model_copy(update={"open_handles": 2}) for n, d in world.azure[vm].items()}

    return arrange


async def nothing(vault: Vault) -> None:
    del vault


async def with_test_vm(vault: Vault) -> None:
    await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))


async def failed_over(vault: Vault) -> None:
    await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))


async def committed(vault: Vault) -> None:
    await failed_over(vault)
    await ended(vault, await vault.failovers.commit_failover(vm="web01"))


async def failed_back(vault: Vault) -> None:
    await committed(vault)
    assert (await ended(vault, await vault.failovers.failback(vm="web01"))).state == "Succeeded"


async def back(vault: Vault) -> None:
    await failed_back(vault)
    await ended(vault, await vault.failovers.commit_failover(vm="web01"))


async def written_after_download(world: World, _vault: Vault) -> None:
    disks = world.azure["web01"]
    disks["os"] = disks["os"].model_copy(update={"last_seq": 17})


def begin_test(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.test_failover(vm="web01", point="LatestProcessed")


def unplanned(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed", source_actions=True)


def planned(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.planned_failover(vm="web01")


def commit(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.commit_failover(vm="web01")


def failback(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.failback(vm="web01")


BUSY = RigError(Code.VmBusy, "disk is in use by bash (7)", recoverable=True)
NO_ROOM = RigError(Code.NotEnoughSpace, "no room", recoverable=True)
IN_USE = RigError(Code.DiskInUse, "disk web01/os is in use")

ROWS = [
    ("test failover: point not readable", nothing, points_unreadable, begin_test, "InvalidPosition"),
    ("failover: point not readable", nothing, points_unreadable, unplanned, "InvalidPosition"),
    ("change of point: VM in use", failed_over, open_at_azure("web01"), unplanned, "DiskInUse"),
    ("change of point: point not readable", failed_over, points_unreadable, unplanned, "InvalidPosition"),
    ("planned failover: source held", nothing, failing("site.check_shutdown", BUSY), planned, "VmBusy"),
    ("planned failover: managed disks not readable", nothing, points_unreadable, planned, "InvalidPosition"),
    ("commit: VM incomplete", failed_over, stranger("web01"), commit, "VmIncomplete"),
    (
        "commit: no room to become independent",
        failed_over,
        failing("azure.check_hydration", NO_ROOM),
        commit,
        "NotEnoughSpace",
    ),
    ("failback: site's disks in use", committed, failing("site.check_failback", IN_USE), failback, "DiskInUse"),
    ("failback: no room at the site", committed, failing("site.check_failback", NO_ROOM), failback, "NotEnoughSpace"),
    ("failback: Azure VM held", committed, failing("check_shut_down", BUSY), failback, "VmBusy"),
    ("failback: Azure VM incomplete", committed, stranger("web01"), failback, "VmIncomplete"),
    ("commit of failback: Azure VM in use", failed_back, open_at_azure("web01"), commit, "VmBusy"),
    ("commit of failback: Azure VM written to", failed_back, written_after_download, commit, "VmChanged"),
    (
        "reprotect: no room",
        back,
        failing("site.check_vm", NO_ROOM),
        lambda vault: vault.protection.reprotect(vm="web01"),
        "NotEnoughSpace",
    ),
    (
        "resync: no room",
        nothing,
        failing("site.check_vm", NO_ROOM),
        lambda vault: vault.protection.resync(vm="web01"),
        "NotEnoughSpace",
    ),
    (
        "cleanup: test VM in use",
        with_test_vm,
        open_at_azure("web01-test"),
        lambda vault: vault.failovers.cleanup_test_failover(vm="web01"),
        "DiskInUse",
    ),
]


@pytest.mark.parametrize(("before", "arrange", "operate", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
async def test_the_job_fails_before_any_change_and_succeeds_without_the_cause(
    tmp_path: Path,
    before: Callable[[Vault], Awaitable[None]],
    arrange: Callable[[World, Vault], Awaitable[None]],
    operate: Operate,
    code: str,
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await before(vault)
        await arrange(world, vault)
        may_replicate = await vault.reports.may_replicate(vm="web01")
        world.calls.clear()
        job = await ended(vault, await operate(vault))
        assert (job.state, [error.code for error in job.errors]) == ("Failed", [code])
        assert CHANGES & set(world.calls) == set()
        assert await vault.reports.may_replicate(vm="web01") == may_replicate


@pytest.mark.parametrize("used", ["mounted point", "copy", "test VM"])
async def test_disabling_is_refused_before_its_job_while_the_recovery_side_is_in_use(tmp_path: Path, used: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        if used == "mounted point":
            await vault.mounts.mount_point(vm="web01")
            (key,) = world.mounted_points
            info = world.mounted_points[key]
            disks = [disk.model_copy(update={"open_handles": 1}) for disk in info.disks]
            world.mounted_points[key] = info.model_copy(update={"disks": disks})
        else:
            kind, name = ("Copy", "look") if used == "copy" else ("TestFailover", "web01-test")
            await vault.context.database.transact(
                lambda session: session.add(AzureVmRow(name=name, owner="web01", kind=kind))
            )
            world.azure[name] = {"os": world.disk(name, "os", 1 << 20).model_copy(update={"open_handles": 1})}
        jobs_before = await vault.status.jobs()
        world.calls.clear()
        with pytest.raises(RigError, match="is in use") as caught:
            await vault.protection.disable_protection(vm="web01")
        assert caught.value.code == ("RecoveryInUse" if used == "mounted point" else "DiskInUse")
        assert await vault.status.jobs() == jobs_before
        assert CHANGES & set(world.calls) == set()
        assert (await vault.status.items())[0].protectionState == "Protected"
        assert await vault.reports.may_replicate(vm="web01")


@pytest.mark.parametrize("operate", [unplanned, planned])
async def test_replication_continues_after_a_failure_past_the_preflight(tmp_path: Path, operate: Operate) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["azure.create_disk_from_point"] = RigError(Code.DiskFull, "no space")
        job = await ended(vault, await operate(vault))
        assert (job.state, job.errors[-1].code) == ("Failed", "DiskFull")
        assert await vault.reports.may_replicate(vm="web01")
        assert "site.suspend" not in world.calls
        world.stop_failing()
        job = await ended(vault, await operate(vault))
        assert job.state == "Succeeded"
        assert not await vault.reports.may_replicate(vm="web01")


async def test_a_change_of_point_reports_that_the_writes_to_the_vm_are_lost(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await failed_over(vault)
        await written_after_download(world, vault)
        job = await ended(vault, await unplanned(vault))
        assert (job.state, [error.code for error in job.errors]) == ("Succeeded", ["RecoveredVmReplaced"])
        assert job.errors[0].message.endswith("are lost: disks os")


async def test_a_failback_can_be_done_again_after_the_azure_vm_was_written_to(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await failed_back(vault)
        await written_after_download(world, vault)
        assert (await ended(vault, await commit(vault))).errors[0].code == "VmChanged"
        assert (await vault.status.items())[0].protectionState == "PlannedFailoverCompleted"
        assert (await ended(vault, await vault.failovers.failback(vm="web01"))).state == "Succeeded"
        assert (await ended(vault, await commit(vault))).state == "Succeeded"


async def test_the_check_of_a_failback_knows_which_old_disks_will_be_kept(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await committed(vault)
        world.written_bytes = {"os": 4096, "data": 0}
        assert (await ended(vault, await failback(vault))).state == "Succeeded"
        assert {disk.name: disk.keeps_old for disk in world.coming} == {"os": True, "data": False}
