"""Readings of the clocks that can be compared later, also after a restart of the process or of the host.

Within a boot, elapsed time is the kernel's CLOCK_BOOTTIME: nothing sets it, and it counts while the machine is suspended.
Between two boots only the wall clock has advanced: a step of at most one hour counts as elapsed time, and a larger step
counts as zero, because too little elapsed time deletes nothing.
"""

from __future__ import annotations

from siterig.blockfs.core.wire_model import WireModel

SECOND_NS = 1_000_000_000
BETWEEN_BOOTS_NS_MAX = 3600 * SECOND_NS
_DRIFT_NS_MAX = 5 * SECOND_NS
_DRIFT_RATIO_MAX = 1000
"""A clock that is being adjusted, not set, gains or loses at most this fraction of the elapsed time (0.1 %)."""


class ClockReading(WireModel):
    """Wall time and boot time at one moment; ``boottime_ns`` is comparable only with readings of the same ``boot_id``."""

    boot_id: str
    boottime_ns: int
    wall_ns: int

    def elapsed_ns(self, later: ClockReading) -> int:
        """Return the nanoseconds from this reading to a later one, never negative.

        The module's docstring states the rule for readings of different boots.
        """
        if self.boot_id == later.boot_id:
            return max(0, later.boottime_ns - self.boottime_ns)
        step_ns = later.wall_ns - self.wall_ns
        return step_ns if 0 <= step_ns <= BETWEEN_BOOTS_NS_MAX else 0

    def jump_ns(self, later: ClockReading) -> int:
        """Return by how many nanoseconds the wall clock moved beyond the elapsed time; negative if it was set back.

        The result is 0 if the drift of a clock explains the difference.
        """
        elapsed_ns = self.elapsed_ns(later)
        jump_ns = later.wall_ns - self.wall_ns - elapsed_ns
        return jump_ns if abs(jump_ns) > _DRIFT_NS_MAX + elapsed_ns // _DRIFT_RATIO_MAX else 0
