"""A rate over the last minute, in constant memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
STEP_S = 1.0
"""Amounts within this time are one entry."""


class RateMeter:
    """Counts amounts, and tells their rate over ``WINDOW_S``, or over the time since its start if that is less."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        """Start now; ``now_s`` returns the time in seconds."""
        self._now_s = now_s
        self._entries: deque[tuple[float, int]] = deque()
        self._begun_s = now_s()

    def add(self, amount: int) -> None:
        """Count an amount."""
        now_s = self._now_s()
        if self._entries and now_s - self._entries[-1][0] < STEP_S:
            self._entries[-1] = (self._entries[-1][0], self._entries[-1][1] + amount)
        else:
            self._entries.append((now_s, amount))
        self._drop(now_s)

    @property
    def per_second(self) -> float:
        """The amount per second; 0 during the first step."""
        now_s = self._now_s()
        self._drop(now_s)
        span_s = min(WINDOW_S, now_s - self._begun_s)
        return sum(amount for _, amount in self._entries) / span_s if span_s >= STEP_S else 0.0

    def _drop(self, now_s: float) -> None:
        while self._entries and self._entries[0][0] <= now_s - WINDOW_S:
            self._entries.popleft()
