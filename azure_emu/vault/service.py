"""The vault: every operation that a user can start, as jobs, points and states in one database.

Multi-task safety: any number of tasks can call the methods at the same time.  An operation reads the item's state and
inserts its job in *one* transaction, and transactions are serial (database.py): of two callers at the same time one gets the
job, and the other ``JobInProgress`` or ``InvalidState``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.provider import Provider
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.states import (
    PRIMARY,
    RECOVERY,
    TEST_CLEANUP,
    TEST_COMPLETED,
    TEST_INITIATED,
    TEST_NONE,
    Operation,
    ProtectionState,
    require,
)
from siterig.azure_emu.vault.context.vault_context import ShutDown, VaultContext, no_check
from siterig.azure_emu.vault.db.database import VaultDatabase, find_item
from siterig.azure_emu.vault.db.notifications import Notifications
from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow, JobRow
from siterig.azure_emu.vault.inventory import azure_vms, disk_limits, inventory
from siterig.azure_emu.vault.jobs import engine, failback_tasks, failover_tasks, preflight, protection_tasks, vm_tasks
from siterig.azure_emu.vault.model.api import (
    Event,
    Job,
    ManagedDisk,
    MountedPoint,
    ProtectedItem,
    RecoveryPoint,
    VaultApi,
    Vm,
)
from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, OFFICIAL_INTERVALS_S, Side
from siterig.azure_emu.vault.monitoring import health
from siterig.azure_emu.vault.monitoring.repairs import Repairs
from siterig.azure_emu.vault.monitoring.source_watch import SourceWatch
from siterig.azure_emu.vault.monitoring.standstill import StandstillWatch
from siterig.azure_emu.vault.mounts import mounts
from siterig.azure_emu.vault.mounts.leases import Leases
from siterig.azure_emu.vault.points import points, selectors
from siterig.azure_emu.vault.points.points import FailoverPoint
from siterig.azure_emu.vault.points.retention import check_hours
from siterig.azure_emu.vault.points.retention import remark as history_remark
from siterig.azure_emu.vault.report_handlers import ReportHandlers
from siterig.azure_emu.vault.workers.retention_worker import RetentionWorker
from siterig.blockfs.contracts.control import CutInfo, DiskHostControl, TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core import short_ids
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.waits import Waits

_SCENARIOS = (
    protection_tasks.ENABLE,
    protection_tasks.FINALIZE,
    protection_tasks.REPROTECT,
    protection_tasks.REPAIR,
    protection_tasks.DISABLE,
    failover_tasks.TEST,
    failover_tasks.CLEANUP,
    failover_tasks.UNPLANNED,
    failover_tasks.PLANNED,
    failover_tasks.COMMIT,
    failback_tasks.FAILBACK,
    failback_tasks.COMMIT,
    vm_tasks.DELETE,
    vm_tasks.RENAME,
)
# Jobs that wait for replication, perhaps without end.  Disabling protection stops each of them.  An unplanned failover stops
# a resync: if the site is lost during it, the points from before the resync are still usable.
_STOPPED_BY_DISABLE = {"enable", "finalize", "reprotect", "repair"}
_STOPPED_BY_UNPLANNED = {"repair"}
_COMMIT_PENDING = {
    ProtectionState.UNPLANNED_DONE,
    ProtectionState.PLANNED_DONE,
    ProtectionState.CHANGE_POINT_DONE,
    ProtectionState.CHANGE_POINT_FAILED,
    ProtectionState.COMMIT_TO_RECOVERY_FAILED,
}

Prepare = Callable[[Session, ItemRow], tuple[engine.Scenario, dict[str, Any]]]


class Vault(VaultApi):
    """The operations of one vault, and the tasks that run in it.

    ``reports`` handles the reports of the other roles.  Methods that start a job return it at once.
    """

    def __init__(
        self,
        url: str,
        *,
        provider: Provider,
        recovery: RecoverySide,
        azure_host: DiskHostControl,
        shut_down: ShutDown,
        check_shut_down: ShutDown | None = None,
        clock: Clock = SYSTEM_CLOCK,
        waits: Waits | None = None,
    ) -> None:
        """Open the vault's database, or make a new one.

        Args:
            url: the database, as SQLAlchemy writes it.
            provider: the provider on the Hyper-V host.
            recovery: the applier with its managed disks.
            azure_host: the disk host of the recovery side.
            shut_down: unmounts and detaches everything that uses these disk files of this host.
            check_shut_down: raises the error that ``shut_down`` would raise, and changes nothing.
            clock: the clock of all times and sleeps.
            waits: the register of the role's waits.
        Raises:
            RigError: ``StateVersion``, ``StateUnreadable``.
        """
        database = VaultDatabase(url)
        context = VaultContext(
            database,
            Notifications(database),
            clock,
            site=provider,
            recovery=recovery,
            azure=azure_host,
            shut_down=shut_down,
            waits=waits or Waits(clock),
            check_shut_down=check_shut_down or no_check,
        )
        self.context = context
        self._repairs = Repairs(context)
        self.reports = ReportHandlers(context, self._repairs)
        self._engine = engine.JobEngine(context, _SCENARIOS)
        self.retention = RetentionWorker(context)
        self.sources = SourceWatch(context)
        self._leases = Leases(context)
        self.watch = StandstillWatch(context, self._repairs)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover the jobs that a kill interrupted, then run jobs until cancelled; operations need its start."""
        with suppress(RigError):  # the host's disk is full: the clock is stored later, when there is room
            await self.context.database.transact(lambda session: rig_clock.advance(session, self.context.clock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leases.run)
            nursery.start_soon(self._repairs.run)
            await self._engine.run(task_status)

    async def watch_standstill(self) -> None:
        """Watch for waits, roles and data that stand still, until cancelled."""
        await self.watch.run()

    async def run_policies(self) -> None:
        """Prune recovery points at intervals, and watch the disks at the site of VMs that failed over, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sources.run)
            await self.retention.run()

    def close(self) -> None:
        """Close the database; call it after :meth:`run` has ended."""
        self.context.database.close()

    # ---- virtual machines

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> Vm:
        azure_vms.check_vm_name(vm)
        made = await self.context.retry_while_away(
            "create VM", vm, lambda: self.context.site.create_vm(vm=vm, disks=disks), repeatable=False
        )
        made_vm = Vm(name=vm, side="site", state=inventory.UNPROTECTED, disks=[azure_vms.to_vm_disk(disk) for disk in made])
        try:
            await self.context.database.transact(lambda session: inventory.cache_vm(session, made_vm))
        except RigError as error:
            # The VM exists, and list_vms records it later.
            if error.code != Code.DiskFull:
                raise
        return made_vm

    async def list_vms(self) -> list[Vm]:
        return await inventory.list_fabric(self.context, "site") + await inventory.list_fabric(self.context, "azure")

    async def delete_vm(self, *, vm: str, side: Side | None = None) -> Job:
        if side is None:
            sides = await vm_tasks.sides_of(self.context, vm)
            if not sides:
                known = ", ".join(sorted({found.name for found in await self.list_vms()})) or "none"
                text = f"there is no VM {vm!r}; VMs: {known}; one whose disks cannot be opened is not listed"
                raise RigError(Code.VmNotFound, f"{text}: name its side with --side site or --side azure")
            if len(sides) > 1:
                raise RigError(
                    Code.BadRequest,
                    f"both sides have a VM {vm!r}: select one with --side site or --side azure",
                )
            (side,) = sides

        def begin(session: Session) -> Job:
            vm_tasks.require_deletable(session, vm, side)
            variables = vm_tasks.variables_of_delete(side)
            return engine.to_wire(engine.enqueue(session, vm_tasks.DELETE, vm, variables, self.context.clock.wall_ns()))

        return self._started(await self.context.database.transact(begin))

    async def rename_vm(self, *, vm: str, name: str) -> Job:
        azure_vms.check_vm_name(name)
        if name == vm:
            raise RigError(Code.VmExists, f"VM {vm!r} is to be renamed to {name!r}: the names are the same")
        sides = await vm_tasks.sides_of(self.context, vm)

        def begin(session: Session) -> Job:
            if not sides and session.get(ItemRow, vm) is None:
                raise RigError(Code.VmNotFound, f"there is no VM {vm!r}")
            vm_tasks.require_renamable(session, vm, name)
            variables = vm_tasks.variables_of_rename(name)
            return engine.to_wire(engine.enqueue(session, vm_tasks.RENAME, vm, variables, self.context.clock.wall_ns()))

        return self._started(await self.context.database.transact(begin))

    # ---- protection

    async def enable_protection(
        self, *, vm: str, interval_s: float, app_consistent_every_s: float | None = None, history_hours: int = HOURS_DEFAULT
    ) -> Job:
        protection_tasks.check_policy(interval_s, app_consistent_every_s)
        check_hours(history_hours)
        disks = await self.context.retry_while_away("protect", vm, lambda: inventory.site_disks(self.context, vm))
        disk_limits.check(vm, disks)
        disk_limits.check_chains(disks)

        def begin(session: Session) -> Job:
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
            now_ns = self.context.clock.wall_ns()
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

        return self._started(await self.context.database.transact(begin))

    async def disable_protection(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.DISABLING
            return protection_tasks.DISABLE, {}

        try:
            await preflight.can_remove_all(self.context, vm)
        except RigError as error:
            if self.context.roles.role_cause(error) is None:
                raise  # otherwise a role is away: the job waits for it and checks again
        # While there is a test VM the operation is refused, so no job is stopped.
        await self._stop(
            vm, "unprotect", _STOPPED_BY_DISABLE, lambda _session, item: item.test_failover_state != TEST_COMPLETED
        )
        return await self._begin(vm, Operation.DISABLE, prepare)

    async def reprotect(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.REPROTECT
            return protection_tasks.REPROTECT, {}

        return await self._begin(vm, Operation.REPROTECT, prepare)

    async def resync(self, *, vm: str) -> Job:
        return await self._begin(vm, Operation.RESYNC, lambda _session, _item: (protection_tasks.REPAIR, {}))

    async def items(self) -> list[ProtectedItem]:
        def look(session: Session) -> list[ProtectedItem]:
            elapsed_ns, full = rig_clock.elapsed_ns(session, self.context.clock), self.context.database.full
            items = session.scalars(select(ItemRow).order_by(ItemRow.vm))
            return [
                health.describe(
                    session,
                    item,
                    elapsed_ns,
                    self.context.lag,
                    unwritable=full,
                    observed=self.sources.health_errors(item.vm),
                )
                for item in items
            ]

        return await self.context.database.transact(look)

    async def progress(self, *, vm: str) -> VmProgress:
        found = await self._engine.progress(vm)
        # Without a job the VM can be one that the site is creating.
        return found if found is not None else await self.context.site.progress(vm=vm)

    async def managed_disks(self) -> list[ManagedDisk]:
        def look(session: Session) -> list[ManagedDisk]:
            rows = session.scalars(select(DiskRow).order_by(DiskRow.vm, DiskRow.name))
            return [ManagedDisk(vm=row.vm, name=row.name, disk_id=row.disk_id) for row in rows]

        return await self.context.database.transact(look)

    # ---- recovery points

    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
        def look(session: Session) -> list[RecoveryPoint]:
            find_item(session, vm)
            return points.available(session, vm, limit)

        return await self.context.database.transact(look)

    async def mount_point(
        self,
        *,
        vm: str,
        point: str | None = None,
        position: int | None = None,
        time: str | None = None,
        name: str | None = None,
        process: HostProcess | None = None,
    ) -> MountedPoint:
        async with nullcontext() if process is None else self._leases.lease(process):
            return await self.context.retry_while_away(
                "mount point",
                vm,
                lambda: mounts.mount(
                    self.context, vm, point=point, position=position, time=time, name=name, process=process
                ),
            )

    async def unmount_point(self, *, vm: str, name: str) -> None:
        await self.context.retry_while_away("unmount point", vm, lambda: mounts.unmount(self.context, vm, name))

    async def mounted_points(self, *, vm: str) -> list[MountedPoint]:
        return await mounts.mounted(self.context, vm)

    async def open_copy(self, *, vm: str, name: str, position: int, process: HostProcess) -> Vm:
        async with self._leases.lease(process):
            return await self.context.retry_while_away(
                "open copy", vm, lambda: azure_vms.open_copy(self.context, vm, name, position, process)
            )

    async def remove_copy(self, *, vm: str, name: str) -> None:
        await self.context.retry_while_away("remove copy", vm, lambda: azure_vms.remove_copy(self.context, vm, name))

    async def create_point(self, *, vm: str, kind: TagKind, name: str) -> RecoveryPoint:
        selectors.check_name(name)

        def look(session: Session) -> None:
            item = find_item(session, vm)
            engine.require_no_job(session, vm)
            require(item, Operation.CREATE_POINT)
            points.check_new_name(session, vm, name)

        await self.context.database.transact(look)
        cut = await self._cut_point(vm, kind, name)

        def there(session: Session) -> RecoveryPoint | None:
            find_item(session, vm)
            point = points.find_available(session, cut.tag_id)
            if point is None:
                self.context.roles.require("agent", "azurite", "applier")
                protection_tasks.raise_blocking_error(session, vm)
            if point is None:
                return None
            point.downgraded_because = cut.downgraded_because  # the report of the agent may not have arrived
            return points.to_wire(point)

        with self.context.awaiting_apply(vm, f"recovery point {name!r} of VM {vm!r} is sent and not applied yet"):
            await self._apply_again(vm)
            return await self.context.notifications.wait_until(vm, there)

    async def _apply_again(self, vm: str) -> None:
        """Let the applier try again what it refused: the agent has just reached the account, so the reason may be gone."""

        def refused(session: Session) -> list[str]:
            is_refused = health.apply_error(session, vm) is not None
            return [disk.disk_id for disk in find_item(session, vm).disks] if is_refused else []

        if disk_ids := await self.context.database.transact(refused):
            with suppress(RigError):  # the wait for the point finds what is wrong now
                await self.context.recovery.process_latest(disk_ids=disk_ids)

    async def _cut_point(self, vm: str, kind: TagKind, name: str) -> CutInfo:
        """Take one cut, also if a role is away meanwhile; two points of one name would be ambiguous."""
        request_id = str(uuid.uuid4())
        try:
            return await self.context.retry_while_away(
                "take point",
                vm,
                lambda: self.context.site.replicate_now(vm=vm, kind=kind, name=name, request_id=request_id),
                repeatable=False,
            )
        except RigError as error:
            if not error.uncertain:
                raise
            text = f"{error.message}; it is not known whether the recovery point was taken: see siterig points {vm}"
            raise RigError(error.code, text, recoverable=True, role=error.role, uncertain=True) from error

    # ---- failover

    async def test_failover(self, *, vm: str, point: str) -> Job:
        selected = await self._select_point(vm, point)

        def prepare(session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            variables = selected.variables(session)
            item.test_failover_state = TEST_INITIATED
            return failover_tasks.TEST, variables

        return await self._begin(vm, Operation.TEST, prepare)

    async def _select_point(self, vm: str, choice: str) -> FailoverPoint:
        between = await self.context.retry_while_away(
            "choose point", vm, lambda: mounts.between_points(self.context, vm, choice)
        )
        return FailoverPoint(vm, choice, between)

    async def cleanup_test_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.test_failover_state = TEST_CLEANUP
            return failover_tasks.CLEANUP, {}

        return await self._begin(vm, Operation.CLEANUP, prepare)

    async def unplanned_failover(self, *, vm: str, point: str, source_actions: bool = False) -> Job:
        selected = await self._select_point(vm, point)

        def prepare(session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            variables = selected.variables(session)
            change = item.protection_state in _COMMIT_PENDING
            item.protection_state = ProtectionState.CHANGE_POINT if change else ProtectionState.UNPLANNED
            return failover_tasks.UNPLANNED, variables | {"source_actions": source_actions, "change": change}

        await self._stop(vm, "failover unplanned", _STOPPED_BY_UNPLANNED, lambda session, _item: selected.check(session))
        return await self._begin(vm, Operation.UNPLANNED, prepare)

    async def planned_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.PLANNED
            return failover_tasks.PLANNED, {}

        return await self._begin(vm, Operation.PLANNED, prepare)

    async def commit_failover(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            if item.active_location == RECOVERY:
                item.protection_state = ProtectionState.COMMIT_TO_PRIMARY
                return failback_tasks.COMMIT, {}
            item.protection_state = ProtectionState.COMMIT_TO_RECOVERY
            return failover_tasks.COMMIT, {}

        return await self._begin(vm, Operation.COMMIT, prepare)

    async def failback(self, *, vm: str) -> Job:
        def prepare(_session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, Any]]:
            item.protection_state = ProtectionState.PLANNED
            return failback_tasks.FAILBACK, {}

        return await self._begin(vm, Operation.FAILBACK, prepare)

    # ---- jobs and events

    async def jobs(self) -> list[Job]:
        def look(session: Session) -> list[Job]:
            return [self._job_to_wire(row) for row in session.scalars(select(JobRow).order_by(JobRow.id.desc()))]

        return await self.context.database.transact(look)

    async def job(self, *, name: str) -> Job:
        def look(session: Session) -> Job:
            known = short_ids.find("job", name, session.scalars(select(JobRow.name)))
            row = session.scalars(select(JobRow).where(JobRow.name == known)).one_or_none()
            if row is None:
                raise RigError(Code.JobNotFound, f"there is no job {name!r}; see the list of jobs for their names")
            return self._job_to_wire(row)

        return await self.context.database.transact(look)

    def _job_to_wire(self, row: JobRow) -> Job:
        return engine.to_wire(row, self._engine.waiting_for(row.name))

    async def events(self) -> list[Event]:
        return await self.context.database.transact(events.list_events)

    # ---- how an operation begins

    async def _begin(self, vm: str, operation: Operation, prepare: Prepare) -> Job:
        def begin(session: Session) -> Job:
            item = find_item(session, vm)
            engine.require_no_job(session, vm)
            require(item, operation)
            before = {"protection_state": item.protection_state, "test_failover_state": item.test_failover_state}
            scenario, variables = prepare(session, item)
            variables |= {engine.BEFORE: before}
            return engine.to_wire(engine.enqueue(session, scenario, vm, variables, self.context.clock.wall_ns()))

        return self._started(await self.context.database.transact(begin))

    def _started(self, job: Job) -> Job:
        self._engine.start(job.name)
        self.context.notifications.notify(job.targetObjectName)
        return job

    async def _stop(self, vm: str, operation: str, keys: set[str], may: Callable[[Session, ItemRow], bool]) -> None:
        def look(session: Session) -> str | None:
            job = engine.open_job(session, vm)
            return job.name if job is not None and job.key in keys and may(session, find_item(session, vm)) else None

        name = await self.context.database.transact(look)
        if name is not None:
            await self._engine.cancel(name, operation)
