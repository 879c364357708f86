"""Errors of the host's file systems as errors of the user's thing: a disk, an image, a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.file_limit import too_large
from siterig.blockfs.files.os_errors import FULL, in_brackets, reason


def host_error(what: str, exc: OSError) -> RigError:
    """A host's file error, in the words of the user's thing that met it."""
    if exc.errno in FULL:
        return RigError(Code.DiskFull, f"{what}: the host's disk is full{in_brackets(exc, what)}", recoverable=True)
    if exc.errno == errno.EFBIG:
        return too_large(what)
    return RigError(Code.HostIoError, f"{what}: {reason(exc, what)}", recoverable=True)


@contextmanager
def os_errors_as(what: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into :func:`host_error`."""
    try:
        yield
    except OSError as exc:
        raise host_error(what, exc) from exc
