"""Disks that were attached to a protected VM: the vault records them as not protected.

Fault contract: the site attaches a disk before the vault records it.  A vault that was killed between the two, or whose
database had no room, records the disk at its next start, or when the command is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import RigError

AGAIN_S = 15.0
"""The time after which the site is asked again at the start of the vault."""


async def record(context: VaultContext, disks: Sequence[DiskInfo]) -> None:
    """Record those of the disks of the site that their protected VM has got since it was protected.

    Raises:
        RigError: ``DiskFull``.
    """

    def look(session: Session) -> list[str]:
        changed = []
        for item in session.scalars(select(ItemRow).where(ItemRow.vm.in_({disk.vm for disk in disks}))):
            own = [disk for disk in disks if disk.vm == item.vm]
            replicated = {row.disk_id for row in item.known_disks}
            if not replicated & {disk.disk_id for disk in own}:
                continue  # protection is about to begin, or another VM has the name now
            for disk in own:
                if disk.disk_id not in replicated and disk.name not in item.excluded_disks:
                    _record(session, item, disk.name, context.clock.wall_ns())
                    changed.append(item.vm)
        return changed

    for vm in await context.database.transact(look):
        context.notifications.notify(vm)


def _record(session: Session, item: ItemRow, name: str, now_ns: int) -> None:
    item.excluded_disks = sorted({*item.excluded_disks, name})
    item.new_disks = sorted({*item.new_disks, name})
    text = f"disk {name!r} was attached to VM {item.vm!r} and is not protected: siterig disk protect {item.vm}/{name}"
    events.record(
        session, vm=item.vm, code="DiskAttached", kind="VmReplication", severity="Warning", text=text, now_ns=now_ns
    )


async def record_at_start(context: VaultContext) -> None:
    """Record the disks that were attached shortly before this vault started, as soon as the site answers."""
    while True:
        try:
            if await context.database.transact(lambda session: session.scalars(select(ItemRow.vm).limit(1)).first()):
                await record(context, await context.site.list_vms())
        except RigError:
            await context.clock.real.sleep(AGAIN_S)
        else:
            return
