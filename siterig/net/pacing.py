"""Keeps a stream of bytes at a rate."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from siterig.blockfs.core.clock import Clock

PIECES_PER_S = 20
"""A rate is kept by pauses between pieces; so many pieces a second make it even."""


class Pacer:
    """Pauses between pieces of a stream, so that it keeps a rate."""

    def __init__(self, bytes_s: float, clock: Clock, ended: trio.Event | None = None) -> None:
        """Begin with the first piece that is sent.

        Args:
            bytes_s: the rate, more than 0.
            clock: measures it.
            ended: when it is set, the rate is kept no more, also by transfers that are under way; None for never.
        """
        self.bytes_s = bytes_s
        self._clock = clock
        self._ended = trio.Event() if ended is None else ended
        self._free_at_s: float | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the data in pieces that are small enough for an even rate."""
        begin, size = 0, max(1, int(self.bytes_s / PIECES_PER_S))
        while begin < len(data):
            end = len(data) if self._ended.is_set() else begin + size
            yield data[begin:end]
            begin = end

    async def wait(self, byte_count: int) -> None:
        """Wait for the time that these bytes need; time in which nothing was sent is not made up for."""
        now = self._clock.trio_time_s()
        begin = now if self._free_at_s is None else max(now, self._free_at_s)
        self._free_at_s = begin + byte_count / self.bytes_s
        with self._clock.move_on_after(self._free_at_s - now):
            await self._ended.wait()
