"""The hours in which a resync that is due begins by itself: outside office hours by default, as in the service."""

from __future__ import annotations

import re
from dataclasses import dataclass

from siterig.blockfs.core.errors import Code, RigError

OPTION = "--resync-window"
OFFICIAL_WINDOW = "18:30-06:00"
NEVER = "never"
_TIMES = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_DAY_MIN = 24 * 60


@dataclass(frozen=True, slots=True)
class ResyncWindow:
    """Minutes of the day in the host's time zone: from ``start_min`` on, before ``end_min``, perhaps over midnight."""

    start_min: int
    end_min: int

    @classmethod
    def parse(cls, text: str) -> ResyncWindow | None:
        """Parse ``HH:MM-HH:MM``; ``never`` is None.

        Raises:
            RigError: ``BadRequest`` names the option, its value and the allowed values.
        """
        if text == NEVER:
            return None
        found = _TIMES.fullmatch(text)
        if found is not None:
            hour, minute, end_hour, end_minute = map(int, found.groups())
            start_min, end_min = hour * 60 + minute, end_hour * 60 + end_minute
            if start_min < _DAY_MIN >= end_min and start_min != end_min:
                return cls(start_min, end_min)
        raise RigError(
            Code.BadRequest,
            f"{OPTION}: {text!r}; allowed: {NEVER}, or two different times of the day like {OFFICIAL_WINDOW} "
            "(00:00-24:00: at any time)",
        )

    @property
    def text(self) -> str:
        """The window as :meth:`parse` reads it."""
        return "-".join(f"{each // 60:02}:{each % 60:02}" for each in (self.start_min, self.end_min))

    def minutes_until(self, minute: int) -> int:
        """Return the number of minutes from a minute of the day to the next start of the window."""
        return (self.start_min - minute) % _DAY_MIN or _DAY_MIN

    def contains(self, minute: int) -> bool:
        """Return whether a minute of the day is in the window."""
        if self.start_min < self.end_min:
            return self.start_min <= minute < self.end_min
        return minute >= self.start_min or minute < self.end_min
