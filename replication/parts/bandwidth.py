"""Keeps the uploads of a host within its bandwidth limit, and shares it equally among the VMs that send.

A part is put at full speed, and then its VM owes its bytes.  The limit pays the debts of all VMs in equal shares, and what a
small debt leaves goes to the others.  A VM waits only while it owes bytes itself: one that sends less than its share is not
delayed by the copy of another VM, however large the parts of that copy are.  The rate holds over several parts; within any
time the bytes are at most those that the limit allows, and one part of each VM.

The limit is read again every second: another limit, or the end of the work hours, holds for waiting parts, too.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.waits import Waits

LOOK_S = 1.0
_SETTLED_BYTES = 0.5
"""A debt below this is a rounding error."""
_PLACE = "bandwidth"


class Bandwidth:
    """The limit of one host.  The parts of a VM take their turns in the order in which they come."""

    def __init__(self, limit: Callable[[], BandwidthLimit | None], clock: Clock, waits: Waits) -> None:
        """Begin without a debt; ``limit`` returns the present limit."""
        self._limit = limit
        self._clock = clock
        self._waits = waits
        self._turns: dict[str, trio.Lock] = {}
        self._owed_bytes: dict[str, float] = {}
        self._as_of_s = clock.trio_time_s()

    async def take(self, byte_count: int, vm: str) -> None:
        """Wait until so many bytes of a VM may be sent."""
        turn = self._turns.setdefault(vm, trio.Lock())
        try:
            async with turn:
                while (rate := self._rate()) is not None:
                    self._pay(rate)
                    if vm not in self._owed_bytes:
                        self._owed_bytes[vm] = float(byte_count)
                        return
                    self._waits.set(_PLACE, "BandwidthLimited", f"uploads of this host are limited to {rate} bytes/s", vm=vm)
                    left_s = self._owed_bytes[vm] * len(self._owed_bytes) / rate
                    await self._clock.sleep(min(LOOK_S, left_s))
                self._owed_bytes.clear()
        finally:
            self._waits.clear(_PLACE, vm=vm)
            if not turn.statistics().tasks_waiting and not turn.locked():
                self._turns.pop(vm, None)

    def _rate(self) -> int | None:
        limit = self._limit()
        return None if limit is None else limit.bytes_s(self._clock.wall_ns())

    def _pay(self, rate: int) -> None:
        """Pay the debts with what the limit has allowed since the last payment."""
        now_s = self._clock.trio_time_s()
        left = rate * (now_s - self._as_of_s)
        self._as_of_s = now_s
        for number, (vm, owed) in enumerate(sorted(self._owed_bytes.items(), key=lambda item: item[1])):
            paid = min(owed, left / (len(self._owed_bytes) - number))
            left -= paid
            self._owed_bytes[vm] = owed - paid
        self._owed_bytes = {vm: owed for vm, owed in self._owed_bytes.items() if owed > _SETTLED_BYTES}
