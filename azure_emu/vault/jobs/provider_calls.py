"""The calls of a job's tasks to the Provider that have official names, recorded in the job and in the log.

They are kept in the variables of the job, one entry for each task and call.  A task that is run again, after a kill or while
a role was away, repeats its call: ``attempts`` counts that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from siterig.azure_emu.vault.jobs.engine import JobContext
from siterig.azure_emu.vault.jobs.job_wire import CALLS
from siterig.blockfs.core.errors import Code, RigError

CREATE_RELATIONSHIP = "CreateReplicationRelationship"
START_REPLICATION = "StartReplication"

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def provider_call(job: JobContext, name: str) -> AsyncIterator[None]:
    """Record a call to the Provider, for the time of the block; its error, if it fails, stands beside it."""
    known = {entry["name"]: entry for entry in job.variables.get(CALLS, []) if entry["task"] == job.task}
    former = known.get(name, {"start_ns": job.context.clock.wall_ns(), "attempts": 0})
    entry = {
        "task": job.task,
        "name": name,
        "start_ns": former["start_ns"],
        "end_ns": None,
        "attempts": former["attempts"] + 1,
        "error": None,
    }
    await _save(job, entry)
    _log.info("provider_call", vm=job.vm, call=name, attempt=entry["attempts"])
    try:
        yield
    except RigError as error:
        if error.code != Code.RoleUnavailable:
            await _save(job, entry | {"end_ns": job.context.clock.wall_ns(), "error": str(error.code)})
        _log.warning("provider_call_failed", vm=job.vm, call=name, code=error.code, message=error.message)
        raise
    await _save(job, entry | {"end_ns": job.context.clock.wall_ns()})
    _log.info("provider_call_ended", vm=job.vm, call=name)


async def _save(job: JobContext, entry: dict[str, Any]) -> None:
    others = [
        each for each in job.variables.get(CALLS, []) if (each["task"], each["name"]) != (entry["task"], entry["name"])
    ]
    job.variables[CALLS] = [*others, entry]
    await job.save_variables()
