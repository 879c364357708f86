"""Packs a segment for the wire and unpacks it again, believing nothing.

Fault contract: what :func:`unpack` leaves at its target is a durable, fully verified segment that is the part its
name says; anything else raises ``RigError('PartCorrupt')`` and leaves nothing there.
"""

from __future__ import annotations

from pathlib import Path

import zstandard

from blockfs.changelog import SegmentHeader, SegmentReader
from blockfs.durable import write_synced
from blockfs.errors import RigError
from blockfs.part import PartName

LEVEL = 3
UNPACKED_BYTES_MAX = 1 << 30


def pack(path: Path) -> bytes:
    """The segment file, zstd-compressed with size and checksum in the frame."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(path.read_bytes())


def decompress(part: PartName, data: bytes) -> bytes:
    """The segment that ``data`` holds, of which nothing is known yet; ``PartCorrupt`` if it holds none."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= UNPACKED_BYTES_MAX:
            raise _bad(part, f"says it holds {size} bytes; at most {UNPACKED_BYTES_MAX}")
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise _bad(part, f"is not sound zstd data: {exc}") from exc


def unpack(part: PartName, data: bytes, into: Path) -> SegmentHeader:
    """Decompress ``data`` to ``into``, make it durable, and check every record and that it is ``part``."""
    write_synced(into, decompress(part, data))
    try:
        return _verify(part, into)
    except BaseException:
        into.unlink(missing_ok=True)
        raise


def _verify(part: PartName, path: Path) -> SegmentHeader:
    try:
        with SegmentReader(path) as reader:
            last = reader.header.first_seq - 1 if part.stream == "log" else reader.header.first_seq
            for record in reader.records():
                if part.stream == "log":
                    last = record.seq
            header = reader.header
    except RigError as exc:
        raise _bad(part, exc.message) from exc
    found = PartName(header.disk_id, header.generation, header.stream, header.first_seq, last)
    if found != part:
        raise _bad(part, f"holds {found.blob()}")
    return header


def _bad(part: PartName, why: str) -> RigError:
    return RigError("PartCorrupt", f"part {part.blob()}: {why}")
