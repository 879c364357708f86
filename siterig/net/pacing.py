"""Keeps a stream of bytes at a rate."""

from __future__ import annotations

from collections.abc import Iterator

from siterig.blockfs.core.clock import Clock

PIECES_PER_S = 20
"""A rate is kept by pauses between pieces; so many pieces a second make it even."""


class Pacer:
    """Pauses between pieces of a stream, so that it keeps a rate."""

    def __init__(self, bytes_s: float, clock: Clock) -> None:
        """Begin with the first piece that is sent; ``bytes_s`` is more than 0."""
        self.bytes_s = bytes_s
        self._clock = clock
        self._free_at_s: float | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the data in pieces that are small enough for an even rate."""
        size = max(1, int(self.bytes_s / PIECES_PER_S))
        for begin in range(0, len(data), size):
            yield data[begin : begin + size]

    async def wait(self, byte_count: int) -> None:
        """Wait for the time that these bytes need; time in which nothing was sent is not made up for."""
        now = self._clock.trio_time_s()
        begin = now if self._free_at_s is None else max(now, self._free_at_s)
        self._free_at_s = begin + byte_count / self.bytes_s
        await self._clock.sleep(self._free_at_s - now)
