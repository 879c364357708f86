"""Converts errors of the host's file systems into errors about the user's disk, image or folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.file_limit import too_large
from siterig.blockfs.files.os_errors import FULL, in_brackets, reason


def host_error(what: str, exc: OSError) -> RigError:
    """Return the error for a file error of the host.

    Args:
        what: names the user's disk, image or folder in the message.
        exc: the host's error.
    """
    if exc.errno in FULL:
        return RigError(Code.DiskFull, f"{what}: the host's disk is full{in_brackets(exc, what)}", recoverable=True)
    if exc.errno == errno.ENOMEM:
        return low_memory(what, exc)
    if exc.errno == errno.EFBIG:
        return too_large(what)
    return RigError(Code.HostIoError, f"{what}: {reason(exc, what)}", recoverable=True)


def low_memory(what: str, exc: OSError) -> RigError:
    """Return the error for a lack of memory at the host."""
    text = f"{what}: the host has too little free memory{in_brackets(exc, what)}"
    return RigError(Code.LowMemory, text, recoverable=True)


@contextmanager
def os_errors_as(what: str) -> Iterator[None]:
    """Convert an ``OSError`` of the block by :func:`host_error`."""
    try:
        yield
    except OSError as exc:
        raise host_error(what, exc) from exc
