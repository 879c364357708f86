"""The news that parts were put, on their way to the recovery side, which applies them then.

Fault contract: news are in memory only, and a report that fails is not repeated.  The recovery side looks at all disks from
time to time, and the report of a recovery point (:meth:`VaultLink.point_sent`) is news of its disks, too.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.news import News

PAUSE_S = 0.1
"""The time from a put to its report.  A copy puts many parts in it, and a cycle ends in it and needs no report."""

_log = structlog.get_logger(__name__)


class PutNews:
    """The news of one host."""

    def __init__(self, vault: VaultLink, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock
        self._disks = News[str]()

    def note(self, disk_id: str) -> None:
        """Note that a part of this disk was put."""
        self._disks.note([disk_id])

    def drop(self, disk_ids: Iterable[str]) -> None:
        """Forget the news of disks that another report brings."""
        self._disks.drop(disk_ids)

    async def run(self) -> None:
        """Report until cancelled, one call at a time."""
        while True:
            await self._disks.wait()
            await self._clock.sleep(PAUSE_S)
            disk_ids = self._disks.take()
            if not disk_ids:
                continue
            try:
                await self._vault.parts_put(disk_ids=disk_ids)
            except RigError as error:
                _log.info("put_news_lost", disks=len(disk_ids), code=error.code, reason=error.message)
