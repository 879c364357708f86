"""Everything about one protected VM, and the wait for changes; nothing here changes anything.

The vault's own figures are read in one transaction.  The other roles are asked at the same time, and each answer has a
limit: a role that hangs leaves its values out, and is named.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import ManagedDiskState
from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.change_feed import ChangeFeed
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, ItemRow, JobRow
from siterig.azure_emu.vault.jobs import engine
from siterig.azure_emu.vault.model.resources import Event, Job, ProtectedItem, Vm
from siterig.azure_emu.vault.model.vm_status import (
    ChangeCount,
    DiskReplication,
    ObservationApi,
    PointSummary,
    RecoverySideVm,
    UnansweredRole,
    VmStatus,
)
from siterig.azure_emu.vault.monitoring import health, item_facts
from siterig.azure_emu.vault.operations.metrics import VaultMetrics
from siterig.azure_emu.vault.operations.status import VaultStatus
from siterig.azure_emu.vault.points import points
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress

T = TypeVar("T")

ANSWER_S = 2.0
"""The time that another role has to answer."""
EVENTS_SHOWN = 5
_FAILOVER_JOBS_READ = 20
"""The newest failovers of a VM in which the time of its recovered VMs is looked for."""
_APP_CONSISTENT = "ApplicationConsistent"


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The vault's own figures."""

    item: ProtectedItem
    disks: list[DiskReplication]
    points: PointSummary
    recovery_vms: list[RecoverySideVm]
    job: Job | None
    events: list[Event]


@dataclass(slots=True)
class _Answers:
    """The answers of the other roles."""

    site: dict[str, DiskInfo] = field(default_factory=dict)
    managed: dict[str, ManagedDiskState] = field(default_factory=dict)
    account: dict[str, int] = field(default_factory=dict)
    progress: VmProgress | None = None
    unanswered: dict[str, str] = field(default_factory=dict)


class ObservationOperations(ObservationApi):
    """The observation of the protected VMs of one vault; ``folder`` is on the file system of the rig."""

    def __init__(self, context: VaultContext, status: VaultStatus, changes: ChangeFeed, folder: Path) -> None:
        self._context = context
        self._status = status
        self._changes = changes
        self._metrics = VaultMetrics(context, status, folder)

    async def metrics(self) -> str:
        return await self._metrics.text()

    async def wait_for_change(self, *, epoch: str, after: int, patience_s: float) -> ChangeCount:
        return await self._changes.wait(epoch=epoch, after=after, patience_s=patience_s)

    async def vm_status(self, *, vm: str) -> VmStatus:
        recorded = await self._context.database.transact(lambda session: self._recorded(session, vm))
        answers = await self._ask(vm, [disk.disk_id for disk in recorded.disks])
        site_free = [disk.free_bytes for disk in answers.site.values() if disk.free_bytes is not None]
        recovery_free = [state.free_bytes for state in answers.managed.values() if state.free_bytes is not None]
        return VmStatus(
            item=recorded.item,
            disks=[_with_answers(disk, answers) for disk in recorded.disks],
            points=recorded.points,
            progress=answers.progress,
            recovery_vms=recorded.recovery_vms,
            site_free_bytes=min(site_free, default=None),
            recovery_free_bytes=min(recovery_free, default=None),
            job=recorded.job,
            events=recorded.events,
            unanswered=[UnansweredRole(role=role, reason=why) for role, why in sorted(answers.unanswered.items())],
        )

    # ---- the vault's own figures

    def _recorded(self, session: Session, vm: str) -> _Recorded:
        item = find_item(session, vm)
        elapsed_ns = rig_clock.elapsed_ns(session, self._context.clock)
        job = engine.open_job(session, vm)
        return _Recorded(
            item=self._status.describe(item_facts.read(session, item), elapsed_ns),
            disks=[self._disk(item, disk) for disk in item.disks],
            points=_points(session, vm, elapsed_ns),
            recovery_vms=self._recovery_vms(session, vm),
            job=None if job is None else self._status.job_to_wire(job),
            events=events.list_events(session, vm, EVENTS_SHOWN),
        )

    def _disk(self, item: ItemRow, disk: DiskRow) -> DiskReplication:
        return DiskReplication(
            name=disk.name,
            disk_id=disk.disk_id,
            size_bytes=disk.size_bytes,
            generation=disk.generation,
            applied_position=disk.complete_position,
            applied_lag_s=health.applied_lag(item, disk),
            unapplied_bytes=self._context.lag.waiting_bytes([disk.disk_id]),
        )

    def _recovery_vms(self, session: Session, vm: str) -> list[RecoverySideVm]:
        failovers = select(JobRow).where(JobRow.vm == vm, JobRow.scenario.like("%Failover"), JobRow.state == "Succeeded")
        newest = session.scalars(failovers.order_by(JobRow.id.desc()).limit(_FAILOVER_JOBS_READ))
        ready_ns: dict[str, int] = {}
        for job in newest:
            if job.result_vm is not None and job.end_ns is not None:
                ready_ns.setdefault(Vm.model_validate(job.result_vm).name, job.end_ns)
        now_ns = self._context.clock.wall_ns()
        return [
            RecoverySideVm(
                vm=row.name,
                kind=cast("Literal['TestFailover', 'Recovered', 'Copy']", row.kind),
                age_s=max(0.0, (now_ns - ready_ns[row.name]) / SECOND_NS) if row.name in ready_ns else None,
            )
            for row in session.scalars(select(AzureVmRow).where(AzureVmRow.owner == vm).order_by(AzureVmRow.name))
        ]

    # ---- the other roles

    async def _ask(self, vm: str, disk_ids: list[str]) -> _Answers:
        answers = _Answers()

        async def ask(role: str, question: Callable[[], Awaitable[None]]) -> None:
            reason = self._context.roles.role_error(role)
            if reason is None:
                reason = RigError(Code.RoleUnavailable, f"role {role} did not answer within {ANSWER_S:g} s")
                with self._context.clock.real.move_on_after(ANSWER_S):
                    try:
                        return await question()
                    except RigError as error:
                        reason = error
            answers.unanswered[role] = reason.message
            return None

        async def disks_of_site() -> None:
            answers.site = {disk.name: disk for disk in await self._context.site.list_vms() if disk.vm == vm}

        async def progress() -> None:
            answers.progress = await self._context.site.progress(vm=vm)

        async def managed_disk(disk_id: str) -> None:
            answers.managed[disk_id] = await self._context.recovery.disk_state(disk_id=disk_id)
            answers.account[disk_id] = await self._context.recovery.account_bytes(disk_id=disk_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "agent", disks_of_site)
            nursery.start_soon(ask, "agent", progress)
            for disk_id in disk_ids:
                nursery.start_soon(ask, "applier", partial(managed_disk, disk_id))
        return answers


def _with_answers(disk: DiskReplication, answers: _Answers) -> DiskReplication:
    """Return a disk with the values of the other roles, as far as they answered."""
    values: dict[str, object] = {"account_bytes": answers.account.get(disk.disk_id)}
    if (at_site := answers.site.get(disk.name)) is not None:
        values |= {
            "unsent_log_bytes": at_site.unsent_log_bytes,
            "log_bytes_max": at_site.log_bytes_max,
            "dirty_bytes": at_site.dirty_bytes,
            "snapshot_bytes": at_site.snapshot_bytes,
            "snapshot_bytes_max": at_site.snapshot_bytes_max,
            "open_handles": at_site.open_handles,
        }
    if (managed := answers.managed.get(disk.disk_id)) is not None:
        values |= {"base_bytes": managed.base_bytes, "journal_bytes": managed.journal_bytes}
    return disk.model_copy(update=values)


def _points(session: Session, vm: str, elapsed_ns: int) -> PointSummary:
    def age_s(kind: str | None = None) -> float | None:
        newest_ns = points.newest_elapsed_ns(session, vm, kind)
        return None if newest_ns is None else max(0.0, (elapsed_ns - newest_ns) / SECOND_NS)

    return PointSummary(
        count=points.count(session, vm),
        newest=points.newest(session, vm),
        newest_age_s=age_s(),
        newest_app_consistent=points.newest(session, vm, _APP_CONSISTENT),
        newest_app_consistent_age_s=age_s(_APP_CONSISTENT),
        oldest=points.oldest(session, vm),
    )
