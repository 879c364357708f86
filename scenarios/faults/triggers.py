"""The moments that fault rules wait for: events, marks, positions, times, and other rules that fired.

A :class:`TriggerBoard` knows what has happened.  Marks, positions and rules that fired are states: they count however long
ago they happened.  An event and a time count from the moment at which the rule was armed.

Times are nanoseconds of :meth:`siterig.blockfs.core.clock.Clock.monotonic_ns`.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from siterig.blockfs.core.clock import Clock
from siterig.scenarios.faults.values import FaultTrigger


@dataclass(frozen=True, slots=True)
class ArmingMoment:
    """The moment at which a rule was armed: a time, and the number of events before it."""

    time_ns: int
    events: int


class TriggerBoard:
    """Everything that has happened so far in a run.

    Args:
        clock: gives the times of moments.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: dict[str, tuple[int, int]] = {}
        self._event_count = 0
        self._marks: dict[str, int] = {}
        self._fired: dict[str, int] = {}
        self._position = -1

    def now_ns(self) -> int:
        """Return the time of the clock."""
        return self._clock.monotonic_ns()

    def arming_moment(self) -> ArmingMoment:
        """Return the present moment, for a rule that is being armed."""
        return ArmingMoment(self.now_ns(), self._event_count)

    def note_event(self, name: str) -> None:
        """Note that an event happened now."""
        self._event_count += 1
        self._events[name] = (self._event_count, self.now_ns())

    def note_mark(self, name: str) -> None:
        """Note that a mark was set now; a mark that is set stays."""
        self._marks.setdefault(name, self.now_ns())

    def note_fault(self, name: str) -> None:
        """Note that the rule with this name fired."""
        self._fired.setdefault(name, self.now_ns())

    def forget_fault(self, name: str) -> None:
        """Forget that a rule fired: it was removed, and another one may get its name."""
        self._fired.pop(name, None)

    def note_position(self, position: int) -> None:
        """Note that the disks of the host have reached a position."""
        self._position = max(self._position, position)

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that are set, in the order of their moments."""
        return tuple(self._marks)

    def happened_ns(self, trigger: FaultTrigger, armed: ArmingMoment) -> int | None:
        """Return the time at which a moment came; None if it has not come.

        The time of a position is now: the board does not keep when each was reached.
        """
        match trigger.kind:
            case "event":
                return self._event_ns(trigger.name, armed)
            case "mark":
                return self._marks.get(trigger.name)
            case "fault":
                return self._fired.get(trigger.name)
            case "position":
                return self.now_ns() if self._position >= trigger.number else None
            case "time":
                due_ns = armed.time_ns + trigger.number
                return due_ns if self.now_ns() >= due_ns else None

    def _event_ns(self, pattern: str, armed: ArmingMoment) -> int | None:
        """Return the time of the first known event that matches; of each name the last one is known."""
        times = [
            time_ns
            for name, (number, time_ns) in self._events.items()
            if number > armed.events and fnmatch.fnmatchcase(name, pattern)
        ]
        return min(times, default=None)


@dataclass(slots=True)
class FaultWindow:
    """The time in which a rule counts operations: it opens once, and closes once.

    Args:
        after: the moment that opens it; None for the moment at which the rule is armed.
        until: the moment that closes it; None if none does.
        for_ns: how long it is open at most; None for no limit.
        armed: the moment at which the rule was armed.
    """

    after: FaultTrigger | None
    until: FaultTrigger | None
    for_ns: int | None
    armed: ArmingMoment
    opened_ns: int | None = None
    is_closed: bool = False

    @property
    def is_open(self) -> bool:
        """True while the rule counts operations, as of the last :meth:`refresh`."""
        return self.opened_ns is not None and not self.is_closed

    def awaited(self) -> list[FaultTrigger]:
        """Return the moments that change it."""
        moments = [self.after if self.opened_ns is None else None, self.until]
        return [] if self.is_closed else [moment for moment in moments if moment is not None]

    def refresh(self, board: TriggerBoard) -> bool:
        """Open or close the window by the moments that have come; True if it is open now and was not, or the reverse."""
        before = self.is_open
        if self.is_closed:
            return False
        if self.opened_ns is None:
            self.opened_ns = self.armed.time_ns if self.after is None else board.happened_ns(self.after, self.armed)
        end_ns = self._end_ns()
        ended = end_ns is not None and board.now_ns() >= end_ns
        if ended or (self.until is not None and board.happened_ns(self.until, self.armed) is not None):
            self.is_closed = True
        return self.is_open != before

    def _end_ns(self) -> int | None:
        return None if self.for_ns is None or self.opened_ns is None else self.opened_ns + self.for_ns

    def next_change_ns(self) -> int | None:
        """Return the time at which the window changes by the clock alone; None if it does not."""
        if self.is_closed:
            return None
        times = [self._end_ns()]
        if self.opened_ns is None and self.after is not None and self.after.kind == "time":
            times.append(self.armed.time_ns + self.after.number)
        if self.until is not None and self.until.kind == "time":
            times.append(self.armed.time_ns + self.until.number)
        return min((time_ns for time_ns in times if time_ns is not None), default=None)
