"""Which blocks a top holds (``NAME.top.present``), and which of them surely (``NAME.top.durable``).

Layout: docs/reference/formats/disk.md.

Fault contract
--------------
A block's bit is set in the first after its bytes were written, both in the page cache: so it is right after a kill.  After a
power loss it may be on the disk while the bytes are not; then the second counts, which gets a bit only after a sync of
the bytes.  It names the boot in which the first is right; what another boot finds in the first is thrown away.  A file that
is damaged or missing is ``DiskCorrupt``.  While a disk is open both are believed in memory and only written: one that is cut
meanwhile, or whose medium fails, makes no block come from below; no write and no flush succeeds any more (``EIO``).
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
    """Descriptors of the two maps of file ``top``, the first as it is to be used in this boot."""
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
            os.pwrite(durable_fd, _header(now), 0)  # only now that the first is what it says
            os.fsync(durable_fd)
    except BaseException:
        for fd in (map_fd, durable_fd):
            if fd >= 0:
                os.close(fd)
        raise
    return map_fd, durable_fd


def vouch_for(top: Path, map_bytes: int) -> bool:
    """Whether the maps of file ``top`` were made so long in this boot; the first is, before the second is."""
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
    """Bits are only ever set, and in the first map before they are in the second."""
    at = 0
    while piece := os.pread(durable_fd, 1 << 20, HEADER_BYTES + at):
        there = int.from_bytes(os.pread(map_fd, len(piece), at).ljust(len(piece), b"\0"))
        if int.from_bytes(piece) & ~there:
            raise RigError(Code.DiskCorrupt, f"{present}: lacks blocks that its durable map lists")
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
    booted = str(uuid.UUID(bytes=_HEADER.unpack_from(raw)[4]))
    if raw != _header(booted):
        raise RigError(Code.DiskCorrupt, f"{path}: header is damaged, or not of a durable map of format {FORMAT_VERSION}")
    return booted
