"""An operation that failed leads nowhere that no command leads out of, wherever it failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.context.states import (
    PRIMARY,
    RESTING,
    TEST_COMPLETED,
    TEST_FAILED,
    TEST_NONE,
    Operation,
    ProtectionState,
    allowed,
)
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.monitoring.health import is_cycling
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

Step = Callable[[Vault], Awaitable[Job]]
ERROR = RigError(Code.of("Injected"), "it failed")


def do_test(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.test_failover(vm="web01", point="Latest")


def cleanup(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.cleanup_test_failover(vm="web01")


def unplanned(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.unplanned_failover(vm="web01", point="Latest", source_actions=True)


def planned(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.planned_failover(vm="web01")


def commit(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.commit_failover(vm="web01")


def failback(vault: Vault) -> Awaitable[Job]:
    return vault.failovers.failback(vm="web01")


def reprotect(vault: Vault) -> Awaitable[Job]:
    return vault.protection.reprotect(vm="web01")


def resync(vault: Vault) -> Awaitable[Job]:
    return vault.protection.resync(vm="web01")


def disable(vault: Vault) -> Awaitable[Job]:
    return vault.protection.disable_protection(vm="web01")


AT_AZURE: tuple[Step, ...] = (unplanned, commit)
BACK: tuple[Step, ...] = (*AT_AZURE, failback, commit)
ROWS: list[tuple[tuple[Step, ...], Operation, Step, str, str | None]] = [
    # what was done before, the operation, the call that fails in it, the state after that (None: as before it)
    ((), Operation.TEST, do_test, "recovery.disk_state", "Failed"),
    ((), Operation.TEST, do_test, "recovery.process_latest", "Failed"),
    ((), Operation.TEST, do_test, "azure.create_disk_from_point", "Failed"),
    ((do_test,), Operation.CLEANUP, cleanup, "azure.list_disks", None),
    ((do_test,), Operation.CLEANUP, cleanup, "azure.remove_vm", "Failed"),
    ((), Operation.UNPLANNED, unplanned, "recovery.disk_state", None),
    ((), Operation.UNPLANNED, unplanned, "recovery.process_latest", ProtectionState.UNPLANNED_FAILED),
    ((), Operation.UNPLANNED, unplanned, "azure.create_disk_from_point", ProtectionState.UNPLANNED_FAILED),
    ((unplanned,), Operation.UNPLANNED, unplanned, "recovery.disk_state", None),
    ((unplanned,), Operation.UNPLANNED, unplanned, "azure.create_disk_from_point", ProtectionState.CHANGE_POINT_FAILED),
    ((), Operation.PLANNED, planned, "site.check_shutdown", None),
    ((), Operation.PLANNED, planned, "site.shutdown_vm", ProtectionState.PLANNED_FAILED),
    ((), Operation.PLANNED, planned, "site.replicate_now", ProtectionState.PLANNED_FAILED),
    ((), Operation.PLANNED, planned, "azure.create_disk_from_point", ProtectionState.PLANNED_FAILED),
    ((unplanned,), Operation.COMMIT, commit, "azure.list_disks", None),
    ((unplanned,), Operation.COMMIT, commit, "azure.hydrate_vm", ProtectionState.COMMIT_TO_RECOVERY_FAILED),
    (AT_AZURE, Operation.FAILBACK, failback, "site.check_failback", None),
    (AT_AZURE, Operation.FAILBACK, failback, "site.receive_disk", ProtectionState.PLANNED_FAILED),
    (AT_AZURE, Operation.FAILBACK, failback, "site.commit_failback", ProtectionState.PLANNED_FAILED),
    ((*AT_AZURE, failback), Operation.FAILBACK, failback, "site.check_failback", None),
    ((*AT_AZURE, failback), Operation.COMMIT, commit, "site.list_vms", None),
    ((*AT_AZURE, failback), Operation.COMMIT, commit, "azure.remove_vm", ProtectionState.COMMIT_TO_PRIMARY_FAILED),
    (BACK, Operation.REPROTECT, reprotect, "site.check_vm", None),
    (BACK, Operation.REPROTECT, reprotect, "site.create_relationship", ProtectionState.REPROTECT_FAILED),
    (BACK, Operation.REPROTECT, reprotect, "site.resync", ProtectionState.REPROTECT_FAILED),
    ((), Operation.RESYNC, resync, "site.check_vm", None),
    ((), Operation.RESYNC, resync, "site.resync", None),
    ((), Operation.DISABLE, disable, "recovery.delete_managed_disk", ProtectionState.DISABLING_FAILED),
]


async def row_of(vault: Vault) -> ItemRow:
    return await vault.context.database.transact(lambda session: find_item(session, "web01"))


async def states_of(vault: Vault) -> tuple[str, str, str | None, str]:
    (item,) = await vault.status.items()
    return item.protectionState, item.testFailoverState, item.resynchronizationRequired, item.activeLocation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "operation", "operate", "call", "after"),
    ROWS,
    ids=[f"{len(row[0])} steps, {row[1].value}: {row[3]}" for row in ROWS],
)
async def test_a_failed_operation_can_be_repeated_and_points_continue(
    tmp_path: Path, *, before: tuple[Step, ...], operation: Operation, operate: Step, call: str, after: str | None
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for step in before:
            assert (await ended(vault, await step(vault))).state == "Succeeded"
        states = await states_of(vault)
        world.failing[call] = ERROR
        job = await ended(vault, await operate(vault))
        assert (job.state, job.errors[-1].code) == ("Failed", "Injected")
        world.stop_failing()

        if after is not None:
            (item,) = await vault.status.items()
            assert after in (item.protectionState, item.testFailoverState)
        elif call != "site.resync":  # the one that changed something and keeps the state: it is due again
            assert await states_of(vault) == states
        else:
            assert await states_of(vault) == (*states[:2], "ResynchronizationFailed", *states[3:])

        row = await row_of(vault)
        assert (row.protection_state, row.active_location) in RESTING
        assert operation in allowed(row)
        if is_cycling(row):
            assert await vault.reports.may_replicate(vm="web01")
            point = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="after-failure")
            assert point.name == "after-failure"
        assert (await ended(vault, await operate(vault))).state == "Succeeded"


@pytest.mark.parametrize(("state", "location"), sorted(RESTING))
@pytest.mark.parametrize("test", [TEST_NONE, TEST_COMPLETED, TEST_FAILED])
@pytest.mark.parametrize("suspended", [False, True])
def test_points_can_be_taken_in_every_state_in_which_replication_continues(
    state: ProtectionState, location: str, test: str, *, suspended: bool
) -> None:
    row = ItemRow(
        vm="web01", protection_state=state, active_location=location, test_failover_state=test, suspended=suspended
    )
    replicates = location == PRIMARY and is_cycling(row)
    assert (Operation.CREATE_POINT in allowed(row)) == replicates
    assert [operation for operation in allowed(row) if operation != Operation.CREATE_POINT]


@pytest.mark.slow
async def test_a_kill_in_the_first_task_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["site.check_shutdown"] = trio.Event()
        await planned(vault)
        while "site.check_shutdown" not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        assert (await vault.status.jobs())[0].errors[0].code == "VaultStopped"
        assert (await states_of(vault))[0] == ProtectionState.PROTECTED
