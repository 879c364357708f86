"""The operations that begin and end the replication of a VM, or repair it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import PRIMARY, TEST_COMPLETED, TEST_NONE, Operation, ProtectionState, require
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.inventory import azure_vms, disk_limits, inventory
from siterig.azure_emu.vault.jobs import (
    disk_tasks,
    engine,
    job_wire,
    pause_tasks,
    policy_tasks,
    preflight,
    property_tasks,
    protection_tasks,
    start_time,
)
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.jobs.seeds import SEEDS, named
from siterig.azure_emu.vault.model.api import ProtectionApi
from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT
from siterig.azure_emu.vault.model.resources import Job
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.azure_emu.vault.points.retention import check_hours
from siterig.blockfs.core.errors import Code, RigError

# Jobs that wait for replication, perhaps without end.  Disabling protection stops each of them.
_STOPPED_BY_DISABLE = {"enable", "finalize", "reprotect", "repair", "add-disks"}


class ProtectionOperations(ProtectionApi):
    """The operations on the protection of the VMs of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter) -> None:
        self._context = context
        self._starter = starter

    async def enable_protection(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None = None,
        history_hours: int = HOURS_DEFAULT,
        start_at: str | None = None,
        seeds: list[SeedSource] | None = None,
        exclude: list[str] | None = None,
    ) -> Job:
        policy_tasks.check_policy(interval_s, app_consistent_every_s)
        check_hours(history_hours)
        begin_ns = None if start_at is None else start_time.parse_start(start_at, self._context.clock.wall_ns())
        variables: dict[str, Any] = {} if begin_ns is None else {start_time.START: begin_ns}
        disks = await self._context.retry_while_away("protect", vm, lambda: inventory.site_disks(self._context, vm))
        excluded = _excluded(vm, exclude or [], [disk.name for disk in disks])
        if seeds:
            replicated = [disk for disk in disks if disk.name not in excluded]
            variables[SEEDS] = [seed.model_dump() for seed in named(vm, seeds, replicated)]

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
            item.excluded_disks = excluded
            item.suspended, item.paused_ns = False, None
            item.protection_state = ProtectionState.ENABLING
            session.flush()
            now_ns = self._context.clock.wall_ns()
            if item.fenced_ns is None and any(disk.fenced for disk in disks):
                item.fenced_ns = now_ns  # fenced before it was protected
            policy_tasks.record_remarks(session, item, now_ns)
            for remark in disk_limits.remarks(vm, [disk for disk in disks if disk.name not in excluded]):
                events.record(
                    session, vm=vm, code="DiskSize", kind="VmReplication", severity="Warning", text=remark, now_ns=now_ns
                )
            return job_wire.to_wire(engine.enqueue(session, protection_tasks.ENABLE, vm, variables, now_ns))

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

    async def remove_disks(self, *, vm: str, disks: list[str]) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            disk_tasks.check_removal(item, disks)
            return disk_tasks.REMOVE, {disk_tasks.DISKS: sorted(set(disks))}

        return await self._starter.begin(vm, Operation.REMOVE_DISKS, prepare)

    async def add_disks(self, *, vm: str, disks: list[str]) -> Job:
        there = await self._context.retry_while_away("disk protect", vm, lambda: inventory.site_disks(self._context, vm))

        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            disk_tasks.check_joining(item, disks, [disk.name for disk in there])
            return disk_tasks.ADD, {disk_tasks.DISKS: sorted(set(disks))}

        return await self._starter.begin(vm, Operation.ADD_DISKS, prepare)

    async def reprotect(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.REPROTECT
            return protection_tasks.REPROTECT, {}

        return await self._starter.begin(vm, Operation.REPROTECT, prepare)

    async def resync(self, *, vm: str) -> Job:
        return await self._starter.begin(vm, Operation.RESYNC, lambda _session, _item: (protection_tasks.REPAIR, {}))

    async def pause_replication(self, *, vm: str) -> Job:
        return await self._starter.begin(vm, Operation.PAUSE, lambda _session, _item: (pause_tasks.PAUSE, {}))

    async def resume_replication(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            return pause_tasks.RESUME, {pause_tasks.PAUSED_NS: item.paused_ns}

        return await self._starter.begin(vm, Operation.RESUME, prepare)

    async def change_policy(
        self,
        *,
        vm: str,
        interval_s: float | None = None,
        app_consistent_every_s: float | None = None,
        history_hours: int | None = None,
    ) -> Job:
        wanted = {
            "interval_s": interval_s,
            "app_consistent_every_s": app_consistent_every_s,
            "history_hours": history_hours,
        }
        if all(value is None for value in wanted.values()):
            raise RigError(Code.BadRequest, f"the policy of VM {vm!r}: no value to change; allowed: {', '.join(wanted)}")

        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            former = policy_tasks.policy_of(item)
            new = former | {column: value for column, value in wanted.items() if value is not None}
            new["app_consistent_every_s"] = new["app_consistent_every_s"] or None
            policy_tasks.check_policy(new["interval_s"], new["app_consistent_every_s"])
            check_hours(new["history_hours"])
            return policy_tasks.MODIFY, {policy_tasks.NEW: new, policy_tasks.FORMER: former}

        return await self._starter.begin(vm, Operation.CHANGE_POLICY, prepare)

    async def update_vm_properties(
        self, *, vm: str, recovery_vm_name: str | None = None, test_vm_name: str | None = None
    ) -> Job:
        wanted = {"recovery_vm_name": recovery_vm_name, "test_vm_name": test_vm_name}
        given = {column: name or None for column, name in wanted.items() if name is not None}
        if not given:
            raise RigError(Code.BadRequest, f"VM {vm!r}: no value to change; allowed: {', '.join(wanted)}")
        for name in filter(None, given.values()):
            azure_vms.check_vm_name(name)

        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            former = property_tasks.names_of(item)
            new = former | given
            if new["test_vm_name"] is not None and new["test_vm_name"] == (new["recovery_vm_name"] or vm):
                raise RigError(
                    Code.InvalidName,
                    f"test_vm_name is {new['test_vm_name']!r}, the name of the recovery VM; allowed: another name",
                )
            return property_tasks.UPDATE, {property_tasks.NEW: new, property_tasks.FORMER: former}

        return await self._starter.begin(vm, Operation.UPDATE, prepare)


def _excluded(vm: str, names: list[str], known: list[str]) -> list[str]:
    """Return the disks to exclude, sorted.

    Raises:
        RigError: ``DiskNotFound``; ``BadRequest`` if no disk is left to replicate.
    """
    for name in names:
        if name not in known:
            raise RigError(Code.DiskNotFound, f"exclude: VM {vm!r} has no disk {name!r}; allowed: {', '.join(known)}")
    if not set(known) - set(names):
        raise RigError(
            Code.BadRequest,
            f"exclude: VM {vm!r} has no other disk than {', '.join(names)}; at least one must be replicated",
        )
    return sorted(set(names))
