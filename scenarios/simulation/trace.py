"""The trace of a run: every call and fault with its simulated time; two runs of a seed have the same hash."""

from __future__ import annotations

import hashlib
from collections import deque

KEPT_LINES = 4000


class RunTrace:
    """The lines of a run; the newest are kept, and all of them are hashed."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.count = 0

    def add(self, time_s: float, text: str) -> None:
        """Add a line."""
        line = f"{time_s:.6f} {text}"
        self._hash.update(line.encode() + b"\n")
        self.lines.append(line)
        self.count += 1

    @property
    def digest(self) -> str:
        """The hash of all lines."""
        return self._hash.hexdigest()
