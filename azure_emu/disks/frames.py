"""Frames: the form of an applied part in a journal file.  Layout: docs/reference/formats/managed-disk.md.

A frame has a fixed header, the part's unpacked segment, an index of the records that change the disk, a checksum for each
piece of their payloads, the part's tags, and a copy of the header.

Fault contract: everything except the segment can be rebuilt from the segment, and the header from its copy after the frame.
Header, segment, index and tags each have a checksum; that of the header covers the other three.
"""

from __future__ import annotations

import json
import struct
import uuid
from typing import Any, NamedTuple

from pydantic import ValidationError

from siterig.blockfs.changelog.segment import Stream
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core.sizes import NUMBER_MAX, SECTOR_BYTES
from siterig.blockfs.transfer.part_index import ENTRY_BYTES, PartIndex
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext.checksums import crc32c

FRAME_VERSION = 2
HEADER_BYTES = 176
PIECE_CRC_BYTES = 4

_FRONT, _BACK = b"SRIGFRM\0", b"SRIGFRE\0"
_HEADER = struct.Struct("<8sHHBBH16s12Q7I16s")
_CRC = struct.Struct("<I")
ENTRY = struct.Struct("<QQQQQII")
"""An entry of an index: position, time_ns, offset, length, payload_at (in the segment), first_piece, type of the record."""
_STREAMS: tuple[Stream, Stream] = ("log", "sync")
_ALIGN = 8
"""Alignment of the sections of a frame; a piece checksum is found by its byte in the journal file divided by 4."""


class Frame(NamedTuple):
    """The header of a frame and its place: ``journal_file`` is the number of the file, ``start`` the first byte in it.

    ``position``, ``time_ns``: of the last record.  ``first_time_ns``: of the first record that changes the disk.
    ``size_bytes_after``: the disk's size after the frame.  ``sync_end_seq``: the log's first sequence number according to
    the part's ``sync-end`` tag; None without such a tag.

    It is a tuple because opening a view reads all frames, often many thousands.
    """

    journal_file: int
    start: int
    number: int
    part: PartName
    first_position: int
    position: int
    first_time_ns: int
    time_ns: int
    size_bytes_after: int
    sync_end_seq: int | None
    segment_bytes: int
    entries: int
    pieces: int
    tags_bytes: int
    records: int
    segment_crc: int
    index_crc: int
    tags_crc: int

    @property
    def segment_at(self) -> int:
        """The byte of the journal file at which the segment begins."""
        return self.start + HEADER_BYTES

    @property
    def entries_at(self) -> int:
        """The byte of the journal file at which the index begins."""
        return self.segment_at + _padded(self.segment_bytes)

    @property
    def pieces_at(self) -> int:
        """The byte of the journal file at which the checksums of the pieces begin."""
        return self.entries_at + self.entries * ENTRY_BYTES

    @property
    def index_bytes(self) -> int:
        """The length of the index with the checksums of the pieces, in bytes."""
        return self.entries * ENTRY_BYTES + self.pieces * PIECE_CRC_BYTES

    @property
    def tags_at(self) -> int:
        """The byte of the journal file at which the tags begin."""
        return self.entries_at + self.index_bytes

    @property
    def back_at(self) -> int:
        """The byte of the journal file at which the copy of the header begins."""
        return self.entries_at + _padded(self.index_bytes + self.tags_bytes)

    @property
    def end(self) -> int:
        """The byte of the journal file after the frame."""
        return self.back_at + HEADER_BYTES


class DiskUuid(NamedTuple):
    """The UUID of a disk, as text and as the 16 bytes of a header."""

    disk_id: str
    raw: bytes

    @classmethod
    def of(cls, disk_id: str) -> DiskUuid:
        """Return both forms of the UUID ``disk_id``."""
        return cls(disk_id, uuid.UUID(disk_id).bytes)


class BadFrameError(Exception):
    """Bytes are not a valid frame header or tags; the message says why."""


def make_frame(
    part: PartName, segment: bytes | bytearray, index: PartIndex, *, journal_file: int, start: int, number: int
) -> tuple[Frame, list[bytes | bytearray]]:
    """Return the frame of a verified segment, and its bytes in the order in which they lie in the file."""
    tags = encode_tags(index.tags)
    frame = Frame(
        journal_file=journal_file,
        start=start,
        number=number,
        part=part,
        first_position=index.first_position,
        position=index.position,
        first_time_ns=ENTRY.unpack_from(index.entries)[1] if index.entries else index.time_ns,
        time_ns=index.time_ns,
        size_bytes_after=index.size_bytes_after,
        sync_end_seq=index.sync_end_seq,
        segment_bytes=len(segment),
        entries=len(index.entries) // ENTRY_BYTES,
        pieces=len(index.pieces) // PIECE_CRC_BYTES,
        tags_bytes=len(tags),
        records=index.records,
        segment_crc=crc32c(segment),
        index_crc=crc32c(index.pieces, crc32c(index.entries)),
        tags_crc=crc32c(tags),
    )
    pad_segment = bytes(_padded(frame.segment_bytes) - frame.segment_bytes)
    tail = frame.index_bytes + frame.tags_bytes
    pad_tail = bytes(_padded(tail) - tail)
    pieces: list[bytes | bytearray] = [segment, pad_segment, index.entries, index.pieces, tags, pad_tail]
    return frame, [encode_header(frame), *(piece for piece in pieces if piece), encode_header(frame, back=True)]


def encode_header(frame: Frame, *, back: bool = False) -> bytes:
    """Return the bytes of the header; ``back``: of its copy after the frame."""
    part = frame.part
    raw = _HEADER.pack(
        _BACK if back else _FRONT,
        FRAME_VERSION,
        HEADER_BYTES,
        _STREAMS.index(part.stream),
        frame.sync_end_seq is not None,
        0,
        uuid.UUID(part.disk_id).bytes,
        frame.number,
        frame.start,
        part.generation,
        part.first,
        part.last,
        frame.first_position,
        frame.position,
        frame.first_time_ns,
        frame.time_ns,
        frame.size_bytes_after,
        frame.sync_end_seq or 0,
        frame.segment_bytes,
        frame.entries,
        frame.pieces,
        frame.tags_bytes,
        frame.records,
        frame.segment_crc,
        frame.index_crc,
        frame.tags_crc,
        bytes(16),
    )
    return raw + _CRC.pack(crc32c(raw))


def decode_header(raw: bytes, *, journal_file: int, disk: DiskUuid, back: bool = False) -> Frame:
    """Decode the bytes that :func:`encode_header` returned.

    Raises:
        BadFrameError: the bytes are not a header of this disk.
    """
    if len(raw) != HEADER_BYTES:
        raise BadFrameError(f"frame header has {len(raw)} bytes; it must have {HEADER_BYTES}")
    fields: tuple[Any, ...] = _HEADER.unpack_from(raw)
    magic, version, header_bytes, stream, has_sync_end, reserved, disk_bytes, *numbers, rest = fields
    if magic != (_BACK if back else _FRONT):
        raise BadFrameError("no frame begins here")
    if crc32c(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        raise BadFrameError("frame header checksum does not match")
    if (version, header_bytes, reserved, any(rest)) != (FRAME_VERSION, HEADER_BYTES, 0, False) or max(
        stream, has_sync_end
    ) > 1:
        raise BadFrameError(f"frame header has version {version}, {header_bytes} bytes, or reserved bytes that are not zero")
    if disk_bytes != disk.raw:
        raise BadFrameError(f"frame is of disk {uuid.UUID(bytes=disk_bytes)}, not of {disk.disk_id}")
    if max(numbers) > NUMBER_MAX:
        raise BadFrameError("frame header has a number above 2^63 - 1")
    number, start, generation, first, last, first_position, position, first_time, time_ns, size, sync_end = numbers[:11]
    if size % SECTOR_BYTES:
        raise BadFrameError(f"frame header has a disk of {size} bytes; a disk has whole sectors of {SECTOR_BYTES}")
    if sync_end and not has_sync_end:
        raise BadFrameError("frame header has the sequence number of a sync-end tag, but no such tag")
    return Frame(
        journal_file,
        start,
        number,
        PartName(disk.disk_id, generation, _STREAMS[stream], first, last),
        first_position,
        position,
        first_time,
        time_ns,
        size,
        sync_end if has_sync_end else None,
        *numbers[11:],
    )


BACK_MAGIC = _BACK
FRONT_MAGIC = _FRONT


def encode_tags(tags: tuple[TagSeen, ...]) -> bytes:
    """Return the tags in the form of a frame."""
    return json.dumps([tag.model_dump() for tag in tags]).encode() if tags else b""


def decode_tags(raw: bytes) -> tuple[TagSeen, ...]:
    """Decode the bytes that :func:`encode_tags` returned.

    Raises:
        BadFrameError: the bytes are not tags.
    """
    if not raw:
        return ()
    try:
        return tuple(TagSeen.model_validate(tag, strict=True) for tag in json.loads(raw))
    except (ValueError, TypeError, RecursionError, ValidationError) as exc:
        raise BadFrameError(f"tags are not readable: {exc!r:.200}") from exc


def _padded(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN
