"""The change log of one disk: a current segment that takes records, closed ones that are kept until applied.

Fault contract
--------------
A record is in the current segment before its bytes reach the disk (:mod:`blockfs.disk`).  After a kill the segment's
torn tail is cut and the last records are written to the disk again; the sequence goes on without a gap, in the
same generation.  A closed segment is handed out only after it is on stable storage.  A segment from another boot
that was not closed in order means power loss: the log is not continued (``PowerLoss``); rot is ``LogCorrupt``.

Shared by tasks: ``append``, ``undo``, ``rotate`` run on the trio thread without a checkpoint between them and the
disk's write.  ``sync`` may run in a worker thread over what :meth:`DiskLog.unsynced` returned; the caller holds the
disk's sync lock from there to :meth:`DiskLog.synced`, which alone closes files.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from blockfs.changelog import (
    FLAG_CLEAN_CLOSE,
    HEADER_BYTES,
    Record,
    RecordType,
    SegmentHeader,
    SegmentReader,
    SegmentWriter,
    current_boot_id,
    scan_tail,
)
from blockfs.control import SegmentInfo
from blockfs.durable import sync_folder
from blockfs.errors import RigError
from blockfs.position import PositionCounter

SEGMENT_BYTES_MAX = 16 << 20
REAPPLY_RECORDS = 256
"""How many last records are written to the disk again after a kill; one would do, for records are written in order."""


@dataclass(slots=True)
class _Closed:
    """A segment that takes no more records."""

    number: int
    header: SegmentHeader
    path: Path
    last_seq: int
    position: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A segment on disk, as far as it is good."""

    number: int
    path: Path
    header: SegmentHeader
    records: list[Record]
    """The last of them, ``REAPPLY_RECORDS`` at most."""
    end: int
    torn_bytes: int

    @property
    def next_seq(self) -> int:
        """Sequence number of the record that comes next."""
        return self.records[-1].seq + 1 if self.records else self.header.first_seq

    @property
    def clean(self) -> bool:
        """Whether the disk was closed in order after it."""
        return bool(self.records) and bool(self.records[-1].flags & FLAG_CLEAN_CLOSE)


def segment_path(folder: Path, name: str, number: int) -> Path:
    """``NAME.000007.hrl``."""
    return folder / f"{name}.{number:06d}.hrl"


def is_segment(name: str, file: str) -> bool:
    """Whether a file of that name is a segment of disk ``name``."""
    return re.fullmatch(re.escape(name) + r"\.\d{6,}\.hrl", file) is not None


def find_segments(folder: Path, name: str) -> list[tuple[int, Path]]:
    """All segments of a disk, by number."""
    pattern = re.compile(re.escape(name) + r"\.(\d{6,})\.hrl")
    return sorted((int(m[1]), path) for path in folder.iterdir() if (m := pattern.fullmatch(path.name)))


class DiskLog:
    """See the module.  ``unsent_bytes`` is what all kept segments take."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        disk_id: str,
        generation: int,
        disk_size_bytes: int,
        positions: PositionCounter,
        next_number: int,
        next_seq: int = 1,
    ) -> None:
        self.folder = folder
        self.name = name
        self.disk_id = disk_id
        self.generation = generation
        self.next_seq = next_seq
        self.last_position = 0
        self._disk_size_bytes = disk_size_bytes
        self._positions = positions
        self._closed: list[_Closed] = []
        self._closing: list[tuple[SegmentWriter, _Closed]] = []  # full, not yet on stable storage
        self._kept_bytes = 0  # of all segments but the current one
        self._number = next_number
        self._current = self._new_segment()

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record (0: none)."""
        return self.next_seq - 1

    @property
    def unsent_bytes(self) -> int:
        """Size of all segments that are kept."""
        return self._kept_bytes + self._current.end

    @property
    def oldest_number(self) -> int:
        """Number of the oldest segment that is kept."""
        if self._closed:
            return self._closed[0].number
        return self._closing[0][1].number if self._closing else self._number

    def _new_segment(self) -> SegmentWriter:
        return SegmentWriter.create(
            segment_path(self.folder, self.name, self._number),
            SegmentHeader(
                disk_id=self.disk_id,
                generation=self.generation,
                stream="log",
                first_seq=self.next_seq,
                boot_id=current_boot_id(),
                created_ns=time.time_ns(),
                disk_size_bytes=self._disk_size_bytes,
            ),
        )

    def append(
        self,
        kind: RecordType,
        *,
        offset: int = 0,
        length: int = 0,
        payload: bytes | memoryview = b"",
        position: int | None = None,
        flags: int = 0,
    ) -> int:
        """Append a record, drawing its position unless one is given; returns the file offset where it begins.

        ``OSError`` (disk full, ...) leaves the log as it was.
        """
        if self._current.end >= SEGMENT_BYTES_MAX:
            self.rotate()
        at = self._current.end
        drawn = self._positions.draw() if position is None else position
        self._current.append(
            kind,
            seq=self.next_seq,
            position=drawn,
            time_ns=time.time_ns(),
            offset=offset,
            length=length,
            payload=payload,
            flags=flags,
        )
        self.next_seq += 1
        self.last_position = drawn
        return at

    def undo(self, at: int) -> None:
        """Take the newest record back, which begins at file offset ``at``: its write did not reach the disk."""
        self._current.cut(at)
        self.next_seq -= 1

    def rotate(self) -> None:
        """Begin a new segment, unless the current one is empty.  ``OSError`` leaves the current one in use."""
        if self._current.end == HEADER_BYTES:
            return
        self._number += 1
        try:
            fresh = self._new_segment()
        except OSError:
            self._number -= 1
            raise
        old = self._current
        closed = _Closed(self._number - 1, old.header, old.path, self.last_seq, self.last_position, old.end)
        self._closing.append((old, closed))
        self._kept_bytes += closed.size_bytes
        self._current = fresh

    def unsynced(self) -> list[SegmentWriter]:
        """Segments that a sync has to make durable, oldest first."""
        return [writer for writer, _ in self._closing] + [self._current]

    def synced(self, writers: list[SegmentWriter]) -> None:
        """``writers`` (from :meth:`unsynced`) are durable, and so are their names: closed ones are handed out."""
        while self._closing and self._closing[0][0] in writers:
            writer, closed = self._closing.pop(0)
            writer.close()
            self._closed.append(closed)

    def segments(self) -> list[SegmentInfo]:
        """Closed, durable segments that are kept."""
        return [
            SegmentInfo(
                disk_id=self.disk_id,
                generation=self.generation,
                number=c.number,
                first_seq=c.header.first_seq,
                last_seq=c.last_seq,
                complete_position=c.position,
                size_bytes=c.size_bytes,
                path=str(c.path),
            )
            for c in self._closed
        ]

    def applied(self, last_seq: int) -> None:
        """Delete closed segments whose records the recovery side has all."""
        while self._closed and self._closed[0].last_seq <= last_seq:
            closed = self._closed.pop(0)
            self._kept_bytes -= closed.size_bytes
            closed.path.unlink()

    def adopt(self, found: FoundSegment) -> None:
        """Keep a durable segment that an earlier process closed, or left behind."""
        newest = found.records[-1]
        self._closed.append(_Closed(found.number, found.header, found.path, newest.seq, newest.position, found.end))
        self._kept_bytes += found.end
        self.last_position = newest.position

    def close_clean(self) -> None:
        """Mark the log as closed in order and make it durable (the disk already is)."""
        self.append(RecordType.FLUSH, flags=FLAG_CLEAN_CLOSE)
        for writer in self.unsynced():
            writer.sync()
            writer.close()
        sync_folder(self.folder)

    def close_torn(self) -> None:
        """Let go of the files as a kill would."""
        for writer in self.unsynced():
            writer.close()
        self._closing.clear()


@dataclass(frozen=True, slots=True)
class Recovered:
    """What :func:`recover_log` found: a log that goes on, and the records to write to the disk again."""

    log: DiskLog
    reapply: list[tuple[Record, bytes]]
    torn_bytes: int


def recover_log(
    folder: Path, name: str, *, disk_id: str, generation: int, disk_size_bytes: int, positions: PositionCounter
) -> Recovered:
    """Open the log of a disk that was tracked when its server ended, however it ended.

    Raises ``RigError``: ``PowerLoss`` (unsynced pages may be gone) or ``LogCorrupt`` (rot, missing segments): the log
    cannot be continued and the disk needs a resync.
    """
    found = _read_segments(folder, name, disk_id, generation)
    if not found:
        raise RigError("LogCorrupt", f"{folder / name}: has no change log of generation {generation}")
    last = found[-1]
    if last.header.boot_id != current_boot_id() and not last.clean:
        raise RigError(
            "PowerLoss", f"{last.path}: was being written when boot {last.header.boot_id} ended; unsynced data may be gone"
        )
    with SegmentReader(last.path) as reader:
        reapply = [(record, reader.payload(record)) for record in last.records]
    for segment in found:
        if segment.records:
            _cut_durably(segment.path, segment.end)
        else:
            segment.path.unlink()
    positions.advance(max((s.records[-1].position for s in found if s.records), default=0))
    log = DiskLog(
        folder,
        name,
        disk_id=disk_id,
        generation=generation,
        disk_size_bytes=disk_size_bytes,
        positions=positions,
        next_number=last.number + 1,
        next_seq=last.next_seq,
    )
    sync_folder(folder)
    for segment in found:
        if segment.records:
            log.adopt(segment)
    return Recovered(log, reapply, last.torn_bytes)


def _read_segments(folder: Path, name: str, disk_id: str, generation: int) -> list[FoundSegment]:
    """The generation's segments, checked for belonging together; only the last may have a torn tail."""
    found: list[FoundSegment] = []
    paths = find_segments(folder, name)
    for number, path in paths:
        newest = number == paths[-1][0]
        if newest and path.stat().st_size < HEADER_BYTES:  # a kill while it was being made: it holds nothing
            path.unlink()
            continue
        with SegmentReader(path) as reader:
            header = reader.header
            if header.generation != generation:  # kept until the resync that replaces it is applied
                continue
            scan = scan_tail(reader)
        if header.disk_id != disk_id:
            raise RigError("LogCorrupt", f"{path}: is the log of disk {header.disk_id}; this disk is {disk_id}")
        if found and header.first_seq != found[-1].next_seq:
            raise RigError("LogCorrupt", f"{path}: begins with record {header.first_seq}; {found[-1].next_seq} comes next")
        if found and found[-1].torn_bytes:
            raise RigError("LogCorrupt", f"{found[-1].path}: has a torn tail, but {path.name} follows it")
        found.append(FoundSegment(number, path, header, scan.records[-REAPPLY_RECORDS:], scan.end, scan.torn_bytes))
    return found


def _cut_durably(path: Path, end: int) -> None:
    """Cut a torn tail and make the segment durable: its writer may not have."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, end)
        os.fsync(fd)
    finally:
        os.close(fd)
