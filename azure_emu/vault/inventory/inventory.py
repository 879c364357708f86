"""Virtual machines of both fabrics, as far as they can be reached, and otherwise as last seen."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, ItemRow, KnownDiskRow
from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.model.resources import Vm, VmDisk
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import known_size

UNPROTECTED = "Unprotected"


def cache_vm(session: Session, vm: Vm) -> None:
    """Replace the recorded disks of one VM."""
    session.execute(delete(KnownDiskRow).where(KnownDiskRow.fabric == vm.side, KnownDiskRow.vm == vm.name))
    for disk in vm.disks:
        session.add(_row(vm.side, vm.name, disk))


def _row(fabric: Side, vm: str, disk: VmDisk | DiskInfo) -> KnownDiskRow:
    return KnownDiskRow(
        fabric=fabric, vm=vm, name=disk.name, size_bytes=disk.size_bytes, path=disk.path, sector_bytes=disk.sector_bytes
    )


def _cache_fabric(session: Session, fabric: Side, disks: Iterable[DiskInfo]) -> None:
    session.execute(delete(KnownDiskRow).where(KnownDiskRow.fabric == fabric))
    for disk in disks:
        session.add(_row(fabric, disk.vm, disk))


def _known(session: Session, fabric: Side) -> list[Vm]:
    """Return the VMs of a fabric as last seen."""
    return _described(session, fabric, session.scalars(select(KnownDiskRow).where(KnownDiskRow.fabric == fabric)))


def _described(session: Session, fabric: Side, rows: Iterable[KnownDiskRow | DiskInfo]) -> list[Vm]:
    """Return the VMs of these disks, with the state of their protection (site) or their kind (azure)."""
    disks: dict[str, list[VmDisk]] = {}
    for each in sorted(rows, key=lambda each: (each.vm, each.name)):
        disk = VmDisk(name=each.name, size_bytes=each.size_bytes, path=each.path, sector_bytes=known_size(each.sector_bytes))
        disks.setdefault(each.vm, []).append(disk)
    if fabric == "site":
        states = {item.vm: item.protection_state for item in session.scalars(select(ItemRow))}
        default = UNPROTECTED
    else:
        states = {row.name: row.kind for row in session.scalars(select(AzureVmRow))}
        default = "Recovered"
    return [Vm(name=name, side=fabric, state=states.get(name, default), disks=own) for name, own in disks.items()]


async def list_fabric(context: VaultContext, fabric: Side) -> list[Vm]:
    """Return all VMs of a fabric; as last seen if its role does not answer."""
    roles = ("agent", "site") if fabric == "site" else ("azure",)
    if any(context.roles.role_error(role) is not None for role in roles):  # a role that hangs would block the caller
        return await context.database.transact(lambda session: _known(session, fabric))
    try:
        disks = await (context.site.list_vms() if fabric == "site" else context.azure.list_disks())
    except RigError as error:
        if error.code != Code.RoleUnavailable:
            raise
        return await context.database.transact(lambda session: _known(session, fabric))
    try:
        await context.database.transact(lambda session: _cache_fabric(session, fabric, disks))
    except RigError as error:
        if error.code != Code.DiskFull:  # they are recorded when there is room again
            raise
    return await context.database.transact(lambda session: _described(session, fabric, disks))


async def site_disks(context: VaultContext, vm: str) -> list[DiskInfo]:
    """Return the disks of a source VM, by name (``VmNotFound`` names the VMs at the site)."""
    disks = await context.site.list_vms()
    found = sorted((disk for disk in disks if disk.vm == vm), key=lambda disk: disk.name)
    if not found:
        known = ", ".join(sorted({disk.vm for disk in disks})) or "none"
        raise RigError(Code.VmNotFound, f"there is no VM {vm!r} at the site; VMs there: {known}")
    return found
