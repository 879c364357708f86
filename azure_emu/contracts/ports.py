"""What the vault needs from other roles: the provider at the site, and the recovery side's data mover."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.control import BackingImage, CutInfo, DiskInfo, DownloadedDisk, SourceUse, TagKind
from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_S, REPORT_S, deadline
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.core.sizes import SectorBytes
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.core.wire_model import UUID_PATTERN, WireModel
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.transfer.part_name import Watermark


class DiskSpec(WireModel):
    """A disk to create: ``filesystem`` None, ``ext4`` or ``xfs``; or with what is in ``image`` (an absolute path).

    ``image_format``: of the image; None: it is recognized.  ``sector_bytes``: the logical sector size that the disk
    declares.
    ``backing``: an image that a thin disk is made over, used in place.
    """

    name: str
    size_bytes: int
    filesystem: str | None = None
    image: str | None = None
    image_format: ImageFormat | None = None
    sector_bytes: SectorBytes = 512
    backing: BackingImage | None = None


ChangeKind = Literal["WRITE", "ZERO", "DISCARD", "RESIZE"]


class Change(WireModel):
    """A record that changed a disk: a range of bytes, or (RESIZE) the new size as ``length``.

    What a resync sent has the position of its snapshot: these changes are one step.
    """

    position: int
    time_ns: int
    kind: ChangeKind
    offset: int
    length: int


class ChangeStep(WireModel):
    """``count`` positions at which a disk changed, the last of them not after ``position``; of one it is that."""

    position: int
    time_ns: int
    count: int


class Damage(WireModel):
    """Something in a managed disk's folder that is not as it was written.

    Positions from ``first_position`` to ``last_position`` (None: and all later ones) are not whole; a read of what is
    damaged fails there.  ``first_position`` None: every position is whole all the same.  Of very many of a kind, all behind
    the first hundred are one, at the first of them: then some of the positions may be whole.
    """

    path: str
    offset: int
    what: str
    first_position: int | None
    last_position: int | None = None


class Pin(WireModel):
    """``holder`` has ``position`` open."""

    pin_id: str = Field(pattern=UUID_PATTERN)
    position: int = Field(ge=0, lt=1 << 63)
    holder: str
    created_ns: int = Field(ge=0, lt=1 << 63)


class ManagedDiskState(WireModel):
    """A managed disk as it is now.

    ``floor``: the oldest position that can be read (0: none can).  ``valid_ranges``: (first, last) positions that can be,
    oldest first.  ``retain``: the position up to which the journal is being folded away, once nothing has an older one
    pinned (0: that was not asked for).  ``base_bytes``, ``journal_bytes``: what they take of the host's disk.
    """

    disk_id: str
    size_bytes: int
    floor: int
    floor_time_ns: int
    valid_ranges: list[tuple[int, int]]
    retain: int
    pins: list[Pin]
    base_bytes: int
    journal_bytes: int


class Provider(Protocol):
    """The Azure Site Recovery Provider and the Recovery Services agent on the Hyper-V host."""

    async def create_vm(self, *, vm: str, disks: list[DiskSpec]) -> list[DiskInfo]:
        """New source VM with (optionally formatted) disks.  ``VmExists``; on failure nothing is left."""
        ...

    @deadline(ASKING_S)
    async def list_vms(self) -> list[DiskInfo]:
        """Every disk of every source VM."""
        ...

    async def check_delete(self, *, vm: str) -> None:
        """The VM can be deleted: ``VmNotFound``, ``DiskInUse``, ``InvalidState`` (it has kept images)."""
        ...

    async def delete_vm(self, *, vm: str) -> None:
        """Forget the VM, and delete its disks and logs (``VmNotFound``, ``DiskInUse``)."""
        ...

    async def rename_vm(self, *, vm: str, name: str) -> None:
        """Rename the VM with its relationship; no-op if that was done (``VmNotFound``, ``VmExists``, ``DiskInUse``)."""
        ...

    async def check_vm(self, *, vm: str) -> list[DiskInfo]:
        """Prerequisites for protection: VM found, disks healthy, enough free space for snapshot and logs."""
        ...

    async def create_relationship(
        self, *, vm: str, interval_s: float, app_consistent_every_s: float | None
    ) -> list[DiskInfo]:
        """Start tracking; remember the relationship durably.  Idempotent."""
        ...

    async def initial_replication(self, *, vm: str) -> None:
        """Snapshot, copy disk by disk, remove the snapshot; returns when every part is in the cache account.

        Called again while it runs, or after a kill: joins or resumes.  Delta replication starts afterwards.
        """
        ...

    async def resync(self, *, vm: str) -> None:
        """New generation; send the chunks whose checksums differ; returns when every part is in the cache account."""
        ...

    async def send_again(self, *, vm: str, parts: list[str]) -> None:
        """The recovery side cannot use these parts (names of blobs) in the cache account: replace each.

        Then everything else that is missing in the account is sent as well.  A part that the host has not got (any more)
        marks the VM for a resync.  The cache account's errors: then nothing is changed, and the call can be repeated.
        """
        ...

    @deadline(ANSWER_S)
    async def progress(self, *, vm: str) -> VmProgress:
        """For progress bars; phase None when idle."""
        ...

    async def replicate_now(self, *, vm: str, kind: TagKind, name: str, request_id: str | None = None) -> CutInfo:
        """One delta cycle out of turn; returns when data and tag are in the cache account.

        A call that failed after its cut may be repeated with the same ``request_id``: that cut is sent then, and no second
        one is made.  It is remembered until the agent ends.
        """
        ...

    async def check_shutdown(self, *, vm: str) -> None:
        """Raises the error that :meth:`shutdown_vm` would raise (``VmBusy``), as far as it can be known; changes nothing."""
        ...

    async def shutdown_vm(self, *, vm: str) -> None:
        """Unmount and detach everything on this host that uses the VM's disks (``VmBusy`` names what holds them)."""
        ...

    async def suspend(self, *, vm: str) -> None:
        """No more cycles for this VM (it was failed over); tracking stays as it is.  Idempotent."""
        ...

    async def remove_relationship(self, *, vm: str) -> None:
        """Forget the VM: stop tracking, delete logs.  Idempotent."""
        ...

    async def source_use(self, *, vm: str, after: int) -> list[SourceUse]:
        """How the VM's disks were used after position ``after``, when it was failed over (``VmNotFound``)."""
        ...

    async def check_failback(self, *, vm: str, disks: list[DownloadedDisk]) -> None:
        """These can replace the VM's disks: ``VmNotFound``, ``DiskNotFound``, ``DiskInUse``, ``NotEnoughSpace``."""
        ...

    async def receive_disk(self, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int) -> None:
        """Failback: download ``parts`` sync parts of ``source_id`` (generation 1) into a staging disk; durable on return."""
        ...

    async def commit_failback(self, *, vm: str, keep: list[str]) -> list[DiskInfo]:
        """Put the staged disks in place of the old ones; of the disks ``keep`` the old one stays as an image file."""
        ...


class RecoverySide(Protocol):
    """The applier role: managed disks and the way into and out of the cache account."""

    async def create_managed_disk(self, *, disk_id: str, size_bytes: int) -> None:
        """An empty managed disk; no-op if it is there with that size or more (``DiskExists`` otherwise)."""
        ...

    async def delete_managed_disk(self, *, disk_id: str) -> None:
        """Remove the disk, its journal and its blobs in the cache account; no-op if gone."""
        ...

    async def process_latest(self, *, disk_ids: list[str]) -> list[Watermark]:
        """Apply all that the cache account holds for these disks, now; the watermarks afterwards."""
        ...

    async def checksums(self, *, disk_id: str, key_hex: str, chunk_bytes: int, first: int, count: int) -> list[str]:
        """Keyed checksums (hex) of chunks of the latest applied state."""
        ...

    @deadline(ANSWER_S)
    async def retain(self, *, disk_id: str, position: int) -> None:
        """Positions before this one are not needed any more: fold them away, behind the applier, as far as pins allow.

        Not remembered after a restart: who asks does so now and then.  A lower position than before changes nothing.
        """
        ...

    @deadline(ANSWER_S)
    async def disk_state(self, *, disk_id: str) -> ManagedDiskState:
        """Floor, valid positions, pins, space (``DiskNotFound``, ``StoreCorrupt``)."""
        ...

    @deadline(ANSWER_S)
    async def position_at(self, *, disk_id: str, time_ns: int) -> int:
        """The last position that can be read whose record was made at ``time_ns`` or before; ``InvalidPosition``."""
        ...

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        """The first ``limit`` changes of the disk with ``after < position <= upto``, in order (``InvalidPosition``)."""
        ...

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        """At which positions with ``after < position <= upto`` the disk changed (``InvalidPosition``).

        Of very many, groups: at least two of at least two positions, so that whoever asks for less and less finds each.
        """
        ...

    async def scrub(self, *, disk_id: str) -> list[Damage]:
        """Read every byte of the disk's store; what is not as it was written.  It may be called while parts are applied."""
        ...

    async def repair(self, *, disk_id: str) -> None:
        """Write again what of the store can be made from the rest of it: headers, indexes, tags, the base's map.

        ``DiskNotFound``; ``StoreCorrupt``: something is damaged that nothing can be applied over.
        """
        ...

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        """Failback: put file ``source`` into the cache account as sync parts of ``source_id`` (generation 1).

        Returns the number of parts.  Zeros are skipped.  Parts already there are kept (resumes after a kill).
        """
        ...

    async def data_bytes(self, *, source: str) -> int:
        """Bytes of a file that are not holes (``SourceUnreadable``): the most that an export of it sends."""
        ...

    @deadline(ANSWER_S)
    async def export_progress(self, *, source_id: str) -> int:
        """Bytes of the source that were looked at so far (0 if unknown)."""
        ...


class DamageReports(Protocol):
    """What the vault is told of damage in managed disks.  Of a disk that it does not know it takes no notice."""

    @deadline(ANSWER_S)
    async def vm_disk_changed(self, *, vm: str, disk: str, what: str) -> None:
        """Another program has changed a disk of a VM on the recovery side, or it cannot be opened.  Repeats are harmless."""
        ...

    @deadline(ANSWER_S)
    async def damage_met(self, *, disk_id: str, path: str, offset: int, position: int) -> None:
        """A read of the state at ``position`` failed for what is in byte ``offset`` of a file.  Repeats are harmless."""
        ...

    @deadline(ANSWER_S)
    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        """A scrub of the whole disk has found this: it takes the place of all that was known."""
        ...


class SkippedBlob(WireModel):
    """A blob under a disk's prefix in the cache account that is passed over."""

    name: str
    reason: str


class ApplierReports(Protocol):
    """What the applier tells the vault."""

    @deadline(ANSWER_S)
    async def applied(self, *, watermark: Watermark, tags: list[TagSeen]) -> Watermark | None:
        """Durably applied; ``tags`` are new since the last report (repeats are harmless).

        Returns the watermark that the vault knows, if it is a later one.
        """
        ...

    @deadline(ANSWER_S)
    async def store_older(self, *, watermark: Watermark) -> None:
        """The store has only this, and had more: its folder was restored from an older copy, or has lost frames."""
        ...

    @deadline(ANSWER_S)
    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        """A part was refused (checksum, gap, ...) or could not be applied yet (disk full); it stays in the cache account."""
        ...

    @deadline(ANSWER_S)
    async def replicating_disks(self) -> list[str]:
        """Ids of the managed disks that the applier is to look after."""
        ...

    @deadline(ANSWER_S)
    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        """The disk's blobs in the cache account: bytes that are not applied yet, and blobs that are passed over.

        ``skipped``: the first few of ``skipped_count``.
        """
        ...

    @deadline(ANSWER_S)
    async def send_again(self, *, disk_id: str, parts: list[str]) -> None:
        """These parts (names of blobs) are in the cache account and cannot be used: the site is to send them again.

        Nothing is named if the part that comes next is not in the account at all.  Returns at once.
        """
        ...


RoleState = Literal["waiting", "starting", "ready", "hung", "restarting", "held", "failed", "stopped"]


class RoleStatus(WireModel):
    """One role's process, as its supervisor sees it.

    ``hung``: the process is there, but does not answer.  ``restarting``: it ended, and is started again.  ``held``: killed
    on purpose and kept down.  ``failed``: it ended too often and is not started again.
    ``restarts`` counts the times it ended by itself; ``detail`` says why it is not ready (the last line of its log).
    ``since_ns``: begin of the state, wall clock.  ``waits``: what the role waits for, as it reported last.
    """

    name: str
    state: RoleState
    pid: int | None
    restarts: int
    detail: str
    since_ns: int
    waits: list[Wait]


class RoleReports(Protocol):
    """The supervisor's reports to the vault about the rig's roles."""

    @deadline(REPORT_S)
    async def report_roles(self, *, roles: list[RoleStatus]) -> None:
        """The state of every role now: sent at once when a state changes, and every few seconds."""
        ...
