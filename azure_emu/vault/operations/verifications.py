"""The verification of a VM: the site compares both sides, and the vault records the result as an event.

A verification is not a job, so it delays no other operation: a failover or a resync stops it.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.states import PRIMARY
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.model.verification_api import VerificationApi
from siterig.azure_emu.vault.monitoring import health, resync_reasons
from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.errors import Code, RigError

RANGES_IN_EVENT_MAX = 5


class VerificationOperations(VerificationApi):
    """The verifications of the VMs of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context

    async def verify(self, *, vm: str) -> Verification:
        def check(session: Session) -> None:
            item = find_item(session, vm)
            if item.active_location != PRIMARY or not health.is_cycling(item):
                raise RigError(
                    Code.InvalidState,
                    f"VM {vm!r} is in state {item.protection_state}: it must be replicated from the site to be verified",
                )

        await self._context.database.transact(check)
        try:
            found = await self._context.site.verify(vm=vm)
        except RigError as error:
            if error.code == Code.VmBusy:
                raise  # another one is running, and will have a result
            text = f"VM {vm!r} could not be verified: {error.message} ({error.code})"
            await self._context.database.transact(lambda session: self._event(session, vm, "Failed", "Warning", text))
            raise
        await self._context.database.transact(lambda session: self._record(session, found))
        self._context.notifications.notify(vm)
        return found

    async def stop_verification(self, *, vm: str) -> None:
        await self._context.site.stop_verification(vm=vm)

    def _record(self, session: Session, result: Verification) -> None:
        where = f"at position {result.position}"
        if not result.differing_bytes:
            data_bytes = sum(disk.data_bytes for disk in result.disks)
            text = f"VM {result.vm!r}: both sides are equal {where}; {data_bytes} bytes of data were compared"
            self._event(session, result.vm, "Succeeded", "OK", text)
            return
        ranges = [f"{disk.name} {each.offset}+{each.length}" for disk in result.disks for each in disk.differing]
        named = ", ".join(ranges[:RANGES_IN_EVENT_MAX]) + (", ..." if len(ranges) > RANGES_IN_EVENT_MAX else "")
        text = f"VM {result.vm!r}: {result.differing_bytes} bytes differ {where} (disk offset+length): {named}"
        self._event(session, result.vm, "Differs", "Critical", text)
        item = session.get(ItemRow, result.vm)
        if item is not None and item.active_location == PRIMARY:
            resync_reasons.mark(item, Code.VerificationDiffers)

    def _event(self, session: Session, vm: str, outcome: str, severity: events.Severity, text: str) -> None:
        events.record(
            session,
            vm=vm,
            code=f"Verification{outcome}",
            kind="VmReplication",
            severity=severity,
            text=text,
            now_ns=self._context.clock.wall_ns(),
        )
