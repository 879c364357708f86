"""Converts change logs to and from dm-log-writes; docs/reference/formats/dm-log-writes.md lists what cannot be converted.

Fault contract: a log, or a sequence of segments, gets its final name only when it is complete and durable.  An import
renames the first segment last, so a kill never leaves files that look like a complete log.
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from siterig.blockfs.changelog.disk_log import SEGMENT_BYTES_MAX, find_segments, segment_path
from siterig.blockfs.changelog.dm_log_writes import MARK_BYTES_MAX, DmLogEntry, DmLogReader, DmLogWriter, EntryFlag
from siterig.blockfs.changelog.replay import CheckedLog, apply, open_image
from siterig.blockfs.changelog.segment import Record, RecordType, SegmentHeader, SegmentReader, SegmentWriter
from siterig.blockfs.changelog.tags import TagSeen, decode_tag, encode_tag
from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import rename_new, sync_folder
from siterig.blockfs.files.safe_files import temporary_name
from siterig.blockfs.layers.layer import OverlayLayer
from siterig.cext.checksums import is_zero

PIECE_BYTES_MAX = 4 << 20
"""A longer write is imported as several records."""


@dataclass(slots=True)
class Exported:
    """Result of an export: ``records`` became ``entries``; ``widened`` of them did not fill whole sectors.

    ``resizes`` cannot be expressed: the target of a replay needs ``disk_size_bytes`` from the start.
    """

    disk_size_bytes: int
    records: int = 0
    entries: int = 0
    widened: int = 0
    resizes: int = 0


def export_log(
    log: CheckedLog,
    out: Path,
    *,
    base: Path | None = None,
    format_: Literal["raw", "vhd"] | None = None,
    advance: Advance | None = None,
) -> Exported:
    """Write the log to ``out`` in the dm-log-writes format; a failure leaves no file.

    Args:
        log: the checked log.
        out: the new file.
        base: image of the disk before the log, only read; needed if records do not fill whole sectors.
        format_: format of ``base``.
        advance: gets the progress.
    Raises:
        RigError: ``LogUnaligned``, ``LogExists``, ``MarkInvalid``, ``ImageUnusable``, ``InvalidDiskSize``.
        OSError: ``out`` cannot be written.
    """
    writer = DmLogWriter(out)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.state.") as folder:
            state = _state(log, base, format_, Path(folder))
            try:
                done = _Export(log, writer, state).run(advance)
            finally:
                if state is not None:
                    state.close()
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return done


def _state(log: CheckedLog, base: Path | None, format_: Literal["raw", "vhd"] | None, folder: Path) -> OverlayLayer | None:
    if base is None:
        return None
    return OverlayLayer(open_image(base, log, writable=False, format_=format_), folder / "disk")


class _Export:
    """Converts records.

    ``state`` is the disk after each record; it supplies the rest of a sector that a record changes in part.
    """

    def __init__(self, log: CheckedLog, writer: DmLogWriter, state: OverlayLayer | None) -> None:
        self._log = log
        self._writer = writer
        self._state = state
        self._done = Exported(log.size_bytes_after)

    def run(self, advance: Advance | None) -> Exported:
        for reader, record in self._log.records(advance):
            if self._state is not None:
                apply(self._state, reader, record)
            self._add(reader, record)
            self._done.records += 1
        self._done.entries = self._writer.entry_count
        return self._done

    def _add(self, reader: SegmentReader, record: Record) -> None:
        match record.type:
            case RecordType.FLUSH:
                self._writer.flush()
            case RecordType.TAG:
                self._writer.mark(_mark(reader, record))
            case RecordType.RESIZE:
                self._done.resizes += 1
            case RecordType.WRITE | RecordType.ZERO | RecordType.DISCARD:
                if record.offset % SECTOR_BYTES or record.length % SECTOR_BYTES:
                    self._add_widened(reader, record)
                elif record.type is RecordType.WRITE:
                    self._writer.write(record.offset, reader.payload(record))
                elif record.type is RecordType.ZERO:
                    self._writer.zero(record.offset, record.length)
                else:
                    self._writer.discard(record.offset, record.length)

    def _add_widened(self, reader: SegmentReader, record: Record) -> None:
        if record.length == 0:
            return
        if self._state is None:
            raise RigError(
                Code.LogUnaligned,
                f"{reader.path}: record {record.seq} ({record.type.name} of {record.length} bytes at {record.offset}) does "
                f"not fill whole sectors of {SECTOR_BYTES} bytes: give the disk as it was before the log with --base",
            )
        self._done.widened += 1
        start = record.offset // SECTOR_BYTES * SECTOR_BYTES
        end = -(-(record.offset + record.length) // SECTOR_BYTES) * SECTOR_BYTES
        if record.type is RecordType.WRITE:
            self._writer.write(start, self._state.pread(start, end - start))
            return
        inner = -(-record.offset // SECTOR_BYTES) * SECTOR_BYTES
        inner_end = (record.offset + record.length) // SECTOR_BYTES * SECTOR_BYTES
        edges = {at for at in (start, end - SECTOR_BYTES) if not inner <= at < inner_end}
        for at in sorted(edges):
            self._writer.write(at, self._state.pread(at, SECTOR_BYTES))
        if inner < inner_end:
            if record.type is RecordType.ZERO:
                self._writer.zero(inner, inner_end - inner)
            else:
                self._writer.discard(inner, inner_end - inner)


def _mark(reader: SegmentReader, record: Record) -> bytes:
    """Return the name of a tag, or its id if it has no name."""
    tag = decode_tag(reader.payload(record))
    name = (tag.name or tag.tag_id).encode()
    if len(name) > MARK_BYTES_MAX or b"\0" in name:
        raise RigError(
            Code.MarkInvalid,
            f"{reader.path}: record {record.seq} is a tag whose name has {len(name)} bytes; a mark has at most "
            f"{MARK_BYTES_MAX}, none of them zero",
        )
    return name


@dataclass(slots=True)
class Imported:
    """Result of an import: the new segments and their contents; ``fua`` counts FUA flags, which have no counterpart."""

    disk_id: str
    disk_size_bytes: int
    paths: list[Path] = field(default_factory=list)
    entries: int = 0
    records: int = 0
    fua: int = 0


def import_log(
    source: Path,
    folder: Path,
    name: str,
    *,
    size_bytes: int | None = None,
    advance: Advance | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Imported:
    """Create the segments ``folder/NAME.NNNNNN.hrl`` of a new disk id from a dm-log-writes log; a failure leaves no file.

    Args:
        source: the dm-log-writes log.
        folder: folder of the segments.
        name: name of the disk.
        size_bytes: size of the disk, which the log does not contain; None: up to the last sector that the log changes.
        advance: gets the progress.
        clock: time of the records.
    Raises:
        RigError: ``DmLogCorrupt``, ``LogVersion``, ``LogUnreadable``, ``LogExists``, ``InvalidDiskSize``.
        OSError: a segment cannot be written.
    """
    with DmLogReader(source) as reader:
        touched = max((entry.offset + entry.length for entry in reader.entries()), default=0)
        if size_bytes is not None and size_bytes < touched:
            raise RigError(
                Code.InvalidDiskSize,
                f"{source}: writes to byte {touched} of the disk; --size is {size_bytes} bytes",
            )
        if find_segments(folder, name):
            raise RigError(Code.LogExists, f"{folder / name}: has change logs already")
        done = Imported(str(uuid.uuid4()), touched if size_bytes is None else size_bytes)
        new_log = _Import(reader, folder, name, done, now_ns=clock.wall_ns())
        try:
            return new_log.run(advance)
        except BaseException:
            new_log.abandon()
            raise


class _Import:
    def __init__(self, reader: DmLogReader, folder: Path, name: str, done: Imported, *, now_ns: int) -> None:
        self._reader = reader
        self._folder = folder
        self._name = name
        self._done = done
        self._now_ns = now_ns
        self._seq = 0
        self._made: list[tuple[Path, Path]] = []  # (temporary path, final path)
        self._writer = self._begin()

    def _begin(self) -> SegmentWriter:
        final = segment_path(self._folder, self._name, len(self._made) + 1)
        with safe_files.held(self._folder) as folder:
            folder.remove_leftovers(final.name)
        path = self._folder / temporary_name(final.name)
        writer = SegmentWriter.create(
            path,
            SegmentHeader(
                disk_id=self._done.disk_id,
                generation=1,
                stream="log",
                first_seq=self._seq + 1,
                boot_id=boot.current_boot_id(),
                created_ns=self._now_ns,
                disk_size_bytes=self._done.disk_size_bytes,
            ),
        )
        self._made.append((path, final))
        return writer

    def abandon(self) -> None:
        self._writer.close()
        for path in [made for made, _ in self._made] + self._done.paths:
            path.unlink(missing_ok=True)

    def run(self, advance: Advance | None) -> Imported:
        reported_bytes = 0
        for entry in self._reader.entries():
            self._add(entry)
            self._done.entries += 1
            if advance is not None:
                end = entry.data_offset + (entry.length if entry.has_data else 0)
                advance(end - reported_bytes)
                reported_bytes = end
        self._writer.sync()
        for path, final in reversed(self._made):
            try:
                rename_new(path, final)
            except FileExistsError:
                raise RigError(Code.LogExists, f"{final}: exists already") from None
            self._done.paths.insert(0, final)
        sync_folder(self._folder)
        self._writer.close()
        self._done.records = self._seq
        return self._done

    def _add(self, entry: DmLogEntry) -> None:
        if entry.flags & EntryFlag.MARK:
            self._append(RecordType.TAG, payload=self._tag(entry.mark))
            return
        if entry.flags & EntryFlag.FLUSH:
            self._append(RecordType.FLUSH)
        if entry.flags & EntryFlag.FUA:
            self._done.fua += 1
        if entry.flags & EntryFlag.DISCARD:
            if entry.length:
                self._append(RecordType.DISCARD, offset=entry.offset, length=entry.length)
            return
        for start in range(0, entry.length, PIECE_BYTES_MAX):
            data = self._reader.data(entry, start, min(PIECE_BYTES_MAX, entry.length - start))
            if is_zero(data):
                self._append(RecordType.ZERO, offset=entry.offset + start, length=len(data))
            else:
                self._append(RecordType.WRITE, offset=entry.offset + start, length=len(data), payload=data)

    def _tag(self, mark: bytes) -> bytes:
        return encode_tag(
            TagSeen(
                tag_id=str(uuid.uuid4()),
                kind="CrashConsistent",
                name=mark.rstrip(b"\0").decode(errors="backslashreplace"),
                position=self._seq + 1,
                time_ns=self._now_ns,
            )
        )

    def _append(self, kind: RecordType, *, offset: int = 0, length: int = 0, payload: bytes = b"") -> None:
        if self._writer.end >= SEGMENT_BYTES_MAX:
            full = self._writer
            full.sync()
            self._writer = self._begin()
            full.close()
        self._seq += 1
        self._writer.append(
            kind, seq=self._seq, position=self._seq, time_ns=self._now_ns, offset=offset, length=length, payload=payload
        )
