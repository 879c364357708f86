"""Moves bytes of one socket to another through a pipe, by splice(2): their pages are not copied.

A loop of the C core runs in a thread, which waits in poll(2): a wait in an event loop would take longer than the bytes need.
"""

from __future__ import annotations

import enum
import fcntl
import os
from contextlib import suppress

import trio

from siterig.cext._core import ffi, lib

PIPE_BYTES = 1 << 19
"""The pipe and the buffers of both sockets fit in the processor's cache together; a larger pipe has a lower rate."""


class SpliceEnd(enum.Enum):
    """The reason for which moving bytes ended."""

    COMPLETE = lib.SR_SPLICE_COMPLETE
    """All bytes that were asked for are moved."""
    END_OF_STREAM = lib.SR_SPLICE_END_OF_STREAM
    """The source has no more bytes."""
    WOKEN = lib.SR_SPLICE_WOKEN
    """The conditions have changed."""
    SOURCE_BROKEN = lib.SR_SPLICE_SOURCE_BROKEN
    """The connection to the source is broken."""
    TARGET_BROKEN = lib.SR_SPLICE_TARGET_BROKEN
    """The connection to the target is broken."""


class Splicer:
    """One direction of a connection; both sockets are not blocking."""

    def __init__(self, source: int, target: int, byte_count: int | None = None) -> None:
        """Prepare to move bytes of one socket to another, by their descriptors; ``byte_count`` is None for all bytes."""
        self._loop = ffi.new("struct sr_splice *")
        self._loop.source = source
        self._loop.target = target
        self._loop.wanted_bytes = -1 if byte_count is None else byte_count
        self._loop.waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.rest = b""
        """Bytes that were taken from the source and not given to the target, when :meth:`run` has returned ``WOKEN``."""

    @property
    def moved_bytes(self) -> int:
        """Bytes that the target has got."""
        return int(self._loop.moved_bytes)

    @property
    def taken_bytes(self) -> int:
        """Bytes that the source has given."""
        return int(self._loop.taken_bytes)

    def wake(self) -> None:
        """End :meth:`run`; called on another thread."""
        lib.sr_splice_wake(self._loop)

    def close(self) -> None:
        """Close what the object owns, after :meth:`run`."""
        os.close(self._loop.waker)

    def run(self) -> SpliceEnd:
        """Move bytes until one of the reasons."""
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with suppress(PermissionError):  # the user has too many pipes: a smaller one is slower
                fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            self._loop.readable, self._loop.writable, self._loop.piece_bytes = readable, writable, PIPE_BYTES
            end = SpliceEnd(lib.sr_splice_run(self._loop))
            if end is SpliceEnd.WOKEN and (waiting_bytes := self.taken_bytes - self.moved_bytes):
                self.rest = os.read(readable, waiting_bytes)
            return end
        finally:
            os.close(readable)
            os.close(writable)


async def run_splicer(splicer: Splicer, limiter: trio.CapacityLimiter) -> SpliceEnd:
    """Move bytes in a thread; the thread has ended when this call returns or is cancelled."""

    async def wake_if_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            splicer.wake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake_if_cancelled)
        with trio.CancelScope(shield=True):  # the thread uses the sockets: it must have ended before they are closed
            end = await trio.to_thread.run_sync(splicer.run, limiter=limiter)
        nursery.cancel_scope.cancel()
    return end
