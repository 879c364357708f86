"""The maps of an overlay: the blocks that it holds (``NAME.top.present``), and the durable ones (``NAME.top.durable``).

Layout: docs/reference/formats/disk.md.

Fault contract
--------------
The bit of a block is set in the present map after its bytes were written, both in the page cache: after a kill the present
map is right.  After a power loss a bit can be on the medium without its bytes.  Then the durable map counts, which gets a
bit only after a sync of the bytes.  Its header names the boot in which the present map is right; another boot discards the
present map.  A damaged or missing file is ``DiskCorrupt``.  While a disk is open, both maps are kept in memory and their
files only written.  If a map is truncated meanwhile, or its medium fails, blocks do not fall back to the backing; every
write and flush fails (``EIO``).
"""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.cext._core import lib
from siterig.cext.checksums import crc32c

FORMAT_VERSION = 1
HEADER_BYTES: int = lib.SR_DURABLE_HEADER_BYTES

_MAGIC = b"SRIGTOPM"
_HEADER = struct.Struct("<8sHHI16s28x")  # then CRC32C
_CRC = struct.Struct("<I")


def open_maps(top: Path) -> tuple[int, int]:
    """Return descriptors of the two maps of file ``top``; the present map is made right for this boot."""
    present, durable = top.with_name(top.name + ".present"), top.with_name(top.name + ".durable")
    now = boot.current_boot_id()
    if not durable.exists():
        if present.exists() and any(present.read_bytes()):
            raise RigError(Code.DiskCorrupt, f"{durable}: is missing; {top} has blocks that only this file lists")
        write_atomically(durable, _header(now))
    map_fd = safe_files.open_file(present, os.O_RDWR | os.O_CREAT)
    durable_fd = -1
    try:
        durable_fd = safe_files.open_file(durable, os.O_RDWR)
        if _boot_of(durable, durable_fd) == now:
            _check_all_there(present, map_fd, durable_fd)
        else:
            os.ftruncate(map_fd, 0)
            _copy(durable_fd, map_fd)
            os.pwrite(durable_fd, _header(now), 0)  # only after the present map is right
            os.fsync(durable_fd)
    except BaseException:
        for fd in (map_fd, durable_fd):
            if fd >= 0:
                os.close(fd)
        raise
    return map_fd, durable_fd


def vouch_for(top: Path, map_bytes: int) -> bool:
    """Return True if the maps of file ``top`` had this length in this boot; the present map grows before the durable one."""
    durable = top.with_name(top.name + ".durable")
    try:
        fd = safe_files.open_file(durable, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(fd).st_size >= HEADER_BYTES + map_bytes and _boot_of(durable, fd) == boot.current_boot_id()
    finally:
        os.close(fd)


def _check_all_there(present: Path, map_fd: int, durable_fd: int) -> None:
    """Check that the present map has all bits of the durable map: bits are never cleared, and set there first."""
    at = 0
    while piece := os.pread(durable_fd, 1 << 20, HEADER_BYTES + at):
        present_bits = int.from_bytes(os.pread(map_fd, len(piece), at).ljust(len(piece), b"\0"), "little")
        if lacking := int.from_bytes(piece, "little") & ~present_bits:
            block = at * 8 + (lacking & -lacking).bit_length() - 1
            raise RigError(Code.DiskCorrupt, f"{present}: lacks block {block}, which its durable map lists")
        at += len(piece)


def _copy(durable_fd: int, map_fd: int) -> None:
    at = 0
    while piece := os.pread(durable_fd, 1 << 20, HEADER_BYTES + at):
        view = memoryview(piece)
        while view:
            done = os.pwrite(map_fd, view, at)
            at, view = at + done, view[done:]


def _header(boot_id: str) -> bytes:
    raw = _HEADER.pack(_MAGIC, FORMAT_VERSION, HEADER_BYTES, lib.SR_BLOCK_BYTES, uuid.UUID(boot_id).bytes)
    return (raw + _CRC.pack(crc32c(raw))).ljust(HEADER_BYTES, b"\0")


def _boot_of(path: Path, fd: int) -> str:
    raw = os.pread(fd, HEADER_BYTES, 0)
    if len(raw) < HEADER_BYTES:
        raise RigError(Code.DiskCorrupt, f"{path}: has {len(raw)} bytes; its header has {HEADER_BYTES}")
    magic, version, _, _, boot_id = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise RigError(Code.DiskCorrupt, f"{path}: is no durable map: it begins with {magic!r}, and not with {_MAGIC!r}")
    booted = str(uuid.UUID(bytes=boot_id))
    if raw != _header(booted):
        found = "header is damaged" if version == FORMAT_VERSION else f"format is {version}; allowed: {FORMAT_VERSION}"
        raise RigError(Code.DiskCorrupt, f"{path}: {found}")
    return booted
