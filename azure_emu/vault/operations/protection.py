"""The operations that begin and end the replication of a VM, or repair it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import PRIMARY, TEST_COMPLETED, TEST_NONE, Operation, ProtectionState, require
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.inventory import disk_limits, inventory
from siterig.azure_emu.vault.jobs import engine, preflight, protection_tasks
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.model.api import Job, ProtectionApi
from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, OFFICIAL_INTERVALS_S
from siterig.azure_emu.vault.points.retention import check_hours
from siterig.azure_emu.vault.points.retention import remark as history_remark
from siterig.blockfs.core.errors import RigError

# Jobs that wait for replication, perhaps without end.  Disabling protection stops each of them.
_STOPPED_BY_DISABLE = {"enable", "finalize", "reprotect", "repair"}


class ProtectionOperations(ProtectionApi):
    """The operations on the protection of the VMs of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter) -> None:
        self._context = context
        self._starter = starter

    async def enable_protection(
        self, *, vm: str, interval_s: float, app_consistent_every_s: float | None = None, history_hours: int = HOURS_DEFAULT
    ) -> Job:
        protection_tasks.check_policy(interval_s, app_consistent_every_s)
        check_hours(history_hours)
        disks = await self._context.retry_while_away("protect", vm, lambda: inventory.site_disks(self._context, vm))
        disk_limits.check(vm, disks)
        disk_limits.check_chains(disks)

        def insert(session: Session) -> Job:
            engine.require_no_job(session, vm)
            item = session.get(ItemRow, vm)
            if item is None:
                item = ItemRow(
                    vm=vm,
                    test_failover_state=TEST_NONE,
                    active_location=PRIMARY,
                    resync_marks=0,
                    sent_position=0,
                    points_after_position=0,
                )
                session.add(item)
            else:
                require(item, Operation.ENABLE)
            item.interval_s, item.app_consistent_every_s = interval_s, app_consistent_every_s
            item.history_hours = history_hours
            item.suspended = False
            item.protection_state = ProtectionState.ENABLING
            session.flush()
            now_ns = self._context.clock.wall_ns()
            if interval_s not in OFFICIAL_INTERVALS_S:
                text = f"interval_s {interval_s:g} of VM {vm!r} is rig-only: the service has 30, 300 and 900"
                events.record(
                    session, vm=vm, code="RigOnlyPolicy", kind="VmReplication", severity="Warning", text=text, now_ns=now_ns
                )
            retention = history_remark(history_hours)
            if retention is not None:
                text = f"VM {vm!r}: {retention}"
                events.record(
                    session, vm=vm, code="RigOnlyPolicy", kind="VmReplication", severity="Warning", text=text, now_ns=now_ns
                )
            for remark in disk_limits.remarks(vm, disks):
                events.record(
                    session, vm=vm, code="DiskSize", kind="VmReplication", severity="Warning", text=remark, now_ns=now_ns
                )
            return engine.to_wire(engine.enqueue(session, protection_tasks.ENABLE, vm, {}, now_ns))

        return await self._starter.start(insert)

    async def disable_protection(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.DISABLING
            return protection_tasks.DISABLE, {}

        try:
            await preflight.can_remove_all(self._context, vm)
        except RigError as error:
            if self._context.roles.role_cause(error) is None:
                raise  # otherwise a role is away: the job waits for it and checks again
        # While there is a test VM the operation is refused, so no job is stopped.
        await self._starter.stop(
            vm, "unprotect", _STOPPED_BY_DISABLE, lambda _session, item: item.test_failover_state != TEST_COMPLETED
        )
        return await self._starter.begin(vm, Operation.DISABLE, prepare)

    async def reprotect(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.REPROTECT
            return protection_tasks.REPROTECT, {}

        return await self._starter.begin(vm, Operation.REPROTECT, prepare)

    async def resync(self, *, vm: str) -> Job:
        return await self._starter.begin(vm, Operation.RESYNC, lambda _session, _item: (protection_tasks.REPAIR, {}))
