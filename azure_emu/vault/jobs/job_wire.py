"""Jobs in the form of the API, from their rows: with waits, calls to the Provider, causes and recommended actions."""

from __future__ import annotations

from typing import Any, cast

from siterig.azure_emu.vault.db.schema import JobRow
from siterig.azure_emu.vault.model.job_parts import JobError, ProviderCall
from siterig.azure_emu.vault.model.resources import Job, JobState, RecoveryPoint, Task, Vm
from siterig.blockfs.core.clock import rfc3339, rfc3339_or_none
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code
from siterig.blockfs.core.progress import CopyTotals

WAITS_FOR = "waits_for"
"""The key of a job's variables with the reason for which its task in progress waits by itself."""
CALLS = "provider_calls"
"""The key of a job's variables with its calls to the Provider (:mod:`siterig.azure_emu.vault.jobs.provider_calls`)."""
CHOICE, COPIED = "choice", "copied"
"""Keys of a job's variables: the point that was chosen for a failover; the figures of the copy that the job made."""


def to_wire(job: JobRow, waiting_for: str | None = None, *, cancellable: bool = True) -> Job:
    """Return the job in the form of the API.

    Args:
        job: the job.
        waiting_for: the reason for which the task in progress waits.
        cancellable: False if the task in progress must be completed; the first task of each scenario can be cancelled.
    """
    point = None if job.result_point is None else RecoveryPoint.model_validate(job.result_point)
    return Job(
        name=job.name,
        scenarioName=job.scenario,
        friendlyName=job.friendly_name,
        state=cast("JobState", job.state),
        stateDescription=job.state_description,
        targetObjectName=job.vm,
        vm=job.vm,
        startTime=rfc3339_or_none(job.start_ns),
        endTime=rfc3339_or_none(job.end_ns),
        allowedActions=["Cancel"] if job.end_ns is None and cancellable else [],
        tasks=[
            Task(
                name=task.name,
                friendlyName=task.friendly_name,
                state=cast("JobState", task.state),
                stateDescription=task.state_description,
                startTime=rfc3339_or_none(task.start_ns),
                endTime=rfc3339_or_none(task.end_ns),
                waiting_for=(waiting_for or job.variables.get(WAITS_FOR)) if task.state == "InProgress" else None,
                provider_calls=[
                    _call_to_wire(each) for each in job.variables.get(CALLS, []) if each["task"] == task.ordinal
                ],
            )
            for task in job.tasks
        ],
        errors=[_error(error.code, error.message) for error in job.errors],
        result=None if job.result_vm is None else Vm.model_validate(job.result_vm),
        recovery_point=point,
        duration_s=None if job.end_ns is None else (job.end_ns - job.start_ns) / SECOND_NS,
        chosen_point=job.variables.get(CHOICE),
        rpo_s=rpo_s(job, point),
        copied=CopyTotals.model_validate(job.variables[COPIED]) if COPIED in job.variables else None,
    )


def rpo_s(job: JobRow, point: RecoveryPoint | None) -> float | None:
    """Return the age of the state of a failover when the job began, by wall time; None for every other job."""
    return None if point is None else max(0, job.start_ns - point.time_ns) / SECOND_NS


def _call_to_wire(entry: dict[str, Any]) -> ProviderCall:
    return ProviderCall(
        name=entry["name"],
        startTime=rfc3339(entry["start_ns"]),
        endTime=rfc3339_or_none(entry["end_ns"]),
        attempts=entry["attempts"],
        error=entry["error"],
    )


def _error(code: str, message: str) -> JobError:
    known = Code.of(code)
    return JobError(code=code, message=message, possibleCauses=known.text, recommendedAction=known.remedy)
