"""Copying a disk's bytes from file to file: what is a hole stays one, and zeros that were stored become one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.file_limit import too_large
from siterig.blockfs.files.os_errors import reason
from siterig.cext.linux import zero_range

STEP_BYTES = 8 << 20
ZERO_STEP_BYTES = 256 << 20
BLOCK_BYTES = 4096
ZEROS = bytes(64 << 10)
"""So much of zeros is not written."""

Advance = Callable[[int], None]
"""Called with the number of bytes that were done since the last call, holes included."""


def unreadable(source: Path, at: int, why: str) -> RigError:
    """``ReadFailed``, with the byte at which it could not be read."""
    return RigError(Code.ReadFailed, f"{source}: cannot be read at byte {at}: {why}")


def find_unreadable(source: Path, fd: int, at: int) -> RigError | None:
    """:func:`unreadable` of the first such block among the ``STEP_BYTES`` from ``at`` on, if there is one."""
    block = at - at % BLOCK_BYTES
    try:
        while block < at + STEP_BYTES:
            os.pread(fd, BLOCK_BYTES, block)
            block += BLOCK_BYTES
    except OSError as exc:
        return unreadable(source, block, reason(exc, source))
    return None


@dataclass(frozen=True, slots=True)
class SparseCopy:
    """Copies the first ``size_bytes`` of a file or block device into another one.  The descriptors stay the caller's.

    ``target_is_zero``: the target holds zeros, and none are written.  Else it holds anything (a block device), and zeros are
    written without being transferred where it can do that.
    """

    source: Path
    source_fd: int
    target: Path
    target_fd: int
    size_bytes: int
    target_is_zero: bool = True

    async def run(self, advance: Advance) -> None:
        """Copy; can be cancelled between steps.

        ``ReadFailed`` names the byte at which the source could not be read; ``DiskFull``, ``InvalidDiskSize``,
        ``HostIoError`` the target.
        """
        at = 0
        while at < self.size_bytes:
            # A read may wait for ever for a file system that does not answer; an abandoned write would continue.
            data, start = await trio.to_thread.run_sync(self._read, at, abandon_on_cancel=True)
            done = start if data is None else at + len(data)
            if data is not None:
                write = partial(write_data, target_is_zero=self.target_is_zero)
                await trio.to_thread.run_sync(write, self.target, self.target_fd, data, at)
            elif not self.target_is_zero:
                done = await trio.to_thread.run_sync(self._zero, at, min(start, at + ZERO_STEP_BYTES))
            advance(done - at)
            at = done

    def _read(self, at: int) -> tuple[bytes | None, int]:
        """The data at ``at``; or None, and where the hole that is there ends."""
        try:
            start = seek(self.source_fd, at, os.SEEK_DATA, self.size_bytes)
            if start > at:
                return None, start
            stop = min(seek(self.source_fd, at, os.SEEK_HOLE, self.size_bytes), at + STEP_BYTES)
        except OSError as exc:
            raise find_unreadable(self.source, self.source_fd, at) or unreadable(
                self.source, at, reason(exc, self.source)
            ) from exc
        return read_data(self.source, self.source_fd, at, stop - at), at

    def _zero(self, at: int, end: int) -> int:
        with _writing(self.target):
            zero_range(self.target_fd, at, end - at)
        return end


def read_data(source: Path, fd: int, at: int, length: int) -> bytes:
    """Up to ``length`` bytes, at least one; ``ReadFailed`` names the first byte that cannot be read."""
    try:
        data = os.pread(fd, length, at)
    except OSError as exc:
        raise find_unreadable(source, fd, at) or unreadable(source, at, reason(exc, source)) from exc
    if not data:
        raise RigError(Code.ReadFailed, f"{source}: ends at byte {at}, before the end of its disk")
    return data


def seek(fd: int, at: int, whence: int, end: int) -> int:
    """The next data (``SEEK_DATA``) or hole from ``at`` on, ``end`` if there is none before; a block device is all data."""
    try:
        return min(os.lseek(fd, at, whence), end)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end
        if exc.errno == errno.EINVAL:
            return at if whence == os.SEEK_DATA else end
        raise


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RigError(Code.DiskFull, f"{target}: no space left on its disk", recoverable=True) from exc
        if exc.errno == errno.EFBIG:
            raise too_large(str(target)) from exc
        raise RigError(Code.HostIoError, f"{target}: cannot be written: {reason(exc, target)}") from exc


def write_data(target: Path, fd: int, data: bytes, at: int, *, target_is_zero: bool = True) -> None:
    """Write to a file; runs of zeros only if it does not hold zeros.  ``DiskFull``, ``InvalidDiskSize``, ``HostIoError``."""
    with _writing(target):
        if not target_is_zero:
            _write(fd, memoryview(data), at)
            return
        for piece, place in _pieces(data, at):
            _write(fd, piece, place)


def _pieces(data: bytes, place: int) -> Iterator[tuple[memoryview, int]]:
    """What of the data is not zeros, in runs of whole blocks."""
    view, begin = memoryview(data), None
    for at in range(0, len(data), len(ZEROS)):
        block = data[at : at + len(ZEROS)]
        if block == ZEROS[: len(block)]:
            if begin is not None:
                yield view[begin:at], place + begin
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield view[begin:], place + begin


def _write(fd: int, view: memoryview, place: int) -> None:
    while view:
        done = os.pwrite(fd, view, place)
        view, place = view[done:], place + done
