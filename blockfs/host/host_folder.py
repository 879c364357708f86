"""The folder of a disk host: its lock, and the allowed names of VMs and disks."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError

NAME_CHARS_MAX = 63
RECOVERY_FOLDER = "recovery"
"""Name of the folder of mounted points in the mount of a recovery side; no VM can have this name."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARS_MAX - 1}}}")


def check_name(what: str, name: str) -> None:
    """Raise ``InvalidName`` unless ``name`` is usable as the name of a VM or disk, and so as a file name."""
    if not _NAME.fullmatch(name):
        raise RigError(
            Code.InvalidName,
            f"{what} is named {name!r}; allowed: 1 to 63 letters, digits, '-' and '_', not '-' or '_' first",
        )


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
