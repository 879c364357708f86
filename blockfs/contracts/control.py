"""The control face of a disk host: what other roles may ask of the process that serves the disks.

``DiskHostControl`` is implemented by :class:`siterig.blockfs.host.disk_host.DiskHost` and, across processes, by the typed
RPC proxy.  The same class of process serves the site (``site``) and the recovery side (``azure``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.wire_model import UUID_PATTERN, WireModel

TagKind = Literal["CrashConsistent", "ApplicationConsistent"]
ManagedDiskId = Annotated[str, Field(pattern=UUID_PATTERN)]
"""Id of a managed disk: a UUID in lower case with hyphens."""
CLOSE_IT = "unmount it and detach its loop devices"
"""The remedy for a disk that is in use."""


class PromotionInfo(WireModel):
    """A disk that is made independent of the managed disk it lies over: all below ``done_bytes`` is its own.

    ``error``: what stops it for the moment; it is tried again.
    """

    done_bytes: int
    total_bytes: int
    error_code: str | None
    error: str | None

    @classmethod
    def of(cls, done_bytes: int, total_bytes: int, stopped_by: RigError | None) -> PromotionInfo:
        """``stopped_by``: the error."""
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

    ``path`` is the disk's file in the mount, ``folder`` the backing folder on the host that holds the base, the
    ``.hrl`` logs and the snapshot.  ``disk_id`` is a UUID; ``generation`` changes whenever the contiguity of the
    log's sequence numbers cannot be vouched for.  ``last_position`` is the position of the newest record.
    ``needs_resync`` is None or the reason (``PowerLoss``, ``LogOverflow``, ``DiskReplaced``, ...).  Past ``log_bytes_max``
    (None: no limit) of unsent log it is given up, and ``dirty_bytes`` counts what has changed since.  ``snapshot_bytes``
    is what a snapshot's old chunks take, of ``snapshot_bytes_max`` at most.  ``promotion``: None unless one is under way.
    ``sector_bytes``: the logical sector size that the disk declares.  ``parent``: the image that a thin disk lies over;
    ``broken_chain``: None, or why that is missing or not what it was (``BrokenVhdChain``).
    ``opening`` is another each time the host opens the disk; ``opened_seq`` is the newest record that its log had then, None
    if the generation was begun since.
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
    promotion: PromotionInfo | None = None
    sector_bytes: SectorBytes = 512
    opening: str = ""
    opened_seq: int | None = None
    parent: str | None = None
    broken_chain: str | None = None
    kept: list[KeptImage] = Field(default_factory=list)
    """Old disks in whose place a failback put this one, oldest first; their space is given back by ``delete_kept``."""


class DownloadedDisk(WireModel):
    """A disk that a failback is to bring to the site; ``data_bytes``: what of it is not known to be zeros.

    ``keeps_old``: the disk that it replaces will be kept as an image file.
    """

    name: str
    size_bytes: int
    data_bytes: int
    keeps_old: bool = False


class SourceUse(WireModel):
    """How a disk at the site was used after a failover.

    ``written_bytes``: bytes that were written or zeroed after the failover's point, so that they are at the site only; None:
    the log does not tell.  ``open_handles``: how often it is open now.
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


class CutInfo(WireModel):
    """A consistent cut over all disks of a VM: exactly the records with a position up to ``position``.

    ``downgraded_because``: why it is crash-consistent though more was asked for; no part of the tag.
    """

    vm: str
    tag_id: str
    kind: TagKind
    name: str
    position: int
    time_ns: int
    downgraded_because: str | None = None


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
    """(offset, length) of what is not a hole in the base; bytes."""


class SnapshotInfo(WireModel):
    """A snapshot over all disks of a VM, taken at one position."""

    vm: str
    position: int
    time_ns: int
    disks: list[SnapshotDisk]


class StagingInfo(WireModel):
    """Where a disk that comes back from the recovery side is assembled before it replaces the old one."""

    vm: str
    disk: str
    path: str
    size_bytes: int


class BackingImage(WireModel):
    """An image that a thin disk is made over: an absolute path without links, and whether a VHD's footer lies at its end."""

    path: str = Field(pattern=r"^/[^\x00]+$")
    format: Literal["raw", "vhd"]


class MountedPointSource(WireModel):
    """A disk of a state to mount: managed disk ``disk_id`` is shown as ``name``."""

    name: str = Field(pattern=r"^[^\x00-\x1f\x7f/]+$")
    disk_id: ManagedDiskId
    sector_bytes: SectorBytes = 512


class MountedPointDisk(WireModel):
    """A disk of a mounted state: ``path`` is its file in the mount, ``vhd_path`` that of the fixed VHD, if it can be one."""

    name: str
    disk_id: str
    size_bytes: int
    path: str
    vhd_path: str | None
    open_handles: int
    sector_bytes: SectorBytes = 512


class MountedPointInfo(WireModel):
    """A VM's disks as they were at a position, read-only.  ``broken``: None, or why they could not be opened again."""

    vm: str
    name: str
    position: int
    disks: list[MountedPointDisk]
    broken: str | None


class DiskHostControl(Protocol):
    """What a disk host answers.  Errors: :class:`siterig.blockfs.core.errors.RigError` with the codes named."""

    async def list_disks(self, *, vm: str | None = None) -> list[DiskInfo]:
        """All disks, or those of one VM (``VmNotFound``)."""
        ...

    async def position(self) -> int:
        """The newest position drawn by this host."""
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
        """A new disk that declares sectors of ``sector_bytes``: all zeros, or thin over an image, which is never written to.

        ``DiskExists``, ``InvalidDiskSize``, ``InvalidName``, ``DiskFull``; ``ImageUnusable``, ``ImageBusy``, ``VhdCorrupt``.
        """
        ...

    async def resize_disk(self, *, vm: str, disk: str, size_bytes: int) -> DiskInfo:
        """Grow a disk while it is in use; its guests see it when they look (``InvalidDiskSize``, ``DiskFull``)."""
        ...

    async def counters(self, *, vm: str, disk: str) -> DiskCounters:
        """What a disk has done since it was opened; stops nothing (``VmNotFound``, ``DiskNotFound``)."""
        ...

    async def remove_vm(self, *, vm: str) -> None:
        """Delete a VM's disks, logs and folder (``VmNotFound``, ``DiskInUse``)."""
        ...

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Rename a VM whose disks are not open; no-op if that was done.

        ``VmNotFound``, ``VmExists``, ``InvalidName``, ``DiskInUse``, ``VmBusy`` (a promotion is under way).
        """
        ...

    async def check_tracking(self, *, vm: str) -> None:
        """Tracking can start: ``VmNotFound``, ``BrokenVhdChain``, ``DiskInUse`` (a loop device is attached to an image)."""
        ...

    async def start_tracking(
        self, *, vm: str, new_generation: bool = False, after: dict[str, int] | None = None, after_position: int = 0
    ) -> list[DiskInfo]:
        """Log every write from now on; no-op where already on, unless a new generation is asked for.

        A new generation comes after that of ``after`` (by disk id), and positions after ``after_position``: the disks may
        have been restored from an older copy.
        """
        ...

    async def stop_tracking(self, *, vm: str) -> None:
        """Stop logging and delete the logs."""
        ...

    async def cut(self, *, vm: str, kind: TagKind, name: str, not_after_ns: int | None = None) -> CutInfo:
        """Tag one position over all disks of the VM and close each current segment (``NotTracked``).

        ``not_after_ns``: on CLOCK_MONOTONIC; past it nothing is tagged (``FreezeTimedOut``), for the guests that were
        frozen for this cut may have gone on.
        """
        ...

    async def segments(self, *, vm: str) -> list[SegmentInfo]:
        """Closed segments that are still kept, by disk and sequence number."""
        ...

    async def trim_log(self, *, disk_id: str, generation: int, last_seq: int) -> None:
        """The recovery side has durably applied up to ``last_seq``: those segments may go."""
        ...

    async def begin_snapshot(self, *, vm: str) -> SnapshotInfo:
        """Copy-before-write snapshot over all disks (``SnapshotExists``, ``NotTracked``)."""
        ...

    async def release_snapshot(self, *, vm: str, disk: str, upto: int) -> None:
        """Bytes below ``upto`` of this disk's snapshot will not be read again: stop preserving them."""
        ...

    async def end_snapshot(self, *, vm: str) -> None:
        """Remove the snapshot; no-op where there is none."""
        ...

    async def begin_replace(self, *, vm: str, disk: str, size_bytes: int) -> StagingInfo:
        """Make an empty staging file beside the disk (``DiskInUse``).  The disk itself is untouched.

        ``size_bytes``: of what comes back.  The file has the disk's size if that is more: a disk is never shrunk, and may
        have grown after the state was replicated that comes back.
        """
        ...

    async def commit_replace(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        """Put all staged disks of the VM in place: new generation, tracking off, old logs gone.

        Of the disks ``keep``, the old one stays as an image file (``DiskInfo.kept``).
        """
        ...

    async def delete_kept(self, *, vm: str, file: str) -> None:
        """Delete an old disk that was kept (``VmNotFound``, ``KeptImageNotFound``)."""
        ...

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        """How the VM's disks were used after a position (``VmNotFound``)."""
        ...

    async def check_replace(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        """The VM's disks can be replaced: ``VmNotFound``, ``DiskNotFound``, ``DiskInUse``, ``NotEnoughSpace``."""
        ...

    async def create_disk_from_point(
        self, *, vm: str, name: str, managed_disk: ManagedDiskId, position: int, sector_bytes: SectorBytes = 512
    ) -> DiskInfo:
        """Serve managed disk ``managed_disk`` as of ``position`` as a writable, tracked disk of VM ``vm``.

        A new top (``vm``/``name``) is made over the read-only view; only a recovery-side host can do this
        (``NotARecoveryHost``).
        """
        ...

    async def check_promotion(self, *, vm: str) -> None:
        """There is room for the VM's disks to become independent: ``VmNotFound``, ``NotEnoughSpace``."""
        ...

    async def promote_vm(self, *, vm: str) -> list[DiskInfo]:
        """Make the VM's disks independent of the managed disks that they lie over, behind their guests (``VmNotFound``).

        Returns at once; how far each disk is, is in its ``promotion``.  Of no effect on disks that lie over none.
        """
        ...

    async def open_mounted_point(
        self, *, vm: str, name: str, position: int, disks: list[MountedPointSource], time_ns: int | None = None
    ) -> MountedPointInfo:
        """Serve managed disks as of ``position``, read-only, as ``recovery/VM/NAME``; no-op if it is there like that.

        ``time_ns``: of that state, Unix time; its files have it.  None: they have the time of this call.
        It holds on to its position, and is there again after a restart, until it is closed.  ``InvalidPosition``,
        ``RecoveryExists``, ``NotARecoveryHost``, and what opening a view may raise.
        """
        ...

    async def close_mounted_point(self, *, vm: str, name: str) -> None:
        """Take it away; no-op if there is none (``RecoveryInUse``)."""
        ...

    async def list_mounted_points(self, *, vm: str | None = None) -> list[MountedPointInfo]:
        """All that are served, or those of one VM."""
        ...
