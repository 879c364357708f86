"""The names of the events of a rig that rules wait for: a closed set, so that a misspelt name is refused, and not awaited.

The names are those of the vault and the supervisor: jobs, tasks, protection states, codes of events.
tests/unit/scenarios/faults/test_moment_names.py compares them with the code.
"""

from __future__ import annotations

import fnmatch
from functools import cache

from siterig.blockfs.core.errors import Code
from siterig.blockfs.documents.nearest import hint

ROLE_CHANGES = ("RoleReady", "RoleEnded")
JOBS = (
    "AddDisks",
    "CommitFailover",
    "DeleteVm",
    "DisableDr",
    "EnableDr",
    "FinalizeProtection",
    "ModifyProtectionProfile",
    "PauseReplication",
    "PlannedFailover",
    "RemoveDisks",
    "RenameVm",
    "RepairVMReplication",
    "ReprotectReplicationGroup",
    "ResumeReplication",
    "TestFailover",
    "TestFailoverCleanup",
    "UnplannedFailover",
    "UpdateVmProperties",
)
JOB_ENDS = ("Started", "Succeeded", "Failed", "Cancelled")
TASKS = (
    "AddDisksTask",
    "BeginTestFailoverTask",
    "BootTestProtectedEntitiesTask",
    "CleanupProtectionTargetTask",
    "CleanupTestProtectedEntitiesTask",
    "CreateProtectionTargetTask",
    "DeleteVmPreflightChecksTask",
    "DeleteVmTask",
    "DisableProtectionTask",
    "EnableProtectionPreflightChecksTask",
    "EnableProtectionTask",
    "EndTestFailoverTask",
    "FailoverTask",
    "ModifyProtectionProfileTask",
    "PauseReplicationTask",
    "PlannedFailoverPreflightChecksTask",
    "PrepareForFailoverTask",
    "PrepareForUnPlannedFailoverTask",
    "PrepareTestProtectedEntitiesTask",
    "RemoveDisksTask",
    "RenameVmPreflightChecksTask",
    "RenameVmTask",
    "RepairVmReplicationTask",
    "ResumeReplicationTask",
    "ShutdownVmOnPrimary",
    "ShutdownVmOnPrimaryForUFO",
    "StartInitialReplicationTask",
    "StartVmOnSecondary",
    "TestFailoverCleanupPreflightChecksTask",
    "TestFailoverPreflightChecksTask",
    "UnplannedFailoverPreflightChecksTask",
    "UpdateDraStateTask",
    "UpdateVmPropertiesTask",
    "VmCommit",
    "VmCommitPrerequisitesCheck",
    "WaitForFirstRecoveryPointTask",
)
TASK_ENDS = (*JOB_ENDS, "Other")
STATES = (
    "ChangeRecoveryPointCompleted",
    "ChangeRecoveryPointFailed",
    "ChangeRecoveryPointInitiated",
    "CommitFailoverCompleted",
    "CommitFailoverFailedOnPrimary",
    "CommitFailoverFailedOnRecovery",
    "CommitFailoverInProgressOnPrimary",
    "CommitFailoverInProgressOnRecovery",
    "DisablingFailed",
    "DisablingProtection",
    "EnablingFailed",
    "EnablingProtection",
    "InitialReplicationCompletedOnPrimary",
    "InitialReplicationCompletedOnRecovery",
    "InitialReplicationFailed",
    "InitialReplicationInProgress",
    "InitialReplicationStarted",
    "PlannedFailoverCompleted",
    "PlannedFailoverFailed",
    "PlannedFailoverInitiated",
    "Protected",
    "ReprotectFailed",
    "ReprotectInitiated",
    "UnplannedFailoverCompleted",
    "UnplannedFailoverFailed",
    "UnplannedFailoverInitiated",
)
"""The protection states, and one further name."""
EVENT_CODES = (
    "AppScriptChanged",
    "AppliedStateBehind",
    "AppScriptRuns",
    "ApplyRecovered",
    "ApplyStalled",
    "AutomaticResyncBegun",
    "AwaitingApply",
    "BandwidthLimitChanged",
    "BandwidthLimited",
    "BlobsSkipped",
    "ClockJumped",
    "DescriptorsExhausted",
    "DiskAttached",
    "DiskResized",
    "DiskSize",
    "DisksAdded",
    "DisksRemoved",
    "EncryptionKeyRestored",
    "EncryptionKeyRevoked",
    "EncryptionKeyRotated",
    "HealthErrorAcknowledged",
    "LogUnsent",
    "MailExpired",
    "MailRefused",
    "MailSentAgain",
    "ManagedDiskDamaged",
    "ManagedDiskWhole",
    "NoRecentRecoveryPoint",
    "PolicyChanged",
    "RecoveryPointCreated",
    "RecoveryPointDeleted",
    "RecoveryPointsPruned",
    "RecoverySideBehind",
    "ReplicationCyclesMissed",
    "ReplicationPaused",
    "ReplicationRecovered",
    "ReplicationResumed",
    "ResyncDue",
    "RigOnlyPolicy",
    "RpoAboveThreshold",
    "ScheduledStart",
    "SourceFenced",
    "SourceInUse",
    "SourceOverwritten",
    "SourceUnfenced",
    "SupervisorSilent",
    "VmPropertiesUpdated",
    "VmProtected",
)
"""Codes of events that are no codes of errors."""


@cache
def event_names() -> frozenset[str]:
    """Return the names of all events, each without the VM or role."""
    jobs = [f"{job}{end}" for job in JOBS for end in JOB_ENDS]
    tasks = [f"{task}{end}" for task in TASKS for end in TASK_ENDS]
    return frozenset((*ROLE_CHANGES, *jobs, *tasks, *STATES, *EVENT_CODES, *Code))


@cache
def recorded_codes() -> frozenset[str]:
    """Return the codes of the events that the vault records (``siterig events``)."""
    return frozenset((*(f"{job}{end}" for job in JOBS for end in JOB_ENDS[1:]), *EVENT_CODES, *Code))


def require_event(pattern: str) -> str:
    """Return a pattern that can match an event: a name, or NAME/SUBJECT with a VM or role.

    Raises:
        ValueError: if no event has such a name.
    """
    kinds = "a job or task with its state, a protection state, the code of an event, RoleReady, RoleEnded"
    return _require(pattern, event_names(), f"a rig has no event {{}}; allowed: {kinds}; a pattern of them")


def require_recorded(pattern: str) -> str:
    """Return a pattern that can match an event that the vault records: CODE, or CODE/VM.

    Raises:
        ValueError: if no such event has such a code.
    """
    return _require(pattern, recorded_codes(), "the vault records no event {}; allowed: the code of an event, a pattern")


def _require(pattern: str, known: frozenset[str], problem: str) -> str:
    name = pattern.partition("/")[0]
    if any(fnmatch.fnmatchcase(each, name) for each in known):
        return pattern
    raise ValueError(f"'event:{pattern}': " + problem.format(f"{name!r}{hint(name, sorted(known))}"))
