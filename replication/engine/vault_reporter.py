"""Reports about a VM to the vault, repeated until the vault has them.

The vault may be down; replication continues meanwhile.
"""

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
    """The reports about a VM that the vault does not have yet.

    They are kept in memory only: after a restart the vault learns of points from the applier, and of errors from the next
    cycle.  A newer report of the same kind replaces an older one that is not sent yet.
    """

    def __init__(self, context: AgentContext, vm: str) -> None:
        self._vault = context.vault
        self._put_news = context.put_news
        self._waits = context.waits
        self._clock = context.clock
        self._vm = vm
        self._unsent: dict[str, Callable[[], Awaitable[None]]] = {}
        self._sending = trio.Lock()

    async def error(self, error: RigError, *, attempt: int, next_try_s: float | None) -> None:
        """Report that a cycle failed."""
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
        await self._send("error", call)

    async def script_failed(self, error: RigError) -> None:
        """Report that the script of the VM failed when it was called with ``--post``; the point exists all the same."""
        _log.warning("app_script_post_failed", vm=self._vm, code=error.code, message=error.message)
        call = partial(self._vault.app_point_failed, vm=self._vm, code=error.code, message=error.message)
        await self._send("script", call)

    async def app_point_failed(self, error: RigError) -> None:
        """Report that an application-consistent point that a user ordered was not made: its freeze or script failed."""
        _log.warning("app_point_failed", vm=self._vm, code=error.code, message=error.message)
        call = partial(self._vault.app_point_failed, vm=self._vm, code=error.code, message=error.message)
        await self._send("app point", call)

    async def recovered(self) -> None:
        """Report the first success after errors."""
        _log.info("replication_recovered", vm=self._vm)
        await self._send("recovered", partial(self._vault.replication_recovered, vm=self._vm))

    async def point_sent(self, cut: CutInfo, cut_at: float, waiting_bytes: dict[str, int]) -> None:
        """Report that the data and tags of a point are in the cache account.

        Args:
            cut: the cut of the point.
            cut_at: time of the cut, on the time line of ``Clock.trio_time_s``.
            waiting_bytes: the bytes in the account that are not applied, by disk id.
        """

        self._put_news.drop(waiting_bytes)

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
                disk_bytes=cut.disk_bytes,
            )

        await self._send(cut.tag_id, call)

    async def wait(self, seconds: float) -> None:
        """Sleep, and send the remaining reports meanwhile."""
        deadline = self._clock.trio_time_s() + seconds
        while self._unsent and (left := deadline - self._clock.trio_time_s()) > 0:
            await self._flush()
            await self._clock.sleep(min(FLUSH_EVERY_S, left))
        await self._clock.sleep_until(deadline)

    async def _send(self, key: str, call: Callable[[], Awaitable[None]]) -> None:
        self._unsent.pop(key, None)
        self._unsent[key] = call
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
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
