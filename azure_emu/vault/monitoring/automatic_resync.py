"""The automatic resync of a VM: whether the last one failed, so that an administrator must act."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import JobRow

AUTOMATIC = "automatic"
"""Key of a job's variables: the job was not ordered by a person."""
_KEYS = ("enable", "reprotect", "repair")
"""The jobs after which an earlier failure does not count."""


def failure(session: Session, vm: str) -> JobRow | None:
    """Return the last job that made both sides equal, if it was an automatic resync and failed; otherwise None."""
    newest = select(JobRow).where(JobRow.vm == vm, JobRow.key.in_(_KEYS)).order_by(JobRow.id.desc()).limit(1)
    job = session.scalars(newest).one_or_none()
    failed = job is not None and job.state == "Failed" and AUTOMATIC in job.variables
    return job if failed else None
