"""Prunes recovery points by policy, and reports to the recovery side the oldest position that the points need.

Fault contract: points of a VM are deleted in one transaction.  The report to the recovery side follows from the remaining
points and is repeated in each round, so a kill or an unreachable role costs only time.  The recovery side never removes a
position that something has open, whatever is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events, rig_clock
from siterig.azure_emu.vault.context.states import PRIMARY
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import disk_tasks, engine
from siterig.azure_emu.vault.points import points
from siterig.azure_emu.vault.points.retention import Policy, expired
from siterig.blockfs.core.errors import RigError

ROUND_S = 300.0
"""The interval at which the service makes crash-consistent points."""
RETRY_S = 15.0
"""The delay after a failed round; short, so that its wait ends soon after its reason."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Pruned:
    """The oldest position that the points of a VM need, by disk id, and the removed disks that nothing needs any more."""

    kept: dict[str, int] = field(default_factory=dict)
    unneeded: list[str] = field(default_factory=list)


class RetentionWorker:
    """The retention of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context
        self._logged: set[str] = set()

    async def run(self) -> None:
        """Make a round every ``ROUND_S``, and ``RETRY_S`` after a failed one, until cancelled."""
        while True:
            done = await self.round()
            await self._context.clock.sleep(ROUND_S if done else RETRY_S)

    async def round(self) -> bool:
        """Advance the rig's clock and process every item once; return True if that and the reports succeeded."""
        try:
            await self._context.database.transact(self._begin_round)
            kept: dict[str, int] = {}
            unneeded: list[str] = []
            for vm in await self._context.database.transact(lambda session: list(session.scalars(select(ItemRow.vm)))):
                of_vm = await self._context.database.transact(lambda session, vm=vm: self._prune(session, vm))  # type: ignore[misc]
                kept |= of_vm.kept
                unneeded += of_vm.unneeded
            if kept:
                await self._context.recovery.retain(positions=kept)
            for disk_id in unneeded:
                await disk_tasks.delete_removed(self._context, disk_id)
        except RigError as error:  # the host's disk is full (points stay until there is room), or the applier is away
            self._context.waits.set("retention", error.code, error.message)
            self._log_once(error)
            return False
        self._context.waits.clear("retention")
        return True

    def _begin_round(self, session: Session) -> None:
        rig_clock.advance(session, self._context.clock)
        events.prune_points(session)

    def _prune(self, session: Session, vm: str) -> _Pruned:
        """Delete points by the policy; return the positions and disks that the remaining points need."""
        item = session.get(ItemRow, vm)
        # While a job runs it may have selected a point; after a commit there is nothing to prune.
        if item is None or item.active_location != PRIMARY or engine.open_job(session, vm) is not None:
            return _Pruned()
        kept = {*points.in_use(session, vm), *points.pinned(session, vm)}
        ids = expired(points.facts(session, vm), Policy(item.history_hours), kept)
        if ids:
            points.prune(session, vm, ids)
            self._record_pruning(session, item, len(ids))
            _log.info("points_pruned", vm=vm, points=len(ids))
        oldest = points.oldest(session, vm)
        if oldest is None:
            return _Pruned()
        return _Pruned(
            kept={
                disk.disk_id: position
                for disk in disk_sets.of_any_state(item)
                if (position := disk_sets.oldest_needed(disk, oldest.position)) is not None
            },
            unneeded=disk_tasks.find_unneeded(session, item, oldest.position),
        )

    def _record_pruning(self, session: Session, item: ItemRow, count: int) -> None:
        oldest = points.oldest(session, item.vm)
        left = "" if oldest is None else f"; the oldest left is of {oldest.time}"
        events.record(
            session,
            vm=item.vm,
            code="RecoveryPointsPruned",
            kind="VmReplication",
            severity="OK",
            text=f"{count} recovery points of VM {item.vm!r} were pruned: retention {item.history_hours} h{left}",
            now_ns=self._context.clock.wall_ns(),
        )

    def _log_once(self, error: RigError) -> None:
        if error.message not in self._logged:
            self._logged.add(error.message)
            _log.warning("retention_delayed", code=error.code, reason=error.message)
