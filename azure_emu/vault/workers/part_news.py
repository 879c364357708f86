"""The news that parts were put, on their way from the site to the applier.

Fault contract: news are in memory only, and a call to the applier that fails is not repeated.  The applier looks at all
disks when it starts, and from time to time.
"""

from __future__ import annotations

import structlog

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.news import News

_log = structlog.get_logger(__name__)


class PartNews:
    """The news of one vault; reports of the site do not wait for the applier."""

    def __init__(self, recovery: RecoverySide) -> None:
        self._recovery = recovery
        self._disks = News[str]()

    def note(self, disk_ids: list[str]) -> None:
        """Note that parts of these disks are in the cache account."""
        self._disks.note(disk_ids)

    async def run(self) -> None:
        """Pass the news to the applier, one call at a time, until cancelled."""
        while True:
            await self._disks.wait()
            disk_ids = self._disks.take()
            try:
                await self._recovery.parts_put(disk_ids=disk_ids)
            except RigError as error:
                _log.info("part_news_lost", disks=len(disk_ids), code=error.code, reason=error.message)
