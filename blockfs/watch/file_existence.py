"""Tells at once when a file appears, disappears or is replaced, by inotify(7) on the folders of its path.

Not noticed: the target of a symbolic link, and a file that another machine makes on a network file system.  Without a free
inotify instance, or a folder that can be watched, the file is looked for every ``LOOK_S`` seconds.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock

LOOK_S = 0.2
_IN_ATTRIB, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x4, 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_NAMES = _IN_ATTRIB | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
_READ_BYTES = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
FileVersion = tuple[int, int, int] | None
"""Device, inode and time of change of a file, which differ for each version that replaces it; None without a file."""
_T = TypeVar("_T")
_log = structlog.get_logger("siterig.blockfs.watch.file_existence")


def existence(path: Path, *, clock: Clock = SYSTEM_CLOCK) -> AsyncGenerator[bool, None]:
    """Yield whether a file exists: now, and after each change.

    Args:
        path: the file; relative to the working folder of this process.
        clock: the clock of the waits without inotify.
    """
    return _observed(path.absolute(), Path.exists, clock)


def versions(path: Path, *, clock: Clock = SYSTEM_CLOCK) -> AsyncGenerator[FileVersion, None]:
    """Yield the version of a file that is only ever replaced as a whole: now, and after each change.

    Args:
        path: the file; relative to the working folder of this process.
        clock: the clock of the waits without inotify.
    """
    return _observed(path.absolute(), _version, clock)


def _version(path: Path) -> FileVersion:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


async def _observed(path: Path, look: Callable[[Path], _T], clock: Clock) -> AsyncGenerator[_T, None]:
    fd = _instance()
    known: list[_T] = []
    try:
        while True:
            watched = fd >= 0 and _watch(fd, path)
            found = look(path)
            if known != [found]:
                known = [found]
                yield found
            if watched:
                await trio.lowlevel.wait_readable(fd)
                _drain(fd)
            else:
                await clock.sleep(LOOK_S)
    finally:
        if fd >= 0:
            os.close(fd)


def _instance() -> int:
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        _log.warning("no_inotify", error=os.strerror(ctypes.get_errno() or errno.EIO))
    return fd


def _watch(fd: int, path: Path) -> bool:
    """Watch the names in all folders of the path that exist; False if the innermost one cannot be watched."""
    for folder in path.parents:
        if int(_libc.inotify_add_watch(fd, os.fsencode(folder), _NAMES)) >= 0:
            return all(_libc.inotify_add_watch(fd, os.fsencode(above), _NAMES) >= 0 for above in folder.parents)
        if ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
            return False
    return False


def _drain(fd: int) -> None:
    while True:
        try:
            os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
