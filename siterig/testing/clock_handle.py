"""The handle that a test gets for the clock of a rig."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from siterig.core import clock_words
from siterig.testing.rig_handles import RigHandle, VmHandle
from siterig.testing.trio_thread import run_in_thread

if TYPE_CHECKING:
    from siterig.blockfs.clocks.rig_clock_control import ClockState, RigClockControl


class ClockHandle:
    """The clock of a rig; at the end of the test it is the system's again.

    Each change returns when all roles follow it.  Every one raises ``RigError``: ``InvalidClock`` if it is not allowed,
    ``ClockNotFollowed`` names the roles that do not follow.
    """

    def __init__(self, at: RigHandle | VmHandle) -> None:
        """Control the clock of a rig.

        Args:
            at: the rig, or a VM of it.

        Raises:
            RigError: ``BadRequest`` for a rig that other processes use, too.
        """
        self._rig = at.rig if isinstance(at, VmHandle) else at
        self._rig.check_own("the clock")
        self._is_changed = False

    def state(self) -> ClockState:
        """Return the clock now, with the wall time of each role."""

        async def look(control: RigClockControl) -> ClockState:
            return control.state()

        return self._with(look)

    def now(self) -> datetime:
        """Return the wall time of the rig, without skews of roles."""
        return datetime.fromisoformat(self.state().wall_time)

    def advance(self, by: str) -> ClockState:
        """Move wall and monotonic time forward, and wake everything that is due, in the order of the times.

        Args:
            by: a time like ``25h``.
        """
        by_ns = clock_words.duration_ns("by", by)
        return self._change(lambda control: control.advance(by_ns), "clock_advanced", by=by)

    def jump(self, by: str) -> ClockState:
        """Move wall time forward or back, as if it had been set; monotonic time is not moved, and nothing wakes.

        Args:
            by: a time with a sign: ``+1h``, ``-30s``.
        """
        by_ns = clock_words.shift_ns("by", by)
        return self._change(lambda control: control.jump(by_ns), "clock_jumped", by=by)

    def rate(self, times: float) -> ClockState:
        """Let wall and monotonic time run faster, slower, or not at all.

        Args:
            times: the speed; 1 is real time, 0 stands still, 1000 is the most.
        """
        ppm = clock_words.rate_ppm(times)
        return self._change(lambda control: control.set_rate(ppm), "clock_rate_set", times=times)

    def skew(self, role: str, by: str, *, drift: str | None = None) -> ClockState:
        """Let the wall time of one role differ from that of the others.

        Args:
            role: the role, like ``agent``.
            by: a time with a sign; ``0`` ends the skew.
            drift: the growth of the skew: ``+200ppm``, ``-1%``.
        """
        by_ns, ppm = clock_words.shift_ns("by", by), clock_words.drift_ppm("drift", drift)
        clock_words.check_role(role, [each.role for each in self.state().roles])
        return self._change(
            lambda control: control.set_skew([role], by_ns, drift_ppm=ppm), "clock_skewed", role=role, by=by, drift=drift
        )

    def reset(self) -> ClockState:
        """Return to the wall time and speed of the system; monotonic time keeps its lead, because it never goes back."""
        state = self._change(lambda control: control.reset(), "clock_reset")
        self._is_changed = False
        return state

    def restore(self) -> None:
        """Reset the clock if this handle has changed it; the end of a test does it."""
        if self._is_changed:
            self.reset()

    def _change(self, work: Callable[[RigClockControl], Awaitable[ClockState]], what: str, **values: object) -> ClockState:
        self._is_changed = True  # a change that a role does not follow is in force, too
        state = self._with(work)
        self._rig.timeline.add(what, **values, wall_time=state.wall_time)
        return state

    def _with(self, work: Callable[[RigClockControl], Awaitable[ClockState]]) -> ClockState:
        from siterig.blockfs.clocks.rig_clock_control import RigClockControl  # noqa: PLC0415 (rigs without it start faster)

        async def opened() -> ClockState:
            layout = self._rig.testbed.layout
            with RigClockControl(layout.clock, faults=layout.clock_faults) as control:
                return await work(control)

        return run_in_thread(opened)
