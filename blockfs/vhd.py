"""Fixed VHD: a raw disk and a footer of 512 bytes behind it.

Source: Microsoft, *Virtual Hard Disk Image Format Specification* 1.0 (2006), "Hard Disk Footer Format".  All numbers
are big endian.
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

from blockfs.errors import RigError

FOOTER_BYTES = 512
MIB = 1 << 20
SIZE_BYTES_MAX = 2040 * (1 << 30)
"""Largest fixed VHD that the service and Hyper-V take."""

WHY_NOT = f"a fixed VHD has whole MiB, and at most {SIZE_BYTES_MAX >> 30} GiB"

COOKIE = b"conectix"
"""First bytes of a footer; a dynamic disk has a copy of it at its begin too."""

_EPOCH_S = 946_684_800  # 2000-01-01T00:00:00Z, where the format's time begins
_OLD_FOOTER_BYTES = 511  # of programs before Virtual PC 2004
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_MAJOR_VERSION = 1
_CONVERT = "qemu-img convert -f vpc -O raw makes a raw image of it"
# Programs compute the size from the geometry, which is rounded, unless they know the creator to mean "current size".
_CREATOR = b"win "
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_CHECKSUM_AT = 64


def can_be_vhd(size_bytes: int) -> bool:
    """Whole MiB, as the service demands of a disk, and not too large for the format."""
    return size_bytes % MIB == 0 and 0 < size_bytes <= SIZE_BYTES_MAX


def fixed_footer(size_bytes: int, disk_id: str, *, created_s: int = _EPOCH_S) -> bytes:
    """The footer of a disk of ``size_bytes``; ``created_s`` in Unix time."""
    cylinders, heads, sectors = geometry(size_bytes // 512)
    fields = (
        COOKIE,
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
    return _FOOTER.pack(*fields, _checksum(_FOOTER.pack(*fields, 0, unique, 0)), unique, 0)


def _checksum(footer: bytes) -> int:
    """The complement of the sum of all bytes but those of the checksum."""
    return ~(sum(footer) - sum(footer[_CHECKSUM_AT : _CHECKSUM_AT + 4])) & 0xFFFF_FFFF


def read_footer(path: Path) -> int:
    """Size in bytes of the disk in the fixed VHD ``path``: all of the file but the footer, which is checked.

    ``VhdCorrupt``: there is no footer, or what it says is not so.  ``VhdUnsupported``: it is another kind of VHD.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(len(COOKIE))
        file.seek(max(size - FOOTER_BYTES, 0))
        tail = file.read(FOOTER_BYTES)
    if tail[-_OLD_FOOTER_BYTES:].startswith(COOKIE):
        raise RigError(
            "VhdUnsupported",
            f"{path}: its footer has {_OLD_FOOTER_BYTES} bytes, as programs before Virtual PC 2004 wrote it; a fixed VHD "
            f"has one of {FOOTER_BYTES} bytes; {_CONVERT}",
        )
    if not tail.startswith(COOKIE) or len(tail) < FOOTER_BYTES:
        if head == COOKIE:
            raise RigError(
                "VhdCorrupt", f"{path}: begins as a dynamic VHD does, but no footer is at its end: it was cut off"
            )
        raise RigError("VhdCorrupt", f"{path}: its last {FOOTER_BYTES} bytes are no VHD footer; a raw image has none")
    return _checked(path, tail, size - FOOTER_BYTES)


def _checked(path: Path, footer: bytes, disk_bytes: int) -> int:
    _, _, version, _, _, _, _, _, _, size, _, _, _, kind, checksum, _, _ = _FOOTER.unpack(footer)
    if checksum != _checksum(footer):
        raise RigError(
            "VhdCorrupt",
            f"{path}: the VHD footer is damaged: its checksum is {checksum:#010x}, its bytes give {_checksum(footer):#010x}",
        )
    if version >> 16 != _MAJOR_VERSION:
        raise RigError(
            "VhdUnsupported", f"{path}: VHD format version {version >> 16}.{version & 0xFFFF}; 1.0 is supported"
        )  # fmt: skip
    if kind != _FIXED:
        names = {_DYNAMIC: "a dynamic VHD", _DIFFERENCING: "a differencing VHD, which needs its parent"}
        found = names.get(kind, f"a VHD of type {kind}")
        raise RigError("VhdUnsupported", f"{path}: is {found}; only fixed ones (type {_FIXED}) are supported; {_CONVERT}")
    if size != disk_bytes:
        raise RigError(
            "VhdCorrupt", f"{path}: the VHD footer tells of a disk of {size} bytes; {disk_bytes} bytes are before it"
        )  # fmt: skip
    return disk_bytes


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
