"""What the host's own disk may answer: errors that are expected, as errors that say so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import FULL, files_of, reason

_MEDIA_ERRORS = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EUCLEAN, errno.EBADMSG)
"""What a read of something damaged or lost answers; any other error is of the moment: of memory, open files, rights."""
_SECTOR_BYTES = 4096
_UNREADABLE = b"\xff"


@contextmanager
def host_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` into ``DiskFull`` (recoverable) or ``StoreIo``; ``folder`` is named if the error names no file.

    ``StoreIo`` is recoverable if it says nothing of what is stored.
    """
    try:
        yield
    except OSError as exc:
        where = " to ".join(files_of(exc)) or folder
        if exc.errno in FULL:
            raise RigError(Code.DiskFull, f"{where}: no space left on the host's disk", recoverable=True) from exc
        raise RigError(Code.StoreIo, f"{where}: {reason(exc, where)}", recoverable=not is_media_error(exc)) from exc


def is_media_error(exc: OSError) -> bool:
    """Whether a read failed for what is to be read, not for a temporary lack of something."""
    return exc.errno in _MEDIA_ERRORS


def pread_past_bad_sectors(fd: int, length: int, offset: int) -> bytes:
    """As ``os.pread``; what the host's disk cannot read comes as bytes of ones, which no checksum of ours is right for."""
    try:
        return os.pread(fd, length, offset)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
    found = []
    end = min(offset + length, os.fstat(fd).st_size)
    while offset < end:
        some = min(_SECTOR_BYTES - offset % _SECTOR_BYTES, end - offset)
        try:
            data = os.pread(fd, some, offset)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        found.append(data.ljust(some, _UNREADABLE))
        offset += some
    return b"".join(found)
