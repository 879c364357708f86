"""A wait for the end of a rig's job."""

from __future__ import annotations

import trio

from siterig.azure_emu.vault.model.resources import Job
from siterig.testing.testbed import Testbed


async def ended(testbed: Testbed, job: Job) -> Job:
    """Wait until a job has succeeded, and return it; for EnableDr wait for the job that follows it, and return that."""
    while job.endTime is None:
        await trio.sleep(0.1)
        job = await testbed.vault.job(name=job.name)
    assert job.state == "Succeeded", job
    if job.scenarioName == "EnableDr":
        return await ended(testbed, next(j for j in await testbed.vault.jobs() if j.scenarioName == "FinalizeProtection"))
    return job
