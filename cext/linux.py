"""System calls that Python does not offer."""

from __future__ import annotations

import os
from pathlib import Path

from siterig.cext._core import lib


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give ``length`` bytes back to the file system: they read as zeros, the file keeps its size.

    Raises OSError (EOPNOTSUPP where the file system has no holes).
    """
    _check(lib.sr_punch_hole(fd, offset, length))


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range of a file or block device read as zeros: a hole, or zeros written where it has none.  Raises OSError."""
    _check(lib.sr_io_zero(fd, offset, length))


def set_io_flusher() -> None:
    """Mark this process as one that memory reclaim must not wait for (it serves disks); needs CAP_SYS_RESOURCE.

    Raises OSError (EPERM without the right).
    """
    _check(lib.sr_set_io_flusher())


def mount_fuse(source: str, target: Path, kind: str, options: str, *, read_only: bool) -> None:
    """mount(2) of file system type ``kind``, without set-uid programs and devices.  Raises OSError (EPERM: not root)."""
    _check(lib.sr_mount_fuse(os.fsencode(source), os.fsencode(target), kind.encode(), options.encode(), read_only))


def unmount(target: Path, *, lazily: bool) -> None:
    """umount2(2); ``lazily``: out of sight at once, gone with its last user.  Raises OSError (EBUSY, EINVAL, EPERM)."""
    _check(lib.sr_unmount(os.fsencode(target), lazily))


def _check(rc: int) -> None:
    if rc != 0:
        raise OSError(-rc, os.strerror(-rc))
