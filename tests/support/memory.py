"""Folders in memory for tests: syncs of a disk take most of their time, and prove nothing where no power is cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 (the folders in it are made by mkdtemp)
ROOM_BYTES_MIN = 2 << 30
"""Less free memory than this is left to the processes that the tests start."""


@contextlib.contextmanager
def folder_in_memory(prefix: str) -> Iterator[Path]:
    """Make a folder on a tmpfs, or where temporary files are if there is no tmpfs with room; remove it afterwards.

    A folder of this prefix whose process was killed is removed, too.
    """
    memory = MEMORY if has_room() else None
    for left in [] if memory is None else memory.glob(f"{prefix}-*"):
        if not Path("/proc", left.name.removeprefix(f"{prefix}-").partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-", dir=memory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def has_room() -> bool:
    """Return True if there is a tmpfs that this user may use, with enough room."""
    if not any(line.split()[1:3] == [str(MEMORY), "tmpfs"] for line in Path("/proc/mounts").read_text().splitlines()):
        return False
    status = os.statvfs(MEMORY)
    return os.access(MEMORY, os.W_OK) and status.f_bavail * status.f_frsize >= ROOM_BYTES_MIN
