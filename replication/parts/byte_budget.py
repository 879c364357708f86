"""A budget of memory, in bytes, that tasks share fairly: the task that asks first is served first."""

from __future__ import annotations

from collections import deque

import trio

COPIES = 2
"""Copies of a part's bytes in memory at the same time: as read and compressed, then compressed and encrypted."""


class ByteBudget:
    """So many bytes of memory for all parts of a host that are in work.

    A request for more than the whole budget is served when nothing else is in work.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._free_bytes = total_bytes
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def used_bytes(self) -> int:
        """The bytes that are in use now."""
        return self.total_bytes - self._free_bytes

    async def reserve(self, count: int) -> Reservation:
        """Wait until so many bytes are free, and take them."""
        await trio.lowlevel.checkpoint()
        count = min(count, self.total_bytes)
        if self._waiting or count > self._free_bytes:
            entry = (count, trio.Event())
            self._waiting.append(entry)
            try:
                await entry[1].wait()
            except BaseException:
                if entry[1].is_set():
                    self._free_bytes += count
                else:
                    self._waiting.remove(entry)
                self._serve()
                raise
        else:
            self._free_bytes -= count
        return Reservation(self, count)

    def take_nowait(self, count: int) -> bool:
        """Take so many bytes if they are free and no task waits; return False otherwise."""
        if self._waiting or count > self._free_bytes:
            return False
        self._free_bytes -= count
        return True

    def give_back(self, count: int) -> None:
        """Return so many bytes that were reserved."""
        self._free_bytes += count
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free_bytes:
            count, event = self._waiting.popleft()
            self._free_bytes -= count
            event.set()


class Reservation:
    """Bytes of a budget that one part has; they go back once."""

    def __init__(self, budget: ByteBudget, count: int) -> None:
        self._budget = budget
        self._count = count

    def extend(self, count: int) -> bool:
        """Reserve so many bytes more if they are free now; a holder must not wait for more."""
        if not self._budget.take_nowait(count):
            return False
        self._count += count
        return True

    def reduce(self, count: int) -> None:
        """Keep at most ``count`` bytes, and give the others back."""
        if count < self._count:
            less, self._count = self._count - count, count
            self._budget.give_back(less)

    def release(self) -> None:
        """Give all bytes back; does nothing the second time."""
        self.reduce(0)
