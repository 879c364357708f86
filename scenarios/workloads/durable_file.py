"""Makes a file and its name durable, on a disk that may die meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from siterig.blockfs.files.durable_io import sync_folder


def sync_file(fd: int, folder: Path) -> None:
    """Return when a file and its name in a folder are durable.

    XFS that has shut down reports success for the fsync of a folder whose last changes it has dropped.  It reports the
    error for a file, so the file is synced again after its folder.

    Raises:
        OSError: the disk failed, and file or name may be lost.
    """
    os.fsync(fd)
    sync_folder(folder)
    os.fsync(fd)
