"""What the host's own disk may answer: errors that are expected, as errors that say so."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockfs.errors import RigError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def host_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an ``OSError`` into ``DiskFull`` (recoverable) or ``StoreIo``; ``folder`` is named if the error names no file."""
    try:
        yield
    except OSError as exc:
        where = exc.filename or folder
        if exc.errno in _FULL:
            raise RigError("DiskFull", f"{where}: no space left on the host's disk", recoverable=True) from exc
        raise RigError("StoreIo", f"{where}: {exc.strerror}") from exc
