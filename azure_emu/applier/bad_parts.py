"""The parts of one disk that are in the cache account and cannot be used.

The module decides when each is tried again, and when the site is asked to send it again.  One part that cannot be read is no
outage of the account: the site sends it again, and all other disks continue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName

REPAIRABLE = frozenset({Code.PartUnreadable, Code.PartNotFound, Code.PartCorrupt, Code.PartRefused, Code.PositionRegressed})
"""Failures that another copy of the part may end."""
OF_ACCOUNT = frozenset({Code.PartUnreadable})
"""Failures of the account, which does not give a part that may be good: status 503, a broken connection, a timeout."""
_TEMPORARY = OF_ACCOUNT | {Code.PartNotFound}
"""Failures that another attempt may end."""
ATTEMPTS = 2
RETRY_S = 3.0
QUICK_FOR_S = 90.0
"""For this time after the first failure a part is tried every ``RETRY_S``: its repair is under way."""
LONG_BAD = (
    "sending it again did not repair it; if files of Azurite were changed or restored while it ran, it returns wrong data "
    "until it is restarted: siterig role restart azurite"
)
"""Text that is added to the error of a part that is bad for longer."""
SLOW_RETRY_S = 30.0
"""The time between two attempts after that."""
REQUEST_AGAIN_S, REQUEST_AGAIN_S_MAX = 10.0, 300.0
"""The time between the first two requests to the site, and the maximum; each further time is twice the one before."""
FOLLOWING_MAX = 16
"""Parts after a bad one that are sent again with it: an account that lost one part has often lost its neighbours."""


@dataclass(slots=True)
class _BadPart:
    error: RigError
    first_s: float
    attempts: int = 0
    requests: int = 0
    request_at_s: float = 0.0

    @property
    def is_certain(self) -> bool:
        return self.error.code not in _TEMPORARY or self.attempts >= ATTEMPTS


class BadParts:
    """The bad parts of one disk; all times are on the time line of the clock's sleeps."""

    def __init__(self) -> None:
        self._bad: dict[PartName, _BadPart] = {}
        self._missing: _BadPart | None = None

    def __bool__(self) -> bool:
        return bool(self._bad)

    def note(self, part: PartName, error: RigError, now_s: float) -> None:
        """Record that the part was tried and failed."""
        bad = self._bad.setdefault(part, _BadPart(error, now_s))
        bad.error = error
        bad.attempts += 1

    def forget(self, part: PartName) -> None:
        """Forget a part that was applied, or is not needed any more."""
        self._bad.pop(part, None)

    def keep_only(self, listed: Iterable[PartName]) -> None:
        """Forget the parts that are not in the account any more."""
        kept = self._bad.keys() & set(listed)
        self._bad = {part: bad for part, bad in self._bad.items() if part in kept}

    def reason(self, part: PartName) -> str | None:
        """Return why a part cannot be used; None if it is not known to be bad."""
        bad = self._bad.get(part)
        return None if bad is None else bad.error.message

    def is_certain(self, part: PartName) -> bool:
        """Return True if the failure of the part is not a temporary one."""
        return part in self._bad and self._bad[part].is_certain

    def age_s(self, part: PartName, now_s: float) -> float:
        """Return for how many seconds the part has been bad."""
        bad = self._bad.get(part)
        return 0.0 if bad is None else now_s - bad.first_s

    def retry_s(self, part: PartName, now_s: float) -> float:
        """Return how many seconds to wait before the part is tried again."""
        return RETRY_S if self.age_s(part, now_s) < QUICK_FOR_S else SLOW_RETRY_S

    def to_request(self, part: PartName, listed: list[PartName], now_s: float) -> list[PartName]:
        """Return the parts to request from the site now, the bad one first; none if the last request was not long ago.

        ``listed`` has the parts in the account, in the order of their application.
        """
        bad = self._bad.get(part)
        if bad is None or not bad.is_certain or now_s < bad.request_at_s:
            return []
        following = [other for other in listed if other.generation == part.generation and other != part]
        following = [
            other for other in following if (other.stream == "log", other.first) >= (part.stream == "log", part.first)
        ]
        return [part, *following[:FOLLOWING_MAX]]

    def note_requested(self, part: PartName, now_s: float) -> None:
        """Record that the part was requested from the site."""
        bad = self._bad.get(part)
        if bad is not None:
            _back_off(bad, now_s)

    def note_missing(self, error: RigError, now_s: float) -> bool:
        """Record that the next part is not in the account while later ones are; return whether to request it now."""
        if self._missing is None:
            self._missing = _BadPart(error, now_s, request_at_s=now_s + REQUEST_AGAIN_S)
        if now_s < self._missing.request_at_s:
            return False
        _back_off(self._missing, now_s)
        return True

    def clear_missing(self) -> None:
        """Record that the next part is in the account, or no part is."""
        self._missing = None


def _back_off(bad: _BadPart, now_s: float) -> None:
    bad.request_at_s = now_s + min(REQUEST_AGAIN_S * 2**bad.requests, REQUEST_AGAIN_S_MAX)
    bad.requests += 1
