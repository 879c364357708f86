"""Writes the bytes of a new file past the page cache, for files that are large and seldom read.

Fresh pages are dear: a guest of a hypervisor often has to be given the memory first, and then a copy into the page cache
costs many times the copy itself.  A file system without ``O_DIRECT`` gets the bytes through the page cache.

Fault contract: as :func:`siterig.blockfs.files.host_calls.write_all`.  The bytes are in the kernel's hands on return, so the
end of this process loses none; nothing is synchronized.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading

from siterig.blockfs.files import host_calls

ALIGNMENT_BYTES = 4096
"""Offsets, lengths and memory of direct writes are multiples of it; no disk has larger logical sectors."""
PIECE_BYTES = 1 << 20
"""The bytes of one write, and of the memory that a thread keeps for it."""
_kept = threading.local()


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes to a new file, which is open for writing without ``O_DIRECT``.

    Raises:
        OSError: as of a write.
    """
    at = _write_direct(fd, data) if len(data) >= PIECE_BYTES else 0
    while at < len(data):
        at += host_calls.pwrite(fd, memoryview(data)[at:], at)


def _write_direct(fd: int, data: bytes) -> int:
    """Write as many bytes as can be written directly, and return their number."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError:  # the file system has no direct writes
        return 0
    at, end = 0, len(data) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    try:
        memory = _memory()
        with memoryview(data) as source, memoryview(memory) as aligned:
            while at < end and at % ALIGNMENT_BYTES == 0:  # a write may be short
                length = min(PIECE_BYTES, end - at)
                aligned[:length] = source[at : at + length]
                at += host_calls.pwrite(fd, aligned[:length], at)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # this file or device has other rules for direct writes
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return at


def _memory() -> mmap.mmap:
    """Return memory of this thread that begins at a page."""
    kept: mmap.mmap | None = getattr(_kept, "memory", None)
    if kept is None:
        kept = _kept.memory = mmap.mmap(-1, PIECE_BYTES)
    return kept
