"""The checks before an operation makes a change that cannot be undone (the table is in docs/reference/jobs-and-states.md).

Each check raises the error that the operation itself would meet later, and changes nothing.  A condition can change between
the check and the step: the step checks again, and after its failure the operation can be repeated.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.context.vm_names import AzureVmKind
from siterig.azure_emu.vault.db.schema import MountRow
from siterig.azure_emu.vault.inventory import azure_vms, target_names
from siterig.blockfs.contracts.control import CLOSE_IT, DiskInfo, DownloadedDisk
from siterig.blockfs.core.errors import Code, RigError


def require_idle(disks: list[DiskInfo], what: str) -> None:
    """Check that no disk of ``what`` is open (``DiskInUse`` names the first one that is)."""
    for disk in disks:
        if disk.open_handles:
            raise RigError(
                Code.DiskInUse,
                f"disk {disk.name!r} of {what} is in use: {disk.path} (open handles: {disk.open_handles}); {CLOSE_IT}",
            )


async def can_make(context: VaultContext, owner: str, name: str, kind: AzureVmKind) -> None:
    """Check that VM ``name`` can be made on the recovery side, in place of a former one, and that its roles answer.

    Raises:
        RigError: ``InvalidName``, ``VmExists``, ``DiskInUse``.
    """
    azure_vms.check_vm_name(owner)
    former = await azure_vms.disks_of(context, name)
    await context.database.transact(lambda session: azure_vms.require_ours(session, owner, name, kind, exists=bool(former)))
    require_idle(former, f"VM {name!r} at the recovery side")


async def can_read(context: VaultContext, owner: str, position: int) -> None:
    """Check that every managed disk of the VM can be read at the position.

    Raises:
        RigError: ``InvalidPosition``, ``DiskNotFound``, ``StoreCorrupt``.
    """
    disks = await context.database.transact(lambda session: azure_vms.disk_rows(session, owner, position))
    for disk in disks:
        state = await context.recovery.disk_state(disk_id=disk.disk_id)
        if not any(first <= position <= last for first, last in state.valid_ranges):
            spans = ", ".join(f"{first} to {last}" for first, last in state.valid_ranges) or "none"
            raise RigError(
                Code.InvalidPosition,
                f"disk {disk.name!r} of VM {owner!r} cannot be read at position {position}; allowed: {spans}",
            )


async def can_fail_back(context: VaultContext, vm: str, keep: list[str]) -> None:
    """Check that the recovered VM can be downloaded and can replace the site's disks.

    ``keep``: the disks of the site whose old contents will be kept as image files.

    Raises:
        RigError: for the recovered VM ``VmIncomplete`` or ``VmBusy``; for the site ``VmNotFound``, ``DiskNotFound``,
            ``DiskInUse`` or ``NotEnoughSpace``.
    """
    name = await target_names.name_of(context, vm, "Recovered")
    await azure_vms.verify(context, vm, name, "Recovered")
    coming = await azure_vms.disks_of(context, name)
    await context.check_shut_down([Path(disk.path) for disk in coming])
    await context.site.check_failback(
        vm=vm,
        disks=[
            DownloadedDisk(
                name=disk.name,
                size_bytes=disk.size_bytes,
                data_bytes=await context.recovery.data_bytes(source=disk.path),
                keeps_old=disk.name in keep,
            )
            for disk in coming
        ],
    )


async def can_remove_all(context: VaultContext, vm: str) -> None:
    """Check that nothing uses the VM's mounted points and disks on the recovery side.

    Raises:
        RigError: ``RecoveryInUse`` or ``DiskInUse``.
    """
    mounted = await context.database.transact(lambda session: _mounted(session, vm))
    if mounted:
        for info in await context.azure.list_mounted_points(vm=vm):
            for disk in info.disks:
                if disk.open_handles:
                    raise RigError(
                        Code.RecoveryInUse,
                        f"recovery/{vm}/{info.name}/{disk.name} is in use (open handles: {disk.open_handles}); {CLOSE_IT}",
                    )
    for name in await context.database.transact(lambda session: azure_vms.names_of(session, vm)):
        require_idle(await azure_vms.disks_of(context, name), f"VM {name!r} at the recovery side")


def _mounted(session: Session, vm: str) -> list[str]:
    return list(session.scalars(select(MountRow.name).where(MountRow.vm == vm)))
