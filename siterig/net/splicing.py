"""Moves bytes of one socket to another through a pipe, by splice(2): their pages are not copied.

It runs in a thread, which waits in poll(2): a wait in an event loop would take longer than the bytes need.
"""

from __future__ import annotations

import enum
import fcntl
import os
import select
from contextlib import suppress

import trio

PIPE_BYTES = 1 << 20
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class SpliceEnd(enum.Enum):
    """The reason for which moving bytes ended."""

    COMPLETE = "all bytes that were asked for are moved"
    END_OF_STREAM = "the source has no more bytes"
    WOKEN = "the conditions have changed"
    SOURCE_BROKEN = "the connection to the source is broken"
    TARGET_BROKEN = "the connection to the target is broken"


class Splicer:
    """One direction of a connection; both sockets are not blocking."""

    def __init__(self, source: int, target: int, byte_count: int | None = None) -> None:
        """Prepare to move bytes of one socket to another, by their descriptors; ``byte_count`` is None for all bytes."""
        self._source = source
        self._target = target
        self._byte_count = byte_count
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_woken = False
        self.moved_bytes = 0
        """Bytes that the target has got."""
        self.taken_bytes = 0
        """Bytes that the source has given."""
        self.rest = b""
        """Bytes that were taken from the source and not given to the target, when :meth:`run` has returned ``WOKEN``."""

    def wake(self) -> None:
        """End :meth:`run`; called on another thread."""
        self._is_woken = True
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Close what the object owns, after :meth:`run`."""
        os.close(self._waker)

    def run(self) -> SpliceEnd:
        """Move bytes until one of the reasons."""
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with suppress(PermissionError):  # the user has too many pipes: a smaller one is slower
                fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            return self._move(readable, writable)
        finally:
            os.close(readable)
            os.close(writable)

    def _move(self, readable: int, writable: int) -> SpliceEnd:
        while not self._is_woken:
            wanted = PIPE_BYTES if self._byte_count is None else min(PIPE_BYTES, self._byte_count - self.taken_bytes)
            if wanted == 0:
                return SpliceEnd.COMPLETE
            try:
                count = os.splice(self._source, writable, wanted, flags=_FLAGS)
            except BlockingIOError:
                self._wait(self._source, select.POLLIN)
                continue
            except OSError:
                return SpliceEnd.SOURCE_BROKEN
            if count == 0:
                return SpliceEnd.END_OF_STREAM
            self.taken_bytes += count
            while count:
                if self._is_woken:
                    self.rest = os.read(readable, count)
                    break
                try:
                    moved = os.splice(readable, self._target, count, flags=_FLAGS)
                except BlockingIOError:
                    self._wait(self._target, select.POLLOUT)
                    continue
                except OSError:
                    return SpliceEnd.TARGET_BROKEN
                count -= moved
                self.moved_bytes += moved
        return SpliceEnd.WOKEN

    def _wait(self, fd: int, event: int) -> None:
        """Wait until the socket is ready, or :meth:`wake` is called."""
        poll = select.poll()
        poll.register(fd, event)
        poll.register(self._waker, select.POLLIN)
        poll.poll()


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
