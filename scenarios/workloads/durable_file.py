"""Makes a file and its name durable, on a disk that may die meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

from siterig.blockfs.files.durable_io import sync_folder


def sync_file(fd: int, folder: Path) -> None:
    """Return when a file and its name in a folder are durable.

    The file comes last: XFS that has shut down reports success for the fsync of a folder whose last changes it has
    dropped, and an error for that of a file.

    Raises:
        OSError: the disk failed, and file or name may be lost.
    """
    sync_folder(folder)
    os.fsync(fd)
