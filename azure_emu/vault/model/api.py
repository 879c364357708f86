"""The vault's public face: resources with the service's official names, and the operations on them.

The command line, and later the portal and the SDK endpoint, are faces of ``VaultApi``.  The JSON forms of the
models are the documented ``--json`` contract (docs/reference/json.md): a property of the service keeps its official name
(``protectionState``), a property of the rig is in snake_case, and a VM is always named by ``vm``.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.azure_emu.contracts.provider import DiskSpec
from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, Side
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_BOTH_S, ASKING_S, deadline
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.wire_model import WireModel

JobState = Literal["NotStarted", "InProgress", "Succeeded", "Failed", "Cancelled", "Suspended", "Other"]
Health = Literal["None", "Normal", "Warning", "Critical"]


class VmDisk(WireModel):
    """A disk of a VM; ``path`` is its file, usable with losetup, mkfs, qemu, ...

    ``sector_bytes``: the logical sector size that it declares.
    """

    name: str
    size_bytes: int
    path: str
    sector_bytes: SectorBytes = 512


class Vm(WireModel):
    """A virtual machine on either side.

    ``state``: the VM's ``protectionState`` (``Unprotected`` without protection), or ``TestFailover``, ``Recovered`` or
    ``Copy`` for a VM on the azure side.
    """

    name: str = Field(serialization_alias="vm", validation_alias="vm")
    side: Side
    state: str
    disks: list[VmDisk]


class Task(WireModel):
    """A task of a job (official names, ASR task types).  Times are RFC 3339 UTC.

    The rig's addition: ``waiting_for`` is why a task in progress waits (a role is away, say); None if it does not.
    """

    name: str
    friendlyName: str
    state: JobState
    stateDescription: str | None
    startTime: str | None
    endTime: str | None
    waiting_for: str | None = None


class JobError(WireModel):
    """Why a job or task failed."""

    code: str
    message: str


class RecoveryPoint(WireModel):
    """A recovery point: one position over all disks of the VM.

    This is the one JSON form of a point, wherever a point is sent or printed.  ``time`` is ``time_ns`` as RFC 3339, UTC.
    ``downgraded_because``: why the point is crash-consistent although an application-consistent one was requested.
    """

    id: str
    name: str
    type: Literal["CrashConsistent", "ApplicationConsistent"]
    time: str
    time_ns: int
    position: int
    downgraded_because: str | None = None


class ManagedDisk(WireModel):
    """The managed disk ``disk_id`` that disk ``name`` of a protected VM is replicated to."""

    vm: str
    name: str
    disk_id: str


class MountedDisk(WireModel):
    """A disk of a mounted point: ``path`` reads as it was; ``vhd`` is the same as a fixed VHD (None: it cannot be one)."""

    name: str
    size_bytes: int
    path: str
    vhd: str | None
    sector_bytes: SectorBytes = 512


class MountedPoint(WireModel):
    """A VM's disks at one position, mounted read-only as ``name``.

    ``recovery_point``: the point at that position, None between points.  ``time``: the time that was requested, in UTC,
    if one was.
    ``broken``: None, or why there are no disks.  ``damage``: None, or what is known not to be readable of it.
    """

    vm: str
    name: str
    position: int
    time: str | None
    recovery_point: RecoveryPoint | None
    disks: list[MountedDisk]
    broken: str | None
    damage: str | None = None


class Job(WireModel):
    """A job as the service shows it.

    The rig's additions: ``vm`` is the VM's name; ``result`` is the VM that a failover made and ``recovery_point`` the point
    that it was made from (also for ``Latest``), both None for every other job.
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
    result: Vm | None = None
    recovery_point: RecoveryPoint | None = None


class HealthError(WireModel):
    """One reason why an item is not healthy."""

    errorCode: str
    summaryMessage: str
    recoverable: bool
    attempt: int
    next_try_time: str | None


class ProtectedItem(WireModel):
    """ReplicationProtectedItem, reduced to what the rig keeps; ``name`` is the VM's."""

    name: str = Field(serialization_alias="vm", validation_alias="vm")
    policy_interval_s: float
    recoveryPointHistoryDuration: int
    """Hours for which points are kept."""
    protectionState: str
    testFailoverState: str
    replicationHealth: Health
    healthErrors: list[HealthError]
    lastRpoInSeconds: float | None
    """Seconds between now and the newest state whose data and tag are in the cache account."""
    applied_lag_s: float | None
    """Seconds by which the state that all managed disks have is older than that one; 0: it is applied."""
    newest_point_age_s: float | None
    """Seconds between now and the newest recovery point."""
    unapplied_bytes: int | None
    """Bytes in the cache account that are not applied yet; None: nothing was reported since the vault started."""
    activeLocation: Literal["Primary", "Recovery"]
    resynchronizationRequired: str | None
    """The reason, or None."""


class Event(WireModel):
    """An event of the vault's log."""

    eventCode: str
    eventType: str
    severity: Literal["OK", "Warning", "Critical"]
    timeOfOccurrence: str
    affectedObject: str
    description: str


class VaultApi(Protocol):
    """Operations; each that starts a job returns it at once: poll :meth:`job` until ``endTime`` is set.

    ``point`` is ``Latest``, ``LatestProcessed``, ``LatestApplicationConsistent``, or the id of a point or a name that only
    one has.  What a user names a point has 1 to 100 printable characters (``InvalidName``).
    Errors: ``VmNotFound``, ``VmExists``, ``InvalidState`` (names the state and which are allowed), ``NoSuchPoint``,
    ``JobInProgress``, ``InvalidPolicy``.

    What is mounted is ``point``, the state at ``position``, or the one at ``time`` (RFC 3339), or ``LatestProcessed``.
    ``name`` is its folder's (default: the point's id, ``@POSITION``, or the time in UTC).  It is unmounted when
    ``process`` has ended, if one is given, as soon as nothing has it open.  A copy is a VM ``name`` of the azure side, whose
    disks lie over those of ``vm`` at ``position``; it goes in the same way (``DiskInUse``).  More errors:
    ``InvalidPosition``, ``InvalidTime``, ``RecoveryExists``, ``RecoveryInUse``, ``NotMounted``.
    """

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> Vm: ...
    @deadline(ASKING_BOTH_S)
    async def list_vms(self) -> list[Vm]: ...
    async def delete_vm(self, *, vm: str, side: Side | None = None) -> Job: ...
    async def rename_vm(self, *, vm: str, name: str) -> Job: ...
    async def enable_protection(
        self, *, vm: str, interval_s: float, app_consistent_every_s: float | None = None, history_hours: int = HOURS_DEFAULT
    ) -> Job: ...
    async def disable_protection(self, *, vm: str) -> Job: ...
    @deadline(ANSWER_S)
    async def items(self) -> list[ProtectedItem]: ...
    @deadline(ASKING_S)
    async def progress(self, *, vm: str) -> VmProgress: ...
    @deadline(ANSWER_S)
    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]: ...
    async def create_point(self, *, vm: str, kind: TagKind, name: str) -> RecoveryPoint: ...
    async def mount_point(
        self,
        *,
        vm: str,
        point: str | None = None,
        position: int | None = None,
        time: str | None = None,
        name: str | None = None,
        process: HostProcess | None = None,
    ) -> MountedPoint: ...
    async def unmount_point(self, *, vm: str, name: str) -> None: ...
    @deadline(ASKING_S)
    async def mounted_points(self, *, vm: str) -> list[MountedPoint]: ...
    async def open_copy(self, *, vm: str, name: str, position: int, process: HostProcess) -> Vm: ...
    async def remove_copy(self, *, vm: str, name: str) -> None: ...
    @deadline(ANSWER_S)
    async def managed_disks(self) -> list[ManagedDisk]: ...
    async def test_failover(self, *, vm: str, point: str) -> Job: ...
    async def cleanup_test_failover(self, *, vm: str) -> Job: ...
    async def unplanned_failover(self, *, vm: str, point: str, source_actions: bool = False) -> Job: ...
    async def planned_failover(self, *, vm: str) -> Job: ...
    async def commit_failover(self, *, vm: str) -> Job: ...
    async def failback(self, *, vm: str) -> Job: ...
    async def reprotect(self, *, vm: str) -> Job: ...
    async def resync(self, *, vm: str) -> Job: ...
    @deadline(ANSWER_S)
    async def jobs(self) -> list[Job]: ...
    @deadline(ANSWER_S)
    async def job(self, *, name: str) -> Job: ...
    @deadline(ANSWER_S)
    async def events(self) -> list[Event]: ...
