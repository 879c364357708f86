"""Contract of a disk host: the calls that other roles make to the process that serves the disks, and their models.

:class:`siterig.blockfs.host.disk_host.DiskHost` implements ``DiskHostControl``; across processes the typed RPC proxy does.
The same class of process serves the site (role ``site``) and the recovery side (role ``azure``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.core.deadlines import ANSWER_S, deadline
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.wire_model import UUID_PATTERN, Whole, WireModel

TagKind = Literal["CrashConsistent", "ApplicationConsistent"]
ManagedDiskId = Annotated[str, Field(pattern=UUID_PATTERN)]
"""Id of a managed disk: a UUID in lower case with hyphens."""
CLOSE_IT = "unmount it and detach its loop devices"
"""The remedy for a disk that is in use, as messages name it."""


class HydrationInfo(WireModel):
    """Progress of a disk that becomes independent of the managed disk under it.

    Attributes:
        done_bytes: the offset below which the disk has all of its bytes.
        total_bytes: the size of the disk.
        error_code: code of the error that stops it now; None if nothing does.
        error: message of that error.  The host tries again.
    """

    done_bytes: int
    total_bytes: int
    error_code: str | None
    error: str | None

    @classmethod
    def of(cls, done_bytes: int, total_bytes: int, stopped_by: RigError | None) -> HydrationInfo:
        """Make the model from the error that stops the hydration, if any."""
        code, message = (None, None) if stopped_by is None else (stopped_by.code, stopped_by.message)
        return cls(done_bytes=done_bytes, total_bytes=total_bytes, error_code=code, error=message)


class KeptImage(WireModel):
    """An old disk that a failback replaced and kept, as a raw image file at ``path`` on the host."""

    file: str
    path: str
    disk: str
    size_bytes: int
    allocated_bytes: int


class DiskInfo(WireModel):
    """One virtual disk.

    Attributes:
        path: the disk's file in the mount.
        folder: the folder on the host with the disk's bytes, its change log and its snapshot.
        disk_id: a UUID that stays when a failback replaces the disk's contents.
        generation: changes whenever it is not certain that the sequence numbers of the log are contiguous.
        last_position: the position of the newest record.
        unsent_log_bytes: bytes of the log that are kept because they are not applied yet.
        log_bytes_max: limit of ``unsent_log_bytes``; past it the log is abandoned.  None: no limit.
        dirty_bytes: bytes that changed since the log was abandoned.
        snapshot_bytes: bytes of the old chunks that a snapshot keeps; at most ``snapshot_bytes_max``.
        needs_resync: None, or the reason (``PowerLoss``, ``LogOverflow``, ``DiskReplaced``, ...).
        promotion: progress of becoming independent of a managed disk; None unless that is under way.
        sector_bytes: the logical sector size that the disk declares.
        parent: the image under a thin disk.
        broken_chain: None, or why that image is missing or changed (``BrokenVhdChain``).
        opening: an id that is different each time the host opens the disk.
        opened_seq: the newest record that the log had at that opening; None if the generation began since.
        kept: old disks that a failback replaced by this one, oldest first; ``delete_kept`` frees their space.
        fenced: True if every write is refused.
        free_bytes: bytes that are free on the file system of ``folder``.
        encrypted: True if the files of the disk are encrypted.
    """

    vm: str
    name: str
    disk_id: str
    size_bytes: int
    path: str
    folder: str
    tracked: bool
    generation: int
    last_seq: int
    last_position: int
    unsent_log_bytes: int
    log_bytes_max: int | None
    dirty_bytes: int
    snapshot: bool
    snapshot_bytes: int
    snapshot_bytes_max: int | None
    needs_resync: str | None
    open_handles: int
    promotion: HydrationInfo | None = None
    sector_bytes: SectorBytes = 512
    opening: str = ""
    opened_seq: int | None = None
    parent: str | None = None
    broken_chain: str | None = None
    kept: list[KeptImage] = Field(default_factory=list)
    fenced: bool = False
    free_bytes: int | None = None
    encrypted: bool = False


class DownloadedDisk(WireModel):
    """A disk that a failback will bring to the site.

    Attributes:
        data_bytes: bytes of it that are not known to be zeros.
        keeps_old: the disk that it replaces will be kept as an image file.
    """

    name: str
    size_bytes: int
    data_bytes: int
    keeps_old: bool = False


class HostObstacle(WireModel):
    """A reason for which a disk cannot be tracked."""

    code: str
    message: str


class SourceUse(WireModel):
    """Use of a disk at the site after a failover.

    Attributes:
        written_bytes: bytes that were written or zeroed after the point of the failover, and so exist only at the site;
            None if the log does not show it.
        open_handles: how often the disk is open now.
    """

    name: str
    written_bytes: int | None
    open_handles: int


class SegmentInfo(WireModel):
    """One closed segment of a change log (see docs/reference/formats/hrl.md).

    Every record of the disk with a position up to ``complete_position`` is in this segment or an earlier one.
    ``path`` is on the host; the file is immutable and already fsynced.
    """

    disk_id: str
    generation: int
    number: int
    first_seq: int
    last_seq: int
    complete_position: int
    size_bytes: int
    path: str


class AppliedLog(WireModel):
    """A disk's log up to record ``last_seq`` of a generation is durable at the recovery side, as known for one opening."""

    disk_id: str
    opening: str
    generation: int
    last_seq: int


class LogState(WireModel):
    """The disks of a VM, and their closed segments that are still kept, by disk and sequence number."""

    disks: list[DiskInfo]
    segments: list[SegmentInfo]


class CutInfo(WireModel):
    """A consistent cut over all disks of a VM: exactly the records with a position up to ``position``.

    Attributes:
        downgraded_because: why it is crash-consistent although an application-consistent cut was ordered; not in the tag.
        disk_bytes: the size of each disk by its id, in bytes; not in the tag.
    """

    vm: str
    tag_id: str
    kind: TagKind
    name: str
    position: int
    time_ns: int
    downgraded_because: str | None = None
    disk_bytes: dict[str, Whole] = Field(default_factory=dict)


class SnapshotDisk(WireModel):
    """One disk of a snapshot: ``path`` reads as the disk did at the snapshot (read-only file in the mount)."""

    disk_id: str
    name: str
    path: str
    size_bytes: int
    generation: int
    first_seq: int
    """First sequence number that is *not* part of the snapshot."""
    data_ranges: list[tuple[int, int]]
    """(offset, length) in bytes of the disk's data; the rest of it are holes."""


class SnapshotInfo(WireModel):
    """A snapshot over all disks of a VM, taken at one position."""

    vm: str
    position: int
    time_ns: int
    disks: list[SnapshotDisk]


class LackingChanges(WireModel):
    """The ranges of a disk of which the recovery side may lack changes, after the log of ``generation`` was abandoned.

    Everything else is as the recovery side has it, if it has applied that generation as far as it reported.
    """

    disk_id: str
    generation: int
    ranges: list[tuple[int, int]]
    """(offset, length) in bytes, sorted, without overlap."""


class StagingInfo(WireModel):
    """The file in which a disk that returns from the recovery side is assembled before it replaces the old one."""

    vm: str
    disk: str
    path: str
    size_bytes: int


class BackingImage(WireModel):
    """An image under a new thin disk: an absolute path without links, and the format (a VHD has a footer at its end)."""

    path: str = Field(pattern=r"^/[^\x00]+$")
    format: Literal["raw", "vhd"]


class MountedPointSource(WireModel):
    """One disk of a state to mount: managed disk ``disk_id`` is shown as ``name``."""

    name: str = Field(pattern=r"^[^\x00-\x1f\x7f/]+$")
    disk_id: ManagedDiskId
    sector_bytes: SectorBytes = 512


class MountedPointDisk(WireModel):
    """One disk of a mounted state: its file in the mount, and the path of its fixed VHD if it can be one."""

    name: str
    disk_id: str
    size_bytes: int
    path: str
    vhd_path: str | None
    open_handles: int
    sector_bytes: SectorBytes = 512


class MountedPointInfo(WireModel):
    """The disks of a VM as they were at a position, read-only.

    Attributes:
        broken: None, or why they could not be opened again after a restart.
    """

    vm: str
    name: str
    position: int
    disks: list[MountedPointDisk]
    broken: str | None


class DiskHostControl(Protocol):
    """The calls that a disk host answers.

    A call with ``disks`` concerns the disks of these names of the VM, all of them if it is None.  A missing one is an error
    ``DiskNotFound``; other disks of the VM need not be readable.

    Raises:
        RigError: with the codes that each method names.
    """

    @deadline(ANSWER_S)
    async def list_disks(self, *, vm: str | None = None, disks: list[str] | None = None) -> list[DiskInfo]:
        """Return all disks, or those of one VM, or some of them.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    @deadline(ANSWER_S)
    async def position(self) -> int:
        """Return the newest position that this host has drawn."""
        ...

    async def create_disk(
        self,
        *,
        vm: str,
        name: str,
        size_bytes: int,
        sector_bytes: SectorBytes = 512,
        backing: BackingImage | None = None,
    ) -> DiskInfo:
        """Create a disk of zeros, or a thin disk over an image, which is never written to.

        Args:
            vm: the VM of the disk; it exists from its first disk on.
            name: the name of the disk.
            size_bytes: a multiple of ``sector_bytes``.
            sector_bytes: the logical sector size that the disk declares.
            backing: the image of a thin disk.

        Raises:
            RigError: ``DiskExists``, ``InvalidDiskSize``, ``InvalidName``, ``DiskFull``; for a thin disk also
                ``ImageUnusable``, ``ImageBusy``, ``VhdCorrupt``.
        """
        ...

    async def resize_disk(self, *, vm: str, disk: str, size_bytes: int) -> DiskInfo:
        """Grow a disk while it is in use; guests see the new size when they ask.

        Raises:
            RigError: ``InvalidDiskSize`` or ``DiskFull``.
        """
        ...

    @deadline(ANSWER_S)
    async def counters(self, *, vm: str, disk: str) -> DiskCounters:
        """Return a disk's counters since it was opened, without stopping a request.

        Raises:
            RigError: ``VmNotFound`` or ``DiskNotFound``.
        """
        ...

    async def remove_disk(self, *, vm: str, disk: str) -> None:
        """Delete a disk that was created and could not be completed; the VM keeps its other disks.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``, ``DiskInUse``; ``InvalidState`` if it is tracked.
        """
        ...

    async def remove_vm(self, *, vm: str) -> None:
        """Delete the disks, logs and folder of a VM.

        Raises:
            RigError: ``VmNotFound`` or ``DiskInUse``.
        """
        ...

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Rename a VM whose disks are not open; does nothing if that was done already.

        Raises:
            RigError: ``VmNotFound``, ``VmExists``, ``InvalidName``, ``DiskInUse``; ``VmBusy`` if a hydration is under way.
        """
        ...

    async def check_tracking(self, *, vm: str, disks: list[str] | None = None) -> None:
        """Check that tracking can start.

        Raises:
            RigError: ``VmNotFound``, ``BrokenVhdChain``; ``DiskInUse`` if a loop device is attached to an image.
        """
        ...

    async def tracking_obstacles(self, *, vm: str, excluded: list[str] | None = None) -> list[HostObstacle]:
        """Return all reasons for which tracking cannot start, of all disks; :meth:`check_tracking` raises the first one.

        ``excluded``: the names of disks that are not to be tracked.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def start_tracking(
        self,
        *,
        vm: str,
        disks: list[str] | None = None,
        new_generation: bool = False,
        after: dict[str, int] | None = None,
        after_position: int = 0,
    ) -> list[DiskInfo]:
        """Log every write from now on; does nothing for a tracked disk unless a new generation is ordered.

        Args:
            vm: the VM.
            disks: the disks to track.
            new_generation: begin a new generation in any case.
            after: for each disk id a generation; the new one is later.  The disks may have been restored from an older copy.
            after_position: positions that are drawn from now on are larger.
        """
        ...

    async def stop_tracking(self, *, vm: str, disks: list[str] | None = None) -> None:
        """Stop logging and delete the logs."""
        ...

    async def cut(
        self, *, vm: str, kind: TagKind, name: str, not_after_ns: int | None = None, disks: list[str] | None = None
    ) -> CutInfo:
        """Tag one position over the disks of the VM, and close the current segment of each.

        Args:
            vm: the VM.
            kind: the kind of the recovery point.
            name: its name.
            not_after_ns: a time on CLOCK_MONOTONIC.  After it nothing is tagged, because the guests that were frozen for
                this cut may have been thawed.
            disks: the disks to tag.

        Raises:
            RigError: ``NotTracked``; ``FreezeTimedOut`` if ``not_after_ns`` has passed.
        """
        ...

    @deadline(ANSWER_S)
    async def segments(self, *, vm: str, disks: list[str] | None = None) -> list[SegmentInfo]:
        """Return the closed segments that are still kept, by disk and sequence number."""
        ...

    @deadline(ANSWER_S)
    async def log_state(self, *, vm: str, applied: list[AppliedLog], disks: list[str] | None = None) -> LogState:
        """Delete the applied segments, and return the disks and the segments that remain, all as of one moment.

        Args:
            vm: the VM.
            applied: the part of each log that is not needed any more.  One that names another opening of its disk than
                the present one deletes nothing: the disk may have been restored from a copy since.
            disks: the names of the disks; None for all disks of the VM.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def trim_log(self, *, disk_id: str, generation: int, last_seq: int) -> None:
        """Delete the segments that the recovery side has durably applied: those up to record ``last_seq``."""
        ...

    async def begin_snapshot(self, *, vm: str, disks: list[str] | None = None) -> SnapshotInfo:
        """Begin a copy-before-write snapshot over the disks.

        Raises:
            RigError: ``SnapshotExists`` or ``NotTracked``.
        """
        ...

    async def lacking_changes(self, *, vm: str) -> list[LackingChanges]:
        """Return, for each disk with a snapshot of which that is known, what the recovery side can lack of the snapshot."""
        ...

    async def release_snapshot(self, *, vm: str, disk: str, upto: int) -> None:
        """Stop preserving the bytes below ``upto`` of this disk's snapshot: they are not read again."""
        ...

    async def end_snapshot(self, *, vm: str, disks: list[str] | None = None) -> None:
        """Remove the snapshot; does nothing if there is none."""
        ...

    async def begin_replace(self, *, vm: str, disk: str, size_bytes: int) -> StagingInfo:
        """Create an empty staging file next to the disk, which is not touched.

        Args:
            vm: the VM.
            disk: the disk to replace.
            size_bytes: the size of the disk that returns.  The file has the size of the old disk if that is larger: a disk
                is never shrunk, and it may have grown after the returning state was replicated.

        Raises:
            RigError: ``DiskInUse``.
        """
        ...

    async def commit_replace(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        """Replace all disks of the VM that have a staging file: tracking is off then, and the old logs are deleted.

        The old disk of each name in ``keep`` stays as an image file (``DiskInfo.kept``).
        """
        ...

    @deadline(ANSWER_S)
    async def fence(self, *, vm: str, fenced: bool) -> list[DiskInfo]:
        """Refuse every write to the disks of a VM (``EROFS``), also after a restart of this host, or allow writes again.

        No write is under way on return.  Replacing the disks (a failback) ends it, too.  Idempotent.

        Raises:
            RigError: ``VmNotFound``; ``DiskFull``: some disks may have changed, and the call can be repeated.
        """
        ...

    async def delete_kept(self, *, vm: str, file: str) -> None:
        """Delete an old disk that was kept.

        Raises:
            RigError: ``VmNotFound`` or ``KeptImageNotFound``.
        """
        ...

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        """Return how the disks of the VM were used after a position.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def check_replace(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        """Check that the disks of the VM can be replaced.

        Raises:
            RigError: ``VmNotFound``, ``DiskNotFound``, ``DiskInUse``, ``NotEnoughSpace``.
        """
        ...

    async def create_disk_from_point(
        self, *, vm: str, name: str, managed_disk: ManagedDiskId, position: int, sector_bytes: SectorBytes = 512
    ) -> DiskInfo:
        """Create a writable, tracked disk over a managed disk as it was at a position.

        Raises:
            RigError: ``NotARecoveryHost`` at a site; ``DiskExists``, ``InvalidPosition``, and the errors of opening a view.
        """
        ...

    async def check_hydration(self, *, vm: str) -> None:
        """Check that the disks of the VM have room to become independent.

        Raises:
            RigError: ``VmNotFound`` or ``NotEnoughSpace``.
        """
        ...

    async def hydrate_vm(self, *, vm: str) -> list[DiskInfo]:
        """Make the disks of the VM independent of the managed disks under them, while guests use them.

        The call returns at once; ``DiskInfo.promotion`` has the progress.  Disks over no managed disk do not change.

        Raises:
            RigError: ``VmNotFound``.
        """
        ...

    async def open_mounted_point(
        self, *, vm: str, name: str, position: int, disks: list[MountedPointSource], time_ns: int | None = None
    ) -> MountedPointInfo:
        """Show managed disks as they were at a position, read-only, in ``recovery/VM/NAME``.

        The call does nothing if the same state is mounted there.  The position stays pinned, and the state is shown again
        after a restart, until it is closed.

        Args:
            vm: the VM.
            name: name of the folder.
            position: the position.
            disks: the disks.
            time_ns: the time of the state in nanoseconds since 1970, which its files show; None: the time of this call.

        Raises:
            RigError: ``InvalidPosition``, ``RecoveryExists``, ``NotARecoveryHost``, and the errors of opening a view.
        """
        ...

    async def close_mounted_point(self, *, vm: str, name: str) -> None:
        """Remove a mounted point; does nothing if there is none.

        Raises:
            RigError: ``RecoveryInUse``.
        """
        ...

    @deadline(ANSWER_S)
    async def list_mounted_points(self, *, vm: str | None = None) -> list[MountedPointInfo]:
        """Return all mounted points, or those of one VM."""
        ...
