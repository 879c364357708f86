"""The two clocks of this host: wall time is shown to people, elapsed time decides.

Wall time may be set, forward and back, at any moment.  Within a boot, elapsed time is the kernel's CLOCK_BOOTTIME: nothing
sets it, and it counts while the machine is suspended.  Between two boots only the wall clock knows anything, so at most one
hour of what it says is counted, and a larger step counts as zero: too little elapsed time deletes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.wire import WireModel

SECOND_NS = 1_000_000_000
BETWEEN_BOOTS_NS_MAX = 3600 * SECOND_NS
_DRIFT_NS_MAX = 5 * SECOND_NS
_DRIFT_RATIO_MAX = 1000
"""A clock that is being adjusted, not set, gains or loses at most this fraction of the elapsed time (0.1 %)."""


class ClockReading(WireModel):
    """Both clocks at one moment; ``boottime_ns`` is comparable only with readings of the same ``boot_id``."""

    boot_id: str
    boottime_ns: int
    wall_ns: int

    def elapsed_ns(self, later: ClockReading) -> int:
        """Nanoseconds from this reading to a later one, never negative; between boots see the module."""
        if self.boot_id == later.boot_id:
            return max(0, later.boottime_ns - self.boottime_ns)
        step_ns = later.wall_ns - self.wall_ns
        return step_ns if 0 <= step_ns <= BETWEEN_BOOTS_NS_MAX else 0

    def jump_ns(self, later: ClockReading) -> int:
        """How far the wall clock moved beyond the elapsed time, negative for back; 0 if a clock's drift explains it."""
        elapsed_ns = self.elapsed_ns(later)
        jump_ns = later.wall_ns - self.wall_ns - elapsed_ns
        return jump_ns if abs(jump_ns) > _DRIFT_NS_MAX + elapsed_ns // _DRIFT_RATIO_MAX else 0


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Clock:
    """This host's clocks; tests give others."""

    wall_ns: Callable[[], int] = time.time_ns
    """Nanoseconds since the epoch: for what is shown or stored for people, never for a decision."""
    boottime_ns: Callable[[], int] = _boottime_ns
    boot_id: str = field(default_factory=current_boot_id)

    def read(self) -> ClockReading:
        """Both clocks now."""
        return ClockReading(boot_id=self.boot_id, boottime_ns=self.boottime_ns(), wall_ns=self.wall_ns())
