"""The vault's resources with the service's official names, as the vault's API gives them.

The JSON forms of the models are the documented ``--json`` contract (docs/reference/json.md): a property of the service keeps
its official name (``protectionState``), a property of the rig is in snake_case, and a VM is always named by ``vm``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.model.job_parts import JobError, ProviderCall
from siterig.blockfs.core.progress import CopyTotals, VmProgress
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.wire_model import WireModel

JobState = Literal["NotStarted", "InProgress", "Succeeded", "Failed", "Cancelled", "Suspended", "Other"]
Health = Literal["None", "Normal", "Warning", "Critical"]


class VmDisk(WireModel):
    """A disk of a VM; ``path`` is its file, ``sector_bytes`` the logical sector size that it declares."""

    name: str
    size_bytes: int
    path: str
    sector_bytes: SectorBytes = 512


class Vm(WireModel):
    """A virtual machine on either side.

    ``state``: the VM's ``protectionState`` (``Unprotected`` without protection), or ``TestFailover``, ``Recovered`` or
    ``Copy`` for a VM on the azure side.  ``lacking_disks``: the disks of the source VM that a VM made by a failover lacks,
    because they are not replicated.
    """

    name: str = Field(serialization_alias="vm", validation_alias="vm")
    side: Side
    state: str
    disks: list[VmDisk]
    lacking_disks: tuple[str, ...] = ()


class Task(WireModel):
    """A task of a job (official names, ASR task types).  Times are RFC 3339 UTC.

    The rig adds ``waiting_for``: the reason for which a task in progress waits, for example a role that is away; else None;
    and ``provider_calls``: the task's calls to the Provider that have official names.
    """

    name: str
    friendlyName: str
    state: JobState
    stateDescription: str | None
    startTime: str | None
    endTime: str | None
    waiting_for: str | None = None
    provider_calls: list[ProviderCall] = Field(default_factory=list)


class RecoveryPoint(WireModel):
    """A recovery point: one position over all disks of the VM.

    Every message and output has a point in this JSON form.  ``time`` is ``time_ns`` as RFC 3339, UTC.
    ``downgraded_because``: the reason for which the point is crash-consistent although an application-consistent one was
    requested.  ``pinned``: a user pinned the point, so retention keeps it.  ``lacking_disks``: the disks of the VM that the
    point lacks, because they are not replicated.
    """

    id: str
    name: str
    type: Literal["CrashConsistent", "ApplicationConsistent"]
    time: str
    time_ns: int
    position: int
    downgraded_because: str | None = None
    pinned: bool = False
    lacking_disks: tuple[str, ...] = ()


class ManagedDisk(WireModel):
    """The managed disk ``disk_id`` that disk ``name`` of a protected VM is replicated to."""

    vm: str
    name: str
    disk_id: str


class MountedDisk(WireModel):
    """A disk of a mounted point: ``path`` is its file; ``vhd`` the same bytes as a fixed VHD, None if it cannot be a VHD."""

    name: str
    size_bytes: int
    path: str
    vhd: str | None
    sector_bytes: SectorBytes = 512


class MountedPoint(WireModel):
    """A VM's disks at one position, mounted read-only as ``name``.

    ``recovery_point``: the point at that position, None between points.  ``time``: the time that was requested, in UTC,
    if one was.
    ``broken``: None, or the reason for which there are no disks.  ``damage``: None, or the known unreadable data of it.
    ``lacking_disks``: the disks of the VM that the state lacks.
    """

    vm: str
    name: str
    position: int
    time: str | None
    recovery_point: RecoveryPoint | None
    disks: list[MountedDisk]
    broken: str | None
    damage: str | None = None
    lacking_disks: tuple[str, ...] = ()


class Job(WireModel):
    """A job as the service shows it.

    ``allowedActions`` has ``Cancel`` while the job can be cancelled.
    The rig's additions: ``vm`` is the VM's name; ``result`` is the VM that a failover made and ``recovery_point`` the point
    that it was made from (also for ``Latest``), both None for every other job.
    ``duration_s`` counts to the end, or until now.  ``chosen_point`` is the point that a person chose for a failover, and
    ``rpo_s`` the age of the state of ``recovery_point`` when the job began.  ``copied`` has figures of a copy that the job
    made, and ``progress`` those of one that runs, if they were asked for.
    """

    name: str
    scenarioName: str
    friendlyName: str
    state: JobState
    stateDescription: str | None
    targetObjectName: str
    vm: str
    startTime: str | None
    endTime: str | None
    tasks: list[Task]
    errors: list[JobError]
    allowedActions: list[Literal["Cancel"]] = Field(default_factory=list)
    result: Vm | None = None
    recovery_point: RecoveryPoint | None = None
    duration_s: float | None = None
    chosen_point: str | None = None
    rpo_s: float | None = None
    copied: CopyTotals | None = None
    progress: VmProgress | None = None


class HealthError(WireModel):
    """One reason for which a protected item is not healthy; ``errorId`` is the same as long as the reason lasts."""

    errorCode: str
    errorId: str
    summaryMessage: str
    recoverable: bool
    attempt: int
    next_try_time: str | None


class ProtectedItem(WireModel):
    """A ReplicationProtectedItem with the properties that the rig has; ``name`` is the name of the VM."""

    name: str = Field(serialization_alias="vm", validation_alias="vm")
    policy_interval_s: float
    app_consistent_every_s: float | None
    """Seconds between two scheduled application-consistent points; None: there are none."""
    recoveryPointHistoryDuration: int
    """The hours for which recovery points are kept."""
    protectionState: str
    testFailoverState: str
    replicationHealth: Health
    healthErrors: list[HealthError]
    acknowledged_errors: list[HealthError]
    """Reasons that a user acknowledged: they do not count for ``replicationHealth`` until they occur again."""
    lastRpoInSeconds: float | None
    """Seconds between now and the newest state whose data and tag are in the cache account."""
    applied_lag_s: float | None
    """Seconds by which the state that all managed disks have is older than that one; 0: it is applied."""
    newest_point_age_s: float | None
    """Seconds between now and the newest recovery point."""
    recovery_vm_name: str
    """The name of the VM that a failover makes."""
    test_vm_name: str
    """The name of the VM that a test failover makes."""
    pinned_points: int
    """Number of recovery points that a user pinned."""
    unapplied_bytes: int | None
    """Bytes in the cache account that are not applied yet; None: nothing was reported since the vault started."""
    activeLocation: Literal["Primary", "Recovery"]
    resynchronizationRequired: str | None
    """The reason, or None."""
    replication_state: str
    """The state of the replication as the Hyper-V host names it (WMI): ``Replicating``, ``Suspended``, ``Critical``, ..."""
    paused_since: str | None = None
    """The time at which replication was paused, RFC 3339 UTC; None: it is not paused."""
    fenced_since: str | None = None
    """The time since which the disks at the site refuse all writes, RFC 3339 UTC; None: they do not."""
    excluded_disks: list[str] = Field(default_factory=list)
    """The disks of the VM that are not replicated, sorted."""


class Event(WireModel):
    """An event of the vault's log."""

    eventCode: str
    eventType: str
    severity: Literal["OK", "Warning", "Critical"]
    timeOfOccurrence: str
    affectedObject: str
    description: str
