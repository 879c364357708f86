"""Recovery of a disk's change log after any end of its server.

Fault contract
--------------
After a kill all written bytes are there: the torn tail is truncated, and the last record is written to the disk again.
After a power loss any unsynced byte can be lost.  The header of the first segment that a server begins is durable before the
server logs anything.  So if the newest segment belongs to another boot and does not end with a clean-close mark, power was
lost, and the log is not continued (``PowerLoss``).  Corrupt, unreadable or missing segments are ``LogCorrupt``.  An error
that says nothing about a segment (too many open files) fails the opening and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import is_media_error, naming, reason
from siterig.blockfs.layers.layer import WritableLayer, merge_ranges


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """The good part of a segment on disk."""

    number: int
    path: Path
    header: SegmentHeader
    newest: Record | None
    changed: list[tuple[int, int]]
    """(offset, length) of all bytes of the disk that its records change, merged."""
    end: int
    torn_bytes: int

    @property
    def next_seq(self) -> int:
        """Sequence number of the next record."""
        return self.newest.seq + 1 if self.newest else self.header.first_seq

    @property
    def clean(self) -> bool:
        """True if the disk was closed cleanly after it."""
        return self.newest is not None and bool(self.newest.flags & FLAG_CLEAN_CLOSE)


@dataclass(frozen=True, slots=True)
class RecoveredLog:
    """Result of :func:`recover_log`: the kept segments, the point at which the log continues, and the record to write again.

    Only the newest record (``newest``) is written to the disk again, because a change is logged only after the previous one
    is on the disk.  Writing older records again would put old bytes over newer ones for a moment, and a power loss at that
    moment would keep them.
    """

    kept: list[KeptSegment]
    empty: list[Path]
    """Segments without a record; delete them only after the next segment exists."""
    changed: list[tuple[int, tuple[int, int]]]
    """(number of the segment, (offset, length)) of each change."""
    disk_bytes: int
    """Size of the disk after all records."""
    next_number: int
    next_seq: int
    newest: tuple[Record, bytes] | None
    """The newest record with its payload, which is encrypted if the disk is."""
    torn_bytes: int

    @property
    def last_position(self) -> int:
        """Position of the newest kept record."""
        return self.kept[-1].position if self.kept else 0

    def complete(self, layer: WritableLayer) -> None:
        """Write the newest record to the disk again, and grow the disk if it was about to grow.

        Args:
            layer: the bytes of the disk as they are stored; those of an encrypted disk are encrypted, as in the record.
        """
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
    key_id: str | None = None,
) -> RecoveredLog:
    """Read the log of a disk that was tracked when its server ended, and truncate its torn tail.

    Args:
        folder: folder of the segments.
        name: name of the disk.
        disk_id: expected disk id.
        generation: expected generation.
        first_segment: number with which the generation began; older segments are ignored.
        disk_size_bytes: current size of the disk; the log can show that it was about to grow.
        positions: advanced past all positions of the log.
        closed: the records of the kept segments when the disk was closed cleanly.
        newest_segment: number of a segment that was begun (0: not known).
        key_id: id of the key that encrypts the disk; None if it is not encrypted.
    Raises:
        RigError: ``PowerLoss`` (unsynced pages can be lost) or ``LogCorrupt`` (corrupt or missing segments).  The log
            cannot be continued, and the disk needs a resync.
        OSError: a segment could not be opened or written; nothing is known to be wrong with it.
    """
    row = _SegmentSequence(disk_id, generation, disk_size_bytes, key_id)
    with _unreadable_as_corrupt(folder / name):
        _take_over_spare(folder, name, disk_id, generation)
        segments = _read_segments(folder, name, first_segment, row)
    if not segments:
        raise RigError(Code.LogCorrupt, f"{folder}: all segments ({name}.NNNNNN.hrl) of generation {generation} are missing")
    last = segments[-1]
    if last.header.boot_id != boot.current_boot_id() and not last.clean:
        raise RigError(
            Code.PowerLoss,
            f"{last.path}: was being written when boot {last.header.boot_id} ended; unsynced data may be gone",
        )
    _check_none_missing(folder / name, segments, closed, newest_segment)
    newest = None
    if last.newest is not None:
        with _unreadable_as_corrupt(last.path), SegmentReader(last.path) as reader:
            newest = (last.newest, reader.stored_payload(last.newest))
    kept_segments = []
    for segment in segments:
        if segment.newest is not None:
            _truncate_durably(segment.path, segment.end)
            first_seq = segment.header.first_seq
            kept_segments.append(
                KeptSegment(
                    segment.number, first_seq, segment.newest.seq, segment.newest.position, segment.end, segment.path
                )
            )
    sync_folder(folder)
    positions.advance(max((k.position for k in kept_segments), default=0))
    return RecoveredLog(
        kept=kept_segments,
        empty=[segment.path for segment in segments if segment.newest is None],
        changed=[(segment.number, range_) for segment in segments for range_ in segment.changed],
        disk_bytes=row.disk_bytes,
        # Segments of another generation can exist, too.
        next_number=max([last.number, *(number for number, _ in find_segments(folder, name))]) + 1,
        next_seq=last.next_seq,
        newest=newest,
        torn_bytes=last.torn_bytes,
    )


@contextmanager
def _unreadable_as_corrupt(path: Path) -> Iterator[None]:
    """Turn the error of a medium that lost bytes of the log into ``LogCorrupt``: the disk itself can be used."""
    try:
        yield
    except OSError as exc:
        if not is_media_error(exc):
            raise
        raise RigError(Code.LogCorrupt, f"{path}: change log cannot be read: {reason(exc, path)}") from exc
    except RigError as exc:
        cause = exc.__cause__
        if exc.code != Code.LogUnreadable or not isinstance(cause, OSError):
            raise
        if not is_media_error(cause):
            raise cause from None
        raise RigError(Code.LogCorrupt, exc.message) from exc


def _check_none_missing(path: Path, segments: list[FoundSegment], closed: LogExtent | None, newest_segment: int) -> None:
    """Check that no segment is missing at either end, where it leaves no gap."""
    last = segments[-1]
    if last.number < newest_segment:
        raise RigError(Code.LogCorrupt, f"{path}: segment {newest_segment} of the change log is missing")
    if closed is not None and (segments[0].header.first_seq, last.next_seq) != (closed.first_seq, closed.next_seq):
        raise RigError(
            Code.LogCorrupt,
            f"{path}: the change log has records {segments[0].header.first_seq} to {last.next_seq - 1}; it had "
            f"{closed.first_seq} to {closed.next_seq - 1} when the disk was closed: segments are missing, or were replaced",
        )


def _take_over_spare(folder: Path, name: str, disk_id: str, generation: int) -> None:
    """Rename a spare with a header: it is the newest segment after a kill.  A spare without a header is deleted."""
    spare = folder / f"{name}.spare"
    if not spare.exists():
        return
    try:
        with SegmentReader(spare) as reader:
            header = reader.header
    except RigError as exc:
        if exc.code == Code.LogUnreadable:  # it may be the newest segment
            raise
        header = None
    if header is None or (header.disk_id, header.generation) != (disk_id, generation):
        spare.unlink()
        return
    numbers = [number for number, _ in find_segments(folder, name)]
    safe_files.rename(spare, segment_path(folder, name, max(numbers, default=0) + 1))


class _SegmentSequence:
    """Checks that segments belong together, and that their records fit the disk."""

    def __init__(self, disk_id: str, generation: int, disk_bytes: int, key_id: str | None) -> None:
        self.generation = generation
        self.disk_bytes = disk_bytes
        self._disk_id = disk_id
        self._key_id = key_id
        self._next_seq: int | None = None
        self._position = 0

    def take(self, path: Path, header: SegmentHeader, records: list[Record]) -> None:
        """Check the next segment with all its records.

        Raises:
            RigError: ``LogCorrupt``.
        """
        if header.disk_id != self._disk_id or header.stream != "log":
            raise RigError(
                Code.LogCorrupt,
                f"{path}: is the {header.stream} of disk {header.disk_id}; this is the log of {self._disk_id}",
            )
        if header.key_id != self._key_id:
            raise RigError(
                Code.LogCorrupt,
                f"{path}: is encrypted with key {header.key_id or '(none)'}; the disk is with {self._key_id or '(none)'}",
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
    """Return the generation's segments after a check that they belong together.

    The last segment can have a torn tail.  So can the one before, if its preallocated end was not truncated yet: the first
    sequence number of the next segment shows that none of its records is missing.
    """
    segments: list[FoundSegment] = []
    paths = [(number, path) for number, path in find_segments(folder, name) if number >= first_number]
    for number, path in paths:
        if number == paths[-1][0] and _holds_nothing(path):  # a kill interrupted its creation
            path.unlink()
            continue
        with SegmentReader(path) as reader:
            header = reader.header
            if header.generation != row.generation:  # an older generation, kept until the resync that replaces it is applied
                continue
            scan = scan_tail(reader)
        row.take(path, header, scan.records)
        changed = [(r.offset, r.length) for r in scan.records if r.type in _CHANGING]
        segments.append(
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
    return segments


_CHANGING = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


def _holds_nothing(path: Path) -> bool:
    """Return True if a segment has no header: its file was created, and nothing was written to it."""
    with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
        head = host_calls.read_open(file, HEADER_BYTES)
    return len(head) < HEADER_BYTES or not any(head)


def _truncate_durably(path: Path, end: int) -> None:
    """Truncate a torn tail and make the segment durable, which its writer may not have done."""
    fd = safe_files.open_file(path, os.O_RDWR)
    try:
        with naming(path):
            os.ftruncate(fd, end)
            host_calls.fsync(fd)
    finally:
        os.close(fd)
