"""Scrubbing the journal of a managed disk: every byte of every frame.

Fault contract: the scrub changes nothing, and parts may be applied and compacted at the same time.  A sector that the host's
disk cannot read (EIO) is damage like any other, and reading continues after it.
"""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks.damage_map import ClassifiedDamage
from siterig.azure_emu.disks.frames import ENTRY, HEADER_BYTES, Frame, encode_header
from siterig.azure_emu.disks.history import DiskHistory
from siterig.azure_emu.disks.journal import TornFrame, journal_file_path
from siterig.azure_emu.disks.loader import StoreState, load_history
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.transfer.part_index import PIECE_BYTES, index_segment
from siterig.cext.checksums import crc32c

TORN_WAIT_S = 0.02
"""The delay before a frame that looks torn, and may be just written, is read again; each next delay is twice as long."""
_TORN_READS = 7
_PAGE_BYTES = 4096


class DamagedPiece(NamedTuple):
    """Bytes ``start`` to ``stop`` of the disk that cannot be read.

    ``record`` is the number of the record that wrote them, counted from 0 in the frame's index.
    """

    record: int
    start: int
    stop: int
    damage: Damage


def scrub_journal(
    loaded: StoreState, advance: Callable[[int], None], damaged: list[Frame], clock: Clock
) -> Iterator[ClassifiedDamage]:
    """Check every byte of the journal; yield the damage except that of payloads.

    Args:
        loaded: the managed disk.
        advance: called with the number of bytes that were read.
        damaged: gets the frames that have damaged payloads.
        clock: delays the next read of a frame that may be just written.
    """
    bad_headers = {frame.number: why for frame, _, why in loaded.journal.repaired}
    for frame in loaded.journal.earlier + loaded.journal.frames:
        path = journal_file_path(loaded.folder, frame.journal_file)
        try:
            fd = host_calls.open_path(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # compacted meanwhile; if it had been missing before, the chain would be broken there
        try:
            head = _header(fd, frame, clock, is_last=frame in loaded.journal.frames[-1:])
            if head.unread or head.data != encode_header(frame):  # otherwise it was just being written
                why = "cannot read the header" if head.unread else bad_headers.get(frame.number, "wrong header")
                yield "header", Damage(path=str(path), offset=frame.start, what=why, first_position=None)
            yield from _frame(loaded, fd, path, frame, damaged)
        finally:
            os.close(fd)
        advance(frame.end - frame.start)
    yield from _end(loaded, clock)


def _header(fd: int, frame: Frame, clock: Clock, *, is_last: bool) -> _ReadBytes:
    """Read the header; that of the last frame may be zeros because it is written after the rest of the frame."""
    head = _read(fd, frame.start, HEADER_BYTES)
    for attempt in range(_TORN_READS if is_last else 0):
        if head.unread or any(head.data):
            break
        clock.real.sleep_thread(TORN_WAIT_S * 2**attempt)
        head = _read(fd, frame.start, HEADER_BYTES)
    return head


def _end(loaded: StoreState, clock: Clock) -> Iterator[ClassifiedDamage]:
    journal, first = loaded.journal, loaded.history.watermark().complete_position + 1
    if journal.broken is not None and journal.broken_at is not None:
        again = load_history(loaded.folder).journal.broken  # otherwise a frame was just being written
        if again is not None and again.message == journal.broken.message:
            path, offset = journal.broken_at
            what = again.message.partition("managed disk is corrupt: ")[2]
            yield "chain", Damage(path=str(path), offset=offset, what=what, first_position=first)
    if journal.torn is not None and (torn := _still_torn(loaded.folder, journal.torn, clock)) is not None:
        path = journal_file_path(loaded.folder, torn.journal_file)
        what = f"{torn.bytes} bytes of a torn frame; it never counted, or its end was lost"
        yield "chain", Damage(path=str(path), offset=torn.end, what=what, first_position=first)


def _still_torn(folder: Path, torn: TornFrame, clock: Clock) -> TornFrame | None:
    """Return the torn frame if it stays torn; None if it was just being written."""
    for attempt in range(_TORN_READS):
        clock.real.sleep_thread(TORN_WAIT_S * 2**attempt)
        if load_history(folder).journal.torn != torn:
            return None
    return torn


def _frame(loaded: StoreState, fd: int, path: Path, frame: Frame, damaged: list[Frame]) -> Iterator[ClassifiedDamage]:
    def bad(kind: str, offset: int, what: str, first_position: int | None = None) -> ClassifiedDamage:
        what = f"{what} of frame {frame.number}"
        return kind, Damage(path=str(path), offset=offset, what=what, first_position=first_position)

    segment = _read(fd, frame.segment_at, frame.segment_bytes)
    index = _read(fd, frame.entries_at, frame.index_bytes)
    segment_good, index_good = segment.has(frame.segment_crc), index.has(frame.index_crc)
    lost = None if segment_good or index_good or frame.number <= loaded.history.compacted else frame.first_position
    if not index_good:
        yield bad("index", frame.entries_at + index.bad_from, f"{index.why} the index", lost)
    if not segment_good:
        if not index_good:
            yield bad("segment", frame.segment_at + segment.bad_from, f"{segment.why} the segment", lost)
        elif next(_pieces(path, frame, segment, index.data), None) is not None:
            damaged.append(frame)
        else:
            yield _bad_record(loaded.history, path, frame, segment)
    tags = _read(fd, frame.tags_at, frame.tags_bytes)
    if not tags.has(frame.tags_crc):
        yield bad("tags", frame.tags_at + tags.bad_from, f"{tags.why} the tags")
    copy = _read(fd, frame.back_at, HEADER_BYTES)
    if copy.unread or copy.data != encode_header(frame, back=True):
        yield bad("copy", frame.back_at, "cannot read the copy of the header" if copy.unread else "wrong copy of the header")
    for start, stop in (
        (frame.segment_at + frame.segment_bytes, frame.entries_at),
        (frame.tags_at + frame.tags_bytes, frame.back_at),
    ):
        padding = _read(fd, start, stop - start)
        if padding.unread or any(padding.data):
            yield bad("padding", start, "cannot read padding" if padding.unread else "not zero where it must be: padding")


class _ReadBytes(NamedTuple):
    """Bytes of a file, with zeros in place of bytes that the host's disk cannot read.

    ``unread`` lists these ranges, as ascending offsets in ``data``.
    """

    data: bytes
    unread: list[tuple[int, int]]

    def has(self, crc: int) -> bool:
        return not self.unread and crc32c(self.data) == crc

    @property
    def bad_from(self) -> int:
        return self.unread[0][0] if self.unread else 0

    @property
    def why(self) -> str:
        return "cannot read" if self.unread else "wrong checksum of"

    def misses(self, start: int, stop: int) -> bool:
        i = bisect_right(self.unread, start, key=itemgetter(1))
        return i < len(self.unread) and self.unread[i][0] < stop


def _read(fd: int, at: int, length: int) -> _ReadBytes:
    try:
        return _ReadBytes(host_calls.pread(fd, length, at), [])
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
    data, unread = bytearray(length), list[tuple[int, int]]()
    for page in range(at - at % _PAGE_BYTES, at + length, _PAGE_BYTES):
        start, stop = max(page, at) - at, min(page + _PAGE_BYTES, at + length) - at
        try:
            found = host_calls.pread(fd, stop - start, at + start)
            data[start : start + len(found)] = found
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            first = unread.pop()[0] if unread and unread[-1][1] == start else start
            unread.append((first, stop))
    return _ReadBytes(bytes(data), unread)


def damaged_pieces(folder: Path, frame: Frame) -> Iterator[DamagedPiece]:
    """Yield the payloads of ``frame`` that cannot be read, in the order of their records.

    Raises:
        FileNotFoundError: the frame was compacted.
    """
    path = journal_file_path(folder, frame.journal_file)
    fd = host_calls.open_path(path, os.O_RDONLY)
    try:
        segment = _read(fd, frame.segment_at, frame.segment_bytes)
        index = _read(fd, frame.entries_at, frame.index_bytes)
    finally:
        os.close(fd)
    if index.has(frame.index_crc):
        yield from _pieces(path, frame, segment, index.data)


def _pieces(path: Path, frame: Frame, segment: _ReadBytes, index: bytes) -> Iterator[DamagedPiece]:
    """Yield the damaged pieces; adjacent ones of a record that are bad for one reason are one."""
    sums = memoryview(index)[frame.entries * ENTRY.size :].cast("I")
    view = memoryview(segment.data)
    entries = ENTRY.iter_unpack(index[: frame.entries * ENTRY.size])
    for record, (position, _, offset, length, payload_at, first_piece, kind) in enumerate(entries):
        if kind != RecordType.WRITE:
            continue
        found: list[tuple[int, int, str]] = []
        at, piece = offset, first_piece
        while at < offset + length:
            stop = min(at - at % PIECE_BYTES + PIECE_BYTES, offset + length)
            place = payload_at + at - offset
            unread = segment.misses(place, place + stop - at)
            if unread or crc32c(view[place : place + stop - at]) != sums[piece]:
                why = "cannot read" if unread else "wrong checksum of"
                first = found.pop()[0] if found and found[-1][1:] == (at, why) else at
                found.append((first, stop, why))
            at, piece = stop, piece + 1
        for start, stop, why in found:
            what = f"{why} {stop - start} bytes written to byte {start} of the disk at position {position}"
            byte = frame.segment_at + payload_at + start - offset
            yield DamagedPiece(record, start, stop, Damage(path=str(path), offset=byte, what=what, first_position=position))


def _bad_record(history: DiskHistory, path: Path, frame: Frame, segment: _ReadBytes) -> ClassifiedDamage:
    """Return damage that affects no data: it is in a record's header, or in a record that changes nothing."""
    offset, why = segment.bad_from, f"{segment.why} the segment"
    if not segment.unread:
        try:
            index_segment(segment.data, frame.part, history.size_before(frame))
        except RigError as exc:
            why = exc.message
            if m := re.search(r"at byte (\d+)", why):
                offset = int(m[1])
    return "record", Damage(path=str(path), offset=frame.segment_at + offset, what=f"{why}; no data", first_position=None)
