"""The vault's public API: resources with the service's official names, and the operations on them.

The command line calls ``VaultApi``.  The JSON forms of the models are the documented ``--json`` contract
(docs/reference/json.md): a property of the service keeps its official name (``protectionState``), a property of the rig is
in snake_case, and a VM is always named by ``vm``.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, Side
from siterig.azure_emu.vault.model.fence_api import FenceApi
from siterig.azure_emu.vault.model.job_parts import JobError, ProviderCall
from siterig.azure_emu.vault.model.key_api import KeyApi
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.azure_emu.vault.model.site_settings_api import AppScriptApi, BandwidthApi
from siterig.azure_emu.vault.model.verification_api import VerificationApi
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_BOTH_S, ASKING_S, deadline
from siterig.blockfs.core.host_process import HostProcess
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


class VmApi(Protocol):
    """The operations on virtual machines."""

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> Vm:
        """Create a source VM at the site."""
        ...

    async def attach_disk(self, *, vm: str, disk: DiskSpec) -> Vm:
        """Add a disk to a source VM at the site; a protected VM has a warning until the disk is protected.

        Raises:
            RigError: ``VmNotFound``, ``DiskExists``, ``NotEnoughSpace``.
        """
        ...

    @deadline(ASKING_BOTH_S)
    async def list_vms(self) -> list[Vm]:
        """Return the VMs of both sides; for a side that does not answer, the VMs as last seen."""
        ...

    async def delete_vm(self, *, vm: str, side: Side | None = None) -> Job:
        """Delete an unprotected VM of one side (``BadRequest`` if both sides have the VM and no side is given)."""
        ...

    async def rename_vm(self, *, vm: str, name: str) -> Job:
        """Rename a VM on both sides, with everything that refers to it."""
        ...


class ProtectionApi(Protocol):
    """The operations that begin, end and repair the replication of a VM."""

    async def enable_protection(
        self,
        *,
        vm: str,
        interval_s: float,
        app_consistent_every_s: float | None = None,
        history_hours: int = HOURS_DEFAULT,
        start_at: str | None = None,
        seeds: list[SeedSource] | None = None,
        exclude: list[str] | None = None,
    ) -> Job:
        """Start to replicate a VM of the site by a policy (:meth:`change_policy`).

        ``start_at``: the initial replication begins then: the next ``HH:MM`` in UTC, or RFC 3339.  None: at once.
        ``seeds``: images that managed disks begin with; the initial replication then sends only what differs from them.
        ``exclude``: the names of disks that are not replicated; at least one disk is.
        """
        ...

    async def disable_protection(self, *, vm: str) -> Job:
        """Stop to replicate and forget the VM; a job that waits for replication is cancelled."""
        ...

    async def remove_disks(self, *, vm: str, disks: list[str]) -> Job:
        """End the replication of some disks of a VM; the points that have them keep them, and later points lack them.

        Raises:
            RigError: ``DiskNotFound``; ``BadRequest`` unless a disk stays.
        """
        ...

    async def add_disks(self, *, vm: str, disks: list[str]) -> Job:
        """Replicate disks of a VM that are not replicated; later points have them, and the older points lack them.

        Raises:
            RigError: ``DiskNotFound``; ``BadRequest`` for a disk that is replicated.
        """
        ...

    async def reprotect(self, *, vm: str) -> Job:
        """Reverse replication, after the commit of a failback."""
        ...

    async def resync(self, *, vm: str) -> Job:
        """Compare both sides and send the differences; the item keeps its state meanwhile."""
        ...

    async def change_policy(
        self,
        *,
        vm: str,
        interval_s: float | None = None,
        app_consistent_every_s: float | None = None,
        history_hours: int | None = None,
    ) -> Job:
        """Change the policy of a VM while it replicates; None keeps a value.

        Args:
            vm: the VM.
            interval_s: seconds between two delta cycles.
            app_consistent_every_s: seconds between two application-consistent points; 0 for none.
            history_hours: hours for which recovery points are kept.

        Raises:
            RigError: ``InvalidPolicy``; ``BadRequest`` if there is no value.
        """
        ...

    async def update_vm_properties(
        self, *, vm: str, recovery_vm_name: str | None = None, test_vm_name: str | None = None
    ) -> Job:
        """Choose the names of the VMs that a failover and a test failover make; None keeps a name.

        The job succeeds with the warning ``VmNameUnavailable`` if another VM has a name; a failover then modifies it.

        Args:
            vm: the VM.
            recovery_vm_name: the name of the recovered VM; an empty text for that of the source VM.
            test_vm_name: the name of the test VM; an empty text for that of the recovered VM with ``-test``.

        Raises:
            RigError: ``InvalidName``; ``BadRequest`` if there is no value.
        """
        ...

    async def pause_replication(self, *, vm: str) -> Job:
        """Stop the cycles of a VM, and count none as missed; tracking continues, so the log grows up to its limit."""
        ...

    async def resume_replication(self, *, vm: str) -> Job:
        """Continue the cycles of a paused VM with a cycle at once."""
        ...


class PointApi(Protocol):
    """The operations on recovery points."""

    @deadline(ANSWER_S)
    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
        """Return the available recovery points, newest first, at most ``limit``."""
        ...

    async def create_point(self, *, vm: str, kind: TagKind, name: str) -> RecoveryPoint:
        """Make a recovery point of the current state; returns when it is available.

        Raises:
            RigError: ``InvalidName`` unless ``name`` has 1 to 100 printable characters and can select the point.
        """
        ...

    @deadline(ANSWER_S)
    async def pin_point(self, *, vm: str, point: str, pinned: bool) -> RecoveryPoint:
        """Pin a point, so that retention keeps it, or unpin it; a commit and the end of protection delete it all the same.

        Raises:
            RigError: ``NoSuchPoint``, ``AmbiguousId``.
        """
        ...

    @deadline(ANSWER_S)
    async def delete_point(self, *, vm: str, point: str) -> RecoveryPoint:
        """Delete a point; states at other positions stay readable until retention needs them no more.

        Raises:
            RigError: ``NoSuchPoint``, ``AmbiguousId``, ``JobInProgress``; ``RecoveryInUse`` if it is open; ``InvalidState``
                if it is pinned or the newest one.
        """
        ...


class MountApi(Protocol):
    """The operations that show a state of a VM: mounted points and writable copies."""

    async def mount_point(
        self,
        *,
        vm: str,
        point: str | None = None,
        position: int | None = None,
        time: str | None = None,
        name: str | None = None,
        process: HostProcess | None = None,
    ) -> MountedPoint:
        """Serve one state of a VM's disks read-only.

        Args:
            vm: the VM.
            point: a recovery point; at most one of ``point``, ``position`` and ``time`` is given, the default is
                ``LatestProcessed``.
            position: the position of the state.
            time: the time of the state, RFC 3339.
            name: the name of its folder; the default is the point's id, ``@POSITION``, or the time in UTC.
            process: a process of this host; when it has ended, the state is unmounted as soon as nothing has it open.
        Raises:
            RigError: ``InvalidPosition``, ``InvalidTime``, ``RecoveryExists``.
        """
        ...

    async def unmount_point(self, *, vm: str, name: str) -> None:
        """Unmount a mounted point.

        Raises:
            RigError: ``NotMounted`` or ``RecoveryInUse``.
        """
        ...

    @deadline(ASKING_S)
    async def mounted_points(self, *, vm: str) -> list[MountedPoint]:
        """Return the mounted points of a VM."""
        ...

    async def open_copy(self, *, vm: str, name: str, position: int, process: HostProcess) -> Vm:
        """Make a writable copy: a VM ``name`` on the recovery side with overlays over the disks of ``vm`` at ``position``.

        The copy is removed when ``process`` has ended, as soon as nothing has it open.
        """
        ...

    async def remove_copy(self, *, vm: str, name: str) -> None:
        """Remove a copy.

        Raises:
            RigError: ``DiskInUse``.
        """
        ...


class FailoverApi(Protocol):
    """The failovers, the failbacks and their commits."""

    async def test_failover(self, *, vm: str, point: str) -> Job:
        """Make ``VM-test`` from a recovery point; replication continues."""
        ...

    async def cleanup_test_failover(self, *, vm: str) -> Job:
        """Remove ``VM-test``."""
        ...

    async def unplanned_failover(self, *, vm: str, point: str, source_actions: bool = False) -> Job:
        """Fail over without the site; until the commit this can be repeated to change the recovery point.

        ``source_actions`` first shuts the VM down at the site and sends the last changes, if the site answers.
        """
        ...

    async def planned_failover(self, *, vm: str) -> Job:
        """Shut the VM down at the site, send the rest, and fail over: nothing is lost."""
        ...

    async def commit_failover(self, *, vm: str) -> Job:
        """Make a failover final (all points are deleted), or a failback (the Azure VM and its disks are deleted)."""
        ...

    async def failback(self, *, vm: str) -> Job:
        """Fail over from Azure to the site, as planned, by a full download."""
        ...


class StatusApi(Protocol):
    """The questions about protected items, their progress, jobs and events."""

    @deadline(ANSWER_S)
    async def items(self) -> list[ProtectedItem]:
        """Return all protected items, by name."""
        ...

    @deadline(ASKING_S)
    async def progress(self, *, vm: str) -> VmProgress:
        """Return the progress of the VM's open job; without a job, of its import at the site."""
        ...

    @deadline(ANSWER_S)
    async def managed_disks(self) -> list[ManagedDisk]:
        """Return the managed disks of all protected VMs."""
        ...

    @deadline(ASKING_S)
    async def jobs(
        self,
        *,
        vm: str | None = None,
        state: JobState | None = None,
        since: str | None = None,
        with_progress: bool = False,
    ) -> list[Job]:
        """Return the jobs, newest first.

        Args:
            vm: only jobs of this VM.
            state: only jobs in this state.
            since: only jobs that began at this time or later, RFC 3339.
            with_progress: ask for the progress of the jobs that have not ended.
        Raises:
            RigError: ``InvalidTime``.
        """
        ...

    @deadline(ASKING_S)
    async def job(self, *, name: str, with_progress: bool = False) -> Job:
        """Return the job of this name, or the only one whose name begins with it.

        Raises:
            RigError: ``JobNotFound`` or ``AmbiguousId``.
        """
        ...

    @deadline(ANSWER_S)
    async def events(self, *, vm: str | None = None, since: str | None = None, with_points: bool = False) -> list[Event]:
        """Return the events, newest first.

        Args:
            vm: only events of this VM.
            since: only events of this time or later, RFC 3339.
            with_points: also those of each recovery point that was taken.
        Raises:
            RigError: ``InvalidTime``.
        """
        ...


class HealthApi(Protocol):
    """The operations on the health of protected items."""

    @deadline(ANSWER_S)
    async def resolve_health_errors(self, *, vm: str, code: str) -> list[HealthError]:
        """Acknowledge the reasons with this code, or of this ``errorId``: they are hidden until they end and occur again.

        Returns:
            The acknowledged reasons.

        Raises:
            RigError: ``VmNotFound``; ``HealthErrorNotFound``, which names the reasons that there are.
        """
        ...


class JobApi(Protocol):
    """The operations on jobs."""

    async def cancel_job(self, *, name: str) -> Job:
        """Cancel a job, and return it when it has ended; the VM is left in the state of a failed job.

        Args:
            name: the job's name, or the beginning of it.

        Raises:
            RigError: ``JobNotFound``, ``AmbiguousId``; ``InvalidState`` if it has ended, or is in a task that must be
                completed (its ``allowedActions`` are empty).
        """
        ...


class VaultApi(
    VmApi,
    ProtectionApi,
    VerificationApi,
    PointApi,
    MountApi,
    FailoverApi,
    StatusApi,
    BandwidthApi,
    AppScriptApi,
    HealthApi,
    JobApi,
    FenceApi,
    KeyApi,
    Protocol,
):
    """All operations of the vault.

    An operation that starts a job returns the job at once; poll :meth:`job` until its ``endTime`` is set.

    The argument ``point`` is ``Latest``, ``LatestProcessed``, ``LatestApplicationConsistent``, the id of a recovery point, a
    name that only one point has, ``@POSITION`` or a time.

    Raises:
        RigError: in most methods ``VmNotFound``, ``VmExists``, ``InvalidState`` (with the state and the allowed operations),
            ``NoSuchPoint``, ``JobInProgress`` or ``InvalidPolicy``.
    """
