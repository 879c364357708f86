"""The news that parts were put, on their way from the site to the applier.

Fault contract: news are in memory only, and a call to the applier that fails is not repeated.  The applier looks at all
disks when it starts, and from time to time.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.vault.context.states import PRIMARY, ProtectionState
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.news import News

_NO_MANAGED_DISKS = {
    ProtectionState.ENABLING,
    ProtectionState.ENABLING_FAILED,
    ProtectionState.DISABLING,
    ProtectionState.DISABLING_FAILED,
}
"""In these states the managed disks do not exist yet, or may be deleted already."""

_DISK, _ITEM = DiskRow.__table__.c, ItemRow.__table__.c
_REPLICATING = (
    select(_DISK.disk_id)
    .join_from(DiskRow.__table__, ItemRow.__table__)
    .where(_ITEM.active_location == PRIMARY, _ITEM.protection_state.not_in(_NO_MANAGED_DISKS))
    .where(_DISK.last_position.is_(None))
    .order_by(_DISK.disk_id)
)

_log = structlog.get_logger(__name__)


class PartNews:
    """The news of one vault; reports of the site do not wait for the applier."""

    def __init__(self, recovery: RecoverySide, database: VaultDatabase) -> None:
        self._recovery = recovery
        self._database = database
        self._disks = News[str]()

    def note(self, disk_ids: list[str]) -> None:
        """Note that parts of these disks are in the cache account."""
        self._disks.note(disk_ids)

    async def run(self) -> None:
        """Pass the news to the applier, one call at a time, until cancelled."""
        while True:
            await self._disks.wait()
            noted = set(self._disks.take())
            try:
                disk_ids = [each for each in await replicating_disks(self._database) if each in noted]
                if disk_ids:
                    await self._recovery.parts_put(disk_ids=disk_ids)
            except RigError as error:
                _log.info("part_news_lost", disks=len(noted), code=error.code, reason=error.message)


async def replicating_disks(database: VaultDatabase) -> list[str]:
    """Return the disks whose parts are to be applied: those of VMs whose active location is the site."""
    return list(await database.known("replicating disks", _read_replicating))


def _read_replicating(session: Session) -> list[str]:
    return list(session.scalars(_REPLICATING))
