"""Sends a VM's parts in the background while a sync stream is being written, and holds the writer back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from siterig.blockfs.core.waits import Waits
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import unwrap_group

POLL_S = 0.25
"""How often the watermarks are asked for while something waits to be applied."""
SPOOLED_PARTS_MAX = 16
"""Sync parts of a VM that may be spooled and not applied (8 MiB each): the spool's size is bounded by it."""


class Uploader:
    """Pass after pass of the outbox.  Waiting for a slow recovery side is a wait for the next pass, never an error."""

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
        """Until cancelled."""
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
        """There is something new to send."""
        self._woken.set()

    async def wait_for_room(self) -> None:
        """Wait until another part may be spooled."""
        why = f"{SPOOLED_PARTS_MAX} parts are sent and not applied yet"
        await self.wait_until(lambda: self._outbox.spooled_parts(self._disks()) < SPOOLED_PARTS_MAX, why)

    async def wait_until(self, condition: Callable[[], bool], why: str | None = None) -> None:
        """Wait, pass by pass; ``why``: for what the recovery side is waited for."""
        try:
            while not condition():
                if why is not None:
                    self._waits.set("recovery side", "RecoverySideBehind", why, vm=self._vm)
                await self._passed.wait()
        finally:
            if why is not None:
                self._waits.clear("recovery side", vm=self._vm)

    async def wait_all_sent(self) -> None:
        """Wait for a whole pass that begins now: then all that is there now is in the cache account."""
        number = self._begun + 1
        self.wake()
        await self.wait_until(lambda: self._finished >= number)


@asynccontextmanager
async def uploading(
    outbox: Outbox, disks: Callable[[], Sequence[DiskSync]], waits: Waits, vm: str
) -> AsyncIterator[Uploader]:
    """An uploader for the time of the block; at its regular end everything is in the cache account."""
    with unwrap_group():
        async with trio.open_nursery() as nursery:
            uploader = Uploader(outbox, disks, waits, vm)
            nursery.start_soon(uploader.run)
            yield uploader
            await uploader.wait_all_sent()
            nursery.cancel_scope.cancel()
