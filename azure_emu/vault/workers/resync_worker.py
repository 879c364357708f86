"""Begins the resyncs that are due, in the hours that the rig allows.

Fault contract: nothing is stored here.  A resync that is due is a reason in the item, and an automatic resync that failed
follows from the jobs, so a kill costs one look.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import structlog
import trio
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.moments import VaultMoment
from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import Operation, allowed
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import engine, protection_tasks
from siterig.azure_emu.vault.jobs.job_starter import JobStarter
from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.azure_emu.vault.monitoring import automatic_resync
from siterig.blockfs.core.errors import Code, RigError

ROUND_S = 60.0
"""The longest time between two looks: the wall time of the rig can be set, which wakes nobody."""
WAITS = "ResyncDue"
"""The code of the wait of a VM whose resync is due and does not begin yet."""
_ENDS = ("Succeeded", "Failed", "Cancelled")
"""The ends of the names of moments after which a VM may have no job any more."""
_MINUTE_S = 60

_log = structlog.get_logger(__name__)


class ResyncWorker:
    """The automatic resyncs of one vault."""

    def __init__(self, context: VaultContext, starter: JobStarter, window: ResyncWindow | None) -> None:
        """Begin resyncs in ``window``, by the rig's wall clock in the time zone of the host; None: never."""
        self._context = context
        self._starter = starter
        self._window = window
        self._changed = trio.Event()
        self._waiting: set[str] = set()

    def note(self, moments: list[VaultMoment]) -> None:
        """Look again, because a VM was marked or a job has ended; called after each transaction that wrote."""
        for moment in moments:
            if moment.name == Code.ResynchronizationRequired or moment.name.endswith(_ENDS):
                self._changed.set()

    async def run(self) -> None:
        """Begin each resync as soon as it is due and its hours have begun, until cancelled."""
        while True:
            self._changed = trio.Event()
            try:
                await self.round()
            except RigError as error:
                self._context.waits.set("automatic resync", error.code, error.message)
            else:
                self._context.waits.clear("automatic resync")
            with self._context.clock.move_on_after(self._pause_s()):
                await self._changed.wait()

    def _pause_s(self) -> float:
        """Return the time until the hours begin, at most ``ROUND_S``."""
        if self._window is None:
            return ROUND_S
        now = self._context.clock.utc().astimezone()
        past_s = now.second + now.microsecond / 1e6
        return min(ROUND_S, self._window.minutes_until(_minute(now)) * _MINUTE_S - past_s)

    async def round(self) -> None:
        """Begin the resync of each VM that needs one, unless its last automatic one failed; show those that wait."""
        due = await self._context.database.known("resyncs that are due", self._due)
        if self._window is None or not self._window.contains(_minute(self._context.clock.utc().astimezone())):
            self._show(due)
            return
        self._show({})
        for vm in due:
            try:
                await self._starter.begin(vm, Operation.RESYNC, self._prepare)
            except RigError as error:  # another operation began meanwhile
                _log.info("automatic_resync_delayed", vm=vm, code=error.code, reason=error.message)

    def _show(self, due: Mapping[str, str]) -> None:
        """Show the wait of each VM whose resync is due, and end the waits of the others."""
        for vm in self._waiting - set(due):
            self._context.waits.clear("resync", vm=vm)
        self._waiting = set(due)
        when = "no resync begins by itself" if self._window is None else f"it begins by itself in {self._window.text}"
        for vm, reason in due.items():
            text = f"the resync of VM {vm!r} is due ({reason}): {when}; siterig resync {vm} begins it now"
            self._context.waits.set("resync", WAITS, text, vm=vm)

    def _due(self, session: Session) -> dict[str, str]:
        """Return the VMs that need a resync and can have one now, each with the reason."""
        items = session.scalars(select(ItemRow).where(ItemRow.resync_reason.is_not(None)).order_by(ItemRow.vm))
        return {
            item.vm: str(item.resync_reason)
            for item in items
            if Operation.RESYNC in allowed(item)
            and engine.open_job(session, item.vm) is None
            and automatic_resync.failure(session, item.vm) is None
        }

    def _prepare(self, session: Session, item: ItemRow) -> tuple[engine.Scenario, dict[str, object]]:
        hours = "" if self._window is None else self._window.text
        events.record(
            session,
            vm=item.vm,
            code="AutomaticResyncBegun",
            kind="VmReplication",
            severity="OK",
            text=f"the resync of VM {item.vm!r} begins by itself in the hours {hours}: {item.resync_reason}",
            now_ns=self._context.clock.wall_ns(),
        )
        return protection_tasks.REPAIR, {automatic_resync.AUTOMATIC: True}


def _minute(now: datetime) -> int:
    return now.hour * 60 + now.minute
