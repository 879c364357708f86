"""The limits of a host's uploads: one in work hours, another one outside them, as the service's agent has them.

Hours and days are of the wall clock, in UTC.  They decide only how fast parts are sent.
"""

from __future__ import annotations

from typing import Literal, get_args

from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)
DAY_S = 86400
BYTES_S_MIN, BYTES_S_MAX = 64 << 10, 1 << 40
_EPOCH_WEEKDAY = WEEKDAYS.index("thu")  # 1970-01-01


class BandwidthLimit(WireModel):
    """The limits of one host.

    Attributes:
        work_days: the days on which work hours begin.
        work_begin_s: second of the day at which they begin.
        work_end_s: second of the day at which they end; on the next day if it is not after ``work_begin_s``.
        work_bytes_s: bytes in a second in work hours; None: no limit.
        other_bytes_s: bytes in a second at other times; None: no limit.
    """

    work_days: list[Weekday]
    work_begin_s: int
    work_end_s: int
    work_bytes_s: int | None
    other_bytes_s: int | None

    def check(self) -> None:
        """Check the values (``InvalidLimit`` names the key, its value and what is allowed)."""
        for key, second in (("work_begin_s", self.work_begin_s), ("work_end_s", self.work_end_s)):
            if not 0 <= second <= DAY_S:
                raise RigError(Code.InvalidLimit, f"{key} is {second}; allowed: 0 to {DAY_S}, a second of the day")
        for key, rate in (("work_bytes_s", self.work_bytes_s), ("other_bytes_s", self.other_bytes_s)):
            if rate is not None and not BYTES_S_MIN <= rate <= BYTES_S_MAX:
                raise RigError(
                    Code.InvalidLimit,
                    f"{key} is {rate}; allowed: {BYTES_S_MIN} to {BYTES_S_MAX} bytes a second, or none (siterig pause stops "
                    "the uploads of a VM)",
                )
        if not self.work_days and self.work_bytes_s is not None:
            raise RigError(Code.InvalidLimit, f"work_days is empty; allowed: at least one of {', '.join(WEEKDAYS)}")

    @property
    def words(self) -> str:
        """The limits in words."""
        if self.work_bytes_s == self.other_bytes_s:
            return f"{_rate(self.other_bytes_s)} at all times"
        hours = f"{_time(self.work_begin_s)}-{_time(self.work_end_s)} UTC on {', '.join(self.work_days)}"
        return f"{_rate(self.work_bytes_s)} in work hours ({hours}), {_rate(self.other_bytes_s)} outside"

    def is_work(self, wall_ns: int) -> bool:
        """Return True if the wall time is in work hours."""
        days, second = divmod(wall_ns // SECOND_NS, DAY_S)
        today = WEEKDAYS[(days + _EPOCH_WEEKDAY) % 7]
        yesterday = WEEKDAYS[(days + _EPOCH_WEEKDAY - 1) % 7]
        if self.work_begin_s < self.work_end_s:
            return today in self.work_days and self.work_begin_s <= second < self.work_end_s
        return (today in self.work_days and second >= self.work_begin_s) or (
            yesterday in self.work_days and second < self.work_end_s
        )

    def bytes_s(self, wall_ns: int) -> int | None:
        """Return the limit at a wall time, in bytes a second; None if there is none."""
        return self.work_bytes_s if self.is_work(wall_ns) else self.other_bytes_s


def _rate(bytes_s: int | None) -> str:
    return "no limit" if bytes_s is None else f"{bytes_s} bytes a second"


def _time(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}"
