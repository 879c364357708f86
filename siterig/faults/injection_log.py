"""The injections and counts of one injector, for the reports that the director asks for."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.core.fault_contract import FaultCount, FaultReport, InjectedFault

INJECTIONS_KEPT = 10_000
"""Injections that wait for a report."""
INJECTIONS_AT_ONCE = 1000
"""The most injections in one report."""
OVER_KEPT = 1000
"""Rules whose last counts are kept after they were removed."""
PATIENCE_S_MAX = 4.0


class InjectionLog:
    """Everything that an injector has done; the trio thread only.

    Args:
        counts: returns the counts of the rules that are armed.
        clock: the clock of waits.
    """

    def __init__(self, counts: Callable[[], dict[str, FaultCount]], clock: Clock = SYSTEM_CLOCK) -> None:
        self._sources, self._clock = [counts], clock
        self._epoch = str(uuid.uuid4())
        self._sequence = self._dropped = self._reported = 0
        self._kept: deque[tuple[int, InjectedFault]] = deque()
        self._over: dict[str, FaultCount] = {}
        self._news = trio.Event()

    def count_also(self, counts: Callable[[], dict[str, FaultCount]]) -> None:
        """Report the counts of another injector of this process, too."""
        self._sources.append(counts)

    def add(self, injected: InjectedFault) -> None:
        """Note an injection."""
        self._sequence += 1
        if len(self._kept) == INJECTIONS_KEPT:
            number, _ = self._kept.popleft()
            self._dropped += number > self._reported
        self._kept.append((self._sequence, injected))
        self._wake()

    def note_dropped(self, count: int) -> None:
        """Note injections that were lost before they came here."""
        self._dropped += count

    def note_over(self, name: str, count: FaultCount) -> None:
        """Keep the last counts of a rule that was removed, for the next reports."""
        self._over.pop(name, None)
        self._over[name] = count
        if len(self._over) > OVER_KEPT:
            del self._over[next(iter(self._over))]
        self._wake()

    def forget_over(self, name: str) -> None:
        """Forget the counts of a removed rule: another one has its name now."""
        self._over.pop(name, None)

    async def report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        """Return what :meth:`siterig.core.fault_contract.FaultInjector.fault_report` returns."""
        after = after if epoch == self._epoch else 0
        self._reported = max(self._reported, after)
        with self._clock.move_on_after(min(patience_s, PATIENCE_S_MAX)):
            while self._sequence <= after:
                await self._news.wait()
        return self._report(after)

    def last_report(self) -> FaultReport:
        """Return everything that no report had yet, for a process that ends now."""
        return self._report(self._reported)

    def _report(self, after: int) -> FaultReport:
        found = [(number, injected) for number, injected in self._kept if number > after][:INJECTIONS_AT_ONCE]
        return FaultReport(
            epoch=self._epoch,
            sequence=found[-1][0] if found else max(after, self._sequence),
            dropped=self._dropped,
            injections=[injected for _, injected in found],
            counts=self._over | {name: count for counts in self._sources for name, count in counts().items()},
        )

    def next_news(self) -> trio.Event:
        """Return an event that is set when something is noted after this call."""
        return self._news

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
