"""The questions about protected items, their progress, jobs and events; they change nothing."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow, JobRow
from siterig.azure_emu.vault.jobs import engine
from siterig.azure_emu.vault.model.api import Event, Job, ManagedDisk, ProtectedItem, StatusApi
from siterig.azure_emu.vault.monitoring import health
from siterig.azure_emu.vault.monitoring.source_watch import SourceWatch
from siterig.azure_emu.vault.operations.jobs import find_job
from siterig.blockfs.core.progress import VmProgress


class VaultStatus(StatusApi):
    """The state of one vault: ``engine`` knows the running jobs, and ``sources`` the disks of VMs that failed over."""

    def __init__(self, context: VaultContext, jobs: engine.JobEngine, sources: SourceWatch) -> None:
        self._context = context
        self._engine = jobs
        self._sources = sources

    async def items(self) -> list[ProtectedItem]:
        def look(session: Session) -> list[ProtectedItem]:
            elapsed_ns = rig_clock.elapsed_ns(session, self._context.clock)
            return [
                self.describe(session, item, elapsed_ns) for item in session.scalars(select(ItemRow).order_by(ItemRow.vm))
            ]

        return await self._context.database.transact(look)

    def describe(self, session: Session, item: ItemRow, elapsed_ns: int) -> ProtectedItem:
        """Return an item in the form of the API; ``elapsed_ns``: the rig's clock."""
        return health.describe(
            session,
            item,
            elapsed_ns,
            self._context.lag,
            unwritable=self._context.database.full,
            observed=self._sources.health_errors(item.vm),
        )

    async def progress(self, *, vm: str) -> VmProgress:
        found = await self._engine.progress(vm)
        # Without a job the VM can be one that the site is creating.
        return found if found is not None else await self._context.site.progress(vm=vm)

    async def managed_disks(self) -> list[ManagedDisk]:
        def look(session: Session) -> list[ManagedDisk]:
            rows = session.scalars(select(DiskRow).order_by(DiskRow.vm, DiskRow.name))
            return [ManagedDisk(vm=row.vm, name=row.name, disk_id=row.disk_id) for row in rows]

        return await self._context.database.transact(look)

    async def jobs(self) -> list[Job]:
        def look(session: Session) -> list[Job]:
            return [self.job_to_wire(row) for row in session.scalars(select(JobRow).order_by(JobRow.id.desc()))]

        return await self._context.database.transact(look)

    async def job(self, *, name: str) -> Job:
        def look(session: Session) -> Job:
            return self.job_to_wire(find_job(session, name))

        return await self._context.database.transact(look)

    async def events(self) -> list[Event]:
        return await self._context.database.transact(events.list_events)

    def job_to_wire(self, row: JobRow) -> Job:
        """Return a job in the form of the API."""
        return engine.to_wire(row, self._engine.waiting_for(row.name), cancellable=self._engine.is_cancellable(row.name))
