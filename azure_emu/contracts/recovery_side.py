"""The contract of the recovery side's data mover, the applier role: managed disks, their states and their damage."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.azure_emu.contracts.seeds import Seeds
from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, deadline
from siterig.blockfs.core.wire_model import UUID_PATTERN, WireModel
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.part_name import Watermark

ChangeKind = Literal["WRITE", "ZERO", "DISCARD", "RESIZE"]


class Change(WireModel):
    """A record that changed a disk: a range of bytes; for RESIZE, ``length`` is the new size.

    All changes of a resync have the position of its snapshot: they are one step.
    """

    position: int
    time_ns: int
    kind: ChangeKind
    offset: int
    length: int


class ChangeStep(WireModel):
    """A group of ``count`` positions at which a disk changed.

    The last of them is at or before ``position``; a group of one has exactly that position.
    """

    position: int
    time_ns: int
    count: int


class Damage(WireModel):
    """A damaged range of a file in a managed disk's folder.

    Positions from ``first_position`` to ``last_position`` (None: and all later ones) need it; reads of the range fail there.
    ``first_position`` is None if no position needs it.  After 100 damages of a kind, one more row stands for all others of
    that kind.  It has the place of the first of them, and some of its positions may be intact.
    """

    path: str
    offset: int
    what: str
    first_position: int | None
    last_position: int | None = None


class Pin(WireModel):
    """A position of a managed disk that ``holder`` has open."""

    pin_id: str = Field(pattern=UUID_PATTERN)
    position: int = Field(ge=0, lt=1 << 63)
    holder: str
    created_ns: int = Field(ge=0, lt=1 << 63)


class ManagedDiskState(WireModel):
    """The state of a managed disk now.

    ``floor`` is the oldest position that can be read, 0 if none can, and ``floor_time_ns`` its time.  ``valid_ranges`` are
    the ranges (first, last) of positions that can be read, oldest first.  ``retain`` is the position up to which the journal
    is compacted as soon as no pin holds an older one; 0 if no compaction was requested.  ``base_bytes`` and
    ``journal_bytes`` are the space that they take on the host's disk, and ``free_bytes`` the space that is free there.
    ``encrypted``: the data are encrypted; those of an older siterig are not before the applier has opened the disk.
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
    free_bytes: int | None = None
    encrypted: bool = True


class AppliedFigures(WireModel):
    """Figures of one managed disk.

    Attributes:
        account_bytes: bytes of its parts in the cache account; None: the account did not answer soon.
        applied_parts: the number of parts that were applied since the start of the applier.
    """

    account_bytes: int | None
    applied_parts: int


class RecoverySide(Seeds, Protocol):
    """The applier role: managed disks, and the way into and out of the cache account."""

    async def create_managed_disk(self, *, disk_id: str, size_bytes: int) -> None:
        """Create an empty managed disk; no-op if one of this size or a larger one exists, or one that has a state.

        Raises:
            RigError: ``DiskExists`` if a smaller, empty one exists; ``InvalidDiskSize``, ``DiskFull``.
        """
        ...

    async def delete_managed_disk(self, *, disk_id: str) -> None:
        """Delete the disk, its journal and its blobs in the cache account; no-op if there is none."""
        ...

    @deadline(REPORT_S)
    async def parts_put(self, *, disk_ids: list[str]) -> None:
        """Begin to process these disks now, because parts of them were put into the cache account; returns at once.

        All of them replicate: the applier does not ask the vault for that.
        A call that is lost costs time only: the applier looks at all disks from time to time.
        """
        ...

    async def process_latest(self, *, disk_ids: list[str]) -> list[Watermark]:
        """Apply all parts of these disks that are in the cache account now; return the watermarks afterwards."""
        ...

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        """Return keyed tags of chunks of a managed disk, of those that are not zeros.

        Args:
            disk_id: the managed disk.
            comparison_id: a random id that the caller chooses.  All calls with it read the same state of the disk.
            key_hex: the key of the tags, 32 random bytes in hexadecimal.
            chunk_bytes: bytes of a chunk, a multiple of 4096.
            spans: (first, count) of the chunks, in ascending order.
            position: the position of the state; None: the latest applied state, even of an unfinished resync.
            generation: the generation that the latest state must be of.

        Raises:
            RigError: ``InvalidChecksumRequest``, ``InvalidPosition``; ``ManagedDiskReplaced`` if it has another generation.
        """
        ...

    @deadline(ANSWER_S)
    async def end_comparison(self, *, comparison_id: str) -> None:
        """Close the states of a comparison; without this call they are closed after a minute without use."""
        ...

    @deadline(ANSWER_S)
    async def retain(self, *, positions: dict[str, int]) -> None:
        """Allow the compaction of all positions of each disk below the given one, in the background, as far as pins allow.

        The values are lost at a restart, so the vault repeats the call from time to time.  A lower value than before
        changes nothing.

        Args:
            positions: the positions by disk id.
        """
        ...

    @deadline(ANSWER_S)
    async def disk_state(self, *, disk_id: str) -> ManagedDiskState:
        """Return the state of the managed disk.

        Raises:
            RigError: ``DiskNotFound``, ``StoreCorrupt``.
        """
        ...

    @deadline(ANSWER_S)
    async def account_bytes(self, *, disk_id: str) -> int:
        """Return the bytes of all parts of the disk in the cache account, also of those that are applied already."""
        ...

    @deadline(ANSWER_S)
    async def applied_figures(self, *, disk_ids: list[str]) -> dict[str, AppliedFigures]:
        """Return the figures of these disks, by disk id; the account is asked once for all of them."""
        ...

    @deadline(ANSWER_S)
    async def position_at(self, *, disk_id: str, time_ns: int) -> int:
        """Return the last valid position whose record has the wall time ``time_ns`` or an earlier one.

        Raises:
            RigError: ``InvalidPosition`` if every valid position is later.
        """
        ...

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        """Return the first ``limit`` changes of the disk with ``after < position <= upto``, in order.

        Raises:
            RigError: ``InvalidPosition`` if one of the two positions is not valid.
        """
        ...

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        """Return the positions with ``after < position <= upto`` at which the disk changed, or groups of them.

        There are at least two groups if there are at least two positions, so that a search over smaller and smaller ranges
        finds each position.

        Raises:
            RigError: ``InvalidPosition`` if one of the two positions is not valid.
        """
        ...

    async def scrub(self, *, disk_id: str) -> list[Damage]:
        """Read every byte of the managed disk and return the damage; parts may be applied at the same time."""
        ...

    async def repair(self, *, disk_id: str) -> None:
        """Rebuild headers, indexes, tags and the map of the base from other data that is intact.

        Raises:
            RigError: ``DiskNotFound``; ``StoreCorrupt`` if the damage does not allow applying any more.
        """
        ...

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        """Put file ``source`` into the cache account as sync parts of ``source_id`` (generation 1), for a failback.

        Zeros are skipped.  Parts that the account has already are kept, so that a call after a kill resumes.

        Returns:
            The number of parts.
        """
        ...

    @deadline(ANSWER_S)
    async def forget_keys(self) -> None:
        """Drop all data keys, because one was revoked; each is asked for again when it is needed."""
        ...

    async def data_bytes(self, *, source: str) -> int:
        """Return the number of bytes of a file that are not holes, which is the most that an export sends.

        Raises:
            RigError: ``SourceUnreadable``.
        """
        ...

    @deadline(ANSWER_S)
    async def export_progress(self, *, source_id: str) -> int:
        """Return how many bytes of the source were read so far; 0 if there is no export."""
        ...
