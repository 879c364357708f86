"""The history of a managed disk: its generations, how far each was applied, and which positions can be read.

:class:`DiskHistory` alone decides which part comes next and how far the disk is.  It is computed from ``progress``, which
describes the base, and from the headers of the journal's frames.  Nothing of it is stored a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from siterig.azure_emu.disks.frames import Frame
from siterig.azure_emu.disks.metadata import CompactionIntent, DiskMeta, Progress
from siterig.blockfs.changelog.segment import RECORD_HEADER_BYTES
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_index import PIECE_BYTES
from siterig.blockfs.transfer.part_name import PartName, Watermark

SLICE_BYTES = 2 << 30
SLICE_ENTRIES = 1 << 20
SLICE_PARTIAL_BLOCKS = 1 << 15
"""Limits of one compaction.  A larger one merges more writes of a block into one and syncs less often.  It also needs more
memory, most of all for blocks that change in part because they are kept whole, and it delays the end of the applier."""

PartStatus = Literal["next", "applied", "later", "conflict"]
"""The use of a part for a disk: apply it now, not needed any more, keep it for later, or never applicable."""


@dataclass(slots=True)
class Epoch:
    """One generation of the disk.

    ``first_seq`` is None until the sync is complete.  ``first_position`` is the position of the first sync part,
    ``snapshot_position`` that of the ``sync-end`` tag.  A copy that was interrupted continues with a later snapshot, while
    the log still begins after the first one.  Then the two positions differ, and no position is valid before the log reaches
    the last snapshot.  ``sync_position`` is the position of the last sync part; for sync parts in the base, that of the
    first.
    """

    generation: int
    sync_parts: int = 0
    first_seq: int | None = None
    first_position: int = 0
    sync_position: int = 0
    snapshot_position: int = 0
    snapshot_time_ns: int = 0
    log_seq: int = 0
    log_position: int = 0
    log_time_ns: int = 0

    @classmethod
    def of_base(cls, progress: Progress) -> Epoch:
        """Return the generation of the base, as far as the base has it."""
        return cls(
            generation=progress.generation,
            sync_parts=progress.sync_parts,
            first_seq=progress.first_seq if progress.complete else None,
            first_position=progress.first_position,
            sync_position=progress.first_position,
            snapshot_position=progress.position,
            snapshot_time_ns=progress.time_ns,
            log_seq=progress.log_seq,
            log_position=progress.log_position,
            log_time_ns=progress.log_time_ns,
        )

    @property
    def complete(self) -> tuple[int, int] | None:
        """The newest valid position and its time; None while no position of this generation is valid."""
        if self.first_seq is None:
            return None
        if self.log_position >= self.snapshot_position:
            return self.log_position, self.log_time_ns
        if self.first_position == self.snapshot_position:
            return self.snapshot_position, self.snapshot_time_ns
        return None

    @property
    def next_log_seq(self) -> int:
        """The sequence number that the next log part begins with; use it only after the sync is complete."""
        return self.log_seq + 1 if self.log_seq else self.first_seq or 1

    def classify_sync(self, part: PartName) -> PartStatus:
        """Return the status of a sync part of this generation."""
        if part.first <= self.sync_parts:
            return "applied"
        if self.first_seq is not None:
            return "conflict"
        return "next" if part.first == self.sync_parts + 1 else "later"

    def classify_log(self, part: PartName) -> PartStatus:
        """Return the status of a log part of this generation."""
        if self.first_seq is None or part.first > self.next_log_seq:
            return "later"
        if part.last < self.next_log_seq:
            return "applied"
        return "next" if part.first == self.next_log_seq else "conflict"


def _partial_blocks_max(frame: Frame) -> int:
    """Return how many blocks the frame may change in part: a write with more pieces than its bytes fill has partial ones."""
    whole = (frame.segment_bytes - RECORD_HEADER_BYTES * frame.records) // PIECE_BYTES
    return 2 * (max(0, frame.pieces - whole) + max(0, frame.entries - frame.pieces))


class DiskHistory:
    """The applied parts of a disk; a part is added after it is durable.

    ``oldest_position`` is the oldest position that can be read, after the initial sync is complete.  ``frames`` are the
    frames after the base.  ``compacted`` is the number of the last frame in the base.
    """

    def __init__(self, meta: DiskMeta, progress: Progress | None) -> None:
        self.disk_id = meta.disk_id
        self.size_bytes = meta.size_bytes
        self.epochs: list[Epoch] = []
        self.frames: list[Frame] = []
        self.compacted = 0
        self.oldest_position = 0
        self.oldest_time_ns = 0
        self._progress: Progress | None = None
        self._meta = meta
        if progress is not None:
            self.set_progress(progress)

    @property
    def initial_sync_complete(self) -> bool:
        """True if the initial replication is complete, so that the base holds a state of the disk."""
        return bool(self.epochs) and self.epochs[0].first_seq is not None

    def set_progress(self, progress: Progress) -> None:
        """Start again from a base that holds ``progress``, without frames."""
        self._progress = progress
        self.epochs = [Epoch.of_base(progress)]
        self.compacted = progress.frame
        self.oldest_position, self.oldest_time_ns = progress.floor, progress.floor_time_ns
        if progress.size_bytes:
            self.size_bytes = progress.size_bytes

    def begin_compaction(self, intent: CompactionIntent) -> None:
        """Move the oldest position to the target of a compaction."""
        self.oldest_position, self.oldest_time_ns = intent.position, self.progress_at(intent.frame).floor_time_ns

    def set_meta(self, meta: DiskMeta) -> None:
        """Take over the identity of a disk that grew before its initial replication began."""
        self._meta = meta
        self.size_bytes = meta.size_bytes

    def progress_at(self, frame: int) -> Progress:
        """Return the progress of a base that holds everything up to frame ``frame``."""
        reached = self.upto(frame)
        epoch = reached.epochs[-1]
        oldest, time_ns = epoch.complete or (0, 0)
        return Progress(
            generation=epoch.generation,
            sync_parts=epoch.sync_parts,
            first_position=epoch.first_position,
            complete=epoch.first_seq is not None,
            position=epoch.snapshot_position,
            time_ns=epoch.snapshot_time_ns,
            first_seq=epoch.first_seq or 0,
            log_seq=epoch.log_seq,
            log_position=epoch.log_position,
            log_time_ns=epoch.log_time_ns,
            frame=frame,
            floor=oldest,
            floor_time_ns=time_ns,
            size_bytes=reached.size_bytes,
        )

    def upto(self, frame: int) -> DiskHistory:
        """Return a copy that ends with frame ``frame``."""
        past = DiskHistory(self._meta, self._progress)
        for each in self.frames:
            if each.number <= frame:
                past.add(each)
        return past

    def size_before(self, frame: Frame) -> int:
        """Return the disk's size before ``frame``, in bytes."""
        at = frame.number - self.compacted - 2
        return self.frames[at].size_bytes_after if at >= 0 else self.size_of_base

    @property
    def size_of_base(self) -> int:
        """The size of the disk at the oldest position, in bytes."""
        return (self._progress.size_bytes if self._progress else 0) or self._meta.size_bytes

    def compaction_target(self, position: int) -> int:
        """Return the number of the frame up to which the next compaction goes.

        At its end the state of the disk is known, at a position that is not above ``position``.  It is the newest such frame
        within the limits of one compaction, otherwise the first such frame; ``compacted`` if there is none.
        """
        past = self.upto(self.compacted)
        best, some_bytes, entries, partial_blocks = self.compacted, 0, 0, 0
        for frame in self.frames:
            past.add(frame)
            some_bytes += frame.segment_bytes
            entries += frame.entries
            partial_blocks += _partial_blocks_max(frame)
            is_full = some_bytes > SLICE_BYTES or entries > SLICE_ENTRIES or partial_blocks > SLICE_PARTIAL_BLOCKS
            if best > self.compacted and is_full:
                break
            complete = past.epochs[-1].complete
            if complete is not None:
                if complete[0] > position:
                    break
                best = frame.number
        return best

    def expected(self) -> str:
        """Return a description of the part that comes next, for messages."""
        if not self.epochs:
            return "sync part 1"
        epoch = self.epochs[-1]
        if epoch.first_seq is None:
            return f"sync part {epoch.sync_parts + 1} of generation {epoch.generation}"
        return f"log sequence number {epoch.next_log_seq} of generation {epoch.generation}"

    def classify(self, part: PartName) -> PartStatus:
        """Return the status of ``part``."""
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        if part.generation < epoch.generation:
            return "applied"
        if part.generation > epoch.generation:
            return "next" if part.stream == "sync" and part.first == 1 else "later"
        return epoch.classify_sync(part) if part.stream == "sync" else epoch.classify_log(part)

    def check_positions(self, part: PartName, first_position: int) -> None:
        """Check that positions do not go back; otherwise a view at an old position would contain newer records.

        Raises:
            RigError: ``PositionRegressed``.
        """
        if first_position < (reached := self._reached(part)):
            raise RigError(
                Code.PositionRegressed,
                f"part {part.blob()}: begins at position {first_position}; disk {self.disk_id} is at {reached} already",
            )

    def _reached(self, part: PartName) -> int:
        """Return the lowest position that a part may begin with."""
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        if part.stream == "log":
            return epoch.log_position
        if part.generation == epoch.generation:
            return epoch.sync_position
        earlier = [epoch.complete for epoch in self.epochs if epoch.generation < part.generation]
        return max((complete[0] for complete in earlier if complete), default=0)

    def regresses(self, frame: Frame) -> bool:
        """Return whether positions go back at or in the frame of the next part; no such part was ever applied."""
        return not self._reached(frame.part) <= frame.first_position <= frame.position

    def add(self, frame: Frame) -> None:
        """Add ``frame``, the next one, which is durable in the journal."""
        part = frame.part
        if not self.epochs or part.generation > self.epochs[-1].generation:
            self.epochs.append(Epoch(part.generation, first_position=frame.first_position))
        epoch = self.epochs[-1]
        if part.stream == "log":
            epoch.log_seq = part.last
            epoch.log_position, epoch.log_time_ns = frame.position, frame.time_ns
        else:
            epoch.sync_parts, epoch.sync_position = part.last, frame.position
            if frame.sync_end_seq is not None:
                epoch.first_seq = frame.sync_end_seq
                epoch.snapshot_position, epoch.snapshot_time_ns = frame.position, frame.time_ns
        self.size_bytes = frame.size_bytes_after
        self.frames.append(frame)

    def names_position(self, tag: TagSeen) -> bool:
        """Return whether a tag in the newest frame names a valid position: one before the last snapshot does not."""
        return tag.position >= self.epochs[-1].snapshot_position

    def watermark(self) -> Watermark:
        """Return how far parts are durably applied.

        During a resync the complete position is that of the generation before.
        """
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        position, time_ns = next((e.complete for e in reversed(self.epochs) if e.complete), (0, 0))
        return Watermark(
            disk_id=self.disk_id,
            generation=epoch.generation,
            sync_parts=epoch.sync_parts,
            sync_complete=epoch.first_seq is not None,
            log_seq=epoch.log_seq,
            complete_position=position,
            complete_time_ns=time_ns,
        )

    def contained(self, generation: int) -> int:
        """Return the position up to which all sync parts of ``generation`` contain its log records.

        Replaying only some of these records would restore older content, so every view leaves them out.
        """
        return next(epoch.first_position for epoch in self.epochs if epoch.generation == generation)

    def valid(self) -> list[tuple[Epoch, int, int]]:
        """Return the generations with their first and last valid position, oldest first."""
        found = []
        for epoch in self.epochs:
            if epoch.complete is not None:
                first = max(epoch.snapshot_position, self.oldest_position)
                if first <= epoch.complete[0]:
                    found.append((epoch, first, epoch.complete[0]))
        return found

    def epoch_of(self, position: int) -> Epoch:
        """Return the newest generation in which ``position`` is valid.

        Raises:
            RigError: ``InvalidPosition``, which names the valid positions.
        """
        valid = self.valid()
        for epoch, first, last in reversed(valid):
            if first <= position <= last:
                return epoch
        ranges = ", ".join(f"{first} to {last}" for _, first, last in valid)
        what = f"valid positions are {ranges}" if ranges else "its initial replication is not complete"
        raise RigError(Code.InvalidPosition, f"disk {self.disk_id} has no state at position {position}: {what}")
