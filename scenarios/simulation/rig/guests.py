"""The guests of the simulated host: file systems that can be frozen, and a freeze that fails or takes too long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.replication.guests.host_guests import Guests

FreezeFault = Literal["refuses", "hangs"]


class SimulatedGuests(Guests):
    """The guests; while ``is_frozen`` they write nothing.

    Attributes:
        is_off: True after a shutdown, until the administrator starts the VM again.
        fault: the behaviour of the next freezes; None: they succeed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.fault: FreezeFault | None = None
        self.is_frozen = False
        self.is_off = False

    async def mountpoints(self, disks: list[Path]) -> list[str]:
        return [f"/mnt/{disk.stem}" for disk in disks]

    def frozen(self, mountpoints: list[str], *, timeout_s: float) -> AbstractAsyncContextManager[None]:
        return self._frozen(timeout_s)

    @asynccontextmanager
    async def _frozen(self, timeout_s: float) -> AsyncIterator[None]:
        if self.fault == "refuses":
            raise RigError(Code.FreezeFailed, "the file system cannot be frozen", recoverable=True)
        if self.fault == "hangs":  # the freezer thaws after its limit and reports that
            await self._clock.sleep(timeout_s)
            raise RigError(Code.FreezeTimedOut, f"the freeze did not end within {timeout_s:g} s", recoverable=True)
        self.is_frozen = True
        try:
            with self._clock.move_on_after(timeout_s) as scope:
                yield
        finally:
            self.is_frozen = False
        if scope.cancelled_caught:
            raise RigError(Code.FreezeTimedOut, f"the file systems were thawed after {timeout_s:g} s", recoverable=True)

    async def check_shutdown(self, disks: list[Path]) -> None:
        await trio.lowlevel.checkpoint()

    async def shutdown(self, disks: list[Path]) -> None:
        await trio.lowlevel.checkpoint()
        self.is_off = True

    async def format(self, disk: Path, filesystem: str, label: str, *, sector_bytes: int = 512) -> None:
        raise NotImplementedError

    async def fill(self, disk: Path, image: Path, advance: Advance, *, format_: ImageFormat | None = None) -> None:
        raise NotImplementedError
