"""The operations on recovery points."""

from __future__ import annotations

import uuid
from contextlib import suppress

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import Operation, require
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import PointRow
from siterig.azure_emu.vault.jobs import engine
from siterig.azure_emu.vault.model.api import PointApi
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.monitoring import health
from siterig.azure_emu.vault.points import points, selectors
from siterig.blockfs.contracts.control import CutInfo, TagKind
from siterig.blockfs.core.errors import Code, RigError


class PointOperations(PointApi):
    """The operations on the recovery points of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context

    async def points(self, *, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
        def look(session: Session) -> list[RecoveryPoint]:
            find_item(session, vm)
            return points.available(session, vm, limit)

        return list(await self._context.database.known(("points", vm, limit), look))

    async def create_point(self, *, vm: str, kind: TagKind, name: str) -> RecoveryPoint:
        selectors.check_name(name)

        def look(session: Session) -> None:
            item = find_item(session, vm)
            engine.require_no_job(session, vm)
            require(item, Operation.CREATE_POINT)
            points.check_new_name(session, vm, name)

        await self._context.database.transact(look)
        cut = await self._cut_point(vm, kind, name)

        def there(session: Session) -> RecoveryPoint | None:
            find_item(session, vm)
            point = points.find_available(session, cut.tag_id)
            if point is None:
                self._context.roles.require("agent", "azurite", "applier")
                health.require_not_blocked(session, vm)
            if point is None:
                return None
            point.downgraded_because = cut.downgraded_because  # the report of the agent may not have arrived
            return points.to_wire(point)

        with self._context.awaiting_apply(vm, f"recovery point {name!r} of VM {vm!r} is sent and not applied yet"):
            await self._apply_again(vm)
            return await self._context.notifications.wait_until(vm, there)

    async def pin_point(self, *, vm: str, point: str, pinned: bool) -> RecoveryPoint:
        def change(session: Session) -> RecoveryPoint:
            row = self._selected(session, vm, point)
            if row.pinned != pinned:
                row.pinned = pinned
                done = "pinned: retention keeps it" if pinned else "no longer pinned"
                code = "RecoveryPointPinned" if pinned else "RecoveryPointUnpinned"
                self._event(session, vm, code, f"recovery point {row.tag_id} ({row.name!r}) of VM {vm!r} is {done}")
            return points.to_wire(row)

        return await self._context.database.transact(change)

    async def delete_point(self, *, vm: str, point: str) -> RecoveryPoint:
        def change(session: Session) -> RecoveryPoint:
            row = self._selected(session, vm, point)
            engine.require_no_job(session, vm)  # it may have selected the point
            what = f"recovery point {row.tag_id} ({row.name!r}) of VM {vm!r}"
            if row.pinned:
                raise RigError(
                    Code.InvalidState,
                    f"{what} is pinned and stays; to delete it, first run siterig point unpin {vm} {row.tag_id}",
                )
            use = points.in_use(session, vm).get(row.tag_id)
            if use is not None:
                raise RigError(Code.RecoveryInUse, f"{what} is in use: {use}")
            newest = points.newest(session, vm)
            if newest is None or newest.id == row.tag_id:
                # Its tag can be reported again, and failovers need one point.
                raise RigError(Code.InvalidState, f"{what} is the newest one and stays until there is a newer one")
            deleted = points.to_wire(row)
            points.prune(session, vm, [row.tag_id])
            self._event(session, vm, "RecoveryPointDeleted", f"{what} was deleted")
            return deleted

        return await self._context.database.transact(change)

    def _selected(self, session: Session, vm: str, choice: str) -> PointRow:
        find_item(session, vm)
        if selectors.parse(choice).kind in ("position", "time"):
            raise RigError(
                Code.NoSuchPoint,
                f"{choice!r} selects a state, not a recovery point; allowed: the id or the name of a recovery point, "
                "latest-processed, latest-app",
            )
        try:
            return session.get_one(PointRow, points.resolve(session, vm, choice).id)
        except RigError as error:
            raise RigError(error.code, error.message.replace(points.OF_A_STATE, ""), recoverable=error.recoverable) from None

    def _event(self, session: Session, vm: str, code: str, text: str) -> None:
        now_ns = self._context.clock.wall_ns()
        events.record(session, vm=vm, code=code, kind="VmReplication", severity="OK", text=text, now_ns=now_ns)

    async def _apply_again(self, vm: str) -> None:
        """Let the applier try again what it refused: the agent has just reached the account, so the reason may be gone."""

        def refused(session: Session) -> list[str]:
            is_refused = health.apply_error(session, vm) is not None
            return [disk.disk_id for disk in find_item(session, vm).disks] if is_refused else []

        if disk_ids := await self._context.database.transact(refused):
            with suppress(RigError):  # the wait for the point finds what is wrong now
                await self._context.recovery.process_latest(disk_ids=disk_ids)

    async def _cut_point(self, vm: str, kind: TagKind, name: str) -> CutInfo:
        """Take one cut, also if a role is away meanwhile; two points of one name would be ambiguous."""
        request_id = str(uuid.uuid4())
        try:
            return await self._context.retry_while_away(
                "take point",
                vm,
                lambda: self._context.site.replicate_now(vm=vm, kind=kind, name=name, request_id=request_id),
                repeatable=False,
            )
        except RigError as error:
            if not error.uncertain:
                raise
            text = f"{error.message}; it is not known whether the recovery point was taken: see siterig points {vm}"
            raise RigError(error.code, text, recoverable=True, role=error.role, uncertain=True) from error
