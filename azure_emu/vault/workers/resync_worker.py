"""Begins the resyncs that are due, in the hours that the rig allows.

Fault contract: nothing is stored here.  A resync that is due is a reason in the item, and an automatic resync that failed
follows from the jobs, so a kill costs one round.
"""

from __future__ import annotations

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import Operation, allowed
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import engine, protection_tasks
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.azure_emu.vault.monitoring import automatic_resync
from siterig.blockfs.core.errors import RigError

ROUND_S = 60.0

_log = structlog.get_logger(__name__)


class ResyncWorker:
    """The automatic resyncs of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter, window: ResyncWindow) -> None:
        """Begin resyncs in ``window``, by the rig's wall clock in the time zone of the host."""
        self._context = context
        self._starter = starter
        self._window = window

    async def run(self) -> None:
        """Make a round every ``ROUND_S`` until cancelled."""
        while True:
            try:
                await self.round()
            except RigError as error:
                self._context.waits.set("automatic resync", error.code, error.message)
            else:
                self._context.waits.clear("automatic resync")
            await self._context.clock.sleep(ROUND_S)

    async def round(self) -> None:
        """Begin the resync of each VM that needs one, unless its last automatic one failed."""
        now = self._context.clock.utc().astimezone()
        if not self._window.contains(now.hour * 60 + now.minute):
            return
        for vm in await self._context.database.known("resyncs that are due", self._due):
            try:
                await self._starter.begin(vm, Operation.RESYNC, self._prepare)
            except RigError as error:  # another operation began meanwhile
                _log.info("automatic_resync_delayed", vm=vm, code=error.code, reason=error.message)

    def _due(self, session: Session) -> list[str]:
        items = session.scalars(select(ItemRow).where(ItemRow.resync_reason.is_not(None)).order_by(ItemRow.vm))
        return [
            item.vm
            for item in items
            if Operation.RESYNC in allowed(item)
            and engine.open_job(session, item.vm) is None
            and automatic_resync.failure(session, item.vm) is None
        ]

    def _prepare(self, session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, object]]:
        events.record(
            session,
            vm=item.vm,
            code="AutomaticResyncBegun",
            kind="VmReplication",
            severity="OK",
            text=f"the resync of VM {item.vm!r} begins by itself in the hours {self._window.text}: {item.resync_reason}",
            now_ns=self._context.clock.wall_ns(),
        )
        return protection_tasks.REPAIR, {automatic_resync.AUTOMATIC: True}
