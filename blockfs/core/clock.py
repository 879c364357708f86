"""The clock that every part of siterig reads and sleeps by; tests and faults replace it.

No other module reads the time or sleeps (tests/unit/repo/test_house_clock.py).  Components take a :class:`Clock` as an
argument; :data:`SYSTEM_CLOCK` is the default.

Wall time is shown to people, elapsed time decides.  The wall clock can be set forward and back at any moment.  Within a
boot, elapsed time is the kernel's CLOCK_BOOTTIME: nothing sets it, and it counts while the machine is suspended.  Between
two boots only the wall clock has advanced: a step of at most one hour counts as elapsed time, and a larger step counts as
zero, because too little elapsed time deletes nothing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import trio

from siterig.blockfs.core.boot import current_boot_id
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


class Clock(ABC):
    """Time for one process: the host's clocks, and sleeping and deadlines in trio tasks."""

    @property
    @abstractmethod
    def boot_id(self) -> str:
        """The kernel's id of this boot; values of the other clocks are comparable only within one boot."""

    @abstractmethod
    def wall_ns(self) -> int:
        """Return the nanoseconds since the epoch; for times that people read, never for a decision."""

    @abstractmethod
    def boottime_ns(self) -> int:
        """Return the nanoseconds since the boot, suspension included; use it for durations that outlive a process."""

    @abstractmethod
    def monotonic_ns(self) -> int:
        """Return CLOCK_MONOTONIC in nanoseconds; comparable between all threads and processes of this host."""

    @abstractmethod
    def trio_time_s(self) -> float:
        """Return the seconds on the time line of :meth:`sleep` and of deadlines.

        Call it only in a trio task; only differences between two values have a meaning.
        """

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Suspend the calling trio task for this time; ``seconds`` is at least 0."""

    @abstractmethod
    def sleep_thread(self, seconds: float) -> None:
        """Block the calling thread for this time; never call it on the trio thread of a role."""

    @abstractmethod
    def move_on_after(self, seconds: float, *, shield: bool = False) -> AbstractContextManager[trio.CancelScope]:
        """Return a cancel scope that ends after this time, like :func:`trio.move_on_after`."""

    @abstractmethod
    def fail_after(self, seconds: float) -> AbstractContextManager[trio.CancelScope]:
        """Return a cancel scope that raises :class:`trio.TooSlowError` after this time, like :func:`trio.fail_after`."""

    async def sleep_until(self, deadline_s: float) -> None:
        """Suspend the calling trio task until :meth:`trio_time_s` reaches ``deadline_s``."""
        await self.sleep(max(0.0, deadline_s - self.trio_time_s()))

    def read(self) -> ClockReading:
        """Return the wall time and the boot time now."""
        return ClockReading(boot_id=self.boot_id, boottime_ns=self.boottime_ns(), wall_ns=self.wall_ns())


class SystemClock(Clock):
    """The clocks of this host's kernel and of the current trio run."""

    def __init__(self) -> None:
        self._boot_id: str | None = None

    @property
    def boot_id(self) -> str:
        if self._boot_id is None:
            self._boot_id = current_boot_id()
        return self._boot_id

    def wall_ns(self) -> int:
        return time.time_ns()

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def trio_time_s(self) -> float:
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def sleep_thread(self, seconds: float) -> None:
        time.sleep(seconds)

    def move_on_after(self, seconds: float, *, shield: bool = False) -> trio.CancelScope:
        return trio.move_on_after(seconds, shield=shield)

    def fail_after(self, seconds: float) -> AbstractContextManager[trio.CancelScope]:
        return trio.fail_after(seconds)


SYSTEM_CLOCK = SystemClock()
"""The default of every ``clock`` argument."""
