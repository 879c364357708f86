"""Recovery of a disk's change log, however its server ended.

Fault contract
--------------
After a kill everything that was written is there: the torn tail is cut, and the last record is written to the disk again.
After a power loss any of what was not synced may be gone.  The header of the first segment that a server begins is
durable before it logs anything; so if the newest segment is of another boot and does not end with the mark of an orderly
close, power was lost: the log is not continued (``PowerLoss``).  Rot, and segments that are missing, are ``LogCorrupt``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from siterig.blockfs.changelog.disk_log import KeptSegment, LogExtent, find_segments, segment_path
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import (
    FLAG_CLEAN_CLOSE,
    HEADER_BYTES,
    Record,
    RecordType,
    SegmentHeader,
    SegmentReader,
    scan_tail,
)
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX, SECTOR_BYTES
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.layers.layer import WritableLayer, merge_ranges


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment on disk, as far as it is good."""

    number: int
    path: Path
    header: SegmentHeader
    newest: Record | None
    changed: list[tuple[int, int]]
    """(offset, length) of what its records change on the disk, merged."""
    end: int
    torn_bytes: int

    @property
    def next_seq(self) -> int:
        """Sequence number of the record that comes next."""
        return self.newest.seq + 1 if self.newest else self.header.first_seq

    @property
    def clean(self) -> bool:
        """Whether the disk was closed in order after it."""
        return self.newest is not None and bool(self.newest.flags & FLAG_CLEAN_CLOSE)


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """What :func:`recover_log` found: segments that are kept, where the log goes on, what to write to the disk again.

    That is the newest record alone (``newest``): a change is logged only when the one before is on the disk.  To write
    older ones again would put old bytes over newer ones for a moment, and after a power loss in it they would stay.
    """

    kept: list[KeptSegment]
    empty: list[Path]
    """Segments without a record; to be deleted, but not before the next one tells that there is a log."""
    changed: list[tuple[int, tuple[int, int]]]
    """(number of the segment, (offset, length)) of what its records change."""
    disk_bytes: int
    """How large the disk is after all of it."""
    next_number: int
    next_seq: int
    newest: tuple[Record, bytes] | None
    """With its payload."""
    torn_bytes: int

    @property
    def last_position(self) -> int:
        """Of the newest record that is kept."""
        return self.kept[-1].position if self.kept else 0

    def complete(self, layer: WritableLayer) -> None:
        """Complete what a kill may have cut off."""
        if self.disk_bytes > layer.size_bytes:
            layer.resize(self.disk_bytes)
        if self.newest is None:
            return
        record, payload = self.newest
        match record.type:
            case RecordType.WRITE:
                layer.pwrite(record.offset, payload)
            case RecordType.ZERO | RecordType.DISCARD:
                layer.zero(record.offset, record.length)
            case RecordType.RESIZE | RecordType.FLUSH | RecordType.TAG:
                pass
            case _:
                assert_never(record.type)


def recover_log(
    folder: Path,
    name: str,
    *,
    disk_id: str,
    generation: int,
    first_segment: int,
    disk_size_bytes: int,
    positions: PositionCounter,
    closed: LogExtent | None = None,
    newest_segment: int = 0,
) -> RecoveredLog:
    """Read the log of a disk that was tracked when its server ended, however it ended, and cut its torn tail.

    ``first_segment``: number with which the generation began; older segments may be anything.  ``disk_size_bytes``: what the
    disk has; the log may say that it was about to grow.  ``closed``: what its kept segments had when it was closed in order.
    ``newest_segment``: number of one that was begun (0: not known).

    Raises ``RigError``: ``PowerLoss`` (unsynced pages may be gone) or ``LogCorrupt`` (rot, missing segments): the log
    cannot be continued and the disk needs a resync.
    """
    _take_over_spare(folder, name, disk_id, generation)
    row = _SegmentSequence(disk_id, generation, disk_size_bytes)
    found = _read_segments(folder, name, first_segment, row)
    if not found:
        raise RigError(Code.LogCorrupt, f"{folder}: all segments ({name}.NNNNNN.hrl) of generation {generation} are missing")
    last = found[-1]
    if last.header.boot_id != boot.current_boot_id() and not last.clean:
        raise RigError(
            Code.PowerLoss,
            f"{last.path}: was being written when boot {last.header.boot_id} ended; unsynced data may be gone",
        )
    _check_none_missing(folder / name, found, closed, newest_segment)
    newest = None
    if last.newest is not None:
        with SegmentReader(last.path) as reader:
            newest = (last.newest, reader.payload(last.newest))
    kept = []
    for segment in found:
        if segment.newest is not None:
            _truncate_durably(segment.path, segment.end)
            first_seq = segment.header.first_seq
            kept.append(
                KeptSegment(
                    segment.number, first_seq, segment.newest.seq, segment.newest.position, segment.end, segment.path
                )
            )
    sync_folder(folder)
    positions.advance(max((k.position for k in kept), default=0))
    return RecoveredLog(
        kept=kept,
        empty=[segment.path for segment in found if segment.newest is None],
        changed=[(segment.number, range_) for segment in found for range_ in segment.changed],
        disk_bytes=row.disk_bytes,
        # Segments of another generation may be there, too.
        next_number=max([last.number, *(number for number, _ in find_segments(folder, name))]) + 1,
        next_seq=last.next_seq,
        newest=newest,
        torn_bytes=last.torn_bytes,
    )


def _check_none_missing(path: Path, found: list[FoundSegment], closed: LogExtent | None, newest_segment: int) -> None:
    """Segments at either end that are gone leave no gap."""
    last = found[-1]
    if last.number < newest_segment:
        raise RigError(Code.LogCorrupt, f"{path}: segment {newest_segment} of the change log is missing")
    if closed is not None and (found[0].header.first_seq, last.next_seq) != (closed.first_seq, closed.next_seq):
        raise RigError(
            Code.LogCorrupt,
            f"{path}: the change log has records {found[0].header.first_seq} to {last.next_seq - 1}; it had "
            f"{closed.first_seq} to {closed.next_seq - 1} when the disk was closed: segments are missing, or were replaced",
        )


def _take_over_spare(folder: Path, name: str, disk_id: str, generation: int) -> None:
    """A spare with a header is the newest segment: a kill came before it got its name.  One without holds nothing."""
    spare = folder / f"{name}.spare"
    if not spare.exists():
        return
    try:
        with SegmentReader(spare) as reader:
            header = reader.header
    except RigError:
        header = None
    if header is None or (header.disk_id, header.generation) != (disk_id, generation):
        spare.unlink()
        return
    numbers = [number for number, _ in find_segments(folder, name)]
    safe_files.rename(spare, segment_path(folder, name, max(numbers, default=0) + 1))


class _SegmentSequence:
    """Checks that segments belong together, and that their records are of a disk of this size."""

    def __init__(self, disk_id: str, generation: int, disk_bytes: int) -> None:
        self.generation = generation
        self.disk_bytes = disk_bytes
        self._disk_id = disk_id
        self._next_seq: int | None = None
        self._position = 0

    def take(self, path: Path, header: SegmentHeader, records: list[Record]) -> None:
        """The next segment, and all its records; ``LogCorrupt``."""
        if header.disk_id != self._disk_id or header.stream != "log":
            raise RigError(
                Code.LogCorrupt,
                f"{path}: is the {header.stream} of disk {header.disk_id}; this is the log of {self._disk_id}",
            )
        if self._next_seq is not None and header.first_seq != self._next_seq:
            due = f"{self._next_seq} comes next"
            if header.first_seq > self._next_seq:
                due = f"the segment with record {self._next_seq} is missing"
            raise RigError(Code.LogCorrupt, f"{path}: begins with record {header.first_seq}; {due}")
        for record in records:
            if why := self._wrong(record):
                raise RigError(Code.LogCorrupt, f"{path}: change log is corrupt at record {record.seq}: {why}")
        self._next_seq = header.first_seq + len(records)

    def _wrong(self, record: Record) -> str | None:
        if record.position < self._position:
            return f"position {record.position} after {self._position}"
        self._position = record.position
        if record.type is RecordType.RESIZE:
            if record.length % SECTOR_BYTES or record.length > DISK_BYTES_MAX:
                return f"RESIZE to {record.length} bytes; a disk has whole sectors, and at most {DISK_BYTES_MAX} bytes"
            self.disk_bytes = max(self.disk_bytes, record.length)
        elif record.type in _CHANGING and record.offset + record.length > self.disk_bytes:
            return f"{record.type.name} of {record.length} bytes at {record.offset} on a disk of {self.disk_bytes}"
        return None


def _read_segments(folder: Path, name: str, first_number: int, row: _SegmentSequence) -> list[FoundSegment]:
    """The generation's segments, checked for belonging together.

    The last may have a torn tail, and so may the one before it, whose preallocated end may not have been cut: the next
    one's first sequence number tells that no record of it is missing.
    """
    found: list[FoundSegment] = []
    paths = [(number, path) for number, path in find_segments(folder, name) if number >= first_number]
    for number, path in paths:
        if number == paths[-1][0] and _holds_nothing(path):  # a kill while it was being made
            path.unlink()
            continue
        with SegmentReader(path) as reader:
            header = reader.header
            if header.generation != row.generation:  # kept until the resync that replaces it is applied
                continue
            scan = scan_tail(reader)
        row.take(path, header, scan.records)
        changed = [(r.offset, r.length) for r in scan.records if r.type in _CHANGING]
        found.append(
            FoundSegment(
                number,
                path,
                header,
                scan.records[-1] if scan.records else None,
                merge_ranges(changed),
                scan.end,
                scan.torn_bytes,
            )
        )
    return found


_CHANGING = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


def _holds_nothing(path: Path) -> bool:
    """Whether a segment has no header: its file was made, and nothing written to it."""
    with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
        head = file.read(HEADER_BYTES)
    return len(head) < HEADER_BYTES or not any(head)


def _truncate_durably(path: Path, end: int) -> None:
    """Cut a torn tail and make the segment durable: its writer may not have."""
    fd = safe_files.open_file(path, os.O_RDWR)
    try:
        with naming(path):
            os.ftruncate(fd, end)
            os.fsync(fd)
    finally:
        os.close(fd)
