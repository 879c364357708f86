"""Holes in files: ``fallocate`` with all of its modes, and seeks of data and holes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from siterig.blockfs.layers.disk_cipher import LINE_BYTES
from siterig.cext._core import lib

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20


_libc = ctypes.CDLL(None, use_errno=True)


_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Call ``fallocate``, and return 0 or the errno."""
    return ctypes.get_errno() if _libc.fallocate(fd, mode, offset, length) else 0


def seek(fd: int, offset: int, whence: int) -> int | None:
    """Return the offset of the next data or hole, or None if there is no data after ``offset``."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as exc:
        assert exc.errno == errno.ENXIO
        return None


def memory(length: int, value: int) -> mmap.mmap:
    """Return memory that is aligned for O_DIRECT, filled with one value."""
    made = mmap.mmap(-1, length)
    made[:] = bytes([value]) * length
    return made


def punch(fd: int, offset: int, length: int) -> None:
    """Punch a hole.

    Raises:
        OSError: if the file system does not support this.
    """
    error = fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
    if error:
        raise OSError(error, os.strerror(error))


def record_edges(offset: int, length: int) -> list[int]:
    """Return the places, counted from ``offset``, at which a discard or zeroing is split into records.

    A long one whose ends are not at lines of the cipher has records of its own for its edges
    (docs/internals/decisions/0047-xts-and-edges.md), and a kill can come between them.
    """
    if length <= lib.SR_CHUNK_BYTES or (offset | length) % LINE_BYTES == 0:
        return []
    return [edge for edge in (-offset % LINE_BYTES, length - (offset + length) % LINE_BYTES) if 0 < edge < length]
