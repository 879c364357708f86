"""Keeps the uploads of a host within its bandwidth limit.

A part is put at full speed after the time that the parts before it were allowed to take, so the rate holds over several
parts.  The limit is read again every second: another limit, or the end of the work hours, holds for waiting parts, too.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.waits import Waits

LOOK_S = 1.0
_PLACE = "bandwidth"


class Bandwidth:
    """The limit of one host; all its VMs share it, in the order in which their parts come."""

    def __init__(self, limit: Callable[[], BandwidthLimit | None], clock: Clock, waits: Waits) -> None:
        """Begin without a debt; ``limit`` returns the present limit."""
        self._limit = limit
        self._clock = clock
        self._waits = waits
        self._turn = trio.Lock()
        self._owed_bytes = 0.0
        self._as_of_s = clock.trio_time_s()

    async def take(self, byte_count: int, vm: str) -> None:
        """Wait until so many bytes of a VM may be sent."""
        if self._rate() is None and not self._turn.locked():
            self._owed_bytes = 0.0
            return
        try:
            async with self._turn:
                while (rate := self._rate()) is not None:
                    self._pay(rate)
                    if self._owed_bytes <= 0:
                        break
                    self._waits.set(_PLACE, "BandwidthLimited", f"uploads of this host are limited to {rate} bytes/s", vm=vm)
                    await self._clock.sleep(min(LOOK_S, self._owed_bytes / rate))
                self._owed_bytes = 0.0 if rate is None else self._owed_bytes + byte_count
        finally:
            self._waits.clear(_PLACE, vm=vm)

    def _rate(self) -> int | None:
        limit = self._limit()
        return None if limit is None else limit.bytes_s(self._clock.wall_ns())

    def _pay(self, rate: int) -> None:
        now = self._clock.trio_time_s()
        self._owed_bytes = max(0.0, self._owed_bytes - rate * (now - self._as_of_s))
        self._as_of_s = now
