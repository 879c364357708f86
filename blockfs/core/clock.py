"""The clock that every part of siterig reads and sleeps by; tests and faults replace it.

No other module reads the time or sleeps (tests/unit/repo/test_clock_use.py).  Components take a :class:`Clock` as an
argument; :data:`SYSTEM_CLOCK` is the default.

Wall time is shown to people, elapsed time decides (:mod:`siterig.blockfs.core.clock_reading`): the wall clock can be set
forward and back at any moment.

The module loads neither trio nor pydantic before they are needed, because short commands use it, too.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from siterig.blockfs.core.boot import current_boot_id

if TYPE_CHECKING:
    import trio

    from siterig.blockfs.core.clock_reading import ClockReading


class Clock(ABC):
    """Time for one process: the host's clocks, and sleeping and deadlines in trio tasks."""

    @property
    @abstractmethod
    def boot_id(self) -> str:
        """The id of this boot of the host; values of the other clocks are comparable only within one boot."""

    @property
    def real(self) -> Clock:
        """The clock for waits on other processes, the kernel and the storage medium, which no fault and no user moves.

        A test clock is its own real clock.
        """
        return self

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

    def utc(self) -> datetime:
        """Return the wall time as a date in UTC."""
        return datetime.fromtimestamp(self.wall_ns() / 1_000_000_000, UTC)

    async def sleep_until(self, deadline_s: float) -> None:
        """Suspend the calling trio task until :meth:`trio_time_s` reaches ``deadline_s``."""
        await self.sleep(max(0.0, deadline_s - self.trio_time_s()))

    def read(self) -> ClockReading:
        """Return the wall time and the boot time now."""
        from siterig.blockfs.core.clock_reading import ClockReading

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
        import trio

        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        import trio

        await trio.sleep(seconds)

    def sleep_thread(self, seconds: float) -> None:
        time.sleep(seconds)

    def move_on_after(self, seconds: float, *, shield: bool = False) -> trio.CancelScope:
        import trio

        return trio.move_on_after(seconds, shield=shield)

    def fail_after(self, seconds: float) -> AbstractContextManager[trio.CancelScope]:
        import trio

        return trio.fail_after(seconds)


SYSTEM_CLOCK = SystemClock()
"""The default of every ``clock`` argument."""


def rfc3339(time_ns: int) -> str:
    """Return a wall time as RFC 3339 in UTC with microseconds: ``2026-11-21T22:13:17.000000Z``."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest_ns // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rfc3339_or_none(time_ns: int | None) -> str | None:
    """Return a wall time like :func:`rfc3339`; None for None."""
    return None if time_ns is None else rfc3339(time_ns)
