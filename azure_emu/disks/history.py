"""What has been applied to a managed disk: its generations, how far each came, which positions can be read.

:class:`DiskHistory` is the one place that knows which part comes next and what has been reached.  It is folded from
``progress``, which tells what the base holds, and from the headers of the journal's frames, so there is no second truth to
disagree.
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
SLICE_CUT_BLOCKS = 1 << 15
"""What one fold takes at a time.  The more, the more writes of a block become one, and the fewer the syncs; but more would
need more memory (most of all blocks that change in part: they are kept whole), and keep what waits for its end waiting."""

PartStatus = Literal["next", "applied", "later", "conflict"]
"""What a part is to a disk: to be applied now, no longer needed, to be kept for later, or never applicable."""


@dataclass(slots=True)
class Epoch:
    """One generation of the disk.

    ``first_seq`` None: its sync is not complete.  ``first_position``: of the first sync part.  ``snapshot_position``: of the
    ``sync-end`` tag.  A copy that was cut goes on with a later snapshot, while the log still begins after the first:
    then the two differ, and the log must have reached the last snapshot before any position is valid.  ``sync_position``: of
    the last sync part (of those in the base: the first).
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
        """The generation of the base, as far as the base has it."""
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
        """Newest valid position and its time; None while no position of this generation is valid."""
        if self.first_seq is None:
            return None
        if self.log_position >= self.snapshot_position:
            return self.log_position, self.log_time_ns
        if self.first_position == self.snapshot_position:
            return self.snapshot_position, self.snapshot_time_ns
        return None

    @property
    def next_log_seq(self) -> int:
        """Sequence number that the next log part begins with (sync complete only)."""
        return self.log_seq + 1 if self.log_seq else self.first_seq or 1

    def classify_sync(self, part: PartName) -> PartStatus:
        """What a sync part of this generation is to the disk now."""
        if part.first <= self.sync_parts:
            return "applied"
        if self.first_seq is not None:
            return "conflict"
        return "next" if part.first == self.sync_parts + 1 else "later"

    def classify_log(self, part: PartName) -> PartStatus:
        """What a log part of this generation is to the disk now."""
        if self.first_seq is None or part.first > self.next_log_seq:
            return "later"
        if part.last < self.next_log_seq:
            return "applied"
        return "next" if part.first == self.next_log_seq else "conflict"


def _cut_blocks_max(frame: Frame) -> int:
    """How many blocks a frame may change in part: a write that has more pieces than its bytes fill has cut ones."""
    whole = (frame.segment_bytes - RECORD_HEADER_BYTES * frame.records) // PIECE_BYTES
    return 2 * (max(0, frame.pieces - whole) + max(0, frame.entries - frame.pieces))


class DiskHistory:
    """What has been applied to a disk.  Changed by :meth:`add` alone, after the part is durable.

    ``floor``: the oldest position that can be read, once the disk is seeded.  ``frames``: those behind the base.
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
        """Whether the initial replication is complete: the base holds a state the disk was in."""
        return bool(self.epochs) and self.epochs[0].first_seq is not None

    def set_progress(self, progress: Progress) -> None:
        """The base now holds what ``progress`` says, and there is no frame."""
        self._progress = progress
        self.epochs = [Epoch.of_base(progress)]
        self.compacted = progress.frame
        self.oldest_position, self.oldest_time_ns = progress.floor, progress.floor_time_ns
        if progress.size_bytes:
            self.size_bytes = progress.size_bytes

    def begin_compaction(self, fold: CompactionIntent) -> None:
        """Positions below the fold's target cannot be read any more."""
        self.oldest_position, self.oldest_time_ns = fold.position, self.progress_at(fold.frame).floor_time_ns

    def set_meta(self, meta: DiskMeta) -> None:
        """The disk was larger when its copy began than when it was made."""
        self._meta = meta
        self.size_bytes = meta.size_bytes

    def progress_at(self, frame: int) -> Progress:
        """What ``progress`` is to say once everything up to frame ``frame`` is in the base."""
        reached = self.upto(frame)
        epoch = reached.epochs[-1]
        floor, time_ns = epoch.complete or (0, 0)
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
            floor=floor,
            floor_time_ns=time_ns,
            size_bytes=reached.size_bytes,
        )

    def upto(self, frame: int) -> DiskHistory:
        """The history as it was when ``frame`` was the newest; this one goes on by itself."""
        past = DiskHistory(self._meta, self._progress)
        for each in self.frames:
            if each.number <= frame:
                past.add(each)
        return past

    def size_before(self, frame: Frame) -> int:
        """The disk's size before ``frame``."""
        at = frame.number - self.compacted - 2
        return self.frames[at].size_bytes_after if at >= 0 else self.size_of_base

    @property
    def size_of_base(self) -> int:
        """The size of the disk that the base holds."""
        return (self._progress.size_bytes if self._progress else 0) or self._meta.size_bytes

    def compaction_target(self, position: int) -> int:
        """The frame to fold up to next: at its end the disk is known, at a position no higher than ``position``.

        The newest such frame within the limits of a slice, or else the first; ``folded`` if there is none.
        """
        past = self.upto(self.compacted)
        best, some_bytes, entries, cut_blocks = self.compacted, 0, 0, 0
        for frame in self.frames:
            past.add(frame)
            some_bytes += frame.segment_bytes
            entries += frame.entries
            cut_blocks += _cut_blocks_max(frame)
            is_full = some_bytes > SLICE_BYTES or entries > SLICE_ENTRIES or cut_blocks > SLICE_CUT_BLOCKS
            if best > self.compacted and is_full:
                break
            complete = past.epochs[-1].complete
            if complete is not None:
                if complete[0] > position:
                    break
                best = frame.number
        return best

    def expected(self) -> str:
        """The part that comes next, in words."""
        if not self.epochs:
            return "sync part 1"
        epoch = self.epochs[-1]
        if epoch.first_seq is None:
            return f"sync part {epoch.sync_parts + 1} of generation {epoch.generation}"
        return f"log sequence number {epoch.next_log_seq} of generation {epoch.generation}"

    def classify(self, part: PartName) -> PartStatus:
        """What ``part`` is to the disk now."""
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        if part.generation < epoch.generation:
            return "applied"
        if part.generation > epoch.generation:
            return "next" if part.stream == "sync" and part.first == 1 else "later"
        return epoch.classify_sync(part) if part.stream == "sync" else epoch.classify_log(part)

    def check_positions(self, part: PartName, first_position: int) -> None:
        """Positions never go back: or a view at an old position would hold newer records.  ``PositionRegressed``."""
        if first_position < (reached := self._reached(part)):
            raise RigError(
                Code.PositionRegressed,
                f"part {part.blob()}: begins at position {first_position}; disk {self.disk_id} is at {reached} already",
            )

    def _reached(self, part: PartName) -> int:
        """The position that a part does not go behind."""
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        if part.stream == "log":
            return epoch.log_position
        if part.generation == epoch.generation:
            return epoch.sync_position
        earlier = [epoch.complete for epoch in self.epochs if epoch.generation < part.generation]
        return max((complete[0] for complete in earlier if complete), default=0)

    def regresses(self, frame: Frame) -> bool:
        """Whether positions go back in the frame of a wanted part: no part was applied that does that."""
        return not self._reached(frame.part) <= frame.first_position <= frame.position

    def add(self, frame: Frame) -> None:
        """``frame``, whose part was wanted next, is durable in the journal."""
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
        """Whether a tag in the newest frame names a valid position: it does not if it is from before the last snapshot."""
        return tag.position >= self.epochs[-1].snapshot_position

    def watermark(self) -> Watermark:
        """What is durably applied; during a resync the complete position stays that of the generation before."""
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
        """Log records of ``generation`` up to this position are in all of its sync parts already.

        To replay only some of them would take the disk back, so they are left out of every view.
        """
        return next(epoch.first_position for epoch in self.epochs if epoch.generation == generation)

    def valid(self) -> list[tuple[Epoch, int, int]]:
        """Generations with their first and last position that can be read, oldest first."""
        found = []
        for epoch in self.epochs:
            if epoch.complete is not None:
                first = max(epoch.snapshot_position, self.oldest_position)
                if first <= epoch.complete[0]:
                    found.append((epoch, first, epoch.complete[0]))
        return found

    def epoch_of(self, position: int) -> Epoch:
        """The newest generation that knows ``position``; ``InvalidPosition`` names those that are valid."""
        valid = self.valid()
        for epoch, first, last in reversed(valid):
            if first <= position <= last:
                return epoch
        ranges = ", ".join(f"{first} to {last}" for _, first, last in valid)
        what = f"valid positions are {ranges}" if ranges else "its initial replication is not complete"
        raise RigError(Code.InvalidPosition, f"disk {self.disk_id} has no state at position {position}: {what}")
