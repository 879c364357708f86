"""The rig's clock: the time that has elapsed since its vault was made.  Retention, RPO and health count by it.

It is kept in the database (schema.RigClockRow), advances by the rules of :mod:`siterig.blockfs.core.clock` and never goes
back; setting the host's clock does not move it.  Fault contract: a kill loses no elapsed time; within a boot the next
reading counts it.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.db.schema import RigClockRow
from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS, ClockReading

RIG = "rig"
"""The ``affectedObject`` of events that concern no single VM."""


def elapsed_ns(session: Session, clock: Clock) -> int:
    """Return the current time of the rig's clock in nanoseconds; changes nothing."""
    return elapsed_at(session.get(RigClockRow, RigClockRow.ONLY), clock)


def elapsed_at(row: RigClockRow | None, clock: Clock) -> int:
    """Return the current time of the rig's clock by its stored row; 0 if there is none."""
    return 0 if row is None else row.elapsed_ns + _reading(row).elapsed_ns(clock.read())


def advance(session: Session, clock: Clock) -> int:
    """Store and return the current time of the rig's clock; a step of the wall clock since the last call is an event."""
    now = clock.read()
    row = session.get(RigClockRow, RigClockRow.ONLY)
    if row is None:
        row = RigClockRow(id=RigClockRow.ONLY, elapsed_ns=0, **now.model_dump())
        session.add(row)
        return row.elapsed_ns
    before = _reading(row)
    jump_ns = before.jump_ns(now)
    if jump_ns:
        text = _jump_text(before, now, jump_ns)
        events.record(
            session, vm=RIG, code="ClockJumped", kind="ServerHealth", severity="Warning", text=text, now_ns=now.wall_ns
        )
    row.elapsed_ns += before.elapsed_ns(now)
    row.boot_id, row.boottime_ns, row.wall_ns = now.boot_id, now.boottime_ns, now.wall_ns
    return row.elapsed_ns


def place(before: tuple[int, int] | None, time_ns: int, upto_ns: int) -> int:
    """Return the rig's time of an event at a wall time, between the previous event and ``upto_ns``.

    However wrong the wall clock is, the result is neither before the previous event nor in the future.

    Args:
        before: rig time and wall time of the previous event, None if there is none.
        time_ns: wall time of the event.
        upto_ns: rig time that the event is not after.
    """
    if before is None:
        return upto_ns
    elapsed_before_ns, time_before_ns = before
    return min(max(elapsed_before_ns, upto_ns), elapsed_before_ns + max(0, time_ns - time_before_ns))


def _reading(row: RigClockRow) -> ClockReading:
    return ClockReading(boot_id=row.boot_id, boottime_ns=row.boottime_ns, wall_ns=row.wall_ns)


def _jump_text(before: ClockReading, now: ClockReading, jump_ns: int) -> str:
    by = timedelta(seconds=round(abs(jump_ns) / SECOND_NS))
    if before.boot_id == now.boot_id:
        what = f"the host's clock was set {'forward' if jump_ns > 0 else 'back'} by {by}, to {rfc3339(now.wall_ns)}"
    elif jump_ns > 0:
        what = f"the host was off for {by}, or its clock was set forward: it was {rfc3339(before.wall_ns)} in the last boot"
    else:
        what = f"the host's clock is {by} behind the last boot, when it was {rfc3339(before.wall_ns)}"
    return f"{what}; retention, RPO and health count elapsed time, and ignore the step"
