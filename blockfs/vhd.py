"""Fixed VHD: a raw disk and a footer of 512 bytes behind it.

Source: Microsoft, *Virtual Hard Disk Image Format Specification* 1.0 (2006), "Hard Disk Footer Format".  All numbers
are big endian.
"""

from __future__ import annotations

import struct
import uuid

FOOTER_BYTES = 512
MIB = 1 << 20
SIZE_BYTES_MAX = 2040 * (1 << 30)
"""Largest fixed VHD that the service and Hyper-V take."""

_EPOCH_S = 946_684_800  # 2000-01-01T00:00:00Z, where the format's time begins
_FIXED = 2
# Programs compute the size from the geometry, which is rounded, unless they know the creator to mean "current size".
_CREATOR = b"win "
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")


def can_be_vhd(size_bytes: int) -> bool:
    """Whole MiB, as the service demands of a disk, and not too large for the format."""
    return size_bytes % MIB == 0 and 0 < size_bytes <= SIZE_BYTES_MAX


def fixed_footer(size_bytes: int, disk_id: str, *, created_s: int = _EPOCH_S) -> bytes:
    """The footer of a disk of ``size_bytes``; ``created_s`` in Unix time."""
    cylinders, heads, sectors = geometry(size_bytes // 512)
    fields = (
        b"conectix",
        2,  # features: "reserved", always set
        0x0001_0000,  # version of the format
        0xFFFF_FFFF_FFFF_FFFF,  # offset of a dynamic disk's header: none
        created_s - _EPOCH_S,
        _CREATOR,
        0x000A_0000,  # creator's version
        b"Wi2k",
        size_bytes,
        size_bytes,
        cylinders,
        heads,
        sectors,
        _FIXED,
    )
    unique = uuid.UUID(disk_id).bytes
    blank = _FOOTER.pack(*fields, 0, unique, 0)
    return _FOOTER.pack(*fields, ~sum(blank) & 0xFFFF_FFFF, unique, 0)


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors a track of a disk of that many sectors (the specification's appendix)."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads = 255, 16
        return sectors // per_track // heads, heads, per_track
    per_track = 17
    heads = max((sectors // per_track + 1023) // 1024, 4)
    if sectors // per_track >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
    if sectors // per_track >= heads * 1024:
        per_track, heads = 63, 16
    return sectors // per_track // heads, heads, per_track
