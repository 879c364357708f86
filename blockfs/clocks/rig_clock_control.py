"""Changes of a rig's clock by a user, a test or a fault rule; each returns when all roles follow it.

A change is in force at once, for all roles together.  A role follows it when its sleepers have been woken or have their new
deadlines; then it acknowledges the change on the page.  A role that does not run needs not follow: it reads the page when it
starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import trio

from siterig.blockfs.clocks.clock_page import ClockPage, RoleSlot, ensure_page
from siterig.blockfs.clocks.clock_terms import MILLION, ClockTerms, KernelTimes
from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.watch import inotify

FOLLOW_S = 5.0
"""A role that does not follow a change within this time is reported."""
LOOK_EVERY_S = 0.01
"""The time between two looks at the page where the kernel cannot report its changes."""


class RoleClock(WireModel):
    """The clock of one role."""

    role: str
    wall_time: str
    skew_ns: int
    """The difference of its wall time from that of the others now."""
    drift_ppm: int
    change: int
    """The last change that it follows."""
    running: bool


class ClockState(WireModel):
    """A rig's clock at one moment."""

    wall_time: str
    """RFC 3339, without skews."""
    monotonic_ns: int
    wall_ahead_ns: int
    """The lead over the system's wall time."""
    monotonic_ahead_ns: int
    rate: float
    change: int
    """The number of the last change; 0 if there was none."""
    is_system: bool
    """True if all times are the system's."""
    roles: list[RoleClock]


class RigClockControl:
    """The control of one rig's clock; use it as a context manager.

    ``faults``: the list of the faults of the clock (:mod:`siterig.blockfs.clocks.imposed_faults`), which :meth:`reset` ends.
    ``limit_s``: a role that does not follow within this time is an error; the change stays in force.  Every change raises
    ``RigError``: ``InvalidClock`` if it is not allowed (nothing changes then), ``ClockNotFollowed``, ``ClockDamaged``.
    """

    def __init__(self, path: Path, *, faults: Path | None = None, limit_s: float = FOLLOW_S) -> None:
        ensure_page(path)
        self._page = ClockPage(path)
        self._limit_s = limit_s
        self._faults = faults

    def __enter__(self) -> RigClockControl:
        """Return the control."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the page; all changes stay."""
        self._page.close()

    def state(self) -> ClockState:
        """Return the clock now."""
        terms, kernel = self._page.terms(), KernelTimes.now()
        monotonic_ns, wall_ns = terms.monotonic_at(kernel), terms.wall_at(kernel)
        return ClockState(
            wall_time=rfc3339(wall_ns),
            monotonic_ns=monotonic_ns,
            wall_ahead_ns=wall_ns - kernel.wall_ns,
            monotonic_ahead_ns=monotonic_ns - kernel.monotonic_ns,
            rate=terms.rate_ppm / MILLION,
            change=terms.generation,
            is_system=terms.is_system,
            roles=[_role_clock(slot, terms, kernel) for slot in self._page.slots()],
        )

    def terms(self) -> ClockTerms:
        """Return the terms of the clock now."""
        return self._page.terms()

    def role_names(self) -> dict[int, str]:
        """Return the roles by their slots."""
        return {slot.number: slot.name for slot in self._page.slots()}

    async def advance(self, by_ns: int) -> ClockState:
        """Move wall and monotonic time forward; sleepers that are due wake, in each role in the order of their deadlines."""
        return await self._change(lambda terms, kernel: terms.advanced(by_ns, kernel))

    async def jump(self, by_ns: int, roles: Sequence[str] | None = None) -> ClockState:
        """Move the wall time of all roles forward or back; with ``roles`` only theirs, which is a skew then."""
        if roles is None:
            return await self._change(lambda terms, kernel: terms.jumped(by_ns, kernel))
        slots = self._slots(roles)

        def jumped(terms: ClockTerms, kernel: KernelTimes) -> ClockTerms:
            monotonic_ns = terms.monotonic_at(kernel)
            now = {slot: terms.roles[slot].skew_at(monotonic_ns) + by_ns for slot in slots}
            return terms.with_skews(now, kernel, {slot: terms.roles[slot].drift_ppm for slot in slots})

        return await self._change(jumped)

    async def set_rate(self, rate_ppm: int) -> ClockState:
        """Let both times run so many millionths as fast as real time; with 0 they stand still."""
        return await self._change(lambda terms, kernel: terms.with_rate(rate_ppm, kernel))

    async def set_skew(self, roles: Sequence[str], skew_ns: int, *, drift_ppm: int = 0) -> ClockState:
        """Let the wall time of roles differ by so much from that of the others now, and drift away from there."""
        slots = self._slots(roles)
        return await self._change(
            lambda terms, kernel: terms.with_skews(dict.fromkeys(slots, skew_ns), kernel, dict.fromkeys(slots, drift_ppm))
        )

    async def reset(self) -> ClockState:
        """Return to the system's wall time and speed; monotonic time keeps its lead, because it never goes back.

        The faults of the clock end, too: the removal of their rules moves nothing any more.
        """
        if self._faults is None:
            return await self._change(lambda terms, kernel: terms.as_system(kernel))
        from siterig.blockfs.clocks.imposed_faults import ImposedClockFaults  # noqa: PLC0415 (few commands need it)

        return await self.wait_followed(ImposedClockFaults(self._page, self._faults).reset())

    def _slots(self, roles: Sequence[str]) -> list[int]:
        return [self._page.claim(role).number for role in roles]

    async def _change(self, make: Callable[[ClockTerms, KernelTimes], ClockTerms]) -> ClockState:
        return await self.wait_followed(self._page.change(make).generation)

    async def wait_followed(self, generation: int) -> ClockState:
        """Wait until all roles that are not stopped follow a change, and return the clock.

        Raises:
            RigError: ``ClockNotFollowed`` names those that do not.
        """
        await self._follow(generation)
        state = self.state()
        late = ", ".join(slot.name for slot in self._page.slots() if _is_late(slot, generation))
        if late:
            text = (
                f"the clock was changed (change {generation}), but in {self._limit_s:g} s these roles did not follow: {late}"
            )
            raise RigError(Code.ClockNotFollowed, text, recoverable=True)
        return state

    async def _follow(self, generation: int) -> None:
        """Wait until each role has acknowledged the change or has ended."""
        try:
            instance = inotify.open_instance()
        except OSError:  # this user has no instance left
            await self._look_often(generation)
            return
        try:
            inotify.add_watch(instance, Path(f"/proc/self/fd/{self._page.fd}"), inotify.IN_MODIFY)
            with SYSTEM_CLOCK.move_on_after(self._limit_s):
                while late := [slot for slot in self._page.slots() if _is_late(slot, generation)]:
                    async with trio.open_nursery() as nursery:
                        for slot in late:
                            nursery.start_soon(_cancel_at_end, slot, nursery.cancel_scope)
                        await trio.lowlevel.wait_readable(instance)
                        nursery.cancel_scope.cancel()
                    for _ in inotify.events(instance):
                        pass
        finally:
            os.close(instance)

    async def _look_often(self, generation: int) -> None:
        with SYSTEM_CLOCK.move_on_after(self._limit_s):
            while any(_is_late(slot, generation) for slot in self._page.slots()):
                await SYSTEM_CLOCK.sleep(LOOK_EVERY_S)


def _is_late(slot: RoleSlot, generation: int) -> bool:
    """Return True if a role has to follow a change and does not; a stopped process does nothing before it sees it."""
    process = slot.process
    return slot.acknowledged < generation and process is not None and process.is_running() and not process.is_stopped()


async def _cancel_at_end(slot: RoleSlot, scope: trio.CancelScope) -> None:
    if slot.process is not None:
        await slot.process.ended()
    scope.cancel()


def _role_clock(slot: RoleSlot, terms: ClockTerms, kernel: KernelTimes) -> RoleClock:
    return RoleClock(
        role=slot.name,
        wall_time=rfc3339(terms.wall_at(kernel, slot.number)),
        skew_ns=terms.roles[slot.number].skew_at(terms.monotonic_at(kernel)),
        drift_ppm=terms.roles[slot.number].drift_ppm,
        change=slot.acknowledged,
        running=slot.process is not None and slot.process.is_running(),
    )
