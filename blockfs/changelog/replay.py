"""Reads change log segments as one log: sorts them, checks them, and replays them onto an image.

Fault contract
--------------
May break: any file in the ways that :mod:`siterig.blockfs.changelog.segment` lists.  Files can also be missing, belong to
another disk, or be given twice.  Stays whole: an image is not changed before all records that will be applied were read and
found good.  An interrupted replay (kill, full disk) leaves an image that the same replay completes, because records contain
bytes, not differences.

Memory: the payload of one record, and the record headers of one segment if it has a torn tail.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, assert_never

from siterig.blockfs.changelog.segment import HEADER_BYTES, Record, RecordType, SegmentHeader, SegmentReader, scan_tail
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.files import block_device, host_calls, safe_files, user_files
from siterig.blockfs.files.file_limit import check_file_limit
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.images import image_headers, image_kind, vhd
from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.blockfs.images.image_kind import WANTED, Contents
from siterig.blockfs.layers.layer import RawLayer, WritableLayer
from siterig.cext.checksums import is_zero

ADVANCE_STEP_BYTES = 1 << 20
_STEP_BYTES = 1 << 20
_RANGE_TYPES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A file that was given as a segment.

    ``header`` is None if it cannot be read, and ``fault`` is the reason.  Both are None for a file in which a kill
    interrupted the creation of a segment: it is shorter than a header, or only preallocated.
    """

    path: Path
    size_bytes: int
    header: SegmentHeader | None
    fault: RigError | None


@dataclass(slots=True)
class FileSummary:
    """Contents of a good segment; ``torn_bytes`` of a partly written record follow byte ``end``.

    ``room_bytes`` are preallocated bytes at the end of the file, for the next records.  ``partial`` means that the file was
    read only up to a position, and more records follow.
    """

    path: Path
    records: int = 0
    written_bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    first_position: int = 0
    last_position: int = 0
    end: int = 0
    torn_bytes: int = 0
    room_bytes: int = 0
    partial: bool = False

    def count(self, record: Record) -> None:
        """Add one record."""
        if self.records == 0:
            self.first_seq, self.first_position = record.seq, record.position
        self.records += 1
        self.last_seq, self.last_position, self.end = record.seq, record.position, record.end
        if record.type is RecordType.WRITE:
            self.written_bytes += record.length


def _log_file(path: Path) -> SegmentFile:
    try:
        with SegmentReader(path) as reader:
            return SegmentFile(path, os.fstat(reader.fd).st_size, reader.header, None)
    except RigError as fault:
        if fault.code != Code.LogCorrupt:  # the file may be missing
            return SegmentFile(path, 0, None, fault)
        size = path.stat().st_size
        return SegmentFile(path, size, None, None if size < HEADER_BYTES or _begins_with_zeros(path) else fault)
    except OSError as exc:  # a folder can be opened, too
        return SegmentFile(path, 0, None, RigError(Code.LogUnreadable, f"{path}: cannot be read: {reason(exc, path)}"))


def _begins_with_zeros(path: Path) -> bool:
    fd = safe_files.open_named(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return is_zero(host_calls.pread(fd, HEADER_BYTES, 0))
    finally:
        os.close(fd)


def _room_bytes(fd: int, start: int, end: int) -> int:
    """Return the number of zeros at the end of a file, between ``start`` and ``end``."""
    at = end
    while at > start:
        step = min(_STEP_BYTES, at - start)
        data = host_calls.pread(fd, step, at - step)
        if not is_zero(data):
            return end - at + len(data) - len(data.rstrip(b"\0"))
        at -= step
    return end - start


def in_order(paths: list[Path]) -> list[SegmentFile]:
    """Return the files sorted by generation and first sequence number; files without a header come last.

    A file that cannot be read raises no error here; it has a ``fault``.
    """

    def key(file: SegmentFile) -> tuple[bool, int, str, int, bool, str]:
        if file.header is None:
            return (True, 0, "", 0, False, str(file.path))
        # If two begin with the same number, the empty one comes first: nothing was written to it.
        stream = "0" if file.header.stream == "sync" else "1"
        return (False, file.header.generation, stream, file.header.first_seq, file.size_bytes > HEADER_BYTES, str(file.path))

    files = sorted((_log_file(path) for path in paths), key=key)
    if len(files) == 1 and files[0].header is None and files[0].fault is None:
        # A single file of this kind is not the end of a log; the reader raises its fault.
        try:
            SegmentReader(files[0].path).close()
        except RigError as fault:
            return [SegmentFile(files[0].path, files[0].size_bytes, None, fault)]
    return files


class TornTail:
    """The good records of one segment; the two counts are known after the last record.

    ``torn_bytes`` belong to a partly written record; ``room_bytes`` of preallocated zeros follow.
    """

    def __init__(self, reader: SegmentReader) -> None:
        self._reader = reader
        self.torn_bytes = self.room_bytes = 0

    def records(self) -> Iterator[Record]:
        """Yield all good records.

        Raises:
            RigError: ``LogCorrupt`` if a good record follows a bad one.
        """
        seen = 0
        try:
            for record in self._reader.records():
                seen += 1
                yield record
        except RigError:
            scan = scan_tail(self._reader)
            yield from scan.records[seen:]  # complete by now: the log is being written
            end = scan.end + scan.torn_bytes
            self.room_bytes = _room_bytes(self._reader.fd, scan.end, end)
            self.torn_bytes = scan.torn_bytes - self.room_bytes


class _LogSequence:
    """Checks that segments and records follow one another."""

    def __init__(self) -> None:
        self._first: tuple[Path, SegmentHeader] | None = None
        self._next: int | None = None
        self._position = 0
        self.size_bytes = 0

    def begin(self, file: SegmentFile) -> None:
        """Check that the segment follows the previous one.

        Raises:
            RigError: ``LogMismatch`` or ``LogGap`` if it does not.
        """
        header = file.header
        if header is None:
            return
        if self._first is None:
            self._first = (file.path, header)
        first_path, first = self._first
        if header.disk_id != first.disk_id:
            raise RigError(
                Code.LogMismatch,
                f"{file.path}: is the log of disk {header.disk_id}; {first_path} is of disk {first.disk_id}",
            )
        if (header.generation, header.stream) != (first.generation, first.stream):
            raise RigError(
                Code.LogMismatch,
                f"{file.path}: has generation {header.generation}, stream {header.stream}; {first_path} has "
                f"generation {first.generation}, stream {first.stream}: they do not follow one another",
            )
        if header.key_id != first.key_id:
            raise RigError(
                Code.LogMismatch,
                f"{file.path}: is encrypted with key {header.key_id or '(none)'}; {first_path} is with "
                f"{first.key_id or '(none)'}",
            )
        if self._next is not None and header.first_seq != self._next:
            what = "record" if header.stream == "log" else "part"
            why = f"{what} {self._next} comes next"
            if header.first_seq > self._next:
                why = f"the segment with {what} {self._next} is missing"
            raise RigError(Code.LogGap, f"{file.path}: begins with {what} {header.first_seq}; {why}")
        self._next = header.first_seq if header.stream == "log" else header.first_seq + 1
        self.size_bytes = max(self.size_bytes, header.disk_size_bytes)

    def take(self, file: SegmentFile, record: Record) -> None:
        """Check that a record with a good checksum is valid at its place.

        Raises:
            RigError: ``LogCorrupt`` if it is not.
        """
        at = f"{file.path}: change log is corrupt at record {record.seq}"
        if record.position < self._position:
            raise RigError(Code.LogCorrupt, f"{at}: position {record.position} after {self._position}")
        if record.type is RecordType.RESIZE:
            if record.length < self.size_bytes:
                raise RigError(
                    Code.LogCorrupt, f"{at}: RESIZE from {self.size_bytes} to {record.length} bytes; disks only grow"
                )
            self.size_bytes = record.length
        elif record.type in _RANGE_TYPES and record.offset + record.length > self.size_bytes:
            raise RigError(
                Code.LogCorrupt,
                f"{at}: {record.type.name} of {record.length} bytes at {record.offset} passes the end of a disk of "
                f"{self.size_bytes} bytes",
            )
        self._position = record.position
        if file.header is not None and file.header.stream == "log":
            self._next = record.seq + 1

    def lose(self) -> None:
        """Forget the expected next record, because a segment was bad."""
        self._next = None


def _summarize(
    file: SegmentFile,
    row: _LogSequence,
    follower: SegmentFile | None,
    upto: int | None = None,
    advance: Advance | None = None,
) -> FileSummary:
    """Read a file completely, or up to position ``upto``.

    Raises:
        RigError: the file's fault.
    """
    if file.fault is not None:
        raise file.fault
    row.begin(file)
    summary = FileSummary(file.path, end=HEADER_BYTES if file.header else 0)
    if file.header is None:
        summary.torn_bytes, summary.room_bytes = _without_header(file)
    else:
        with SegmentReader(file.path) as reader:
            tail = TornTail(reader)
            for record in _report_progress(tail.records(), advance):
                if upto is not None and record.position > upto:
                    summary.partial = True
                    return summary
                row.take(file, record)
                summary.count(record)
            summary.torn_bytes, summary.room_bytes = tail.torn_bytes, tail.room_bytes
    if follower is not None and (summary.torn_bytes or file.header is None):
        raise RigError(
            Code.LogCorrupt,
            f"{file.path}: has a torn tail of {summary.torn_bytes} bytes at byte {summary.end}, but {follower.path} "
            "follows it",
        )
    return summary


def _without_header(file: SegmentFile) -> tuple[int, int]:
    """Return the torn and the preallocated bytes of a file without a segment."""
    fd = safe_files.open_named(file.path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        room_bytes = _room_bytes(fd, 0, file.size_bytes)
    finally:
        os.close(fd)
    return file.size_bytes - room_bytes, room_bytes


def _report_progress(records: Iterator[Record], advance: Advance | None) -> Iterator[Record]:
    reported_bytes = HEADER_BYTES
    end = HEADER_BYTES
    for record in records:
        yield record
        end = record.end
        if advance is not None and end - reported_bytes >= ADVANCE_STEP_BYTES:
            advance(end - reported_bytes)
            reported_bytes = end
    if advance is not None:
        advance(end - reported_bytes)


def verify(paths: list[Path]) -> Iterator[tuple[Path, FileSummary | RigError]]:
    """Yield each file in order, with its contents or its fault; a bad file does not hide the others."""
    files = in_order(paths)
    row = _LogSequence()
    for file, follower in zip(files, [*files[1:], None], strict=True):
        try:
            yield file.path, _summarize(file, row, follower)
        except RigError as fault:
            row.lose()
            yield file.path, fault


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """Consecutive segments that were read completely, for a replay.

    ``size_bytes_before`` and ``size_bytes_after`` are sizes of the disk.  ``torn`` is the last file if it has a torn tail,
    which is left out.
    """

    files: list[FileSummary]
    size_bytes_before: int
    size_bytes_after: int

    @property
    def torn(self) -> FileSummary | None:
        """The last file, if bytes that are no record follow its last record."""
        return self.files[-1] if self.files[-1].torn_bytes else None

    @property
    def log_bytes(self) -> int:
        """Bytes that one pass over all records reads."""
        return sum(file.end for file in self.files)

    @property
    def first_seq(self) -> int:
        """Sequence number of the first record; 0 if there is none."""
        return next((file.first_seq for file in self.files if file.records), 0)

    def records(self, advance: Advance | None = None) -> Iterator[tuple[SegmentReader, Record]]:
        """Yield all records with the reader of their payload; checksums are checked again."""
        for file in self.files:
            if file.records:
                with SegmentReader(file.path) as reader:
                    for record in _report_progress(islice(reader.records(), file.records), advance):
                        yield reader, record


def check(paths: list[Path], *, upto: int | None = None, advance: Advance | None = None) -> CheckedLog:
    """Read everything up to position ``upto`` (None: all), and check that it is one log without a gap.

    One record after ``upto`` is read, too.

    Raises:
        RigError: ``LogCorrupt``, ``LogGap``, ``LogMismatch``, ``LogUnreadable``, ``LogVersion``.
    """
    row = _LogSequence()
    files = in_order(paths)
    before = files[0].header.disk_size_bytes if files[0].header else 0
    summaries = []
    for file, follower in zip(files, [*files[1:], None], strict=True):
        summary = _summarize(file, row, follower, upto, advance)
        summaries.append(summary)
        if summary.partial:
            break
    return CheckedLog(summaries, before, row.size_bytes)


def open_image(path: Path, log: CheckedLog, *, writable: bool, format_: Literal["raw", "vhd"] | None = None) -> RawLayer:
    """Open the image to which a log belongs: a raw image (it may be larger), a fixed VHD, or a block device.

    Raises:
        RigError: ``ImageUnusable``, ``ImageBusy``, ``VhdCorrupt``; ``InvalidDiskSize`` if it is too small, or would have
            to grow and cannot.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    fd = user_files.open_file(path, flags, code=Code.ImageUnusable, purpose=WANTED, devices=True)
    try:
        return RawLayer(path, size_bytes=_disk_bytes(path, fd, log, writable=writable, format_=format_), fd=fd)
    except BaseException:
        os.close(fd)
        raise


def _disk_bytes(path: Path, fd: int, log: CheckedLog, *, writable: bool, format_: Literal["raw", "vhd"] | None) -> int:
    """Return the size of the disk in an image, after a check that the log can be applied to it."""
    is_device, size = block_device.is_block_device(fd), block_device.size_bytes(fd)
    found = format_ or image_kind.guess(path, Contents.of(fd, size), is_device=is_device)
    if found not in ("raw", "vhd"):
        raise image_headers.not_exposed(ImageBytes(path, fd, size), found)
    if found == "vhd":
        size = vhd.read_fixed(ImageBytes(path, fd, size))
    if size < log.size_bytes_before:
        raise RigError(
            Code.InvalidDiskSize, f"{path}: has {size} bytes; the log is of a disk of {log.size_bytes_before} bytes"
        )
    if writable and size < log.size_bytes_after:
        if found == "vhd" or is_device:
            raise RigError(Code.InvalidDiskSize, f"{path}: has {size} bytes, and cannot grow to {log.size_bytes_after}")
        check_file_limit(str(path), log.size_bytes_after)
    return size


class Replay:
    """Applies a checked log to an image; its fields show the progress, also after an error.

    ``last`` is the last record that was applied completely.  ``counts`` has the number of records by type.
    """

    def __init__(self, log: CheckedLog, onto: WritableLayer) -> None:
        self._log = log
        self._onto = onto
        self.last: Record | None = None
        self.counts: Counter[RecordType] = Counter()

    def run(self, advance: Advance | None = None) -> None:
        """Apply every record in order; the image is durable when it returns.

        Raises:
            OSError: the image cannot be written.
        """
        for reader, record in self._log.records(advance):
            apply(self._onto, reader, record)
            self.last = record
            self.counts[record.type] += 1
        self._onto.sync()


def apply(onto: WritableLayer, reader: SegmentReader, record: Record) -> None:
    """Apply one record to an image; an image that is already larger keeps its size."""
    match record.type:
        case RecordType.WRITE:
            onto.pwrite(record.offset, reader.payload(record))
        case RecordType.ZERO | RecordType.DISCARD:
            if record.length:
                onto.zero(record.offset, record.length)
        case RecordType.RESIZE:
            if record.length > onto.size_bytes:
                onto.resize(record.length)
        case RecordType.FLUSH | RecordType.TAG:
            pass
        case _:
            assert_never(record.type)
