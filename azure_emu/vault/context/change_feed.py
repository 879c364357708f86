"""Tells those that watch the vault when something has changed, at most once a second.

It is in memory: nobody that watches needs an old change.  All calls are on the trio thread.
"""

from __future__ import annotations

import secrets

import trio

from siterig.azure_emu.vault.model.vm_status import ChangeCount
from siterig.blockfs.core.clock import Clock

EVERY_S = 1.0
"""The least time between two changes of the count, however much happens."""
PATIENCE_S_MAX = 4.0


class ChangeFeed:
    """The count of changes of one vault; it costs nothing while nobody waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock.real  # a person watches in real time, whatever the clock of the rig does
        self._epoch = secrets.token_hex(8)
        self._count = 0
        self._counted_s = 0.0
        self._changed = trio.Event()

    def note(self) -> None:
        """Note that something has changed."""
        self._changed.set()

    async def wait(self, *, epoch: str, after: int, patience_s: float) -> ChangeCount:
        """Return when the count is not ``after``, or after ``patience_s`` seconds; at once for another epoch."""
        if epoch == self._epoch:
            with self._clock.move_on_after(min(patience_s, PATIENCE_S_MAX)):
                while self._count == after:
                    await self._changed.wait()
                    await self._clock.sleep_until(self._counted_s + EVERY_S)
                    self._take()
        return ChangeCount(epoch=self._epoch, count=self._count)

    def _take(self) -> None:
        """Count the changes since the last call as one."""
        if self._changed.is_set():
            self._changed = trio.Event()
            self._count += 1
            self._counted_s = self._clock.trio_time_s()
