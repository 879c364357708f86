"""The operations of a simulated administrator: each reaches its state, and the VM comes back to the site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from siterig.azure_emu.vault.model.resources import Job, ProtectedItem
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.simulation.administrator import Administrator
from siterig.scenarios.simulation.invariants import Invariants
from siterig.scenarios.simulation.rig.plan import OperationKind, PlannedFault, PlannedOperation, RunPlan
from siterig.scenarios.simulation.rig.world import World
from siterig.scenarios.simulation.simulation import Simulator
from tests.support.memory import folder_in_memory


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with folder_in_memory("siterig-simulation") as folder:
        yield Simulator(folder)


def plan(kinds: tuple[OperationKind, ...], faults: tuple[PlannedFault, ...] = ()) -> RunPlan:
    operations = tuple(PlannedOperation(5.0 + 10 * number, kind, 0.7) for number, kind in enumerate(kinds))
    return RunPlan(3, faults, 60.0, 30.0, None, 1.0, begins_protected=True, operations=operations)


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        (("planned-failover", "next-step"), ("PlannedFailoverCompleted", "vault-agent commit_failback done")),
        (("unplanned-failover", "unplanned-failover"), ("ChangeRecoveryPointCompleted", "vault-agent commit_failback done")),
        (("test-failover", "verify", "pause"), ("cli-vault cleanup_test_failover done", "cli-vault verify done")),
        (("protect-disk", "unprotect-disk", "protect-disk"), ("cli-vault add_disks done", "cli-vault remove_disks done")),
        (("attach-disk", "test-failover", "protect-disk"), ("cli-vault attach_disk done", "cli-vault add_disks done")),
        (("revoke-key", "rotate-key"), ("part_key KeyRevoked", "cli-vault rotate_key done")),
        (("change-policy", "pin-point", "create-point", "resync"), ("cli-vault pin_point done", "cli-vault resync done")),
    ],
    ids=lambda each: each[0],
)
def test_an_operation_is_carried_out_and_the_vm_is_protected_again(
    simulator: Simulator, kinds: tuple[OperationKind, ...], shown: tuple[str, ...]
) -> None:
    result = simulator.run(plan(kinds))
    assert result.findings == []
    trace = "\n".join(result.trace)
    assert [text for text in shown if text not in trace] == []


def test_failovers_survive_the_kill_of_each_role(simulator: Simulator) -> None:
    kills = tuple(
        PlannedFault(5.1 + number, "kill", target=role) for number, role in enumerate(("vault", "azure", "applier", "agent"))
    )
    assert simulator.run(plan(("planned-failover", "next-step"), kills)).findings == []


def test_a_plan_with_operations_is_read_back_from_json() -> None:
    one = plan(("pause", "verify"))
    assert RunPlan.from_json(one.to_json()) == one


async def test_an_administrator_takes_over_no_result_while_the_vault_does_not_answer() -> None:
    """A vault that was killed between the lists of jobs and of items hid the success of a failback."""
    answers: list[list[ProtectedItem] | None] = [None, []]

    async def jobs() -> list[Job]:
        return []

    async def items() -> list[ProtectedItem]:
        answer = answers.pop(0)
        if answer is None:
            raise RigError(Code.RoleUnavailable, "the vault does not answer", recoverable=True)
        return answer

    async def sleep(_seconds: float) -> None:
        await trio.lowlevel.checkpoint()

    invariants = Invariants(trio.current_time, Path)
    clock = SimpleNamespace(sleep=sleep)
    world = cast(World, SimpleNamespace(vault=SimpleNamespace(jobs=jobs, items=items), clocks={"recovery": clock}))
    assert await Administrator(world, invariants).settle() is None
    assert answers == []
