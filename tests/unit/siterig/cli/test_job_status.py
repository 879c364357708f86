"""The exit status of a command whose job has ended."""

from __future__ import annotations

import pytest

from siterig.azure_emu.vault.model.job_parts import JobError
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core.errors import ExitStatus
from siterig.cli.commands.operations import job_status


def ended(state: str, *codes: str) -> Job:
    errors = [JobError(code=code, message="why") for code in codes]
    return Job.model_construct(state=state, errors=errors)


@pytest.mark.parametrize("code", ["RoleFailed", "RoleHeld", "RoleHung", "RoleUnavailable"])
def test_a_job_that_failed_for_a_role_ends_as_a_call_to_that_role_does(code: str) -> None:
    assert job_status(ended("Failed", "VmBusy", code)) == ExitStatus.NOT_UP


@pytest.mark.parametrize("code", ["VmBusy", "VmExists", "CacheUnreachable"])
def test_a_job_that_failed_for_another_reason_is_a_failed_operation(code: str) -> None:
    assert job_status(ended("Failed", code)) == ExitStatus.FAILED


def test_the_errors_of_a_job_that_succeeded_are_remarks() -> None:
    assert job_status(ended("Succeeded", "RoleUnavailable")) == ExitStatus.OK
