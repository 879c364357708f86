"""Tells at once when a file appears or disappears, by inotify(7) on the folders of its path.

Not noticed: the target of a symbolic link, and a file that another machine makes on a network file system.  Without a free
inotify instance, or a folder that can be watched, the file is looked for every ``LOOK_S`` seconds.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock

LOOK_S = 0.2
_IN_ATTRIB, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x4, 0x40, 0x80, 0x100, 0x200
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_NAMES = _IN_ATTRIB | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
_READ_BYTES = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_log = structlog.get_logger("siterig.blockfs.watch.file_existence")


async def existence(path: Path, *, clock: Clock = SYSTEM_CLOCK) -> AsyncGenerator[bool, None]:
    """Yield whether a file exists: now, and after each change.

    Args:
        path: the file; relative to the working folder of this process.
        clock: the clock of the waits without inotify.
    """
    path = path.absolute()
    fd = _instance()
    known: bool | None = None
    try:
        while True:
            watched = fd >= 0 and _watch(fd, path)
            exists = path.exists()
            if exists != known:
                known = exists
                yield exists
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
