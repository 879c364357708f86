"""Locks of open file descriptions on ranges of a file: the requests of ``F_OFD_SETLK`` and ``F_OFD_GETLK`` (fcntl(2))."""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock``: type, whence, start, length, process id (0 for this kind)."""


def lock_request(kind: int, start: int, length: int) -> bytes:
    """Return the request for a lock.

    Args:
        kind: ``F_RDLCK`` or ``F_WRLCK`` of :mod:`fcntl`.
        start: first byte.
        length: bytes; 0: to the end of the file.
    """
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def is_locked_by_another(fd: int, start: int) -> bool:
    """Return True if another open file description has a lock of any kind on the byte; takes no lock."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock_request(fcntl.F_WRLCK, start, 1))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
