"""The folder of a disk host: its lock, and a name that no VM can have."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError

RECOVERY_FOLDER = "recovery"
"""Name of the folder of mounted points in the mount of a recovery side; no VM can have this name."""


def lock_folder(root: Path) -> int:
    """Lock the folder for this process and return the descriptor that holds the lock.

    Without the lock a second server would truncate the logs that the first one writes.

    Raises:
        RigError: ``AlreadyServed``.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise RigError(Code.AlreadyServed, f"{root}: another process serves its disks") from exc
    return fd
