"""The operations on jobs."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import JobRow
from siterig.azure_emu.vault.jobs import engine, job_wire
from siterig.azure_emu.vault.model.api import JobApi
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core import short_ids
from siterig.blockfs.core.errors import Code, RigError


def find_job(session: Session, name: str) -> JobRow:
    """Return the job of this name, or the only one whose name begins with it.

    Raises:
        RigError: ``JobNotFound``, ``AmbiguousId``.
    """
    known = short_ids.find("job", name, session.scalars(select(JobRow.name)))
    row = session.scalars(select(JobRow).where(JobRow.name == known)).one_or_none()
    if row is None:
        raise RigError(Code.JobNotFound, f"there is no job {name!r}; see the list of jobs for their names")
    return row


class JobOperations(JobApi):
    """The operations on the jobs of one vault."""

    def __init__(self, context: VaultContext, jobs: engine.JobEngine) -> None:
        self._context = context
        self._engine = jobs

    async def cancel_job(self, *, name: str) -> Job:
        row = await self._context.database.transact(lambda session: find_job(session, name))
        if row.end_ns is None:
            await self._engine.cancel_for_user(row.name)
            row = await self._context.database.transact(lambda session: find_job(session, row.name))
        if row.end_ns is None:
            raise RigError(Code.JobInProgress, f"job {row.name} is being started; cancel it again", recoverable=True)
        if row.state in ("Succeeded", "Failed"):
            raise RigError(
                Code.InvalidState,
                f"job {row.name} ({row.friendly_name}) of VM {row.vm!r} has ended: its state is {row.state}; allowed: a job "
                "that is InProgress",
            )
        return await self._context.database.transact(lambda session: job_wire.to_wire(find_job(session, row.name)))
