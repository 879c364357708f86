"""The journal of a managed disk: numbered files of frames (:mod:`siterig.azure_emu.disks.frames`); the newest one grows.

A journal file is named by the number of its first frame.  A full file is closed and then never changes, except that a
damaged header or index is written again with the same bytes.

Fault contract
--------------
A frame is written at the end of the newest journal file, its header last, and counts once ``fdatasync`` has returned.  A
kill can leave a frame that the file ends in, or one with zeros in place of its header.  A power loss can also leave one with
a wrong checksum of its header or its segment.  Such a last frame is torn and is truncated, unless it is known to count
(:class:`siterig.azure_emu.disks.metadata.OpenRecord`).  Everything else that does not match its checksum is damage.

:func:`read_journal` reads headers and :func:`read_index` reads indexes.  Segments are not read, except that of the last
frame after a power loss.  A bad header is taken from its copy after the frame, and a bad index is rebuilt from its segment.
If neither is possible, or a frame that counts is missing, the chain of frames is broken: the frames before are good, and
:attr:`JournalState.broken` says why there are no more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from siterig.azure_emu.disks.frames import (
    BACK_MAGIC,
    FRONT_MAGIC,
    HEADER_BYTES,
    PIECE_CRC_BYTES,
    BadFrameError,
    DiskUuid,
    Frame,
    decode_header,
    decode_tags,
    encode_header,
    encode_tags,
    make_frame,
)
from siterig.azure_emu.disks.io_errors import pread_past_bad_sectors
from siterig.azure_emu.disks.metadata import OpenRecord, cannot_be_read, store_corrupt
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.transfer.part_index import ENTRY_BYTES, PartIndex, index_segment
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext._core import lib
from siterig.cext.checksums import crc32c

JOURNAL = "journal"
SCAN_BYTES = 1 << 20
"""The bytes that are searched at once for the next header after damage."""
JOURNAL_FILE_BYTES = 32 << 20
"""Size at which a journal file is closed; on a large disk 1/256 of the disk, because a view has every file open."""
_DISK_SHARE = 256
_NAME = re.compile(r"(\d{12})\.journal")
_WRITE_BYTES = 1 << 20
REREADS_MAX = 8
"""A header that is different whenever it is read is damage after so many times; the applier writes a header once."""
NEVER_WRITTEN = "its header was never written"
"""The reason for a repair that a kill explains: everything else of the frame was written before its header."""

_FILE_CREATED = Failpoint("store.journal_file.created")
_FILE_SYNCED = Failpoint("store.journal_file.synced")
_BEGUN = Failpoint("store.append.begun")
_FOLLOWED = Failpoint("store.append.followed")
_WRITTEN = Failpoint("store.append.written")
_SYNCED = Failpoint("store.append.synced")


def journal_file_path(folder: Path, journal_file: int) -> Path:
    """Return the path of the journal file whose first frame has this number; ``folder`` is the managed disk's."""
    return folder / JOURNAL / f"{journal_file:012d}.journal"


def list_journal_files(folder: Path) -> list[int]:
    """Return the numbers of the journal files, ascending; :func:`list_unexpected_files` returns the other files."""
    journal = folder / JOURNAL
    try:
        names = [path.name for path in journal.iterdir()]
    except OSError as exc:
        raise cannot_be_read(journal, exc) from exc
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)


def list_unexpected_files(folder: Path) -> list[Path]:
    """Return the files in the journal's folder that are not journal files, except those whose names begin with a dot."""
    journal = folder / JOURNAL
    try:
        return sorted(path for path in journal.iterdir() if not _NAME.fullmatch(path.name) and path.name[0] != ".")
    except OSError as exc:
        raise cannot_be_read(journal, exc) from exc


@dataclass(frozen=True, slots=True)
class TornFrame:
    """The bytes after the last frame of a journal file: a frame that never counted."""

    journal_file: int
    end: int
    bytes: int


@dataclass(slots=True)
class JournalState:
    """The content of a journal: the frames after the compacted ones.

    ``earlier``: compacted frames in journal files that are not deleted yet.  ``end``: the number of the newest journal file
    and the byte after its last frame.  ``repaired``: frames whose header is bad and was taken from its copy, with its byte
    and the reason.  ``broken``: the error if the chain of frames is broken after the last one.
    """

    frames: list[Frame] = field(default_factory=list)
    earlier: list[Frame] = field(default_factory=list)
    end: tuple[int, int] | None = None
    torn: TornFrame | None = None
    repaired: list[tuple[Frame, int, str]] = field(default_factory=list)
    broken: RigError | None = None
    broken_at: tuple[Path, int] | None = None
    """The file and the byte at which the chain is broken."""


def read_journal(folder: Path, disk_id: str, after: int, opened: OpenRecord) -> JournalState:
    """Read the headers of all frames in journal files that are not wholly compacted.

    Args:
        folder: the managed disk's folder.
        disk_id: the disk that the frames must name.
        after: number of the last frame that is in the base.
        opened: the record of the first opening in a boot.
    Raises:
        RigError: ``StoreIo`` (recoverable).
    """
    state = JournalState()
    disk = DiskUuid.of(disk_id)
    counted = max(after, opened.frame)
    tail = JournalTail(counted=counted, power_lost=opened.boot != boot.current_boot_id())
    expected = after + 1
    journal_files = list_journal_files(folder)
    # A journal file whose frames are all compacted is about to be deleted.
    journal_files = [
        v for i, v in enumerate(journal_files) if i + 1 == len(journal_files) or journal_files[i + 1] > expected
    ]
    for place, journal_file in enumerate(journal_files):
        last = place == len(journal_files) - 1
        if journal_file > expected or (place > 0 and journal_file != expected):
            path, at = journal_file_path(folder, journal_file), 0
            why = f"frame {expected} comes next, but it begins with frame {journal_file}"
            if state.end is not None:  # the file before may have been longer
                (before, at), following = state.end, path
                path = journal_file_path(folder, before)
                why = f"byte {at}: it ends before frame {expected}, but {following} begins with frame {journal_file}"
            state.broken_at, state.broken = (path, at), store_corrupt(path, why)
            break
        reader = _JournalFileReader(folder, journal_file, disk, tail if last else None)
        try:
            reader.run()
        except OSError as exc:
            reader.broken = cannot_be_read(reader.path, exc)
            if reader.broken.recoverable:  # it says nothing about the journal
                raise reader.broken from exc
        state.frames += [frame for frame in reader.frames if frame.number > after]
        state.earlier += [frame for frame in reader.frames if frame.number <= after]
        state.repaired += reader.repaired
        state.broken = reader.broken
        state.torn = reader.torn
        if reader.broken:
            state.broken_at = reader.path, reader.at
            break
        state.end = (journal_file, reader.at)
        expected = journal_file + len(reader.frames)
    if state.broken is None and expected <= counted:
        journal_file, at = state.end or (expected, 0)
        path = journal_file_path(folder, journal_file)
        state.broken_at = path, at
        state.broken = store_corrupt(path, f"byte {at}: it ends before frame {expected}, which was there")
    return state


@dataclass(frozen=True, slots=True)
class JournalTail:
    """Facts about the end of the newest journal file: frames up to ``counted`` were complete, even if they look torn now."""

    counted: int
    power_lost: bool
    """True if the power may have been lost since the last writer."""


class _JournalFileReader:
    """Reads the frame headers of one journal file."""

    def __init__(self, folder: Path, journal_file: int, disk: DiskUuid, tail: JournalTail | None) -> None:
        """``tail`` is given for the newest journal file only."""
        self.path = journal_file_path(folder, journal_file)
        self.frames: list[Frame] = []
        self.repaired: list[tuple[Frame, int, str]] = []
        self.torn: TornFrame | None = None
        self.broken: RigError | None = None
        self.at = 0
        self._folder = folder
        self._journal_file = journal_file
        self._disk = disk
        self._tail = tail
        self._rereads = 0

    def run(self) -> None:
        fd = host_calls.open_path(self.path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            while self.at < size and self._next(fd, size):
                pass
        finally:
            os.close(fd)

    def _next(self, fd: int, size: int) -> bool:
        """Read the next frame; return False if there is none."""
        number = self._journal_file + len(self.frames)
        raw = pread_past_bad_sectors(fd, HEADER_BYTES, self.at)
        if len(raw) < HEADER_BYTES:
            return self._ends_early(number, size, f"{len(raw)} bytes of a frame header")
        try:
            frame = self._checked(decode_header(raw, journal_file=self._journal_file, disk=self._disk), number)
        except BadFrameError as exc:
            why = str(exc)
            again = pread_past_bad_sectors(fd, HEADER_BYTES, self.at)
            if again != raw and self._rereads < REREADS_MAX:  # the applier is just writing it
                self._rereads += 1
                return True
            from_copy = self._from_copy(fd, number, size)
            if from_copy is None:
                return self._unreadable(fd, number, again, size, why)
            frame = from_copy
            self.repaired.append((frame, self.at, why if any(raw) else NEVER_WRITTEN))
        end = frame.end
        if end > size:
            return self._ends_early(number, size, f"{size - self.at} bytes of a frame of {end - self.at}")
        if end == size and self._may_be_torn(number, power=True) and not _segment_is_whole(fd, frame):
            self.torn = TornFrame(self._journal_file, self.at, size - self.at)
            return False
        self.frames.append(frame)
        self.at, self._rereads = end, 0
        return True

    def _checked(self, frame: Frame, number: int) -> Frame:
        if (frame.start, frame.number) != (self.at, number):
            raise BadFrameError(f"holds frame {frame.number} of byte {frame.start}; frame {number} comes next")
        return frame

    def _may_be_torn(self, number: int, *, power: bool = False) -> bool:
        """Return whether frame ``number`` may be torn if it is the last.

        ``power`` is True for bytes that only a power loss leaves, not a kill.
        """
        tail = self._tail
        return tail is not None and number > tail.counted and (tail.power_lost or not power)

    def _ends_early(self, number: int, size: int, what: str) -> bool:
        if self._may_be_torn(number):
            self.torn = TornFrame(self._journal_file, self.at, size - self.at)
        else:
            self.broken = store_corrupt(self.path, f"byte {self.at}: the file ends after {what}")
        return False

    def _find(self, fd: int, magic: bytes, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and bytes of each possible header after this place; the memory is limited, the file is not."""
        for start in range(self.at + 1, size, SCAN_BYTES):
            data = pread_past_bad_sectors(fd, min(SCAN_BYTES + HEADER_BYTES, size - start), start)
            at = data.find(magic)
            while 0 <= at < SCAN_BYTES:
                yield start + at, data[at : at + HEADER_BYTES]
                at = data.find(magic, at + 1)

    def _from_copy(self, fd: int, number: int, size: int) -> Frame | None:
        """Return the frame that begins here, from the copy of its header."""
        for at, raw in self._find(fd, BACK_MAGIC, size):
            try:
                frame = self._checked(
                    decode_header(raw, journal_file=self._journal_file, disk=self._disk, back=True), number
                )
            except BadFrameError:
                continue
            if frame.back_at == at:
                return frame
        return None

    def _unreadable(self, fd: int, number: int, raw: bytes, size: int, why: str) -> bool:
        """Handle bytes that are no frame: torn if it may never have counted and no later frame follows; otherwise damage."""
        if self._may_be_torn(number, power=any(raw)) and not self._has_later_frame(fd, size):
            self.torn = TornFrame(self._journal_file, self.at, size - self.at)
        else:
            self.broken = store_corrupt(self.path, f"byte {self.at}: {why}")
        return False

    def _has_later_frame(self, fd: int, size: int) -> bool:
        for at, raw in self._find(fd, FRONT_MAGIC, size):
            with suppress(BadFrameError):
                if decode_header(raw, journal_file=self._journal_file, disk=self._disk).start == at:
                    return True
        return False


def _segment_is_whole(fd: int, frame: Frame) -> bool:
    """Return whether the segment is intact; everything after it in the frame can be rebuilt from it."""
    return crc32c(pread_past_bad_sectors(fd, frame.segment_bytes, frame.segment_at)) == frame.segment_crc


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """The index of a frame: packed entries and checksums of pieces; ``rebuilt`` if it was rebuilt from the segment."""

    entries: bytes
    pieces: bytes
    rebuilt: bool


def read_index(folder: Path, frame: Frame, size_bytes_before: int) -> FrameIndex:
    """Return the index of ``frame``.

    Args:
        folder: the managed disk's folder.
        frame: the frame.
        size_bytes_before: the disk's size before the frame.
    Raises:
        RigError: ``StoreCorrupt`` if both the index and its segment are bad.
        FileNotFoundError: a compaction deleted the journal file.
    """
    path = journal_file_path(folder, frame.journal_file)
    fd = host_calls.open_path(path, os.O_RDONLY)
    try:
        return index_in(fd, path, frame, size_bytes_before)
    finally:
        os.close(fd)


def index_in(fd: int, path: Path, frame: Frame, size_bytes_before: int) -> FrameIndex:
    """Return the index of ``frame`` from an open journal file, as :func:`read_index` does."""
    raw = pread_past_bad_sectors(fd, frame.index_bytes, frame.entries_at)
    if crc32c(raw) == frame.index_crc and len(raw) == frame.index_bytes:
        entries_bytes = frame.entries * ENTRY_BYTES
        return FrameIndex(raw[:entries_bytes], raw[entries_bytes:], rebuilt=False)
    found = _rebuilt(fd, frame, size_bytes_before)
    if found is None or not _is_index_of(frame, found):
        raise store_corrupt(
            path, f"byte {frame.entries_at}: index of frame {frame.number} has a wrong checksum, and so has its segment"
        )
    return FrameIndex(found.entries, found.pieces, rebuilt=True)


def _is_index_of(frame: Frame, index: PartIndex) -> bool:
    lengths = (len(index.entries), len(index.pieces))
    return lengths == (frame.entries * ENTRY_BYTES, frame.pieces * PIECE_CRC_BYTES) and (
        crc32c(index.pieces, crc32c(index.entries)) == frame.index_crc
    )


def read_tags(folder: Path, frame: Frame, size_bytes_before: int) -> tuple[tuple[TagSeen, ...], bool]:
    """Return the tags of ``frame``, and whether they were rebuilt from its segment.

    Raises:
        RigError: ``StoreCorrupt`` if both the tags and the segment are bad.
    """
    if not frame.tags_bytes:
        return (), False
    path = journal_file_path(folder, frame.journal_file)
    fd = host_calls.open_path(path, os.O_RDONLY)
    try:
        raw = pread_past_bad_sectors(fd, frame.tags_bytes, frame.tags_at)
        if crc32c(raw) == frame.tags_crc:
            with suppress(BadFrameError):
                return decode_tags(raw), False
        found = _rebuilt(fd, frame, size_bytes_before)
    finally:
        os.close(fd)
    if found is None:
        raise store_corrupt(path, f"byte {frame.tags_at}: tags of frame {frame.number} are bad, and so is its segment")
    return found.tags, True


def _rebuilt(fd: int, frame: Frame, size_bytes_before: int) -> PartIndex | None:
    segment = pread_past_bad_sectors(fd, frame.segment_bytes, frame.segment_at)
    if crc32c(segment) != frame.segment_crc:
        return None
    try:
        return index_segment(segment, frame.part, size_bytes_before)
    except RigError:
        return None


def repair_frame(folder: Path, frame: Frame, size_bytes_before: int) -> None:
    """Write the header, index, tags and header copy of a frame again where they differ; the segment is not touched.

    Raises:
        RigError: ``StoreCorrupt``, as :func:`read_index` and :func:`read_tags` raise it.
    """
    index = read_index(folder, frame, size_bytes_before)
    tags = encode_tags(read_tags(folder, frame, size_bytes_before)[0])
    pieces = [
        (frame.start, encode_header(frame)),
        (frame.entries_at, index.entries + index.pieces),
        (frame.tags_at, tags if crc32c(tags) == frame.tags_crc else b""),
        (frame.back_at, encode_header(frame, back=True)),
    ]
    fd = host_calls.open_path(journal_file_path(folder, frame.journal_file), os.O_RDWR)
    try:
        for at, data in pieces:
            if pread_past_bad_sectors(fd, len(data), at) != data:
                host_calls.pwrite(fd, data, at)
        host_calls.fdatasync(fd)
    finally:
        os.close(fd)


def make_durable(folder: Path, state: JournalState) -> None:
    """Truncate a torn frame, and sync the newest journal file and its name.

    A kill may have come between a write and its sync.  A later frame must not be taken for a part of the torn one.
    """
    if state.end is not None:
        journal_file, end = state.end
        fd = host_calls.open_path(journal_file_path(folder, journal_file), os.O_RDWR)
        try:
            if state.torn is not None:
                os.ftruncate(fd, end)
            host_calls.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(folder / JOURNAL)


class JournalWriter:
    """Appends frames to the journal; for one thread at a time."""

    def __init__(self, folder: Path, disk_size_bytes: int, state: JournalState, after: int) -> None:
        """Prepare to append after frame ``after``, the newest one in the journal or the last one in the base."""
        self._folder = folder
        self._file_bytes = max(JOURNAL_FILE_BYTES, disk_size_bytes // _DISK_SHARE)
        self._next = after + 1
        self._journal_file, self._end = state.end or (0, 0)
        self._fd = -1
        self._named = True

    def append(self, part: PartName, segment: bytes | bytearray, verify: Callable[[], PartIndex]) -> tuple[Frame, PartIndex]:
        """Write a frame durably; after an ``OSError``, or a ``RigError`` of ``verify``, the journal is as it was.

        Args:
            part: the part's name.
            segment: the unpacked part.
            verify: checks the segment and returns its index.  It runs while the host's disk writes the segment, which does
                not count without its header.
        """
        self._ready()
        try:
            _write_all(self._fd, [segment], self._end + HEADER_BYTES)
            _BEGUN.reach()
            index = verify()
            frame, (header, _, *rest) = make_frame(
                part, segment, index, journal_file=self._journal_file, start=self._end, number=self._next
            )
            _write_all(self._fd, rest, frame.segment_at + frame.segment_bytes)
            _FOLLOWED.reach()
            host_calls.pwrite(self._fd, header, frame.start)
            _WRITTEN.reach()
            host_calls.fdatasync(self._fd)
            _SYNCED.reach()
        except (OSError, RigError):
            try:
                os.ftruncate(self._fd, self._end)
                host_calls.fdatasync(self._fd)
            except OSError:
                self.close()  # the next append truncates it, or fails as well
            raise
        self._end = frame.end
        self._next += 1
        return frame, index

    def _ready(self) -> None:
        """Open the newest journal file and truncate it after its last frame; begin a new file if it is full."""
        if not self._journal_file or self._end >= self._file_bytes:
            self.close()
            self._journal_file, self._end, self._named = self._next, 0, False
        if self._fd < 0:
            self._fd = safe_files.open_file(journal_file_path(self._folder, self._journal_file), os.O_RDWR | os.O_CREAT)
        if os.fstat(self._fd).st_size != self._end:  # a frame that could be neither written nor removed
            os.ftruncate(self._fd, self._end)
            host_calls.fsync(self._fd)
        if not self._named:
            _FILE_CREATED.reach()
            sync_folder(self._folder / JOURNAL)
            self._named = True
            _FILE_SYNCED.reach()

    def close(self) -> None:
        """Close the journal file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, pieces: Sequence[bytes | bytearray], at: int) -> None:
    """Write the pieces one after the other, so that a kill leaves a frame that the file ends in.

    The host's disk writes the first pieces while the rest is copied.
    """
    small: list[bytes | memoryview] = []
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _WRITE_BYTES):
            small.append(view[start : start + _WRITE_BYTES])
            if sum(map(len, small)) >= _WRITE_BYTES:
                at += _pwritev(fd, small, at)
                lib.sr_io_start_sync(fd)
                small = []
    _pwritev(fd, small, at)


def _pwritev(fd: int, pieces: list[bytes | memoryview], at: int) -> int:
    """Write all pieces; after a short write, write the rest or raise the error."""
    total = sum(map(len, pieces))
    done = host_calls.pwritev(fd, pieces, at)
    if done < total:
        rest = memoryview(b"".join(pieces))
        while done < total:
            done += host_calls.pwrite(fd, rest[done:], at + done)
    return total
