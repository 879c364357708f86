"""The parts of a disk that are in the cache account and cannot be used: when each is tried again, and when the site is
asked to send it again.

One part that cannot be read is no outage of the account: it is asked for again, and all other disks continue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName

REPAIRABLE = frozenset({Code.PartUnreadable, Code.PartNotFound, Code.PartCorrupt, Code.PartRefused, Code.PositionRegressed})
"""Failures that another copy of the part may end."""
_DOUBTFUL = frozenset({Code.PartUnreadable, Code.PartNotFound})
"""Failures that one more look may end."""
LOOKS = 2
LOOK_AGAIN_S = 3.0
QUICK_FOR_S = 90.0
"""For so long after the first failure a part is looked at every ``LOOK_AGAIN_S``: its repair is under way."""
LONG_BAD = (
    "it was not mended by being sent again; if files of Azurite were changed or restored while it ran, it reads wrongly "
    "until it is started anew: siterig role restart azurite"
)
"""Added to the error of a part that is bad for longer."""
SLOW_LOOK_S = 30.0
"""The time between two looks after that."""
ASK_AGAIN_S, ASK_AGAIN_S_MAX = 10.0, 300.0
"""The site is asked again after the first time; each time it takes twice as long as before."""
FOLLOWING_MAX = 16
"""Parts behind a bad one that are sent again with it: an account that lost one has often lost its neighbours."""


@dataclass(slots=True)
class _Bad:
    error: RigError
    first_s: float
    looks: int = 0
    asked: int = 0
    ask_at_s: float = 0.0

    @property
    def is_certain(self) -> bool:
        return self.error.code not in _DOUBTFUL or self.looks >= LOOKS


class BadParts:
    """Those of one disk.  All times are trio's."""

    def __init__(self) -> None:
        self._bad: dict[PartName, _Bad] = {}
        self._missing: _Bad | None = None

    def __bool__(self) -> bool:
        return bool(self._bad)

    def note(self, part: PartName, error: RigError, now_s: float) -> None:
        """The part was tried, and failed."""
        bad = self._bad.setdefault(part, _Bad(error, now_s))
        bad.error = error
        bad.looks += 1

    def forget(self, part: PartName) -> None:
        """The part was applied, or is not needed any more."""
        self._bad.pop(part, None)

    def keep_only(self, listed: Iterable[PartName]) -> None:
        """Forget those that are not in the account any more."""
        kept = self._bad.keys() & set(listed)
        self._bad = {part: bad for part, bad in self._bad.items() if part in kept}

    def reason(self, part: PartName) -> str | None:
        """Why a part cannot be used; None: nothing is known against it."""
        bad = self._bad.get(part)
        return None if bad is None else bad.error.message

    def is_certain(self, part: PartName) -> bool:
        """True if the part's failure is more than that of a moment."""
        return part in self._bad and self._bad[part].is_certain

    def age_s(self, part: PartName, now_s: float) -> float:
        """For how long the part has been bad."""
        bad = self._bad.get(part)
        return 0.0 if bad is None else now_s - bad.first_s

    def retry_s(self, part: PartName, now_s: float) -> float:
        """How long to leave the part alone."""
        return LOOK_AGAIN_S if self.age_s(part, now_s) < QUICK_FOR_S else SLOW_LOOK_S

    def to_ask(self, part: PartName, listed: list[PartName], now_s: float) -> list[PartName]:
        """The parts that the site is to send again now, the bad one first; none if it was asked not long ago.

        ``listed``: the parts in the account, in the order of their application.
        """
        bad = self._bad.get(part)
        if bad is None or not bad.is_certain or now_s < bad.ask_at_s:
            return []
        behind = [other for other in listed if other.generation == part.generation and other != part]
        behind = [other for other in behind if (other.stream == "log", other.first) >= (part.stream == "log", part.first)]
        return [part, *behind[:FOLLOWING_MAX]]

    def asked(self, part: PartName, now_s: float) -> None:
        """The site was asked."""
        bad = self._bad.get(part)
        if bad is not None:
            _back_off(bad, now_s)

    def missing(self, error: RigError, now_s: float) -> bool:
        """The next part is not in the account, but later ones are; whether the site is to be asked for it now."""
        if self._missing is None:
            self._missing = _Bad(error, now_s, ask_at_s=now_s + ASK_AGAIN_S)
        if now_s < self._missing.ask_at_s:
            return False
        _back_off(self._missing, now_s)
        return True

    def nothing_missing(self) -> None:
        """The next part is there, or nothing is."""
        self._missing = None


def _back_off(bad: _Bad, now_s: float) -> None:
    bad.ask_at_s = now_s + min(ASK_AGAIN_S * 2**bad.asked, ASK_AGAIN_S_MAX)
    bad.asked += 1
