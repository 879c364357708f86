"""Sends the parts of a VM in the background while a sync stream is being written, and slows the writer down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from siterig.blockfs.sides.vault_link import PATIENCE_S_MAX
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_groups import DiskGroup
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.part_pipeline import PartPipeline
from siterig.replication.engine.retry import unwrap_group

PASS_PAUSE_S = 2.0
"""The least time between two passes while watermarks move: a pass sends log segments that were closed meanwhile."""
NET_S = 10.0
"""The time after which a pass is made although no watermark has moved."""
ASK_AGAIN_S = 2.0
"""The delay before the watermarks are asked for again after the vault did not answer."""
SPOOLED_PARTS_MAX = 128
"""Largest number of sync parts of a VM that are begun and not applied; it limits the spool to 1 GiB.

A recovery side on the same cores applies at half the rate of the uploads, and must not slow them down.
"""


class Uploader:
    """Runs pass after pass of the outbox.  A slow recovery side is waited for; it is never an error.

    Attributes:
        group: the disks.
        pipeline: the way of new parts to the account.
    """

    def __init__(self, context: AgentContext, outbox: Outbox, group: DiskGroup, nursery: trio.Nursery) -> None:
        self.pipeline = PartPipeline(context, group.vm, outbox, nursery, self.wake)
        self._outbox = outbox
        self._waits = context.waits
        self._clock = context.clock.real
        self._vm = group.vm
        self.group = group
        self._woken = trio.Event()
        self._looked = trio.Event()
        self._begun = 0
        self._finished = 0

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._begun += 1
            self._woken = trio.Event()
            await self._outbox.send(when_checked=self.pipeline.allow_puts)
            self._finished = self._begun
            self._notify()
            with self._clock.move_on_after(NET_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow, self._clock.trio_time_s(), self._woken)
                    await self._woken.wait()
                    nursery.cancel_scope.cancel()

    async def _follow(self, passed_s: float, woken: trio.Event) -> None:
        """Follow the watermarks until the next pass; begin it when one has moved and the last pass was long enough ago."""
        while True:
            moved = await self._outbox.look(patience_s=PATIENCE_S_MAX)
            if moved is None:
                await self._clock.sleep(ASK_AGAIN_S)
                continue
            self._notify()
            if moved and self._clock.trio_time_s() >= passed_s + PASS_PAUSE_S:
                woken.set()

    def _notify(self) -> None:
        self._looked.set()
        self._looked = trio.Event()

    def wake(self) -> None:
        """Begin the next pass now, because there is something to send."""
        self._woken.set()

    async def wait_for_room(self) -> None:
        """Wait until another part may be begun."""
        why = f"{SPOOLED_PARTS_MAX} parts are sent and not applied yet"
        await self.wait_until(lambda: self._unapplied() < SPOOLED_PARTS_MAX, why)

    def _unapplied(self) -> int:
        """Return the number of sync parts that were begun and are not applied."""
        return sum(
            self.pipeline.newest(disk.disk_id, disk.parts) - self._outbox.applied_parts(disk) for disk in self.group.states
        )

    async def wait_until(self, condition: Callable[[], bool], why: str | None = None) -> None:
        """Wait until the condition is true, which may change with each new watermark; ``why``: the reason of the wait."""
        try:
            while not condition():
                if why is not None:
                    self._waits.set("recovery side", "RecoverySideBehind", why, vm=self._vm)
                await self._looked.wait()
        finally:
            if why is not None:
                self._waits.clear("recovery side", vm=self._vm)

    async def wait_all_sent(self) -> None:
        """Wait for a complete pass that begins now: then all present parts are in the cache account."""
        await self.pipeline.wait_idle()
        number = self._begun + 1
        self.wake()
        await self.wait_until(lambda: self._finished >= number)


@asynccontextmanager
async def uploading(context: AgentContext, outbox: Outbox, group: DiskGroup) -> AsyncIterator[Uploader]:
    """Run an uploader for the time of the block; when the block ends normally, all parts are in the cache account."""
    with unwrap_group():
        async with trio.open_nursery() as nursery:
            uploader = Uploader(context, outbox, group, nursery)
            nursery.start_soon(uploader.run)
            nursery.start_soon(uploader.pipeline.run)
            yield uploader
            await uploader.wait_all_sent()
            nursery.cancel_scope.cancel()
