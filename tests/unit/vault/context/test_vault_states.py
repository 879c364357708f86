"""Each state of a VM allows some operations and refuses the others; at least one is always allowed."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from siterig.azure_emu.vault.context.states import (
    PRIMARY,
    RECOVERY,
    RESTING,
    TEST_COMPLETED,
    TEST_FAILED,
    TEST_NONE,
    Operation,
    ProtectionState,
    allowed,
    require,
)
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.repo.examples import FACTOR, examples
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import idle, protected, running


def item(state: ProtectionState, location: str, test: str = TEST_NONE) -> ItemRow:
    return ItemRow(vm="web01", protection_state=state, active_location=location, test_failover_state=test)


@pytest.mark.parametrize(("state", "location"), sorted(RESTING))
@pytest.mark.parametrize("test", [TEST_NONE, TEST_COMPLETED, TEST_FAILED])
def test_from_every_resting_state_something_is_allowed(state: ProtectionState, location: str, test: str) -> None:
    assert allowed(item(state, location, test))


@pytest.mark.parametrize(("state", "location"), sorted(RESTING))
def test_every_refusal_names_the_state_and_the_allowed_ones(state: ProtectionState, location: str) -> None:
    row = item(state, location)
    now = allowed(row)
    for operation in Operation:
        if operation in now:
            require(row, operation)
            continue
        with pytest.raises(RigError) as caught:
            require(row, operation)
        assert caught.value.code == "InvalidState"
        assert caught.value.message == (
            f"{operation.command} of VM 'web01' is not possible: protectionState is {state}, activeLocation {location}, "
            f"testFailoverState None; allowed now: {', '.join(each.command for each in now)}"
        )


def test_a_refusal_as_a_user_reads_it() -> None:
    with pytest.raises(RigError) as caught:
        require(item(ProtectionState.COMMITTED, RECOVERY), Operation.REPROTECT)
    assert caught.value.message == (
        "reprotect of VM 'web01' is not possible: protectionState is CommitFailoverCompleted, activeLocation Recovery, "
        "testFailoverState None; allowed now: failback"
    )


def test_a_second_test_failover_is_refused_while_one_is_there() -> None:
    with pytest.raises(RigError) as caught:
        require(item(ProtectionState.PROTECTED, PRIMARY, TEST_COMPLETED), Operation.TEST)
    assert caught.value.message == (
        "failover test of VM 'web01' is not possible: protectionState is Protected, activeLocation Primary, "
        "testFailoverState Completed; allowed now: take-point, cleanup, failover unplanned, failover planned, resync, "
        "policy set, vm update, disk unprotect, disk protect, pause"
    )


def test_a_passing_state_allows_nothing() -> None:
    with pytest.raises(RigError, match=r"allowed now: nothing$"):
        require(item(ProtectionState.PLANNED, PRIMARY), Operation.DISABLE)


BEGIN: dict[Operation, Callable[[Vault], Awaitable[object]]] = {
    Operation.ENABLE: lambda vault: vault.protection.enable_protection(vm="web01", interval_s=30),
    Operation.DISABLE: lambda vault: vault.protection.disable_protection(vm="web01"),
    Operation.TEST: lambda vault: vault.failovers.test_failover(vm="web01", point="Latest"),
    Operation.CLEANUP: lambda vault: vault.failovers.cleanup_test_failover(vm="web01"),
    Operation.UNPLANNED: lambda vault: vault.failovers.unplanned_failover(vm="web01", point="Latest", source_actions=True),
    Operation.PLANNED: lambda vault: vault.failovers.planned_failover(vm="web01"),
    Operation.COMMIT: lambda vault: vault.failovers.commit_failover(vm="web01"),
    Operation.FAILBACK: lambda vault: vault.failovers.failback(vm="web01"),
    Operation.REPROTECT: lambda vault: vault.protection.reprotect(vm="web01"),
    Operation.RESYNC: lambda vault: vault.protection.resync(vm="web01"),
    Operation.CHANGE_POLICY: lambda vault: vault.protection.change_policy(vm="web01", interval_s=300),
    Operation.UPDATE: lambda vault: vault.protection.update_vm_properties(vm="web01", recovery_vm_name="web01"),
    Operation.REMOVE_DISKS: lambda vault: vault.protection.remove_disks(vm="web01", disks=["data"]),
    Operation.ADD_DISKS: lambda vault: vault.protection.add_disks(vm="web01", disks=["data"]),
    Operation.PAUSE: lambda vault: vault.protection.pause_replication(vm="web01"),
    Operation.RESUME: lambda vault: vault.protection.resume_replication(vm="web01"),
}
FAULTS = [
    None,
    "site.shutdown_vm",
    "site.replicate_now",
    "site.resync",
    "site.change_schedule",
    "site.remove_disks",
    "site.add_disks",
    "site.pause",
    "site.resume",
    "site.create_relationship",
    "site.initial_replication",
    "site.receive_disk",
    "site.commit_failback",
    "site.remove_relationship",
    "recovery.process_latest",
    "recovery.delete_managed_disk",
    "recovery.create_managed_disk",
    "recovery.export_disk",
    "azure.create_disk_from_point",
    "azure.remove_vm",
]
ALLOWED_ERRORS = {"BadRequest", "DiskNotFound", "InvalidState", "JobInProgress", "VmNotFound", "NoSuchPoint"}


# Not shrunk, for each example runs a whole vault several times.
@pytest.mark.slow
@settings(
    max_examples=examples(5),
    deadline=None,
    derandomize=FACTOR == 1,  # the usual examples are always the same; more of them are random
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(steps=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(FAULTS), st.booleans()), min_size=4, max_size=10))
async def test_every_sequence_of_operations_faults_and_kills_allows_another(
    steps: list[tuple[int, str | None, bool]],
) -> None:
    """A step: which operation, what fails during it, and whether the vault is killed right after it was asked."""
    world = World()
    with tempfile.TemporaryDirectory() as folder:
        async with running(world, Path(folder)) as vault:
            await protected(vault)
        for which, fault, kill in steps:
            async with running(world, Path(folder)) as vault:
                operation = await pick(vault, which)
                if fault is not None:
                    world.failing[fault] = RigError(Code.of("Injected"), f"{fault} failed")
                try:
                    await BEGIN[operation](vault)
                except RigError as error:
                    assert error.code in ALLOWED_ERRORS, error.message
                if not kill:
                    await idle(vault)
                    await check_resting(vault, world)
            world.stop_failing()
        async with running(world, Path(folder)) as vault:
            await idle(vault)
            await check_resting(vault, world)


async def pick(vault: Vault, which: int) -> Operation:
    """Mostly one that is allowed, so that sequences get somewhere; now and then any."""
    choices = list(BEGIN)
    for shown in await vault.status.items():
        if which < 90:
            row = item(ProtectionState(shown.protectionState), shown.activeLocation, shown.testFailoverState)
            row.paused_ns = None if shown.paused_since is None else 1
            # After a kill a resumed job may hold the item in a passing state: then any, to be refused.
            choices = [operation for operation in allowed(row) if operation in BEGIN] or choices
    return choices[which % len(choices)]


async def check_resting(vault: Vault, world: World) -> None:
    for shown in await vault.status.items():
        state = (ProtectionState(shown.protectionState), shown.activeLocation)
        assert state in RESTING
        assert allowed(item(*state, shown.testFailoverState))
        assert shown.testFailoverState in (TEST_NONE, TEST_COMPLETED, TEST_FAILED)
        if shown.activeLocation == RECOVERY and shown.protectionState != ProtectionState.COMMIT_TO_PRIMARY_FAILED:
            assert len(world.azure["web01"]) == 2  # what runs the workload is never removed before commit
        if shown.activeLocation == RECOVERY:
            assert not await vault.reports.may_replicate(vm="web01")
