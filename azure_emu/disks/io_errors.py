"""Errors of the host's own disk: which are expected, and what they say about the stored data."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.host_errors import low_memory
from siterig.blockfs.files.os_errors import FULL, files_of, is_media_error, reason

_SECTOR_BYTES = 4096
_UNREADABLE = b"\xff"


@contextmanager
def host_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``RigError``; ``folder`` is named if the error names no file.

    Raises:
        RigError: ``DiskFull``, ``LowMemory`` (recoverable); ``StoreIo``, recoverable if the error says
            nothing about the stored data.
    """
    try:
        yield
    except OSError as exc:
        where = " to ".join(files_of(exc)) or folder
        if exc.errno in FULL:
            raise RigError(Code.DiskFull, f"{where}: no space left on the host's disk", recoverable=True) from exc
        if exc.errno == errno.ENOMEM:
            raise low_memory(str(where), exc) from exc
        raise RigError(Code.StoreIo, f"{where}: {reason(exc, where)}", recoverable=not is_media_error(exc)) from exc


def pread_past_bad_sectors(fd: int, length: int, offset: int) -> bytes:
    """Read like ``os.pread``, with bytes of ones in place of sectors that the host's disk cannot read.

    No checksum of a managed disk matches such bytes.
    """
    try:
        return host_calls.pread(fd, length, offset)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
    pieces = []
    end = min(offset + length, os.fstat(fd).st_size)
    while offset < end:
        some = min(_SECTOR_BYTES - offset % _SECTOR_BYTES, end - offset)
        try:
            data = host_calls.pread(fd, some, offset)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        pieces.append(data.ljust(some, _UNREADABLE))
        offset += some
    return b"".join(pieces)
