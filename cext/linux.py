"""System calls that Python does not offer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from siterig.cext._core import lib


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Return ``length`` bytes to the file system: they read as zeros, and the file keeps its size.

    Raises:
        OSError: EOPNOTSUPP if the file system has no holes, or another error.
    """
    _check(lib.sr_punch_hole(fd, offset, length))


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range of a file or block device read as zeros: a hole if possible, otherwise written zeros.

    Raises:
        OSError: the range could not be changed.
    """
    _check(lib.sr_io_zero(fd, offset, length))


def set_io_flusher() -> None:
    """Mark this process as one that memory reclaim must not wait for, because it serves disks.

    Raises:
        OSError: EPERM without CAP_SYS_RESOURCE.
    """
    _check(lib.sr_set_io_flusher())


def set_parent_death_signal(number: int) -> None:
    """Let the kernel send this process a signal when the thread that started it ends; see PR_SET_PDEATHSIG(2const).

    Raises:
        OSError: EINVAL: no such signal exists.
    """
    _check(lib.sr_set_parent_death_signal(number))


def return_freed_memory(*, bytes_min: int, kept_bytes_max: int, arenas_max: int) -> None:
    """Let the allocator of the C library return freed blocks to the kernel, and keep few arenas; see mallopt(3).

    Args:
        bytes_min: the size of a block that is returned as soon as it is freed.
        kept_bytes_max: the most free bytes at the end of an arena that are kept.
        arenas_max: the most arenas that threads use, once there are no more than that.
    Raises:
        OSError: EINVAL: the library does not accept a value.
    """
    _check(lib.sr_return_freed_memory(bytes_min, kept_bytes_max, arenas_max))


def trim_memory(*, free_bytes_min: int) -> bool:
    """Return free memory of the C library to the kernel if it has so much; see malloc_trim(3).

    Returns:
        True if memory was returned.
    """
    return bool(lib.sr_trim_memory(free_bytes_min))


def forbid_memory_access() -> None:
    """Forbid core dumps of this process, and access to its memory through ``/proc``; see PR_SET_DUMPABLE(2const)."""
    _check(lib.sr_forbid_memory_access())


def set_command_line(words: Sequence[str]) -> None:
    """Replace the words of this process in ``/proc/self/cmdline``, which ps shows; they are cut at the former length.

    Raises:
        OSError: ``/proc/self/stat`` cannot be read.
    """
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    _check(lib.sr_set_command_line(line, len(line)))


def forgo_sync() -> None:
    """Make each sync of this process return at once, for files that are thrown away when the machine stops.

    A kill of the process still loses nothing: the kernel has the bytes.
    """
    lib.sr_io_forgo_sync()
    os.fsync = os.fdatasync = _forgo  # type: ignore[assignment] # Python's own functions, which all modules call


def _forgo(_fd: object) -> None:
    """Return at once, in place of ``os.fsync`` and ``os.fdatasync``."""


def mount(source: str, target: Path, kind: str, options: str, *, read_only: bool) -> None:
    """Mount a file system of type ``kind`` by mount(2), without set-uid programs and devices.

    Raises:
        OSError: EPERM if the process is not root, or another error.
    """
    _check(lib.sr_mount_fuse(os.fsencode(source), os.fsencode(target), kind.encode(), options.encode(), read_only))


def unmount(target: Path, *, lazily: bool) -> None:
    """Unmount by umount2(2); ``lazily`` hides the mount at once and ends it with its last user.

    Raises:
        OSError: EBUSY, EINVAL, EPERM.
    """
    _check(lib.sr_unmount(os.fsencode(target), lazily))


def _check(rc: int) -> None:
    if rc != 0:
        raise OSError(-rc, os.strerror(-rc))
