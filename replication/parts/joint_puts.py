"""Small parts of several disks, and of several VMs, on their way into the account as one blob.

The disks of a VM are cut at one moment, so their small parts are put together at once.  VMs whose cycles begin at the same
time join: the first waits for the others, but not for one that is slow.

Fault contract: a part that waits here is in its segment on the disk host.  If the joint put fails for a reason that may be
that of one part, each VM puts its parts itself, and gets its own error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import PartName

SEGMENT_BYTES_MAX = 4096
"""A segment of at most so many bytes is small: it has tags, and little more."""
QUIET_S = 1.0
"""The time after which VMs that have not come are not waited for, if none has come meanwhile."""
WAIT_S_MAX = 5.0
"""The limit of the whole wait."""

_log = structlog.get_logger(__name__)


class _Parts:
    """The parts of one VM."""

    def __init__(self, vm: str, parts: Mapping[PartName, bytes]) -> None:
        self.vm = vm
        self.parts = parts
        self.done = trio.Event()
        self.is_put = False
        self.error: RigError | None = None


class JointPuts:
    """The joint puts of one host."""

    def __init__(self, cache: CacheAccount, uploads: trio.CapacityLimiter, clock: Clock) -> None:
        """Begin without a part.

        Args:
            cache: the account.
            uploads: limits the uploads of the host.
            clock: the time.
        """
        self._cache = cache
        self._uploads = uploads
        self._clock = clock
        self._expected: dict[str, None] = {}
        """The VMs whose parts are waited for."""
        self._waiting: list[_Parts] = []
        self._changed = trio.Event()

    @contextmanager
    def expecting(self, vm: str) -> Iterator[None]:
        """Let others wait for the small parts of this VM, until it has put them or the block ends."""
        self._expected[vm] = None
        try:
            yield
        finally:
            self._expected.pop(vm, None)
            self._note()

    def can_join(self, vm: str, count: int) -> bool:
        """Return True if so many small parts of the VM, or these and those of other VMs, can become one blob."""
        return count > 1 or (count == 1 and vm in self._expected)

    async def put(self, vm: str, parts: Mapping[PartName, bytes]) -> bool:
        """Put the small parts of a VM; return False if the VM must put each by itself.

        Raises:
            RigError: ``CacheUnreachable``, ``CacheAuthentication``.
        """
        mine = _Parts(vm, parts)
        if vm in self._expected:
            del self._expected[vm]
            self._waiting.append(mine)
            self._note()
            await mine.done.wait()
        else:
            await self._put([mine])
        if mine.error is not None:
            raise RigError(mine.error.code, mine.error.message, recoverable=mine.error.recoverable)
        return mine.is_put

    async def run(self) -> None:
        """Put what has come together, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._waiting:
                    await self._wait_changed()
                with self._clock.move_on_after(WAIT_S_MAX):
                    await self._wait_expected()
                together, self._waiting = self._waiting, []
                nursery.start_soon(self._put, together)

    async def _wait_expected(self) -> None:
        while self._expected:
            with self._clock.move_on_after(QUIET_S) as quiet:
                await self._wait_changed()
            if quiet.cancelled_caught:
                return

    def _note(self) -> None:
        self._changed.set()

    async def _wait_changed(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    async def _put(self, together: list[_Parts]) -> None:
        """Put the parts of some VMs, and resolve each."""
        parts = {part: data for each in together for part, data in each.parts.items()}
        try:
            if len(parts) > 1:
                async with self._uploads:
                    await self._cache.put_together(parts)
                for each in together:
                    each.is_put = True
        except RigError as error:
            _log.warning("joint_put_failed", vms=len(together), parts=len(parts), code=error.code, reason=error.message)
            if error.code in (Code.CacheUnreachable, Code.CacheAuthentication):  # of the account, not of a part
                for each in together:
                    each.error = error
        finally:
            for each in together:
                each.done.set()
