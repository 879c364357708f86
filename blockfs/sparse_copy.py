"""Copying a disk's bytes from file to file: what is a hole stays one, and zeros that were stored become one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from blockfs.errors import RigError

STEP_BYTES = 8 << 20
BLOCK_BYTES = 4096
ZEROS = bytes(64 << 10)
"""So much of zeros is not written."""

Advance = Callable[[int], None]
"""Told how many bytes more are done, holes included."""


def unreadable(source: Path, at: int, why: str) -> RigError:
    """``ReadFailed``, with the byte at which it could not be read."""
    return RigError("ReadFailed", f"{source}: cannot be read at byte {at}: {why}")


def find_unreadable(source: Path, at: int) -> RigError | None:
    """:func:`unreadable` of the first such block among the ``STEP_BYTES`` from ``at`` on, if there is one."""
    block = at - at % BLOCK_BYTES
    try:
        with source.open("rb", buffering=0) as file:
            while block < at + STEP_BYTES:
                os.pread(file.fileno(), BLOCK_BYTES, block)
                block += BLOCK_BYTES
    except OSError as exc:
        return unreadable(source, block, str(exc.strerror))
    return None


@dataclass(frozen=True, slots=True)
class SparseCopy:
    """Of the first ``size_bytes`` of a file into another one, which holds zeros.  The descriptors stay the caller's."""

    source: Path
    source_fd: int
    target: Path
    target_fd: int
    size_bytes: int

    async def run(self, advance: Advance) -> None:
        """Copy; can be cancelled between steps.

        ``ReadFailed`` names the byte at which the source could not be read; ``DiskFull``, ``HostIoError`` the target.
        """
        at = 0
        while at < self.size_bytes:
            done = await trio.to_thread.run_sync(self._step, at)
            advance(done - at)
            at = done

    def _step(self, at: int) -> int:
        """Copy the next piece of data; returns how far all is done."""
        try:
            try:
                start = os.lseek(self.source_fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return self.size_bytes
                raise
            if start >= self.size_bytes:
                return self.size_bytes
            at = start
            stop = min(os.lseek(self.source_fd, start, os.SEEK_HOLE), start + STEP_BYTES, self.size_bytes)
            data = os.pread(self.source_fd, stop - start, start)
        except OSError as exc:
            raise find_unreadable(self.source, at) or unreadable(self.source, at, str(exc.strerror)) from exc
        if not data:
            raise RigError("ReadFailed", f"{self.source}: ends at byte {at}; it was to have {self.size_bytes}")
        try:
            for piece, place in _pieces(data, at):
                _write(self.target_fd, piece, place)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RigError("DiskFull", f"{self.target}: no space left on its disk", recoverable=True) from exc
            raise RigError("HostIoError", f"{self.target}: cannot be written: {exc.strerror}") from exc
        return at + len(data)


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
