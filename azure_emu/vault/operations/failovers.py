"""The operations that move a VM to the other side, and that make such a move final."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.states import RECOVERY, TEST_CLEANUP, TEST_INITIATED, Operation, ProtectionState
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import engine, failback_tasks, failover_tasks
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.model.api import FailoverApi
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.mounts import mounts
from siterig.azure_emu.vault.points.points import FailoverPoint

# Jobs that wait for replication, perhaps without end.  An unplanned failover stops a resync: if the site is lost during it,
# the points from before the resync are still usable.
_STOPPED_BY_UNPLANNED = {"repair", "add-disks"}
_COMMIT_PENDING = {
    ProtectionState.UNPLANNED_DONE,
    ProtectionState.PLANNED_DONE,
    ProtectionState.CHANGE_POINT_DONE,
    ProtectionState.CHANGE_POINT_FAILED,
    ProtectionState.COMMIT_TO_RECOVERY_FAILED,
}


class FailoverOperations(FailoverApi):
    """The failovers and failbacks of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter) -> None:
        self._context = context
        self._starter = starter

    async def test_failover(self, *, vm: str, point: str) -> Job:
        selected = await self._select_point(vm, point)

        def prepare(session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            variables = selected.variables(session)
            item.test_failover_state = TEST_INITIATED
            return failover_tasks.TEST, variables

        return await self._starter.begin(vm, Operation.TEST, prepare)

    async def cleanup_test_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.test_failover_state = TEST_CLEANUP
            return failover_tasks.CLEANUP, {}

        return await self._starter.begin(vm, Operation.CLEANUP, prepare)

    async def unplanned_failover(self, *, vm: str, point: str, source_actions: bool = False) -> Job:
        selected = await self._select_point(vm, point)

        def prepare(session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            variables = selected.variables(session)
            change = item.protection_state in _COMMIT_PENDING
            item.protection_state = ProtectionState.CHANGE_POINT if change else ProtectionState.UNPLANNED
            return failover_tasks.UNPLANNED, variables | {"source_actions": source_actions, "change": change}

        await self._starter.stop(
            vm, "failover unplanned", _STOPPED_BY_UNPLANNED, lambda session, _item: selected.check(session)
        )
        return await self._starter.begin(vm, Operation.UNPLANNED, prepare)

    async def planned_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.PLANNED
            return failover_tasks.PLANNED, {}

        return await self._starter.begin(vm, Operation.PLANNED, prepare)

    async def commit_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            if item.active_location == RECOVERY:
                item.protection_state = ProtectionState.COMMIT_TO_PRIMARY
                return failback_tasks.COMMIT, {}
            item.protection_state = ProtectionState.COMMIT_TO_RECOVERY
            return failover_tasks.COMMIT, {}

        return await self._starter.begin(vm, Operation.COMMIT, prepare)

    async def failback(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.PLANNED
            return failback_tasks.FAILBACK, {}

        return await self._starter.begin(vm, Operation.FAILBACK, prepare)

    async def _select_point(self, vm: str, choice: str) -> FailoverPoint:
        between = await self._context.retry_while_away(
            "choose point", vm, lambda: mounts.between_points(self._context, vm, choice)
        )
        return FailoverPoint(vm, choice, between)
