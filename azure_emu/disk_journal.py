"""The journal of a managed disk: applied parts, one segment file each, and what they add up to.

A file's name is its identity and its length, ``GENERATION-RANK-STREAM-FIRST-LAST-BYTES.hrl``, where the rank (0: sync,
1: log) makes names sort in the order of application.  :class:`History` is the one place that knows which part
comes next and what has been reached; it is folded from the files, so there is no second truth to disagree.

Fault contract: a missing file in the middle, a file of another length, or a changed byte is ``StoreCorrupt`` or
``LogCorrupt`` and names the file.  Loss of the newest files shows only as a watermark that went back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from azure_emu.disk_meta import DiskMeta, SeedProgress, store_corrupt
from blockfs.changelog import Record, RecordType, SegmentReader, decode_tag
from blockfs.errors import RigError
from blockfs.part import SYNC_END, PartName, Stream, TagSeen, Watermark

Want = Literal["next", "applied", "later", "conflict"]
"""What a part is to a disk: to be applied now, no longer needed, to be kept for later, or never applicable."""

_NAME = re.compile(r"(\d{8})-([01])-(sync|log)-(\d{20})-(\d{20})-(\d+)\.hrl")
_RANKS: dict[Stream, int] = {"sync": 0, "log": 1}
_RANGE_TYPES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


@dataclass(frozen=True, slots=True)
class JournalFile:
    """A segment in the journal (or on its way into it)."""

    path: Path
    part: PartName


def journal_name(part: PartName, size_bytes: int) -> str:
    """File name of an applied part whose segment has ``size_bytes`` bytes."""
    return f"{part.generation:08d}-{_RANKS[part.stream]}-{part.stream}-{part.first:020d}-{part.last:020d}-{size_bytes}.hrl"


def list_journal(folder: Path, disk_id: str) -> list[JournalFile]:
    """The journal's files in the order of application; names and lengths are checked.  Dot files are ignored."""
    files = []
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        raise store_corrupt(folder, f"cannot be read: {exc.strerror}") from exc
    for path in paths:
        m = _NAME.fullmatch(path.name)
        if m is None:
            raise store_corrupt(path, "is not a journal file's name")
        stream: Stream = "sync" if m[3] == "sync" else "log"
        part = PartName(disk_id, int(m[1]), stream, int(m[4]), int(m[5]))
        size = path.stat().st_size
        if size != int(m[6]):
            raise store_corrupt(path, f"has {size} bytes; it was applied with {m[6]}")
        files.append(JournalFile(path, part))
    return files


@dataclass(frozen=True, slots=True)
class SegmentSummary:
    """What a segment adds to a disk's history.

    ``position``/``time_ns``: of its last record.  ``disk_size_bytes``: the disk's size after it.  ``sync_end_seq``: the
    sequence number that its ``sync-end`` tag names as the log's first, None if it has no such tag.
    """

    file: JournalFile
    first_position: int
    position: int
    time_ns: int
    disk_size_bytes: int
    sync_end_seq: int | None
    tags: tuple[TagSeen, ...]


def summarize(file: JournalFile, disk_size_bytes: int, *, verify: bool = True) -> SegmentSummary:
    """Read a segment's records; ``disk_size_bytes`` is the disk's size before it.

    ``PartRefused`` if a record does not fit the disk, ``LogCorrupt`` if the file is not as it was written.
    """
    tags: list[TagSeen] = []
    sync_end_seq = None
    first: Record | None = None
    last: Record | None = None
    with SegmentReader(file.path) as reader:
        _check_identity(file, reader)
        size = _size_at_start(file, reader, disk_size_bytes)
        for record in reader.records(verify=verify):
            first = first or record
            last = record
            size = _size_after(file, record, size)
            if record.type is RecordType.TAG:
                tag = _tag(file, reader, record)
                if tag.name == SYNC_END and file.part.stream == "sync":
                    sync_end_seq = record.offset
                else:
                    tags.append(tag)
    if first is None or last is None:
        raise _refused(file, "holds no record")
    return SegmentSummary(file, first.position, last.position, last.time_ns, size, sync_end_seq, tuple(tags))


def _tag(file: JournalFile, reader: SegmentReader, record: Record) -> TagSeen:
    try:
        return decode_tag(reader.payload(record))
    except RigError as exc:
        raise _refused(file, exc.message) from exc


def _check_identity(file: JournalFile, reader: SegmentReader) -> None:
    header, part = reader.header, file.part
    found = (header.disk_id, header.generation, header.stream, header.first_seq)
    if found != (part.disk_id, part.generation, part.stream, part.first):
        raise store_corrupt(file.path, f"holds disk {found[0]}, generation {found[1]}, {found[2]} from {found[3]}")


def _size_at_start(file: JournalFile, reader: SegmentReader, size: int) -> int:
    """A sync stream brings the size of its snapshot; a log's size comes from its RESIZE records alone."""
    said = reader.header.disk_size_bytes
    if file.part.stream == "log":
        return size
    if said < size:
        raise _refused(file, f"is of a disk of {said} bytes; the managed disk has {size} and cannot shrink")
    return said


def _size_after(file: JournalFile, record: Record, size: int) -> int:
    if record.type is RecordType.RESIZE:
        if record.length < size:
            raise _refused(file, f"record {record.seq} shrinks the disk from {size} to {record.length} bytes")
        return record.length
    if record.type in _RANGE_TYPES and record.offset + record.length > size:
        raise _refused(file, f"record {record.seq} ends at byte {record.offset + record.length} of a disk of {size}")
    return size


def _refused(file: JournalFile, why: str) -> RigError:
    return RigError("PartRefused", f"part {file.part.blob()}: {why}")


@dataclass(slots=True)
class Epoch:
    """One generation of the disk.

    ``first_seq`` None: its sync is not complete.  ``first_position``: of the first sync part.  ``snapshot_position``: of the
    ``sync-end`` tag.  A copy that was cut goes on with a later snapshot, while the log still begins after the first:
    then the two differ, and the log must have reached the last snapshot before any position is valid.
    """

    generation: int
    sync_parts: int = 0
    first_seq: int | None = None
    first_position: int = 0
    snapshot_position: int = 0
    snapshot_time_ns: int = 0
    log_seq: int = 0
    log_position: int = 0
    log_time_ns: int = 0

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

    def want_sync(self, part: PartName) -> Want:
        """What a sync part of this generation is to the disk now."""
        if part.first <= self.sync_parts:
            return "applied"
        if self.first_seq is not None:
            return "conflict"
        return "next" if part.first == self.sync_parts + 1 else "later"

    def want_log(self, part: PartName) -> Want:
        """What a log part of this generation is to the disk now."""
        if self.first_seq is None or part.first > self.next_log_seq:
            return "later"
        if part.last < self.next_log_seq:
            return "applied"
        return "next" if part.first == self.next_log_seq else "conflict"


class History:
    """What has been applied to a disk.  Changed by :meth:`add` alone, after the part is durable."""

    def __init__(self, meta: DiskMeta, seed: SeedProgress | None) -> None:
        self.disk_id = meta.disk_id
        self.size_bytes = meta.size_bytes
        self.epochs: list[Epoch] = []
        self.files: list[JournalFile] = []
        self.tags: list[TagSeen] = []
        self.set_seed(seed)

    @classmethod
    def load(cls, folder: Path, meta: DiskMeta, seed: SeedProgress | None) -> History:
        """Fold the journal in ``folder``; every byte of it is read and verified."""
        history = cls(meta, seed)
        for file in list_journal(folder, meta.disk_id):
            if history.want(file.part) != "next" or not history.seeded:
                raise store_corrupt(file.path, f"does not follow the journal before it: {history.expected()} comes next")
            try:
                history.add(summarize(file, history.size_bytes))
            except RigError as exc:
                if exc.code == "PartRefused":
                    raise store_corrupt(file.path, exc.message) from exc
                raise
        return history

    @property
    def seeded(self) -> bool:
        """Whether the initial replication is complete: the base holds a state the disk was in."""
        return bool(self.epochs) and self.epochs[0].first_seq is not None

    def set_seed(self, seed: SeedProgress | None) -> None:
        """The base now holds what ``seed`` says."""
        if seed is None:
            return
        self.epochs = [
            Epoch(
                generation=seed.generation,
                sync_parts=seed.sync_parts,
                first_seq=seed.first_seq if seed.complete else None,
                first_position=seed.first_position,
                snapshot_position=seed.position,
                snapshot_time_ns=seed.time_ns,
            )
        ]

    def expected(self) -> str:
        """The part that comes next, in words."""
        if not self.epochs:
            return "sync part 1"
        epoch = self.epochs[-1]
        if epoch.first_seq is None:
            return f"sync part {epoch.sync_parts + 1} of generation {epoch.generation}"
        return f"log sequence number {epoch.next_log_seq} of generation {epoch.generation}"

    def want(self, part: PartName) -> Want:
        """What ``part`` is to the disk now."""
        epoch = self.epochs[-1] if self.epochs else Epoch(0)
        if part.generation < epoch.generation:
            return "applied"
        if part.generation > epoch.generation:
            return "next" if part.stream == "sync" and part.first == 1 else "later"
        return epoch.want_sync(part) if part.stream == "sync" else epoch.want_log(part)

    def check_positions(self, summary: SegmentSummary) -> None:
        """Positions never go back: or a view at an old position would hold newer records.  ``PositionRegressed``."""
        part = summary.file.part
        if part.stream == "log":
            reached = self.epochs[-1].log_position
        else:
            earlier = [epoch.complete for epoch in self.epochs if epoch.generation < part.generation]
            reached = max((complete[0] for complete in earlier if complete), default=0)
        if summary.first_position < reached:
            raise RigError(
                "PositionRegressed",
                f"part {part.blob()}: begins at position {summary.first_position}; "
                f"disk {self.disk_id} is at {reached} already",
            )

    def add(self, summary: SegmentSummary) -> None:
        """``summary``'s segment, which was wanted next, is durable in the journal."""
        part = summary.file.part
        if not self.epochs or part.generation > self.epochs[-1].generation:
            self.epochs.append(Epoch(part.generation, first_position=summary.first_position))
        epoch = self.epochs[-1]
        if part.stream == "log":
            epoch.log_seq = part.last
            epoch.log_position, epoch.log_time_ns = summary.position, summary.time_ns
        else:
            epoch.sync_parts = part.last
            if summary.sync_end_seq is not None:
                epoch.first_seq = summary.sync_end_seq
                epoch.snapshot_position, epoch.snapshot_time_ns = summary.position, summary.time_ns
        self.size_bytes = summary.disk_size_bytes
        # a tag from before the last snapshot names no valid position
        self.tags.extend(tag for tag in summary.tags if tag.position >= epoch.snapshot_position)
        self.files.append(summary.file)

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

    def epoch_of(self, position: int) -> Epoch:
        """The newest generation that knows ``position``; ``InvalidPosition`` names those that are valid."""
        valid = [(epoch, epoch.complete[0]) for epoch in self.epochs if epoch.complete]
        for epoch, last in reversed(valid):
            if epoch.snapshot_position <= position <= last:
                return epoch
        ranges = ", ".join(f"{epoch.snapshot_position} to {last}" for epoch, last in valid)
        what = f"valid positions are {ranges}" if ranges else "its initial replication is not complete"
        raise RigError("InvalidPosition", f"disk {self.disk_id} has no state at position {position}: {what}")
