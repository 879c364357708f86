"""Clocks for tests: :class:`SettableClock` sleeps by trio's clock, :class:`FakeClock` only when the test advances it."""

from __future__ import annotations

import heapq
import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
import trio.testing

from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.clock_reading import SECOND_NS

START_NS = 1_800_000_000_000_000_000
"""Wall time of a new clock."""


class SettableClock(SystemClock):
    """A clock whose wall, boot and monotonic times change only when the test changes them; sleeping follows the trio run."""

    def __init__(self, wall_ns: int = START_NS, boottime_ns: int = 1_000 * SECOND_NS) -> None:
        super().__init__()
        self._boot_id = str(uuid.uuid4())
        self._wall_ns = wall_ns
        self._boottime_ns = boottime_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def boottime_ns(self) -> int:
        return self._boottime_ns

    def monotonic_ns(self) -> int:
        return self._boottime_ns

    def sleep_thread(self, seconds: float) -> None:
        self.advance_ns(int(seconds * SECOND_NS))

    def advance_ns(self, ns: int) -> None:
        """Let this much time pass on all clocks."""
        assert ns >= 0
        self._wall_ns += ns
        self._boottime_ns += ns

    def step_wall_ns(self, by_ns: int) -> None:
        """Set the wall clock forward or back; no time passes."""
        self._wall_ns += by_ns

    def reboot(self, after_ns: int) -> None:
        """Start a new boot; the wall clock advances by ``after_ns``."""
        self._wall_ns += after_ns
        self._boottime_ns = 20 * SECOND_NS
        self._boot_id = str(uuid.uuid4())


class FakeClock(SettableClock):
    """A settable clock with its own time line for sleeps and deadlines: they end only when the test advances the clock."""

    def __init__(self, wall_ns: int = START_NS, boottime_ns: int = 1_000 * SECOND_NS) -> None:
        super().__init__(wall_ns, boottime_ns)
        self._passed_ns = 0
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        """Heap of (due on ``_passed_ns``, number, what to do then)."""
        self._numbers = itertools.count()

    def trio_time_s(self) -> float:
        return self._passed_ns / SECOND_NS

    def advance_ns(self, ns: int) -> None:
        """Let time pass; sleeps and deadlines that are due end, in the order of their times."""
        end_ns = self._passed_ns + ns
        while self._timers and self._timers[0][0] <= end_ns:
            due_ns, _, act = heapq.heappop(self._timers)
            self._pass_ns(due_ns)
            act()
        self._pass_ns(end_ns)

    async def run_for(self, seconds: float) -> None:
        """Let time pass from one due sleep or deadline to the next; before each, all tasks run until they block."""
        end_ns = self._passed_ns + int(seconds * SECOND_NS)
        await trio.testing.wait_all_tasks_blocked()
        while self._timers and self._timers[0][0] <= end_ns:
            self.advance_ns(self._timers[0][0] - self._passed_ns)
            await trio.testing.wait_all_tasks_blocked()
        self.advance_ns(end_ns - self._passed_ns)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        due = trio.Event()
        with self._timer(seconds, due.set):
            await due.wait()

    @contextmanager
    def move_on_after(self, seconds: float, *, shield: bool = False) -> Iterator[trio.CancelScope]:  # type: ignore[override]
        with trio.CancelScope(shield=shield) as scope, self._timer(seconds, scope.cancel):
            yield scope

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        with self.move_on_after(seconds) as scope:
            yield scope
        if scope.cancelled_caught:
            raise trio.TooSlowError

    @contextmanager
    def _timer(self, seconds: float, act: Callable[[], None]) -> Iterator[None]:
        """Run ``act`` when the time has passed, unless the block ends before."""
        timer = (self._passed_ns + int(seconds * SECOND_NS), next(self._numbers), act)
        heapq.heappush(self._timers, timer)
        try:
            yield
        finally:
            if timer in self._timers:
                self._timers.remove(timer)
                heapq.heapify(self._timers)

    def _pass_ns(self, upto_ns: int) -> None:
        super().advance_ns(upto_ns - self._passed_ns)
        self._passed_ns = upto_ns
