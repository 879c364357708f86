"""The lock that shows that a rig is up, or that a command is ending it.

The kernel releases the lock when the process that holds it ends, so a stale process id never counts.  The lock file has two
bytes, each with an "open file description lock" (fcntl(2)).  Such a lock can be tested without being taken, so a test never
blocks another process.  The supervisor holds ``RIG`` as long as it lives, and ``siterig down`` holds it while it removes
leftovers.  ``siterig down`` holds ``ENDING`` from start to end: a process that finds the rig up *and* ending waits.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.open_file_locks import is_locked_by_another, lock_request

RIG, ENDING = 0, 1
WAIT_S = 120.0
"""The longest wait for another process that ends the rig."""
_POLL_S = 0.05


def is_locked(lock: Path, byte: int = RIG) -> bool:
    """Return True if a process holds the lock; the test does not take it."""
    try:
        fd = safe_files.open_file(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return is_locked_by_another(fd, byte)
    finally:
        os.close(fd)


def _try(fd: int, byte: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK, byte, 1))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another process has it
        return False
    return True


def take_lock(lock: Path, *, waits: bool = True) -> int:
    """Lock the rig for this process, and return the descriptor that holds the lock while it is open.

    Args:
        lock: the lock file of the rig.
        waits: wait if ``siterig down`` is about to release the lock.
    Raises:
        RigError: ``AlreadyUp`` names the process that holds the lock.
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
    """Return the error ``AlreadyUp``, with the process that holds the lock."""
    holder = lock.read_text(errors="replace").strip() or "starting"
    text = f"the rig in {lock.parent} is up already (supervisor's process id: {holder}); end it with siterig down"
    return RigError(Code.AlreadyUp, text)


def take_ending(lock: Path) -> int:
    """Announce that this process is about to end the rig, and return the descriptor that holds the lock.

    Waits for another process that does the same.

    Raises:
        RigError: ``RigBusy`` after ``WAIT_S``.
    """
    fd = safe_files.open_file(lock, os.O_RDWR | os.O_CREAT)
    if not _until(lambda: _try(fd, ENDING), while_=lambda: True):
        os.close(fd)
        raise RigError(
            Code.RigBusy, f"another siterig down of {lock.parent} did not end within {WAIT_S:g} s", recoverable=True
        )
    return fd


def _until(done: Callable[[], bool], *, while_: Callable[[], bool]) -> bool:
    """Repeat ``done`` while ``while_`` is true, at most for ``WAIT_S``, and return its last answer."""
    # Polled: the kernel's own wait for a lock has no limit and cannot be cancelled.
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(WAIT_S * 1e9)
    while not done():
        if not while_() or SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
            return done()  # it may have been released between the two tests
        SYSTEM_CLOCK.sleep_thread(_POLL_S)
    return True
