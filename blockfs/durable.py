"""Making names and small files durable: the one place that knows the order of fsync and rename."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames, deletions) durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and make its bytes durable; its name needs :func:`sync_folder`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, or a start after power loss, sees the old bytes or the new ones."""
    tmp = path.with_name(f".{path.name}.tmp")
    write_synced(tmp, data)
    tmp.rename(path)
    sync_folder(path.parent)


def rename_new(path: Path, to: Path) -> None:
    """Rename, if nothing has the new name (``FileExistsError``); durable with :func:`sync_folder`."""
    if _libc.renameat2(-1, os.fsencode(path.absolute()), -1, os.fsencode(to.absolute()), _RENAME_NOREPLACE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(to))
