"""VMs of the recovery side: made from the managed disks, verified, removed.

Only a VM with a row in ``azure_vm`` belongs to the vault and may be removed (schema.py).  Every function can be run again
after a kill.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.context.vm_names import AzureVmKind, test_vm_name
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, KnownDiskRow
from siterig.azure_emu.vault.inventory.inventory import cache_vm
from siterig.azure_emu.vault.model.resources import RecoveryPoint, Vm, VmDisk
from siterig.azure_emu.vault.monitoring import health
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.names import NAME_CHARS_MAX, check_name
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.sizes import known_size
from siterig.blockfs.host.host_folder import RECOVERY_FOLDER


def check_vm_name(vm: str) -> None:
    """Check that a VM can have the name on both sides, with room for the name of its test VM.

    Raises:
        RigError: ``InvalidName``.
    """
    check_name("VM", vm)
    if vm == RECOVERY_FOLDER:
        raise RigError(Code.InvalidName, f"VM is named {vm!r}: a recovery side's mount has its mounted points there")
    longest = NAME_CHARS_MAX - len(test_vm_name(""))
    if len(vm) > longest:
        raise RigError(
            Code.InvalidName,
            f"VM is named {vm!r}, {len(vm)} characters; allowed are {longest}, because its test VM is named "
            f"{test_vm_name('VM')}",
        )


async def disks_of(context: VaultContext, name: str) -> list[DiskInfo]:
    """Return the disks of a VM on the recovery side, by name; an empty list if there is no such VM."""
    return sorted((disk for disk in await context.azure.list_disks() if disk.vm == name), key=lambda disk: disk.name)


async def claim(
    context: VaultContext,
    owner: str,
    name: str,
    kind: AzureVmKind,
    *,
    position: int,
    point_id: str | None = None,
    process: HostProcess | None = None,
) -> list[DiskInfo]:
    """Reserve the name for a VM of ``owner``, and mark the point as in use.

    ``position``: that of the state.  ``process``: the holder of a copy (leases.py).

    Returns:
        The disks of a former VM of that name.
    Raises:
        RigError: ``VmExists`` if the name belongs to another VM.
    """
    former = await disks_of(context, name)

    def take(session: Session) -> None:
        find_item(session, owner)
        row = require_ours(session, owner, name, kind, exists=bool(former))
        if row is None:
            row = AzureVmRow(name=name, owner=owner, kind=kind)
            session.add(row)
        row.point_id, row.position = point_id, position
        if process is not None:
            row.process_id, row.process_started = process.pid, process.started

    await context.database.transact(take)
    return former


def require_ours(session: Session, owner: str, name: str, kind: AzureVmKind, *, exists: bool) -> AzureVmRow | None:
    """Return the row of a VM that ``owner`` may make or replace; None if the name is free.

    ``there`` is True if the recovery side has disks of that name.

    Raises:
        RigError: ``VmExists`` if the name belongs to another VM.
    """
    row = session.get(AzureVmRow, name)
    if row is None and exists:
        raise RigError(Code.VmExists, f"the recovery side has a VM {name!r} already that no failover of {owner!r} made")
    if row is not None and (row.owner, row.kind) != (owner, kind):
        raise RigError(Code.VmExists, f"the recovery side has a VM {name!r} already; it belongs to {row.owner!r}")
    return row


async def open_at(context: VaultContext, owner: str, name: str, kind: AzureVmKind, point: RecoveryPoint) -> None:
    """Make VM ``name`` from all disks of ``owner`` at one position, in place of a former one of that name."""
    former = await claim(context, owner, name, kind, position=point.position, point_id=point.id)
    await _open_disks(context, owner, name, point.position, former)


async def open_copy(context: VaultContext, owner: str, name: str, position: int, process: HostProcess) -> Vm:
    """Make VM ``name`` from all disks of ``owner`` at a position, in place of a former one, until the process ends."""
    former = await claim(context, owner, name, "Copy", position=position, process=process)
    await _open_disks(context, owner, name, position, former)
    return await verify(context, owner, name, "Copy")


async def _open_disks(context: VaultContext, owner: str, name: str, position: int, former: list[DiskInfo]) -> None:
    disks = await context.database.transact(lambda session: disk_rows(session, owner, position))
    if former:
        await context.azure.remove_vm(vm=name)
        await context.database.transact(lambda session: health.forget_vm_disks(session, owner, name))
    for disk in disks:
        # The host gives the new disk its own id, so that its parts at failback differ from those of the site's disk.
        await context.azure.create_disk_from_point(
            vm=name,
            name=disk.name,
            managed_disk=disk.disk_id,
            position=position,
            sector_bytes=known_size(disk.sector_bytes),
        )


async def verify(context: VaultContext, owner: str, name: str, state: AzureVmKind) -> Vm:
    """Return the VM with all its disks (``VmIncomplete`` names the missing disks)."""

    def look(session: Session) -> tuple[set[str], tuple[str, ...]]:
        row, item = session.get(AzureVmRow, name), find_item(session, owner)
        position = None if row is None else row.position
        disks = item.disks if position is None else disk_sets.of_state(item, position)
        return {disk.name for disk in disks}, disk_sets.lacking(item, position)

    expected, excluded = await context.database.transact(look)
    there = await disks_of(context, name)
    lacking = sorted(expected - {disk.name for disk in there})
    if lacking:
        raise RigError(
            Code.VmIncomplete, f"VM {name!r} on the recovery side lacks disks {', '.join(lacking)}; fail over again"
        )
    vm = Vm(name=name, side="azure", state=state, disks=[to_vm_disk(disk) for disk in there], lacking_disks=excluded)
    await context.database.transact(lambda session: cache_vm(session, vm))
    return vm


async def remove(context: VaultContext, owner: str, name: str) -> None:
    """Remove a VM that the vault made (``DiskInUse`` if its disks are in use); do nothing if there is none."""

    def is_ours(session: Session) -> bool:
        row = session.get(AzureVmRow, name)
        return row is not None and row.owner == owner

    if not await context.database.transact(is_ours):
        return
    if await disks_of(context, name):
        await context.azure.remove_vm(vm=name)

    def forget(session: Session) -> None:
        health.forget_vm_disks(session, owner, name)
        session.execute(delete(AzureVmRow).where(AzureVmRow.name == name))
        session.execute(delete(KnownDiskRow).where(KnownDiskRow.fabric == "azure", KnownDiskRow.vm == name))

    await context.database.transact(forget)


async def remove_copy(context: VaultContext, owner: str, name: str) -> None:
    """Remove a copy; do nothing if there is none of that name.

    Raises:
        RigError: ``DiskInUse``.
    """
    if name in await context.database.transact(lambda session: _copies(session, owner)):
        await remove(context, owner, name)


async def remove_copies(context: VaultContext, owner: str) -> None:
    """Remove all copies of a VM.

    Raises:
        RigError: ``DiskInUse``.
    """
    for name in await context.database.transact(lambda session: _copies(session, owner)):
        await remove(context, owner, name)


def _copies(session: Session, owner: str) -> list[str]:
    query = select(AzureVmRow.name).where(AzureVmRow.owner == owner, AzureVmRow.kind == "Copy")
    return list(session.scalars(query.order_by(AzureVmRow.name)))


def names_of(session: Session, owner: str) -> list[str]:
    """Return the names of all VMs of the recovery side that belong to an item."""
    return list(session.scalars(select(AzureVmRow.name).where(AzureVmRow.owner == owner).order_by(AzureVmRow.name)))


def to_vm_disk(disk: DiskInfo) -> VmDisk:
    """Return the disk in the form of the API."""
    return VmDisk(name=disk.name, size_bytes=disk.size_bytes, path=disk.path, sector_bytes=disk.sector_bytes)


def disk_rows(session: Session, owner: str, position: int) -> list[DiskRow]:
    """Return the disks that the state of a protected VM at a position has, by name."""
    return disk_sets.of_state(find_item(session, owner), position)
