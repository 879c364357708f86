"""The refusals of peers on the links between the sides: which of them are news, and those that a host reports to the vault.

Fault contract: nothing here is durable.  A refusal is in the log of the process at once; a kill loses the reports that the
vault does not have yet, and the peer that asks again is refused again.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from siterig.blockfs.core.clock import Clock

REPEATED_S = 3600.0
"""The time after which a refusal with the same reason is news again: a peer may repeat its call for days."""
KNOWN_MAX = 1000
"""The number of refusals that are remembered; beyond it the oldest is news again."""
UNREPORTED_MAX = 20
"""The number of refusals that a host keeps until the vault has them; later ones are only in its log."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A peer that was refused, in words, and the reason."""

    affected: str
    reason: str

    @property
    def key(self) -> str:
        """Names the peer and the reason, without the time at which it was refused."""
        return f"{self.affected}: {self.reason.partition(', and it is ')[0]}"


class RepeatedRefusals:
    """Tells which refusals are news, by the clock of the rig."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen_s: dict[str, float] = {}

    def is_news(self, refusal: Refusal) -> bool:
        """Return True if no refusal with this reason was news lately, and remember it."""
        key, now_s = refusal.key, self._clock.trio_time_s()
        if now_s - self._seen_s.get(key, now_s - REPEATED_S) < REPEATED_S:
            return False
        self._seen_s.pop(key, None)
        self._seen_s[key] = now_s
        if len(self._seen_s) > KNOWN_MAX:
            del self._seen_s[next(iter(self._seen_s))]
        return True


class UnreportedRefusals:
    """The refusals of a host that the vault does not have yet, oldest first."""

    def __init__(self, clock: Clock) -> None:
        self._repeated = RepeatedRefusals(clock)
        self._waiting: list[Refusal] = []
        self._news = trio.Event()

    def note(self, refusal: Refusal) -> None:
        """Keep a refusal until it is reported, if it is news and there is room."""
        if len(self._waiting) < UNREPORTED_MAX and self._repeated.is_news(refusal):
            self._waiting.append(refusal)
            self._news.set()

    async def oldest(self) -> Refusal:
        """Return the oldest refusal; wait until there is one."""
        while not self._waiting:
            self._news = trio.Event()
            await self._news.wait()
        return self._waiting[0]

    def forget_oldest(self) -> None:
        """Forget the oldest refusal: the vault has it."""
        del self._waiting[0]
