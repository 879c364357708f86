"""Room on the host's disks, asked for before an operation needs it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError


def require_free_space(needs: Iterable[tuple[Path, int]], subject: str, purpose: str) -> None:
    """``NotEnoughSpace`` if a file system has less room than what is needed of it; ``OSError`` of a folder.

    ``needs``: folders, and how many bytes are needed in each; those on one file system are added up.
    The message is ``subject: N bytes are free at FOLDER; purpose M``.
    """
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for folder, needed_bytes in needs:
        device = folder.stat().st_dev
        needed[device] = needed.get(device, 0) + needed_bytes
        folders[device] = folder
    for device, folder in folders.items():
        space = os.statvfs(folder)
        free_bytes = space.f_bavail * space.f_frsize
        if free_bytes < needed[device]:
            raise RigError(
                Code.NotEnoughSpace,
                f"{subject}: {free_bytes} bytes are free at {folder}; {purpose} {needed[device]}",
                recoverable=True,
            )
