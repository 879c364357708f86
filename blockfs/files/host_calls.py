"""The calls by which Python code reads and writes the files of change logs and managed disks, with one place for faults.

The engine in C has its own place (cext/src/base/io.h); both ask the same injector.  Without armed faults a call costs one
comparison more than that of ``os``.

Fault contract: the functions are those of ``os``, and raise what those raise.  An armed injector may raise other errors, do
a part of a call, or change bytes, as a failing disk would; the caller cannot see a difference.  Threads: any.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Literal

from typing_extensions import Buffer

HostOperation = Literal["checkpoint", "compact"]
"""Operations of a managed disk that have many calls."""


class HostCalls:
    """The calls as the operating system does them; an injector overrides those that it changes."""

    def opening(self, path: Path, flags: int) -> None:
        """React before a file is opened or created."""

    def opened(self, path: Path, fd: int) -> None:
        """React after a file was opened or created."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Read like ``os.pread``."""
        return os.pread(fd, length, offset)

    def pwritev(self, fd: int, pieces: Sequence[Buffer], offset: int) -> int:
        """Write like ``os.pwritev``."""
        return os.pwritev(fd, pieces, offset)

    def sync(self, fd: int, *, data_only: bool) -> None:
        """Sync like ``os.fdatasync`` or ``os.fsync``."""
        (os.fdatasync if data_only else os.fsync)(fd)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Allocate like ``os.posix_fallocate``."""
        os.posix_fallocate(fd, offset, length)

    def operation(self, name: HostOperation, path: Path, length: int) -> AbstractContextManager[None]:
        """Return the context of an operation that has many calls; entering and leaving it may fail.

        Args:
            name: the operation.
            path: the file that it writes, or the folder of the managed disk.
            length: bytes of the file; 0 if it has none.
        """
        del name, path, length
        return nullcontext()


class _Seam:
    """The calls that are in use; None: those of the operating system."""

    calls: HostCalls | None = None


def install(calls: HostCalls) -> None:
    """Use these calls in this process.

    Raises:
        RuntimeError: others are in use.
    """
    if _Seam.calls is not None:
        raise RuntimeError("faults of host files are installed in this process already")
    _Seam.calls = calls


def uninstall() -> None:
    """Use the calls of the operating system again."""
    _Seam.calls = None


def opening(path: Path, flags: int) -> None:
    """Report that a file is about to be opened; :mod:`siterig.blockfs.files.safe_files` does it for its files.

    Raises:
        OSError: the file is not to be opened.
    """
    if _Seam.calls is not None:
        _Seam.calls.opening(path, flags)


def opened(path: Path, fd: int) -> None:
    """Report that a file was opened."""
    if _Seam.calls is not None:
        _Seam.calls.opened(path, fd)


def open_path(path: Path, flags: int) -> int:
    """Open a file like ``os.open``, in a folder that only this user can change."""
    opening(path, flags)
    fd = os.open(path, flags | os.O_CLOEXEC)
    opened(path, fd)
    return fd


def read_file(path: Path) -> bytes:
    """Return all bytes of a file, in a folder that only this user can change."""
    calls = _Seam.calls
    if calls is None:
        return path.read_bytes()
    fd = open_path(path, os.O_RDONLY)
    try:
        return calls.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def read_open(file: BinaryIO, bytes_max: int = -1) -> bytes:
    """Return the first bytes, or all, of a file that was just opened."""
    calls = _Seam.calls
    if calls is None:
        return file.read(bytes_max)
    size = os.fstat(file.fileno()).st_size
    return calls.pread(file.fileno(), size if bytes_max < 0 else min(size, bytes_max), 0)


def pread(fd: int, length: int, offset: int) -> bytes:
    """Read like ``os.pread``."""
    calls = _Seam.calls
    return os.pread(fd, length, offset) if calls is None else calls.pread(fd, length, offset)


def pwrite(fd: int, data: Buffer, offset: int) -> int:
    """Write like ``os.pwrite``."""
    calls = _Seam.calls
    return os.pwrite(fd, data, offset) if calls is None else calls.pwritev(fd, [data], offset)


def pwritev(fd: int, pieces: Sequence[Buffer], offset: int) -> int:
    """Write like ``os.pwritev``."""
    calls = _Seam.calls
    return os.pwritev(fd, pieces, offset) if calls is None else calls.pwritev(fd, pieces, offset)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write all bytes to a new file."""
    calls, view, at = _Seam.calls, memoryview(data), 0
    while view:
        done = os.write(fd, view) if calls is None else calls.pwritev(fd, [view], at)
        view, at = view[done:], at + done


def fsync(fd: int) -> None:
    """Sync like ``os.fsync``."""
    calls = _Seam.calls
    if calls is None:
        os.fsync(fd)
    else:
        calls.sync(fd, data_only=False)


def fdatasync(fd: int) -> None:
    """Sync like ``os.fdatasync``."""
    calls = _Seam.calls
    if calls is None:
        os.fdatasync(fd)
    else:
        calls.sync(fd, data_only=True)


def allocate(fd: int, offset: int, length: int) -> None:
    """Allocate like ``os.posix_fallocate``."""
    calls = _Seam.calls
    if calls is None:
        os.posix_fallocate(fd, offset, length)
    else:
        calls.allocate(fd, offset, length)


def operation(name: HostOperation, path: Path, length: int = 0) -> AbstractContextManager[None]:
    """Return the context of an operation that has many calls (:meth:`HostCalls.operation`)."""
    calls = _Seam.calls
    return nullcontext() if calls is None else calls.operation(name, path, length)
