"""Copying a disk's bytes from file to file: what is a hole stays one, and zeros that were stored become one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from blockfs.errors import RigError

STEP_BYTES = 8 << 20
ZEROS = bytes(64 << 10)
"""So much of zeros is not written."""

Advance = Callable[[int], None]
"""Told how many bytes more are done, holes included."""


async def copy_sparse(source: Path, source_fd: int, target: Path, target_fd: int, size_bytes: int, advance: Advance) -> None:
    """Copy the first ``size_bytes`` into a file of zeros; can be cancelled between steps.

    ``ReadFailed`` names the byte at which the source could not be read; ``DiskFull``, ``HostIoError`` the target.
    """
    at = 0
    while at < size_bytes:
        done = await trio.to_thread.run_sync(_step, source, source_fd, target, target_fd, at, size_bytes)
        advance(done - at)
        at = done


def _step(source: Path, source_fd: int, target: Path, target_fd: int, at: int, end: int) -> int:
    """Copy the next piece of data; returns how far all is done."""
    try:
        start = os.lseek(source_fd, at, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end
        raise RigError("ReadFailed", f"{source}: cannot be read at byte {at}: {exc.strerror}") from exc
    if start >= end:
        return end
    stop = min(os.lseek(source_fd, start, os.SEEK_HOLE), start + STEP_BYTES, end)
    try:
        data = os.pread(source_fd, stop - start, start)
    except OSError as exc:
        raise RigError("ReadFailed", f"{source}: cannot be read at byte {start}: {exc.strerror}") from exc
    if not data:
        raise RigError("ReadFailed", f"{source}: ends at byte {start}; it was to have {end}")
    try:
        for piece, place in _pieces(data, start):
            _write(target_fd, piece, place)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RigError("DiskFull", f"{target}: no space left on its disk", recoverable=True) from exc
        raise RigError("HostIoError", f"{target}: cannot be written: {exc.strerror}") from exc
    return start + len(data)


def _pieces(data: bytes, place: int) -> Iterator[tuple[memoryview, int]]:
    """What of the data is not zeros, in runs of whole blocks."""
    view, begin = memoryview(data), None
    for at in range(0, len(data), len(ZEROS)):
        block = view[at : at + len(ZEROS)]
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
