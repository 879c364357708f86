"""The times of the cycles of a VM: those of idle VMs of a host are common."""

from __future__ import annotations

import zlib

_BUSY_CYCLES = 3
"""So many cycles with data, one after the other, end the common times of a VM."""
_EARLY_S_MAX = 0.05
"""A cycle that begins so much before its time counts as one at its time."""


class CycleTimes:
    """The times of the cycles of one VM, on the time line of ``Clock.trio_time_s``.

    A VM that was idle has its cycles together with others of its host, until it has written in several in a row.  No
    interval is longer than ordered.  One is shorter when the VM becomes idle, and one when it returns to a time of its own,
    so that the uploads of busy VMs do not begin at one moment.
    """

    def __init__(self, vm: str) -> None:
        """Begin with a VM that has its own time."""
        self._own_share = zlib.crc32(vm.encode()) / (1 << 32)
        self._busy_cycles = 0
        self.joins = False
        """True while the cycles are at the common times."""

    def following(self, begun_s: float, interval_s: float, *, is_idle: bool) -> float:
        """Return the time of the next cycle.

        Args:
            begun_s: the begin of the last cycle.
            interval_s: the interval.
            is_idle: True if the last cycle had small parts only, and there are others that it can travel with.
        """
        self._busy_cycles = 0 if is_idle else self._busy_cycles + 1
        joins = is_idle or (self.joins and self._busy_cycles < _BUSY_CYCLES)
        if not joins and not self.joins:
            return begun_s + interval_s
        self.joins = joins
        shift_s = 0.0 if joins else self._own_share * interval_s
        early_s = min(_EARLY_S_MAX, interval_s / 10)
        return ((begun_s - shift_s + early_s) // interval_s + 1) * interval_s + shift_s
