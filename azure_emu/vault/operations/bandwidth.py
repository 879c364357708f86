"""The operations on the bandwidth limit of the site's host, which keeps it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.rig_clock import RIG
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.model.site_settings_api import BandwidthApi
from siterig.blockfs.contracts.bandwidth import BandwidthLimit


class BandwidthOperations(BandwidthApi):
    """The operations on the bandwidth limits of the hosts of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context

    async def bandwidth(self) -> BandwidthLimit | None:
        return await self._context.site.bandwidth()

    async def set_bandwidth(self, *, limit: BandwidthLimit | None) -> None:
        if limit is not None:
            limit.check()
        await self._context.retry_while_away("set bandwidth", RIG, lambda: self._context.site.set_bandwidth(limit=limit))
        now_ns = self._context.clock.wall_ns()
        text = (
            "the uploads of the site have no limit"
            if limit is None
            else f"the uploads of the site are limited: {limit.words}"
        )

        def note(session: Session) -> None:
            events.record(
                session,
                vm=RIG,
                code="BandwidthLimitChanged",
                kind="ServerHealth",
                severity="OK",
                text=text,
                now_ns=now_ns,
            )

        await self._context.database.transact(note)
