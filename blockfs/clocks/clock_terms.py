"""The terms of a controlled clock: how its times follow from those of the kernel, and each change of them.

Monotonic time of a controlled clock never goes back, so an advance cannot be undone; wall time can be set freely.  All roles
have the same monotonic time, because such times cross from role to role; only their wall times can differ.

The bytes of the terms are described in ``docs/reference/formats/clock-page.md``; ``cext/src/base/clock_page.c`` reads them,
too, and calculates the same.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.cext.checksums import crc32c

ROLES_MAX = 32
MILLION = 1_000_000
RATE_MAX = 1000
"""A faster clock would make the roles busy with nothing but their shortest waits."""
DRIFT_PPM_MAX = 10 * MILLION
SECOND_NS = 1_000_000_000
DAY_NS = 86400 * SECOND_NS
WALL_NS_MIN, WALL_NS_MAX = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS for year in (2000, 2200))
"""The wall time of every role stays between these two."""
ADVANCED_NS_MAX = 100 * 366 * DAY_NS
"""The largest lead of monotonic time over that of the kernel."""
SWITCH_NS = 2_000_000
"""A new rate applies this long after its terms are written: every role has read them by then, so no time goes back."""

_HEAD = struct.Struct("<QqqQQQq16s")
_ROLE = struct.Struct("<qqQ")
_CRC, _RESERVED = struct.Struct("<I"), struct.Struct("<I")
TERMS_BYTES = _CRC.size + _RESERVED.size + _HEAD.size + ROLES_MAX * _ROLE.size


@dataclass(frozen=True, slots=True)
class KernelTimes:
    """The kernel's clocks at one moment, in nanoseconds."""

    wall_ns: int
    monotonic_ns: int

    @classmethod
    def now(cls) -> KernelTimes:
        """Read the clocks."""
        return cls(SYSTEM_CLOCK.wall_ns(), SYSTEM_CLOCK.monotonic_ns())


@dataclass(frozen=True, slots=True)
class RoleTerms:
    """The difference of a role's wall time from that of the others: a skew, which changes by a drift."""

    skew_ns: int = 0
    drift_ppm: int = 0
    drift_from_ns: int = 0
    """The skew is exact at this monotonic time of the controlled clock."""

    def skew_at(self, monotonic_ns: int) -> int:
        """Return the difference at a monotonic time of the controlled clock."""
        return self.skew_ns + _millionths(monotonic_ns - self.drift_from_ns, self.drift_ppm)


NO_SKEWS = (RoleTerms(),) * ROLES_MAX


@dataclass(frozen=True, slots=True)
class ClockTerms:
    """All terms, valid from one change of the clock to the next.

    Args:
        generation: number of the change; 0 for a clock that was never changed.
        wall_ns: added to the kernel's wall time.
        monotonic_ns: added to its monotonic time and its boot time.
        rate_ppm: millionths of real speed since ``rate_from_ns`` by the kernel's monotonic time.
        rate_before_ppm: the same before that time.
        rate_from_ns: see above.
        written_ns: the kernel's wall time when they were written.
        boot_id: the kernel's boot in which they were written.
        roles: one for each slot of the page.
    """

    generation: int = 0
    wall_ns: int = 0
    monotonic_ns: int = 0
    rate_ppm: int = MILLION
    rate_before_ppm: int = MILLION
    rate_from_ns: int = 0
    written_ns: int = 0
    boot_id: str = boot.NIL
    roles: tuple[RoleTerms, ...] = NO_SKEWS

    # --- reading ---

    @property
    def is_system(self) -> bool:
        """True if the clock is the kernel's for all roles."""
        return not self.monotonic_ns and self.wall_is_system and self.rate_ppm == self.rate_before_ppm == MILLION

    @property
    def wall_is_system(self) -> bool:
        """True if wall time is the kernel's for all roles, while the rate is 1."""
        return not self.wall_ns and not any(role.skew_ns or role.drift_ppm for role in self.roles)

    def monotonic_at(self, kernel: KernelTimes) -> int:
        """Return the monotonic time of the controlled clock."""
        return kernel.monotonic_ns + self.monotonic_ns + self._gained(kernel)

    def wall_at(self, kernel: KernelTimes, role: int | None = None) -> int:
        """Return the wall time of a role; of the clock without skews for None."""
        skew_ns = 0 if role is None else self.roles[role].skew_at(self.monotonic_at(kernel))
        return kernel.wall_ns + self.wall_ns + self._gained(kernel) + skew_ns

    def _gained(self, kernel: KernelTimes) -> int:
        rate_ppm = self.rate_ppm if kernel.monotonic_ns >= self.rate_from_ns else self.rate_before_ppm
        return _millionths(kernel.monotonic_ns - self.rate_from_ns, rate_ppm - MILLION)

    # --- changes: each returns the next terms ---

    def advanced(self, by_ns: int, kernel: KernelTimes) -> ClockTerms:
        """Move wall and monotonic time forward."""
        if by_ns < 0:
            raise RigError(
                Code.InvalidClock, f"advance: {by_ns} ns go back; monotonic time never does: use jump for wall time"
            )
        return self._next(kernel, wall_ns=self.wall_ns + by_ns, monotonic_ns=self.monotonic_ns + by_ns)

    def jumped(self, by_ns: int, kernel: KernelTimes) -> ClockTerms:
        """Move the wall time of all roles forward or back."""
        return self._next(kernel, wall_ns=self.wall_ns + by_ns)

    def with_rate(self, rate_ppm: int, kernel: KernelTimes) -> ClockTerms:
        """Run so many millionths as fast as real time from a moment after ``kernel``; 0 makes the clock stand still."""
        if not 0 <= rate_ppm <= RATE_MAX * MILLION:
            allowed = f"allowed is 0 (time stands still) to {RATE_MAX}"
            raise RigError(Code.InvalidClock, f"rate: {rate_ppm / MILLION:g} is not allowed: {allowed}")
        return self._next(kernel, **self._rate(rate_ppm, kernel))

    def with_skews(
        self, skews_ns: Mapping[int, int], kernel: KernelTimes, drifts_ppm: Mapping[int, int] | None = None
    ) -> ClockTerms:
        """Let the wall time of roles, by their slots, differ by so much now, and drift away from there."""
        roles, monotonic_ns = list(self.roles), self.monotonic_at(kernel)
        for slot, skew_ns in skews_ns.items():
            drift_ppm = (drifts_ppm or {}).get(slot, 0)
            if not -MILLION < drift_ppm <= DRIFT_PPM_MAX:
                allowed = f"above -1000000, up to {DRIFT_PPM_MAX}"
                raise RigError(Code.InvalidClock, f"drift: {drift_ppm} ppm is not allowed: {allowed}")
            roles[slot] = RoleTerms(skew_ns, drift_ppm, monotonic_ns if drift_ppm else 0)
        return self._next(kernel, roles=tuple(roles))

    def as_system(self, kernel: KernelTimes) -> ClockTerms:
        """Return to the kernel's wall time and speed; monotonic time keeps its lead, because it never goes back."""
        slower = self._rate(MILLION, kernel)
        return self._next(kernel, **slower | {"wall_ns": 0, "roles": NO_SKEWS})

    def after_reboot(self, kernel: KernelTimes) -> ClockTerms:
        """Return the terms for another boot of the machine, in which the kernel's monotonic time began again.

        While the machine was off, the clock had its rate; a drift ends.
        """
        gained_ns = _millionths(max(0, kernel.wall_ns - self.written_ns), self.rate_ppm - MILLION)
        return self._next(
            kernel,
            wall_ns=self.wall_ns + gained_ns,
            rate_before_ppm=self.rate_ppm,
            rate_from_ns=kernel.monotonic_ns,
            roles=tuple(replace(role, drift_ppm=0, drift_from_ns=0) for role in self.roles),
        )

    def _rate(self, rate_ppm: int, kernel: KernelTimes) -> dict[str, Any]:
        """Return the changes for a rate: both are equal at the moment of the switch."""
        at = KernelTimes(kernel.wall_ns + SWITCH_NS, kernel.monotonic_ns + SWITCH_NS)
        gained_ns = self._gained(at)
        return {
            "wall_ns": self.wall_ns + gained_ns,
            "monotonic_ns": self.monotonic_ns + gained_ns,
            "rate_ppm": rate_ppm,
            "rate_before_ppm": self.rate_ppm,
            "rate_from_ns": at.monotonic_ns,
        }

    def _next(self, kernel: KernelTimes, **changes: Any) -> ClockTerms:
        """Return the next generation, after a check of its times."""
        boot_id = boot.kernel_boot_id()
        terms = replace(self, generation=self.generation + 1, written_ns=kernel.wall_ns, boot_id=boot_id, **changes)
        if terms.monotonic_ns > ADVANCED_NS_MAX:
            days = ADVANCED_NS_MAX // DAY_NS
            raise RigError(Code.InvalidClock, f"monotonic time would be more than {days} days ahead of the system's")
        for slot in (None, *range(ROLES_MAX)):
            wall_ns = terms.wall_at(kernel, slot)
            if not WALL_NS_MIN <= wall_ns <= WALL_NS_MAX:
                allowed = f"allowed is {_date(WALL_NS_MIN)} to {_date(WALL_NS_MAX)}"
                raise RigError(Code.InvalidClock, f"the wall time would be {_date(wall_ns)}: {allowed}")
        return terms

    # --- bytes ---

    def encode(self) -> bytes:
        """Return the bytes of the terms."""
        head = _HEAD.pack(
            self.generation,
            self.wall_ns,
            self.monotonic_ns,
            self.rate_ppm,
            self.rate_before_ppm,
            self.rate_from_ns,
            self.written_ns,
            uuid.UUID(self.boot_id).bytes,
        )
        roles = b"".join(_ROLE.pack(role.skew_ns, role.drift_ppm, role.drift_from_ns) for role in self.roles)
        body = _RESERVED.pack(0) + head + roles
        return _CRC.pack(crc32c(body)) + body

    @classmethod
    def decode(cls, data: bytes, generation: int) -> ClockTerms:
        """Return the terms in ``TERMS_BYTES`` bytes.

        Raises:
            ValueError: they are damaged; the text names the field.
        """
        (crc,) = _CRC.unpack_from(data)
        if crc != crc32c(data[_CRC.size :]):
            raise ValueError(f"the checksum of its terms is {crc:08x}, and not that of their bytes")
        found, *values, booted = _HEAD.unpack_from(data, _CRC.size + _RESERVED.size)
        if found != generation:
            raise ValueError(f"its terms are those of change {found}, and its sequence number is {generation}")
        at = _CRC.size + _RESERVED.size + _HEAD.size
        roles = tuple(RoleTerms(*_ROLE.unpack_from(data, at + number * _ROLE.size)) for number in range(ROLES_MAX))
        wall_ns, monotonic_ns, rate_ppm, rate_before_ppm, rate_from_ns, written_ns = values
        booted_id = str(uuid.UUID(bytes=booted))
        terms = cls(found, wall_ns, monotonic_ns, rate_ppm, rate_before_ppm, rate_from_ns, written_ns, booted_id, roles)
        for name, ppm in (("rate", rate_ppm), ("former rate", rate_before_ppm)):
            if ppm > RATE_MAX * MILLION:
                raise ValueError(f"its {name} is {ppm / MILLION:g}; allowed is 0 to {RATE_MAX}")
        return terms


def _millionths(ns: int, ppm: int) -> int:
    """Return ``ns`` times a number of millionths, rounded towards zero."""
    exact = abs(ns * ppm) // MILLION
    return exact if ns * ppm >= 0 else -exact


def _date(wall_ns: int) -> str:
    """Return a date, also one that Python's dates cannot represent."""
    try:
        return f"{datetime.fromtimestamp(0, UTC) + timedelta(seconds=wall_ns // SECOND_NS):%Y-%m-%d}"
    except OverflowError:
        return f"{wall_ns // (366 * DAY_NS):+} years from 1970"
