"""Copies a disk's bytes from file to file: holes stay holes, and stored zeros become holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.files.file_limit import too_large
from siterig.blockfs.files.os_errors import reason
from siterig.cext.linux import zero_range

STEP_BYTES = 8 << 20
ZERO_STEP_BYTES = 256 << 20
BLOCK_BYTES = 4096
ZEROS = bytes(64 << 10)
"""A run of zeros of this length is not written."""


def unreadable(source: Path, at: int, why: str) -> RigError:
    """Return ``ReadFailed`` with the byte that could not be read."""
    return RigError(Code.ReadFailed, f"{source}: cannot be read at byte {at}: {why}")


def find_unreadable(source: Path, fd: int, at: int) -> RigError | None:
    """Find the first unreadable block in the ``STEP_BYTES`` from ``at``.

    Returns:
        Its :func:`unreadable` error, or None if all blocks can be read.
    """
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
    """Copies the first ``size_bytes`` of a file or block device into another one; the caller owns the descriptors.

    ``target_is_zero`` means that the target holds zeros, so zeros are not written.  Otherwise it holds anything (a block
    device), and zeros are written, without a transfer of data where the device supports that.
    """

    source: Path
    source_fd: int
    target: Path
    target_fd: int
    size_bytes: int
    target_is_zero: bool = True

    async def run(self, advance: Advance) -> None:
        """Copy everything; the copy can be cancelled between steps.

        Raises:
            RigError: ``ReadFailed`` names the byte of the source that could not be read; ``DiskFull``,
                ``InvalidDiskSize`` and ``HostIoError`` are about the target.
        """
        at = 0
        while at < self.size_bytes:
            # A read may wait for ever for a file system that hangs.  Writes are not abandoned: they would continue.
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
        """Return the data at ``at``, or None and the end of the hole there."""
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
    """Return up to ``length`` bytes, at least one.

    Raises:
        RigError: ``ReadFailed`` names the first byte that cannot be read.
    """
    try:
        data = os.pread(fd, length, at)
    except OSError as exc:
        raise find_unreadable(source, fd, at) or unreadable(source, at, reason(exc, source)) from exc
    if not data:
        raise RigError(Code.ReadFailed, f"{source}: ends at byte {at}, before the end of its disk")
    return data


def seek(fd: int, at: int, whence: int, end: int) -> int:
    """Return the next data (``SEEK_DATA``) or hole from ``at``, or ``end`` if it comes first; a block device is all data."""
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
    """Write data to a file; runs of zeros are written only if the file does not hold zeros.

    Raises:
        RigError: ``DiskFull``, ``InvalidDiskSize``, ``HostIoError``.
    """
    with _writing(target):
        if not target_is_zero:
            _write(fd, memoryview(data), at)
            return
        for piece, place in _pieces(data, at):
            _write(fd, piece, place)


def _pieces(data: bytes, place: int) -> Iterator[tuple[memoryview, int]]:
    """Yield the parts of the data that are not zeros, in runs of whole blocks."""
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
