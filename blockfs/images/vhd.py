"""Fixed VHD: a raw disk followed by a footer of 512 bytes.

Source: Microsoft, *Virtual Hard Disk Image Format Specification* 1.0 (2006), "Hard Disk Footer Format".  All numbers
are big endian.
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.images.image_bytes import ImageBytes

FOOTER_BYTES = 512
MIB = 1 << 20
SIZE_BYTES_MAX = 2040 * (1 << 30)
"""Size of the largest fixed VHD that the service and Hyper-V accept."""

WHY_NOT = f"a fixed VHD has whole MiB, and at most {SIZE_BYTES_MAX >> 30} GiB"

COOKIE = b"conectix"
"""First bytes of a footer; a dynamic disk also has a copy of the footer at its beginning."""

_EPOCH_S = 946_684_800  # 2000-01-01T00:00:00Z, the beginning of the format's time
_OLD_FOOTER_BYTES = 511  # written by programs before Virtual PC 2004
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_MAJOR_VERSION = 1
_CONVERT = "qemu-img convert -f vpc -O raw makes a raw image of it"
# Programs compute the size from the geometry, which is rounded, unless they know the creator to mean "current size".
_CREATOR = b"win "
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_CHECKSUM_AT = 64
_DYNAMIC_COOKIE = b"cxsparse"
_DYNAMIC_HEADER = struct.Struct(">8sQQIIII")  # cookie, next header, block table, version, entries, block size, checksum
_PARENT_NAME_AT, _PARENT_NAME_BYTES = 64, 512
_NO_BLOCK = 0xFFFF_FFFF
_BLOCK_BYTES_MAX = 256 << 20


def can_be_vhd(size_bytes: int) -> bool:
    """Return True if the size is in whole MiB, as the service requires, and not too large for the format."""
    return size_bytes % MIB == 0 and 0 < size_bytes <= SIZE_BYTES_MAX


def fixed_footer(size_bytes: int, disk_id: str, *, created_s: int = _EPOCH_S) -> bytes:
    """Return the footer of a disk; ``created_s`` is the time of creation in seconds since 1970."""
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
    """Return the complement of the sum of all bytes except those of the checksum."""
    return ~(sum(footer) - sum(footer[_CHECKSUM_AT : _CHECKSUM_AT + 4])) & 0xFFFF_FFFF


def read_footer(path: Path) -> int:
    """Open a fixed VHD and return the size of its disk, as :func:`read_fixed` does."""
    with path.open("rb") as file:
        return read_fixed(ImageBytes(path, file.fileno(), os.fstat(file.fileno()).st_size))


def read_fixed(file: ImageBytes) -> int:
    """Return the size in bytes of the disk in a fixed VHD: the file without its footer, which is verified.

    Raises:
        RigError: ``VhdCorrupt`` if there is no footer, or it contradicts the file; ``VhdUnsupported`` if it is another
            kind of VHD.
    """
    path = file.path
    head = file.read(0, min(len(COOKIE), file.size_bytes))
    tail_bytes = min(file.size_bytes, FOOTER_BYTES)
    tail = file.read(file.size_bytes - tail_bytes, tail_bytes)
    if tail[-_OLD_FOOTER_BYTES:].startswith(COOKIE):
        raise RigError(
            Code.VhdUnsupported,
            f"{path}: its footer has {_OLD_FOOTER_BYTES} bytes, as programs before Virtual PC 2004 wrote it; a fixed VHD "
            f"has one of {FOOTER_BYTES} bytes; {_CONVERT}",
        )
    if not tail.startswith(COOKIE) or len(tail) < FOOTER_BYTES:
        if head == COOKIE:
            raise RigError(
                Code.VhdCorrupt, f"{path}: begins like a dynamic VHD but has no footer at its end: it is truncated"
            )
        raise RigError(Code.VhdCorrupt, f"{path}: its last {FOOTER_BYTES} bytes are no VHD footer; a raw image has none")
    kind, size = _checked(path, tail)
    if kind != _FIXED:
        names = {_DYNAMIC: "a dynamic VHD", _DIFFERENCING: "a differencing VHD, which needs its parent"}
        kind_name = names.get(kind, f"a VHD of type {kind}")
        raise RigError(
            Code.VhdUnsupported, f"{path}: is {kind_name}; only fixed ones (type {_FIXED}) are supported; {_CONVERT}"
        )
    if size != file.size_bytes - FOOTER_BYTES:
        raise RigError(
            Code.VhdCorrupt,
            f"{path}: the VHD footer names a disk of {size} bytes; {file.size_bytes - FOOTER_BYTES} bytes are before it",
        )
    return size


def _checked(path: Path, footer: bytes) -> tuple[int, int]:
    """Verify a footer, and return the type and size of the disk."""
    _, _, version, _, _, _, _, _, _, size, _, _, _, kind, checksum, _, _ = _FOOTER.unpack(footer)
    if checksum != _checksum(footer):
        raise RigError(
            Code.VhdCorrupt,
            f"{path}: the VHD footer is damaged: its checksum is {checksum:#010x}, its bytes give {_checksum(footer):#010x}",
        )
    if version >> 16 != _MAJOR_VERSION:
        raise RigError(
            Code.VhdUnsupported, f"{path}: VHD format version {version >> 16}.{version & 0xFFFF}; 1.0 is supported"
        )
    return kind, size


def check_dynamic(file: ImageBytes) -> None:
    """Check that a VHD with a footer at its beginning can be read alone.

    Raises:
        RigError: ``ImageUnusable`` if it is a differencing VHD (the message names its parent), or a block is truncated;
            ``VhdCorrupt``.
    """
    kind, _ = _checked(file.path, file.read(0, FOOTER_BYTES))
    at = int.from_bytes(file.read(16, 8), "big")
    cookie, _, table_at, _, entries, block_bytes, *_ = _DYNAMIC_HEADER.unpack(file.read(at, _DYNAMIC_HEADER.size))
    if cookie != _DYNAMIC_COOKIE:
        raise RigError(Code.VhdCorrupt, f"{file.path}: the header of the dynamic VHD is damaged")
    if kind == _DIFFERENCING:
        name = file.read(at + _PARENT_NAME_AT, _PARENT_NAME_BYTES).decode("utf-16-be", "replace").partition("\0")[0]
        raise file.error_needs(f"its parent {name or '(no name is in it)'}")
    if entries > SIZE_BYTES_MAX // (MIB // 2) or not 0 < block_bytes <= _BLOCK_BYTES_MAX:
        raise RigError(Code.VhdCorrupt, f"{file.path}: the dynamic VHD has {entries} blocks of {block_bytes} bytes")
    bitmap_bytes = -(-block_bytes // 512 // 8 // 512) * 512
    blocks = (entry for (entry,) in struct.iter_unpack(">I", file.read(table_at, entries * 4)))
    end = max((entry * 512 + bitmap_bytes + block_bytes for entry in blocks if entry != _NO_BLOCK), default=0)
    if end > file.size_bytes:
        raise file.error(f"is truncated: its last block ends at byte {end}; the file has {file.size_bytes}")


def geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track for a number of sectors (appendix of the specification)."""
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
