"""The fences of source VMs: the site refuses the writes, and the vault shows that.

The site is called first: a fence that is shown is in force.  After a kill in between, the call is repeated.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import engine
from siterig.azure_emu.vault.model.fence_api import Fence, FenceApi
from siterig.azure_emu.vault.monitoring import health


class FenceOperations(FenceApi):
    """The operations on the fences of the source VMs of one vault."""

    def __init__(self, context: VaultContext) -> None:
        self._context = context

    async def fence_source(self, *, vm: str) -> Fence:
        return await self._set(vm, fenced=True)

    async def unfence_source(self, *, vm: str) -> Fence:
        return await self._set(vm, fenced=False)

    async def _set(self, vm: str, *, fenced: bool) -> Fence:
        await self._context.database.transact(lambda session: engine.require_no_job(session, vm))
        disks = await self._context.retry_while_away(
            "fence" if fenced else "unfence", vm, lambda: self._context.site.fence(vm=vm, fenced=fenced)
        )
        await self._context.database.transact(lambda session: self._note(session, vm, fenced=fenced))
        return Fence(vm=vm, fenced=fenced, disks=sorted(disk.name for disk in disks))

    def _note(self, session: Session, vm: str, *, fenced: bool) -> None:
        now_ns = self._context.clock.wall_ns()
        item = session.get(ItemRow, vm)
        if item is not None and fenced == (item.fenced_ns is not None):
            return
        if item is not None:
            item.fenced_ns = now_ns if fenced else None
        events.record(
            session,
            vm=vm,
            code=health.FENCED if fenced else health.UNFENCED,
            kind="VmHealth",
            severity="Warning" if fenced else "OK",
            text=f"the disks of VM {vm!r} at the site {'refuse all writes' if fenced else 'accept writes again'}",
            now_ns=now_ns,
        )
