"""The change log of one disk: a current segment that takes records, and closed segments that are kept until applied.

The writer is in C (cext/src/disk/changelog.c).  This module does what needs names: it creates, names, truncates, lists and
deletes segments.  All functions may be called in any thread.

Fault contract
--------------
A record is in the current segment before its bytes reach the disk.  After a kill the segment's torn tail is truncated and
the last record is written to the disk again; the sequence continues without a gap, in the same generation
(:mod:`siterig.blockfs.changelog.recovery`).  A closed segment is listed only after it is durable.

The next segment is ready as ``NAME.spare``, preallocated, without a header.  When the current segment is full, the writer in
C switches to the spare without waiting.  :meth:`DiskLog.maintain` then renames the spare, truncates the preallocated end of
the closed segment, and creates the next spare, from ``NAME.recycled`` (the file of an applied segment) if there is one.  A
kill in between leaves ``NAME.spare`` with a header: then it is the newest segment.  ``NAME.dirty`` has the state of the log
in one word, and a bitmap of the changes without a record (:mod:`siterig.blockfs.changelog.dirty_bitmap`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.segment import FLAG_CLEAN_CLOSE, HEADER_BYTES, RecordType, SegmentHeader, encode_header
from siterig.blockfs.contracts.control import SegmentInfo
from siterig.blockfs.contracts.shares import KEPT_SHARE_MAX, WhenFull
from siterig.blockfs.core import boot
from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import naming, raised_by_c
from siterig.blockfs.files.safe_files import temporary_name
from siterig.blockfs.watch import own_file
from siterig.cext._core import ffi, lib

SEGMENT_BYTES_MAX = 16 << 20
SEGMENT_BYTES_MIN = 256 << 10
SEGMENTS_LISTED_MAX = 4096
"""Segments that the writer can list; Python takes them over long before there are so many."""


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """The limits of a log, and the reaction to a full host disk.

    Args:
        kept_share_max: share of the disk's size that kept segments may take; beyond it the log is abandoned for the
            dirty bitmap (``LogOverflow``).  None means no limit.
        when_full: ``refuse`` fails the write with ``ENOSPC`` when the host's disk is full; ``bitmap`` abandons the log
            (``LogFull``).
    """

    kept_share_max: float | None = KEPT_SHARE_MAX
    when_full: WhenFull = "refuse"

    def kept_bytes_max(self, disk_bytes: int) -> int:
        """Return the limit in bytes for a disk of that size; 0 means no limit."""
        return 0 if self.kept_share_max is None else max(int(disk_bytes * self.kept_share_max), 1)


def segment_bytes(disk_bytes: int) -> int:
    """Return the size at which a segment ends; it is small enough that one segment does not fill a small disk's limit."""
    return min(max(disk_bytes // 16, SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)


class LogExtent(WireModel):
    """The records in the kept segments of a log: from ``first_seq`` to the record before ``next_seq``."""

    first_seq: Whole
    next_seq: Whole


@dataclass(frozen=True, slots=True)
class KeptSegment:
    """A closed, durable segment; ``position`` is the position of its last record."""

    number: int
    first_seq: int
    last_seq: int
    position: int
    size_bytes: int
    path: Path


@dataclass(frozen=True, slots=True)
class _Segment:
    """The writer's record of a segment (``struct sr_segment_info``)."""

    number: int
    first_seq: int
    last_seq: int
    last_position: int
    end: int
    closed: bool
    durable: bool


def segment_path(folder: Path, name: str, number: int) -> Path:
    """Return the path of a segment: ``NAME.000007.hrl``."""
    return folder / f"{name}.{number:06d}.hrl"


def segment_number(name: str, file: str) -> int | None:
    """Return the number of the segment of disk ``name`` that has this file name; None if it is no segment."""
    found = re.fullmatch(re.escape(name) + r"\.(\d{6,})\.hrl", file)
    return int(found[1]) if found else None


def find_segments(folder: Path, name: str) -> list[tuple[int, Path]]:
    """Return all segments of a disk, sorted by number."""
    numbered = [(segment_number(name, path.name), path) for path in folder.iterdir()]
    return sorted((number, path) for number, path in numbered if number is not None)


def _create_preallocated(path: Path, segment_bytes: int) -> int:
    """Create the file of a segment with a durable name; a failure leaves nothing."""
    fd = safe_files.create_file(path)
    try:
        with naming(path):
            host_calls.allocate(fd, 0, segment_bytes + HEADER_BYTES)
        sync_folder(path.parent)
    except BaseException:
        os.close(fd)
        path.unlink()
        raise
    return fd


@dataclass(frozen=True, slots=True)
class _NewFiles:
    """The first segment of a new log and its dirty bitmap under a temporary name, open for the writer in C."""

    segment: Path
    segment_fd: int
    dirty: Path
    dirty_fd: int

    @classmethod
    def create(cls, folder: Path, name: str, header: SegmentHeader, number: int) -> _NewFiles:
        """Create both files in ``folder``; a failure leaves nothing."""
        segment, dirty = segment_path(folder, name, number), folder / temporary_name(f"{name}.dirty")
        fds: list[int] = []
        try:
            with safe_files.held(folder) as held:
                for suffix in ("dirty", "spare", "recycled"):
                    held.check_free(f"{name}.{suffix}")
                held.remove_leftovers(f"{name}.dirty")
            fds.append(_create_preallocated(segment, segment_bytes(header.disk_size_bytes)))
            dirty_bitmap.make(dirty, disk_id=header.disk_id, generation=header.generation)
            fds.append(dirty_bitmap.open_for_writer(dirty))
        except BaseException:
            for fd in fds:
                os.close(fd)
            if fds:
                segment.unlink(missing_ok=True)
            dirty.unlink(missing_ok=True)
            raise
        return cls(segment, fds[0], dirty, fds[1])

    def discard(self) -> None:
        """Close and remove both files."""
        os.close(self.segment_fd)
        os.close(self.dirty_fd)
        self.segment.unlink()
        self.dirty.unlink(missing_ok=True)


class DiskLog:
    """The change log of one disk; ``disk`` is the disk in C, which writes the records."""

    def __init__(
        self,
        disk: Any,
        folder: Path,
        name: str,
        *,
        header: SegmentHeader,
        files: _NewFiles,
        setup: Any,
        segments: list[KeptSegment],
    ) -> None:
        """Take over prepared files; :meth:`prepare` creates them, and ``setup``, the writer's ``struct sr_log_setup``."""
        self.folder = folder
        self.name = name
        self.disk_id = header.disk_id
        self.generation = header.generation
        self._disk = disk
        self._kept = segments
        self._segment_bytes = segment_bytes(header.disk_size_bytes)
        self._lock = threading.Lock()  # protects the list of segments and their names
        self._spare_lock = threading.Lock()  # one spare is created at a time
        self._trimmed: set[int] = set()
        self._first_number = self._named_number = int(setup.number)
        self._files = files
        self._template = ffi.from_buffer(encode_header(header))  # the writer copies it to each segment
        self._setup = setup
        self._setup.header = ffi.cast("uint8_t *", self._template)
        self._setup.fd, self._setup.dirty_fd = files.segment_fd, files.dirty_fd
        self._made: dict[int, own_file.Identity | None] = {}  # the segments' files
        self._spare_made: own_file.Identity | None = None
        self._dirty_made: own_file.Identity | None = None

    @classmethod
    def prepare(
        cls,
        disk: Any,
        folder: Path,
        name: str,
        *,
        disk_id: str,
        generation: int,
        disk_size_bytes: int,
        policy: LogPolicy,
        next_number: int,
        key_id: str | None = None,
        next_seq: int = 1,
        last_position: int = 0,
        segments: list[KeptSegment] | None = None,
    ) -> DiskLog:
        """Create the files of a log that :meth:`start` starts or :meth:`discard` removes; a failure leaves nothing.

        Args:
            disk: the disk in C.
            folder: folder of the disk's files.
            name: name of the disk.
            disk_id: id of the disk.
            generation: generation of the log.
            disk_size_bytes: size of the disk.
            policy: limits of the log.
            next_number: number of the first new segment.
            key_id: id of the key with which the writer encrypts the disk; None if it does not.
            next_seq: sequence number of the next record.
            last_position: position of the newest record.
            kept: segments of the same generation that are kept already.
        """
        segments = segments or []
        header = SegmentHeader(
            disk_id=disk_id,
            generation=generation,
            stream="log",
            first_seq=next_seq,
            boot_id=boot.current_boot_id(),
            created_ns=0,
            disk_size_bytes=disk_size_bytes,
            key_id=key_id,
        )
        setup = ffi.new("struct sr_log_setup *")
        setup.number, setup.next_seq, setup.last_position = next_number, next_seq, last_position
        setup.oldest_number = segments[0].number if segments else next_number
        setup.kept_bytes = sum(segment.size_bytes for segment in segments)
        setup.segment_bytes = segment_bytes(disk_size_bytes)
        setup.kept_bytes_max = policy.kept_bytes_max(disk_size_bytes)
        setup.abandon_when_full = policy.when_full == "bitmap"
        kept_files = {segment.number: own_file.named(segment.path) for segment in segments}
        files = _NewFiles.create(folder, name, header, next_number)
        log = cls(disk, folder, name, header=header, files=files, setup=setup, segments=segments)
        log._made = {**kept_files, next_number: own_file.opened(files.segment_fd)}
        log._dirty_made = own_file.opened(files.dirty_fd)
        return log

    def start(self) -> None:
        """Log every write from now on here, and end an older log; the disk's state must name this log already.

        Nobody may maintain the older log meanwhile: its last segments have the same names.
        """
        try:
            safe_files.rename(self._files.dirty, self._dirty)
            sync_folder(self.folder)
            check(lib.sr_log_start(self._disk, self._setup))
        except BaseException:
            self.discard()
            raise
        self._spare.unlink(missing_ok=True)
        self._recycled.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the files of a log that was not started."""
        self._files.discard()

    @property
    def _spare(self) -> Path:
        return self.folder / f"{self.name}.spare"

    @property
    def _recycled(self) -> Path:
        return self.folder / f"{self.name}.recycled"

    @property
    def _dirty(self) -> Path:
        return self.folder / f"{self.name}.dirty"

    # --- what the writer knows ----------------------------------------------------------------------------------

    @property
    def _info(self) -> Any:
        info = ffi.new("struct sr_log_info *")
        lib.sr_log_info(self._disk, info)
        return info

    @property
    def abandoned_because(self) -> str | None:
        """Reason why the writer abandoned the log; None if it did not."""
        return dirty_bitmap.REASONS.get(self._info.state)

    @property
    def next_seq(self) -> int:
        """Sequence number of the next record."""
        return int(self._info.next_seq)

    @property
    def last_seq(self) -> int:
        """Sequence number of the newest record (0: none)."""
        return self.next_seq - 1

    @property
    def last_position(self) -> int:
        """Position of the newest record."""
        return int(self._info.last_position)

    @property
    def unsent_bytes(self) -> int:
        """Size of all kept segments."""
        return int(self._info.kept_bytes)

    def _segments(self) -> list[_Segment]:
        table = ffi.new("struct sr_segment_info[]", SEGMENTS_LISTED_MAX)
        count = min(lib.sr_log_segments(self._disk, table, SEGMENTS_LISTED_MAX), SEGMENTS_LISTED_MAX)
        # Copied: a reference into the table does not keep the table alive, and its memory may be reused.
        return [
            _Segment(s.number, s.first_seq, s.last_seq, s.last_position, s.end, bool(s.closed), bool(s.durable))
            for s in table[0:count]
        ]

    def segment_bytes_of(self, number: int) -> int | None:
        """Return the written length of a segment of this process; None for an older segment."""
        return next((s.end for s in self._segments() if s.number == number), None)

    # --- records that Python writes -----------------------------------------------------------------------------

    def append(self, kind: RecordType, *, payload: bytes = b"", flags: int = 0, rotate: bool = False) -> int:
        """Append a record that changes nothing on the disk, and with ``rotate`` begin a new segment after it.

        Returns:
            The record's position.
        Raises:
            OSError: the disk is full, for example; the log is unchanged.
        """
        position = ffi.new("uint64_t *")

        def append() -> int:
            return int(lib.sr_log_append(self._disk, kind, flags, payload, len(payload), rotate, position))

        self._with_spare(append)
        return int(position[0])

    def rotate(self) -> None:
        """Begin a new segment, unless the current one is empty.

        Raises:
            OSError: the current segment stays in use.
        """
        self._with_spare(lambda: int(lib.sr_log_rotate(self._disk)))

    def _with_spare(self, step: Any) -> None:
        while (rc := step()) == -errno.EAGAIN:
            self.provide_spare()
        check(rc)
        self.reconcile_segments()

    # --- segments' files ----------------------------------------------------------------------------------------

    def maintain(self) -> None:
        """Do the work that is due after a switch of segments; it may take milliseconds."""
        self.reconcile_segments()
        self.provide_spare()
        # Sync without waiting for a guest's flush: each unsynced segment holds a descriptor.
        check(lib.sr_log_sync_closed(self._disk))
        self.reconcile_segments()

    def reconcile_segments(self) -> None:
        """Rename the current segment, truncate closed ones to their length, and take over the durable ones."""
        with self._lock:
            segments = self._segments()
            if not segments:
                return
            if segments[-1].number > self._named_number:
                current = segment_path(self.folder, self.name, segments[-1].number)
                if os.path.lexists(current):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(current))
                safe_files.rename(self._spare, current)
                self._named_number = segments[-1].number
                self._made[self._named_number] = self._spare_made
            for segment in segments:
                if not segment.closed:
                    continue
                path = segment_path(self.folder, self.name, segment.number)
                if segment.number not in self._trimmed:
                    _truncate(path, segment.end)
                    self._trimmed.add(segment.number)
                if segment.durable:
                    self._kept.append(
                        KeptSegment(
                            segment.number, segment.first_seq, segment.last_seq, segment.last_position, segment.end, path
                        )
                    )
                    lib.sr_log_forget(self._disk, segment.number)

    @property
    def has_spare(self) -> bool:
        """True if a new segment can begin at once."""
        return bool(self._info.has_spare)

    def provide_spare(self) -> None:
        """Give the writer a spare segment, if it has none."""
        with self._spare_lock:
            info = self._info
            if info.has_spare or info.state != lib.SR_LOGGED:
                return
            self.reconcile_segments()  # the writer cannot switch any more: the last segment gets its name
            fd = self._recycle() or _create_preallocated(self._spare, self._segment_bytes)
            self._spare_made = own_file.opened(fd)
            if not lib.sr_log_give_spare(self._disk, fd):  # abandoned meanwhile
                os.close(fd)
                self._spare.unlink()

    def _recycle(self) -> int | None:
        """Make a spare from an old segment; None if there is none, or if another process still reads it.

        Its blocks are allocated *and written*, so syncs of the new segment add nothing to the file system's journal.
        """
        if not self._recycled.exists():
            return None
        fd = safe_files.open_file(self._recycled, os.O_RDWR)
        try:
            if _open_elsewhere(fd):
                os.close(fd)
                self._recycled.unlink()
                return None
            with naming(self._recycled):
                host_calls.pwrite(fd, bytes(HEADER_BYTES), 0)  # from here on the file holds no segment
                host_calls.allocate(fd, 0, self._segment_bytes + HEADER_BYTES)
                host_calls.fdatasync(fd)  # durable: after a power loss its clean-close mark must not return
            safe_files.rename(self._recycled, self._spare)
            sync_folder(self.folder)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def file_trouble(self) -> str | None:
        """Return a sentence about a change of the log's files by another program; None if there is none."""
        with self._lock:
            expected = {segment_path(self.folder, self.name, number): made for number, made in self._made.items()}
            expected[self._dirty] = self._dirty_made
            if self.has_spare or any(segment.number > self._named_number for segment in self._segments()):
                expected[self._spare] = self._spare_made
            for path, made in expected.items():
                if (became := own_file.became(own_file.named(path), made)) is not None:
                    return f"{path} {became}"
        return None

    def segments(self) -> list[SegmentInfo]:
        """Return the kept segments that are closed and durable."""
        self.reconcile_segments()
        with self._lock:
            kept = list(self._kept)
        return [
            SegmentInfo(
                disk_id=self.disk_id,
                generation=self.generation,
                number=k.number,
                first_seq=k.first_seq,
                last_seq=k.last_seq,
                complete_position=k.position,
                size_bytes=k.size_bytes,
                path=str(k.path),
            )
            for k in kept
        ]

    @property
    def extent(self) -> LogExtent:
        """Return the records of all kept segments, the current one included."""
        self.reconcile_segments()
        with self._lock:
            first_seq = self._kept[0].first_seq if self._kept else self._segments()[0].first_seq
            return LogExtent(first_seq=first_seq, next_seq=self.next_seq)

    @property
    def oldest_number(self) -> int:
        """Number of the oldest kept segment."""
        self.reconcile_segments()
        with self._lock:  # a segment must not move from the writer's list to this one between two reads
            return self._kept[0].number if self._kept else self._segments()[0].number

    def trim(self, last_seq: int) -> None:
        """Delete closed segments whose records the recovery side has applied; one file is kept for the next spare."""
        self.reconcile_segments()
        trimmed_bytes, inherited = 0, False
        with self._lock:
            while self._kept and self._kept[0].last_seq <= last_seq:
                kept = self._kept.pop(0)
                self._made.pop(kept.number, None)
                trimmed_bytes += kept.size_bytes
                if inherited and kept.number >= self._first_number:
                    sync_folder(self.folder)
                inherited = kept.number < self._first_number
                if self._recycled.exists():
                    kept.path.unlink()
                else:
                    safe_files.rename(kept.path, self._recycled)
            if inherited:
                # It may end with a clean-close mark.  After a power loss it must not return while the segments after it
                # are lost.
                sync_folder(self.folder)
        if trimmed_bytes:
            lib.sr_log_trim(self._disk, self.oldest_number, trimmed_bytes)

    # --- the end ------------------------------------------------------------------------------------------------

    def close_clean(self) -> None:
        """Make log and disk durable, then append a durable clean-close mark as the last record."""
        check(lib.sr_disk_flush(self._disk))
        self.append(RecordType.FLUSH, flags=FLAG_CLEAN_CLOSE)
        check(lib.sr_disk_flush(self._disk))
        self.reconcile_segments()
        with self._lock:
            current = self._segments()[-1]
            _truncate(segment_path(self.folder, self.name, current.number), current.end)
        self._spare.unlink(missing_ok=True)
        self._recycled.unlink(missing_ok=True)
        sync_folder(self.folder)


def _truncate(path: Path, end: int) -> None:
    """Truncate a segment to its length."""
    fd = safe_files.open_file(path, os.O_WRONLY)
    try:
        with naming(path):
            os.ftruncate(fd, end)
    finally:
        os.close(fd)


def resume_dirty_tracking(disk: Any, path: Path) -> None:
    """Record the changes of a disk with an abandoned log in its dirty file at ``path``."""
    setup = ffi.new("struct sr_log_setup *")
    setup.fd, setup.dirty_fd = -1, dirty_bitmap.open_for_writer(path)
    try:
        check(lib.sr_log_start(disk, setup))
    except OSError:
        os.close(setup.dirty_fd)
        raise


def _open_elsewhere(fd: int) -> bool:
    """Return True if the file is open under another descriptor than ``fd``.

    Only then a write lease is refused (fcntl(2), F_SETLEASE).
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:  # or the file system has no leases
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def check(result: int) -> int:
    """Return the result of a function in C; an error is raised as ``OSError``."""
    if result < 0:
        raise raised_by_c(result)
    return result
