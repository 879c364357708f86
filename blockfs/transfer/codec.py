"""Packs a segment for transfer, and unpacks and verifies it again; no input is trusted.

Fault contract: :func:`unpack` leaves a durable, completely verified segment at its target, and it is the part of the given
name; otherwise it raises ``PartCorrupt`` and leaves no file.

Sizes: a frame of a few kilobytes can claim a gigabyte.  So a frame is decompressed block by block (a block holds at most
128 KiB), and only while the bytes so far are the header of this part and records after it: no more records than the name of
the part has numbers, and in a part of a sync stream no more bytes than the disk that the header names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import zstandard

from siterig.blockfs.changelog.segment import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    SegmentHeader,
    SegmentReader,
    claimed_payload_bytes,
    decode_header,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.durable_io import write_synced
from siterig.blockfs.transfer.part_name import PartName

LEVEL = 1
"""Level 3 makes text smaller by 11 % at most, and takes twice the time: one core would be slower than the account."""
UNPACKED_BYTES_MAX = 1 << 30
BLOB_BYTES_MAX = UNPACKED_BYTES_MAX + (UNPACKED_BYTES_MAX >> 8) + (1 << 20)
"""A larger blob is no part: the longest segment compresses to at most this, even if it is incompressible."""
WINDOW_BYTES_MAX = 8 << 20
"""Largest window, in bytes of memory, that a frame may need; :data:`LEVEL` uses 512 KiB, level 3 of older versions 2 MiB."""
PREPARED_BYTES_MAX = 32 << 20
"""So much memory is taken before the first block is decompressed; a longer segment grows block by block."""
BLOCKS_AT_ONCE = 2
"""Number of blocks that are decompressed before their records are checked: at most 256 KiB."""

_BLOCK_BYTES_MAX = 128 << 10
_RLE, _RESERVED = 1, 3


def pack(path: Path) -> bytes:
    """Return the segment file, zstd-compressed with size and checksum in the frame."""
    return compress(host_calls.read_file(path))


def compress(data: bytes) -> bytes:
    """Return the bytes of a segment, zstd-compressed with size and checksum in the frame."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(data)


def decompress(part: PartName, data: bytes) -> bytearray:
    """Return the segment in ``data``, whose records are not verified yet; ``PartCorrupt`` if it cannot be this part."""
    try:
        frame = zstandard.get_frame_parameters(data)
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= UNPACKED_BYTES_MAX:
            raise _bad(part, f"declares {size} bytes; at most {UNPACKED_BYTES_MAX}")
        pieces = _pieces(part, data, checksum_bytes=4 if frame.has_checksum else 0, size=size)
        return _stream(part, pieces, size)
    except zstandard.ZstdError as exc:
        raise _bad(part, f"is not sound zstd data: {exc}") from exc


def _stream(part: PartName, pieces: Iterator[bytes], size: int) -> bytearray:
    segment, filled = bytearray(min(size, PREPARED_BYTES_MAX)), 0
    checked = _Checked(part)
    stream = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompressobj()
    for piece in pieces:
        found = stream.decompress(piece)
        if filled + len(found) > size:
            raise _bad(part, f"holds more than the {size} bytes that it declares")
        segment[filled : filled + len(found)] = found
        filled += len(found)
        with memoryview(segment) as whole, whole[:filled] as view:
            checked.upto(view)
    if not stream.eof or filled != size:
        raise _bad(part, f"ends after {filled} of {size} bytes")
    return segment


def _pieces(part: PartName, data: bytes, *, checksum_bytes: int, size: int) -> Iterator[bytes]:
    """Yield the frame's bytes, a few blocks at a time; the frame must end where ``data`` ends."""
    start, at, blocks = 0, zstandard.frame_header_size(data), 0
    last = False
    while not last:
        if at + 3 > len(data):
            raise _bad(part, f"is truncated at byte {len(data)}")
        word = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = bool(word & 1), word >> 1 & 3, word >> 3
        if kind == _RESERVED or length > _BLOCK_BYTES_MAX:
            raise _bad(part, f"is not sound zstd data: block at byte {at} has type {kind} and {length} bytes")
        at += 3 + (1 if kind == _RLE else length)
        blocks += 1
        if last:
            at += checksum_bytes
        if at > len(data):
            raise _bad(part, f"is truncated at byte {len(data)}")
        if last or blocks % BLOCKS_AT_ONCE == 0:
            yield data[start:at]
            start = at
    if at < len(data):
        raise _bad(part, f"has {len(data) - at} bytes after its end")
    if size > blocks * _BLOCK_BYTES_MAX:
        raise _bad(part, f"declares {size} bytes; its {blocks} blocks cannot")


class _Checked:
    """Checks a segment while it is decompressed: its header, then the header of each record."""

    def __init__(self, part: PartName) -> None:
        self._part = part
        self._at = 0
        self._records_left = part.last - part.first + 1 if part.stream == "log" else UNPACKED_BYTES_MAX
        self._payload_left = UNPACKED_BYTES_MAX

    def upto(self, view: memoryview) -> None:
        """Check the new bytes; raise ``PartCorrupt`` if the segment cannot be this part, whatever follows."""
        at, filled = self._at, len(view)
        if at == 0:
            if filled < HEADER_BYTES:
                return
            self._check_header(bytes(view[:HEADER_BYTES]))
            at = HEADER_BYTES
        records, payload_left = 0, self._payload_left
        while at + RECORD_HEADER_BYTES <= filled:
            payload = claimed_payload_bytes(view, at)
            if payload is None:
                raise _bad(self._part, f"change log is corrupt at byte {at}: no record begins here")
            records += 1
            payload_left -= payload
            at += RECORD_HEADER_BYTES + payload
        self._records_left -= records
        self._at, self._payload_left = at, payload_left
        if self._records_left < 0:
            raise _bad(self._part, f"holds more than the {self._part.last - self._part.first + 1} records of its name")
        if payload_left < 0:
            raise _bad(self._part, "holds more bytes than the disk of its header has")

    def _check_header(self, raw: bytes) -> None:
        part = self._part
        try:
            header = decode_header(part.blob(), raw)
        except RigError as exc:
            raise RigError(Code.PartCorrupt, f"part {exc.message}") from exc
        if (header.disk_id, header.generation, header.stream, header.first_seq) != (
            part.disk_id,
            part.generation,
            part.stream,
            part.first,
        ):
            raise _bad(
                part, f"holds {header.disk_id}/{header.generation:08d}/{header.stream}/, from number {header.first_seq} on"
            )
        if part.stream == "sync":
            self._payload_left = header.disk_size_bytes + RECORD_HEADER_BYTES + 4096  # a tag has a payload, too


def unpack(part: PartName, data: bytes, into: Path) -> SegmentHeader:
    """Decompress ``data`` to ``into``, durably, and verify every record, and that it is ``part``.

    Raises:
        RigError: ``PartCorrupt``.
    """
    write_synced(into, decompress(part, data))
    try:
        return verify(part, into)
    except BaseException:
        into.unlink(missing_ok=True)
        raise


def verify(part: PartName, path: Path) -> SegmentHeader:
    """Verify every record of the segment file at ``path``, and that it is ``part``.

    Raises:
        RigError: ``PartCorrupt``.
    """
    try:
        with SegmentReader(path) as reader:
            last = reader.header.first_seq - 1 if part.stream == "log" else reader.header.first_seq
            for record in reader.records():
                if part.stream == "log":
                    last = record.seq
            header = reader.header
    except RigError as exc:
        raise _bad(part, exc.message) from exc
    if header.key_id is not None:
        raise _bad(part, f"its records are encrypted with key {header.key_id}, as in the log of a disk")
    found = PartName(header.disk_id, header.generation, header.stream, header.first_seq, last)
    if found != part:
        raise _bad(part, f"holds {found.blob()}")
    return header


def _bad(part: PartName, why: str) -> RigError:
    return RigError(Code.PartCorrupt, f"part {part.blob()}: {why}")
