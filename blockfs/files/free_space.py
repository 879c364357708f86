"""Checks the free space of the host's disks before an operation needs it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that are free on the file system of a folder; None if it cannot be asked."""
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


def require_free_space(needs: Iterable[tuple[Path, int]], subject: str, purpose: str) -> None:
    """Check that each file system has the space that is needed, as :func:`lacking_space` does.

    Raises:
        RigError: ``NotEnoughSpace`` if a file system has less.
        OSError: a folder cannot be read.
    """
    for error in lacking_space(needs, subject, purpose):
        raise error


def lacking_space(needs: Iterable[tuple[Path, int]], subject: str, purpose: str) -> list[RigError]:
    """Return an error ``NotEnoughSpace`` for each file system that has less space than is needed.

    Args:
        needs: folders, and the bytes needed in each; folders on one file system are added up.
        subject: first words of the message, which is ``subject: N bytes are free at FOLDER; purpose M``.
        purpose: words before the number of needed bytes.
    Raises:
        OSError: a folder cannot be read.
    """
    lacking: list[RigError] = []
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
            text = f"{subject}: {free_bytes} bytes are free at {folder}; {purpose} {needed[device]}"
            lacking.append(RigError(Code.NotEnoughSpace, text, recoverable=True))
    return lacking
