"""The folder of a disk host: its lock, and the names that are allowed in it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError

NAME_CHARS_MAX = 63
RECOVERY_FOLDER = "recovery"
"""Name of the mounted points' folder in a recovery side's mount, beside the VMs' folders: no VM can have it."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARS_MAX - 1}}}")


def check_name(what: str, name: str) -> None:
    """``InvalidName`` unless ``name`` can be a file's name and nothing else."""
    if not _NAME.fullmatch(name):
        raise RigError(
            Code.InvalidName,
            f"{what} is named {name!r}; allowed: 1 to 63 letters, digits, '-' and '_', not '-' or '_' first",
        )


def lock_folder(root: Path) -> int:
    """A descriptor that holds the folder for this process; a second server would cut the logs that the first one writes."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise RigError(Code.AlreadyServed, f"{root}: another process serves its disks") from exc
    return fd
