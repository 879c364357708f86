"""Events of files: a thin face of inotify(7)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_OPEN, IN_MOVE_SELF = 0x2, 0x4, 0x8, 0x20, 0x800
IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE, IN_DELETE_SELF = 0x40, 0x80, 0x200, 0x400
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
libc = ctypes.CDLL(None, use_errno=True)
"""The C library, for its inotify functions; a test replaces a function to make it fail."""


def open_instance() -> int:
    """Return the descriptor of a new instance that does not block.

    Raises:
        OSError: EMFILE: this user has no instance left (``fs.inotify.max_user_instances``).
    """
    return _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def add_watch(instance: int, path: Path, mask: int) -> int:
    """Watch a file or folder; return the number of the watch, which its events have.

    Raises:
        OSError: ENOSPC: this user has no watch left, or another error.
    """
    return _checked(libc.inotify_add_watch(instance, os.fsencode(path), mask))


def remove_watch(instance: int, number: int) -> None:
    """End a watch; a number that is not known any more is ignored."""
    libc.inotify_rm_watch(instance, number)


def events(instance: int) -> Iterator[tuple[int, int]]:
    """Yield (watch number, mask) of all pending events."""
    while True:
        try:
            data = os.read(instance, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, _, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size + name_bytes
            if not mask & IN_IGNORED:
                yield number, mask


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return result
