"""The content of a part's segment, found and verified in one pass in C (cext/src/index/segment_index.c).

Fault contract: a :class:`PartIndex` is made only of a segment in which every checksum, number and range is right, and which
is the part of the given name.  For other bytes a ``RigError`` names the part and the byte.  Any bytes are allowed as input.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from typing_extensions import Buffer

from siterig.blockfs.changelog.segment import HEADER_BYTES, RecordType, SegmentHeader, bad_record, corrupt, decode_header
from siterig.blockfs.changelog.tags import TagSeen, decode_tag
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.transfer.part_name import SYNC_END, PartName
from siterig.cext._core import ffi, lib

ENTRY_BYTES: int = ffi.sizeof("struct sr_entry")
PIECE_BYTES: int = lib.SR_PIECE_BYTES
SUM_BYTES = 4
"""Size of the checksum of a piece."""

_ENTRY = struct.Struct("<QQQQQII")
_SEED = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A record that changes the disk, as in struct sr_entry (cext/src/index/segment_index.h).

    Attributes:
        length: bytes of the range; for RESIZE the new size of the disk.
        payload_at: offset of a WRITE's payload in the segment.
        first_piece: number of a WRITE's first checksum in the table of pieces.
    """

    position: int
    time_ns: int
    offset: int
    length: int
    payload_at: int
    first_piece: int
    type: RecordType


def decode_entries(entries: Buffer) -> Iterator[SegmentEntry]:
    """Yield the rows of an index one at a time, because a journal has millions."""
    for position, time_ns, offset, length, payload_at, first_piece, kind in _ENTRY.iter_unpack(entries):
        yield SegmentEntry(position, time_ns, offset, length, payload_at, first_piece, RecordType(kind))


@dataclass(frozen=True, slots=True)
class PartIndex:
    """The content of a verified segment.

    Attributes:
        header: the header of the segment.
        entries: packed rows (:func:`decode_entries`) of the records that change the disk.
        pieces: CRC32C, four bytes each, of the pieces of their payloads, which end at multiples of ``PIECE_BYTES`` on the
            disk.
        records: number of all records.
        first_position: position of the first record.
        position: position of the last record.
        time_ns: time of the last record.
        size_bytes_after: size of the disk after the last record.
        sync_end_seq: first sequence number of the log, from the ``sync-end`` tag; None without that tag.
        tags: the other tags.
    """

    header: SegmentHeader
    entries: bytes
    pieces: bytes
    records: int
    first_position: int
    position: int
    time_ns: int
    size_bytes_after: int
    sync_end_seq: int | None
    tags: tuple[TagSeen, ...]


def index_segment(data: Buffer, part: PartName, disk_size_bytes: int) -> PartIndex:
    """Verify the unpacked segment of a part.

    Args:
        data: the segment.
        part: the name of the part.
        disk_size_bytes: the size of the disk before this part.

    Raises:
        RigError: ``PartCorrupt`` if it is damaged, or another part; ``PartRefused`` if it does not fit the disk.
    """
    view = memoryview(data).cast("B")
    index = ffi.gc(ffi.new("struct sr_index *"), lib.sr_index_free)
    try:
        header = decode_header(part.blob(), bytes(view[:HEADER_BYTES]))
        # A sync stream has the size of its snapshot; in a log, only RESIZE records change the size.
        _scan(index, view, part, header, header.disk_size_bytes if part.stream == "sync" else disk_size_bytes)
        tags, sync_end_seq = _read_tags(index, view, part)
        if index.is_bad:
            raise bad_record(part.blob(), view, index.bad_at, index.next_seq, index.position)
        _check_identity(index, part, header)
    except RigError as exc:
        raise RigError(Code.PartCorrupt, f"part {exc.message}") from exc
    _check_fit(index, part, header, disk_size_bytes)
    return PartIndex(
        header=header,
        entries=_bytes(index.entries, index.entry_count * ENTRY_BYTES),
        pieces=_bytes(index.pieces, index.piece_count * SUM_BYTES),
        records=index.records,
        first_position=index.first_position,
        position=index.position,
        time_ns=index.time_ns,
        size_bytes_after=index.size_after,
        sync_end_seq=sync_end_seq,
        tags=tags,
    )


def _scan(index: Any, view: memoryview, part: PartName, header: SegmentHeader, size_bytes: int) -> None:
    seed = _SEED.unpack_from(view, HEADER_BYTES - 4)[0]
    result = lib.sr_index_segment(index, ffi.from_buffer(view), len(view), seed, header.first_record_seq, size_bytes)
    if result == -errno.EFBIG:
        raise RigError(Code.LogCorrupt, f"{part.blob()}: has {len(view)} bytes; a segment has less than 4 GiB")
    if result < 0:
        raise MemoryError


def _read_tags(index: Any, view: memoryview, part: PartName) -> tuple[tuple[TagSeen, ...], int | None]:
    """Return the tags, and the number in the ``sync-end`` tag.  A bad tag is reported before other damage."""
    tags: list[TagSeen] = []
    sync_end_seq = None
    for place in ffi.unpack(index.tags, index.tag_count) if index.tag_count else ():
        try:
            tag = decode_tag(bytes(view[place.payload_at : place.payload_at + place.payload_bytes]))
        except RigError as exc:
            raise corrupt(part.blob(), place.at, exc.message) from exc
        if tag.name == SYNC_END and part.stream == "sync":
            sync_end_seq = int(place.offset)
        else:
            tags.append(tag)
    return tuple(tags), sync_end_seq


def _check_identity(index: Any, part: PartName, header: SegmentHeader) -> None:
    last = index.next_seq - 1 if header.stream == "log" else header.first_seq
    held = PartName(header.disk_id, header.generation, header.stream, header.first_seq, last)
    if held != part:
        raise RigError(Code.LogMismatch, f"{part.blob()}: holds {held.blob()}")


def _check_fit(index: Any, part: PartName, header: SegmentHeader, disk_size_bytes: int) -> None:
    if part.stream == "sync" and header.disk_size_bytes < disk_size_bytes:
        raise _refused(
            part,
            f"is of a disk of {header.disk_size_bytes} bytes; the managed disk has {disk_size_bytes} and cannot shrink",
        )
    if part.stream == "sync" and header.disk_size_bytes % SECTOR_BYTES:
        raise _refused(part, f"is of a disk of {header.disk_size_bytes} bytes; a disk has whole sectors of {SECTOR_BYTES}")
    record, size, to = index.refused_seq, index.refused_size, index.refused_to
    if index.refusal == lib.SR_SHRINKS:
        raise _refused(part, f"record {record} shrinks the disk from {size} to {to} bytes")
    if index.refusal == lib.SR_PART_OF_SECTOR:
        raise _refused(part, f"record {record} resizes the disk to {to} bytes; a disk has whole sectors of {SECTOR_BYTES}")
    if index.refusal == lib.SR_BEYOND:
        raise _refused(part, f"record {record} ends at byte {to} of a disk of {size}")
    if index.records == 0:
        raise _refused(part, "holds no record")


def _bytes(array: Any, size: int) -> bytes:
    return bytes(ffi.buffer(array, size)) if size else b""


def _refused(part: PartName, why: str) -> RigError:
    return RigError(Code.PartRefused, f"part {part.blob()}: {why}")
