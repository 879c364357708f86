"""The contract of a person who looks at one protected VM in full, or watches the vault for changes."""

from __future__ import annotations

from typing import Literal, Protocol

from siterig.azure_emu.vault.model.resources import Event, Job, ProtectedItem, RecoveryPoint
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_BOTH_S, REPORT_S, deadline
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.wire_model import Whole, WireModel


class DiskReplication(WireModel):
    """The replication of one disk.  A value is None if the role that knows it did not answer.

    Attributes:
        applied_lag_s: seconds by which the applied state is older than the newest one that was sent; None: none was.
        unsent_log_bytes: bytes of the log at the site that are kept because they are not applied yet.
        log_bytes_max: limit of these; past it the log is abandoned.  None also without a limit.
        dirty_bytes: bytes that changed since the log was abandoned.
        snapshot_bytes: bytes of old data that a snapshot of the disk keeps.
        snapshot_bytes_max: limit of these; past it the copy that uses the snapshot fails.  None also without a snapshot.
        unapplied_bytes: bytes in the cache account that are not applied.
        account_bytes: bytes of all parts in the cache account.
        base_bytes: space of the newest state of the managed disk.
        journal_bytes: space of its earlier states.
        open_handles: how often the disk is open at the site.
    """

    name: str
    disk_id: str
    size_bytes: int
    generation: int
    applied_position: int
    applied_lag_s: float | None
    unsent_log_bytes: int | None = None
    log_bytes_max: int | None = None
    dirty_bytes: int | None = None
    snapshot_bytes: int | None = None
    snapshot_bytes_max: int | None = None
    unapplied_bytes: int | None = None
    account_bytes: int | None = None
    base_bytes: int | None = None
    journal_bytes: int | None = None
    open_handles: int | None = None


class PointSummary(WireModel):
    """The usable recovery points of a VM."""

    count: int
    newest: RecoveryPoint | None
    newest_age_s: float | None
    newest_app_consistent: RecoveryPoint | None
    newest_app_consistent_age_s: float | None
    oldest: RecoveryPoint | None


class RecoverySideVm(WireModel):
    """A VM that a failover, a test failover or a copy made.  ``age_s``: time since it was ready; None: unknown."""

    vm: str
    kind: Literal["TestFailover", "Recovered", "Copy"]
    age_s: float | None


class UnansweredRole(WireModel):
    """A role that did not answer, so that its values are missing."""

    role: str
    reason: str


class VmStatus(WireModel):
    """Everything that is known about one protected VM.

    Attributes:
        progress: the site's work for the VM, its rates and the times of its cycles; None: the site did not answer.
        site_free_bytes: free space on the file system of the disks and logs at the site.
        recovery_free_bytes: free space on the file system of the managed disks.
        job: the job that has not ended.
        events: the newest events, newest first.
        unanswered: the roles whose values are missing.
    """

    item: ProtectedItem
    disks: list[DiskReplication]
    points: PointSummary
    progress: VmProgress | None
    recovery_vms: list[RecoverySideVm]
    site_free_bytes: int | None
    recovery_free_bytes: int | None
    job: Job | None
    events: list[Event]
    unanswered: list[UnansweredRole]


class ChangeCount(WireModel):
    """A number that grows when something has changed; ``epoch`` changes when the vault was started again."""

    epoch: str
    count: Whole


class ObservationApi(Protocol):
    """The questions of a person who looks at a VM, or watches the vault."""

    @deadline(ASKING_BOTH_S)
    async def vm_status(self, *, vm: str) -> VmStatus:
        """Return everything about a protected VM; a role that does not answer at once is named, and its values are missing.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    @deadline(ANSWER_S)
    async def metrics(self) -> str:
        """Return the metrics of the vault in the text format of Prometheus."""
        ...

    @deadline(REPORT_S)
    async def wait_for_change(self, *, epoch: str, after: Whole, patience_s: float) -> ChangeCount:
        """Return when something has changed since the answer ``after``, at most once a second, or after ``patience_s``.

        Args:
            epoch: the epoch of that answer; empty for the first call, which is answered at once.
            after: its count.
            patience_s: at most 4 seconds.
        """
        ...
