"""Sends the parts of a VM in the background while a sync stream is being written, and slows the writer down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from siterig.blockfs.core.waits import Waits
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import unwrap_group

POLL_S = 0.25
"""Seconds between two requests for the watermarks while parts wait to be applied."""
SPOOLED_PARTS_MAX = 16
"""Largest number of sync parts of a VM (8 MiB each) that are spooled and not applied; it limits the spool."""


class Uploader:
    """Runs pass after pass of the outbox.  A slow recovery side is waited for; it is never an error."""

    def __init__(self, outbox: Outbox, disks: Callable[[], Sequence[DiskSync]], waits: Waits, vm: str) -> None:
        self._outbox = outbox
        self._waits = waits
        self._vm = vm
        self._disks = disks
        self._woken = trio.Event()
        self._passed = trio.Event()
        self._begun = 0
        self._finished = 0

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._begun += 1
            self._woken = trio.Event()
            await self._outbox.send(self._disks())
            self._finished = self._begun
            self._passed.set()
            self._passed = trio.Event()
            with trio.move_on_after(POLL_S):
                await self._woken.wait()

    def wake(self) -> None:
        """Begin the next pass now, because there is something to send."""
        self._woken.set()

    async def wait_for_room(self) -> None:
        """Wait until another part may be spooled."""
        why = f"{SPOOLED_PARTS_MAX} parts are sent and not applied yet"
        await self.wait_until(lambda: self._outbox.spooled_parts(self._disks()) < SPOOLED_PARTS_MAX, why)

    async def wait_until(self, condition: Callable[[], bool], why: str | None = None) -> None:
        """Wait, pass by pass, until the condition is true; ``why`` is recorded as the reason of the wait."""
        try:
            while not condition():
                if why is not None:
                    self._waits.set("recovery side", "RecoverySideBehind", why, vm=self._vm)
                await self._passed.wait()
        finally:
            if why is not None:
                self._waits.clear("recovery side", vm=self._vm)

    async def wait_all_sent(self) -> None:
        """Wait for a complete pass that begins now: then all present parts are in the cache account."""
        number = self._begun + 1
        self.wake()
        await self.wait_until(lambda: self._finished >= number)


@asynccontextmanager
async def uploading(
    outbox: Outbox, disks: Callable[[], Sequence[DiskSync]], waits: Waits, vm: str
) -> AsyncIterator[Uploader]:
    """Run an uploader for the time of the block; when the block ends normally, all parts are in the cache account."""
    with unwrap_group():
        async with trio.open_nursery() as nursery:
            uploader = Uploader(outbox, disks, waits, vm)
            nursery.start_soon(uploader.run)
            yield uploader
            await uploader.wait_all_sent()
            nursery.cancel_scope.cancel()
