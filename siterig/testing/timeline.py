"""The timeline of a test: one line of JSON for each step of its disks, with the time and the position."""

from __future__ import annotations

import json
from pathlib import Path

from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339


class Timeline:
    """The steps of one test's disks, in memory until :meth:`save`."""

    def __init__(self) -> None:
        self._steps: list[dict[str, object]] = []

    def add(self, what: str, **values: object) -> None:
        """Record a step; ``what`` is a short key like ``mounted``."""
        self._steps.append({"time": rfc3339(SYSTEM_CLOCK.wall_ns()), "what": what} | values)

    def save(self, path: Path) -> None:
        """Write all steps to a file, one line of JSON each."""
        path.write_text("".join(f"{json.dumps(step, default=str)}\n" for step in self._steps))
