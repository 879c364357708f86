"""The operations of the vault's public API on its resources (resources.py); the command line calls ``VaultApi``."""

from __future__ import annotations

from typing import Protocol

from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, Side
from siterig.azure_emu.vault.model.fence_api import FenceApi
from siterig.azure_emu.vault.model.key_api import KeyApi
from siterig.azure_emu.vault.model.resources import (
    Event,
    HealthError,
    Job,
    JobState,
    ManagedDisk,
    MountedPoint,
    ProtectedItem,
    RecoveryPoint,
    Vm,
)
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.azure_emu.vault.model.site_settings_api import AppScriptApi, BandwidthApi
from siterig.azure_emu.vault.model.verification_api import VerificationApi
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_BOTH_S, ASKING_S, deadline
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.progress import VmProgress


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
