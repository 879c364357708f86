"""The questions about protected items, their progress, jobs and events; they change nothing."""

from __future__ import annotations

from contextlib import suppress

import trio
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import DiskRow, JobRow
from siterig.azure_emu.vault.jobs import engine, job_wire
from siterig.azure_emu.vault.model.api import StatusApi
from siterig.azure_emu.vault.model.resources import Event, Job, JobState, ManagedDisk, ProtectedItem
from siterig.azure_emu.vault.monitoring import health, item_facts
from siterig.azure_emu.vault.monitoring.item_facts import ItemFacts
from siterig.azure_emu.vault.monitoring.source_watch import SourceWatch
from siterig.azure_emu.vault.mounts.mounts import parse_time
from siterig.azure_emu.vault.operations.jobs import find_job
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.progress import VmProgress

_WHOLE_JOB = (selectinload(JobRow.tasks), selectinload(JobRow.errors))
"""A list of jobs is read by three statements, and its rows are used after the transaction."""


class VaultStatus(StatusApi):
    """The state of one vault: ``engine`` knows the running jobs, and ``sources`` the disks of VMs that failed over."""

    def __init__(self, context: VaultContext, jobs: engine.JobEngine, sources: SourceWatch) -> None:
        self._context = context
        self._engine = jobs
        self._sources = sources

    async def items(self) -> list[ProtectedItem]:
        known = await item_facts.of_all(self._context.database)
        elapsed_ns = rig_clock.elapsed_at(known.clock, self._context.clock)
        return [self.describe(facts, elapsed_ns) for facts in known.items]

    def describe(self, facts: ItemFacts, elapsed_ns: int) -> ProtectedItem:
        """Return an item in the form of the API; ``elapsed_ns``: the rig's clock."""
        return health.describe(
            facts,
            elapsed_ns,
            self._context.lag,
            unwritable=self._context.database.full,
            observed=self._sources.health_errors(facts.item.vm),
        )

    async def progress(self, *, vm: str) -> VmProgress:
        found = await self._engine.progress(vm)
        # Without a job the VM can be one that the site is creating.
        return found if found is not None else await self._context.site.progress(vm=vm)

    async def managed_disks(self) -> list[ManagedDisk]:
        def look(session: Session) -> list[ManagedDisk]:
            rows = session.scalars(select(DiskRow).order_by(DiskRow.vm, DiskRow.name))
            return [ManagedDisk(vm=row.vm, name=row.name, disk_id=row.disk_id) for row in rows]

        return list(await self._context.database.known("managed disks", look))

    async def jobs(
        self,
        *,
        vm: str | None = None,
        state: JobState | None = None,
        since: str | None = None,
        with_progress: bool = False,
    ) -> list[Job]:
        since_ns = None if since is None else parse_time(since)

        def look(session: Session) -> list[JobRow]:
            query = select(JobRow).order_by(JobRow.id.desc()).options(*_WHOLE_JOB)
            if vm is not None:
                query = query.where(JobRow.vm == vm)
            if state is not None:
                query = query.where(JobRow.state == state)
            if since_ns is not None:
                query = query.where(JobRow.start_ns >= since_ns)
            return list(session.scalars(query))

        rows = await self._context.database.known(("jobs", vm, state, since_ns), look)
        found = [self.job_to_wire(row) for row in rows]
        return await self._with_progress(found) if with_progress else found

    async def job(self, *, name: str, with_progress: bool = False) -> Job:
        def look(session: Session) -> Job:
            return self.job_to_wire(find_job(session, name))

        found = await self._context.database.transact(look)
        return (await self._with_progress([found]))[0] if with_progress else found

    async def events(self, *, vm: str | None = None, since: str | None = None, with_points: bool = False) -> list[Event]:
        since_ns = None if since is None else parse_time(since)
        return await self._context.database.transact(
            lambda session: events.list_events(session, vm, since_ns=since_ns, with_points=with_points)
        )

    def job_to_wire(self, row: JobRow) -> Job:
        """Return a job in the form of the API."""
        found = job_wire.to_wire(row, self._engine.waiting_for(row.name), cancellable=self._engine.is_cancellable(row.name))
        if row.end_ns is not None:
            return found
        return found.model_copy(update={"duration_s": max(0, self._context.clock.wall_ns() - row.start_ns) / SECOND_NS})

    async def _with_progress(self, jobs: list[Job]) -> list[Job]:
        """Add the progress of the jobs that have not ended; a role that does not answer leaves it out."""
        known: dict[str, VmProgress] = {}

        async def ask(job: Job) -> None:
            with suppress(RigError):
                progress = await self._engine.progress(job.vm)
                if progress is not None and progress.phase is not None:
                    known[job.name] = progress

        async with trio.open_nursery() as nursery:
            for job in jobs:
                if job.endTime is None:
                    nursery.start_soon(ask, job)
        return [job.model_copy(update={"progress": known.get(job.name)}) for job in jobs]
