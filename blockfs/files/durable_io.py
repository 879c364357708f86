"""Makes names and small files durable; the order of fsync and rename is implemented here only.

Files are opened and created by :mod:`siterig.blockfs.files.safe_files`: never through a link, and with mode 0600 for any
umask.
"""

from __future__ import annotations

import os
from pathlib import Path

from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.files.safe_files import FILE_MODE, temporary_name


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames, deletions) durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with naming(folder):
            os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, data: bytes | bytearray) -> None:
    """Write a file and make its bytes durable; its name needs :func:`sync_folder`."""
    _write_synced(safe_files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), path, data)


def _write_synced(fd: int, path: Path, data: bytes | bytearray) -> None:
    try:
        with naming(path):
            host_calls.write_all(fd, data)
            host_calls.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, *, mode: int = FILE_MODE) -> None:
    """Replace ``path`` by ``data``: a reader, or a start after a power loss, sees the old bytes or the new ones.

    An error leaves the old file and nothing else.  A kill can leave a temporary file, which the next call removes.

    Raises:
        RigError: ``ForeignFile`` if another user may own a file of that name.
        OSError: the file could not be written.
    """
    with safe_files.held(path.parent) as folder:
        folder.check_free(path.name)
        folder.remove_leftovers(path.name)
        name = temporary_name(path.name)
        try:
            _write_synced(folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=mode), path.with_name(name), data)
            folder.rename(name, path.name)
        except BaseException as exc:
            folder.unlink(name, missing_ok=True)
            if isinstance(exc, OSError):  # report the final name: the temporary one helps nobody
                exc.filename, exc.filename2 = str(path), None
            raise
        folder.sync()


def rename_new(path: Path, to: Path) -> None:
    """Rename within a folder; call :func:`sync_folder` to make it durable.

    Raises:
        FileExistsError: the new name exists.
    """
    with safe_files.held(path.parent) as folder:
        folder.rename_new(path.name, to.name)
