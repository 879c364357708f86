"""The lock that says that a rig is up.  It goes with the process that holds it, so a stale process id is never believed."""

from __future__ import annotations

import fcntl
import os

from blockfs import safe_files
from blockfs.errors import RigError
from siterig.layout import Layout


def take_lock(layout: Layout) -> int:
    """Lock the rig for this process, for as long as the descriptor is open; ``AlreadyUp`` names who holds it."""
    fd = safe_files.open_file(layout.lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode().strip() or "starting"
        os.close(fd)
        raise RigError(
            "AlreadyUp", f"the rig in {layout.root} is up already (supervisor's process id: {pid}); end it with siterig down"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
