"""The clocks of the hosts of a simulation: all follow the trio run; a fault sets the wall clock of a host."""

from __future__ import annotations

import uuid

from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.clock_reading import SECOND_NS

START_NS = 1_800_000_000_000_000_000
"""Wall time of the beginning."""
BOOTED_NS = 1_000 * SECOND_NS
_BOOTS = uuid.UUID("7b0bb6c4-96c5-4c5a-9d5b-d2b5c1bd3a44")


class HostClock(SystemClock):
    """The clock of one host.

    Attributes:
        ahead_ns: nanoseconds by which the wall clock was set forward.
    """

    def __init__(self, host: str, begun_s: float) -> None:
        """Begin at ``begun_s`` seconds after the first boot of the host."""
        super().__init__()
        self._host = host
        self._boots = 0
        self._boot_id = str(uuid.uuid5(_BOOTS, f"{host} 0"))
        self._begun_s = begun_s
        self._booted_s = 0.0
        self.ahead_ns = 0

    def elapsed_s(self) -> float:
        """Return the seconds since the first boot."""
        return self._begun_s + self.trio_time_s()

    def wall_ns(self) -> int:
        return START_NS + int(self.elapsed_s() * SECOND_NS) + self.ahead_ns

    def boottime_ns(self) -> int:
        return BOOTED_NS + int((self.elapsed_s() - self._booted_s) * SECOND_NS)

    def monotonic_ns(self) -> int:
        return BOOTED_NS + int(self.elapsed_s() * SECOND_NS)

    def reboot(self) -> None:
        """Begin a new boot."""
        self._boots += 1
        self._boot_id = str(uuid.uuid5(_BOOTS, f"{self._host} {self._boots}"))
        self._booted_s = self.elapsed_s()
