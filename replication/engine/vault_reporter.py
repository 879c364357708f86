"""What the vault is told about a VM: in order, and later if it cannot be reached now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from siterig.blockfs.contracts.control import CutInfo
from siterig.blockfs.core.errors import RigError
from siterig.replication.engine.context import AgentContext

FLUSH_EVERY_S = 5.0

_log = structlog.get_logger(__name__)


class VaultReporter:
    """A VM's reports that the vault has not heard yet.

    They are kept in memory only: after a restart the vault learns of points from the applier, and of errors from the
    next cycle.  A newer report of the same kind takes the place of one that was not told yet.
    """

    def __init__(self, context: AgentContext, vm: str) -> None:
        self._vault = context.vault
        self._waits = context.waits
        self._clock = context.clock
        self._vm = vm
        self._unsent: dict[str, Callable[[], Awaitable[None]]] = {}
        self._telling = trio.Lock()

    async def error(self, error: RigError, *, attempt: int, next_try_s: float | None) -> None:
        """A cycle failed."""
        _log.warning(
            "replication_failed",
            vm=self._vm,
            code=error.code,
            message=error.message,
            attempt=attempt,
            next_try_s=next_try_s,
        )
        call = partial(
            self._vault.replication_error,
            vm=self._vm,
            code=error.code,
            message=error.message,
            recoverable=error.recoverable,
            attempt=attempt,
            next_try_s=next_try_s,
        )
        await self._tell("error", call)

    async def recovered(self) -> None:
        """The first success after errors."""
        _log.info("replication_recovered", vm=self._vm)
        await self._tell("recovered", partial(self._vault.replication_recovered, vm=self._vm))

    async def point_sent(self, cut: CutInfo, cut_at: float, waiting_bytes: dict[str, int]) -> None:
        """A point's data and tags are in the cache account; ``cut_at`` on trio's clock.

        ``waiting_bytes``: by disk id, the bytes in the account that are not applied.
        """

        async def call() -> None:
            await self._vault.point_sent(
                vm=self._vm,
                tag_id=cut.tag_id,
                kind=cut.kind,
                name=cut.name,
                position=cut.position,
                time_ns=cut.time_ns,
                downgraded_because=cut.downgraded_because,
                age_s=self._clock.trio_time_s() - cut_at,
                waiting_bytes=waiting_bytes,
            )

        await self._tell(cut.tag_id, call)

    async def wait(self, seconds: float) -> None:
        """Sleep, and tell what is still to be told meanwhile."""
        deadline = self._clock.trio_time_s() + seconds
        while self._unsent and (left := deadline - self._clock.trio_time_s()) > 0:
            await self._flush()
            await self._clock.sleep(min(FLUSH_EVERY_S, left))
        await self._clock.sleep_until(deadline)

    async def _tell(self, key: str, call: Callable[[], Awaitable[None]]) -> None:
        self._unsent.pop(key, None)
        self._unsent[key] = call
        await self._flush()

    async def _flush(self) -> None:
        async with self._telling:
            while self._unsent:
                key, call = next(iter(self._unsent.items()))
                try:
                    await call()
                except RigError as exc:
                    _log.warning("report_not_sent", vm=self._vm, report=key, code=exc.code, message=exc.message)
                    if exc.recoverable:
                        self._waits.set("vault", exc.code, exc.message, vm=self._vm)
                        return
                if self._unsent.get(key) is call:
                    del self._unsent[key]
            self._waits.clear("vault", vm=self._vm)
