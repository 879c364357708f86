"""The lock that says that a rig is up, or is just being ended.

It goes with the process that holds it, so a stale process id is never believed.  The lock has two bytes, each with an
"open file description lock" (fcntl(2)): one of that kind can be looked at without being taken, so that a look is in nobody's
way.  ``RIG`` is held by the supervisor for as long as it lives, and by ``siterig down`` while it clears the leftovers.
``ENDING`` is held by ``siterig down`` from begin to end: a process that finds the rig up *and* about to be ended waits.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files

RIG, ENDING = 0, 1
WAIT_S = 120.0
"""For another process that ends the rig."""
_POLL_S = 0.05
_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock``: type, whence, start, length, process id (0 for this kind)."""


def _request(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def is_locked(lock: Path, byte: int = RIG) -> bool:
    """True if a process holds the lock; it is not taken for that."""
    try:
        fd = safe_files.open_file(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _try(fd: int, byte: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK, byte))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another process has it
        return False
    return True


def take_lock(lock: Path, *, waits: bool = True) -> int:
    """Lock the rig for this process, for as long as the descriptor is open.

    If ``siterig down`` is about to free the lock, and ``waits``, it is waited for.  ``AlreadyUp`` names the holder.
    """
    fd = safe_files.open_file(lock, os.O_RDWR | os.O_CREAT)
    try:
        taken = _until(lambda: _try(fd, RIG), while_=lambda: waits and is_locked(lock, ENDING))
        if taken:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    if not taken:
        os.close(fd)
        raise already_up(lock)
    return fd


def already_up(lock: Path) -> RigError:
    """``AlreadyUp``, with the process that holds the lock."""
    holder = lock.read_text(errors="replace").strip() or "starting"
    text = f"the rig in {lock.parent} is up already (supervisor's process id: {holder}); end it with siterig down"
    return RigError(Code.AlreadyUp, text)


def take_ending(lock: Path) -> int:
    """Tell others that this process is about to end the rig, for as long as the descriptor is open.

    Waits for another one that does the same.  ``RigBusy`` after ``WAIT_S``.
    """
    fd = safe_files.open_file(lock, os.O_RDWR | os.O_CREAT)
    if not _until(lambda: _try(fd, ENDING), while_=lambda: True):
        os.close(fd)
        raise RigError(
            Code.RigBusy, f"another siterig down of {lock.parent} did not end within {WAIT_S:g} s", recoverable=True
        )
    return fd


def _until(done: Callable[[], bool], *, while_: Callable[[], bool]) -> bool:
    """Try again while that makes sense, at most ``WAIT_S``; the last answer of ``done``."""
    # Polled: the kernel's own wait for a lock has no limit and cannot be taken back.
    deadline = time.monotonic() + WAIT_S
    while not done():
        if not while_() or time.monotonic() > deadline:
            return done()  # it may have been freed between the two looks
        time.sleep(_POLL_S)
    return True
