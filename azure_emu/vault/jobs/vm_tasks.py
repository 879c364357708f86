"""Deleting and renaming virtual machines, on either side.

Both are jobs, so no other operation changes the VM meanwhile.  They are resumed after a kill: a step that is done does
nothing.  A VM that is deleted must not be protected, and a VM that is renamed need not be, so these jobs need no item.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.states import TEST_NONE
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, Base, EventRow, ItemRow, JobRow, KnownDiskRow, MountRow
from siterig.azure_emu.vault.inventory import azure_vms, inventory
from siterig.azure_emu.vault.jobs import engine, preflight
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind
from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.monitoring import health
from siterig.blockfs.core.errors import Code, RigError


async def sides_of(context: VaultContext, vm: str) -> list[Side]:
    """Return the sides that have a VM of that name; for a side that does not answer, as last seen."""
    sides: list[Side] = ["site", "azure"]
    return [side for side in sides if vm in {found.name for found in await inventory.list_fabric(context, side)}]


# ---- delete


def require_deletable(session: Session, vm: str, side: Side) -> None:
    """Check that the vault allows the deletion (``JobInProgress``; ``InvalidState`` names the protected item)."""
    engine.require_no_job(session, vm)
    item = session.get(ItemRow, vm)
    if item is not None:
        raise RigError(
            Code.InvalidState,
            f"VM {vm!r} cannot be deleted: it is protected (protectionState {item.protection_state}); siterig unprotect "
            f"{vm} ends that",
        )
    row = session.get(AzureVmRow, vm) if side == "azure" else None
    if row is not None and session.get(ItemRow, row.owner) is not None:
        remedy = f"siterig cleanup {row.owner} removes it" if row.kind == "TestFailover" else "it is removed with that VM"
        raise RigError(Code.InvalidState, f"VM {vm!r} cannot be deleted: it is the {row.kind} VM of {row.owner!r}; {remedy}")


async def check_delete(job: JobContext) -> None:
    """Check that the VM exists, is not in use, and has no kept image.

    Raises:
        RigError: ``VmNotFound``, ``DiskInUse`` or ``InvalidState``.
    """
    side: Side = job.variables["side"]
    try:
        await _check_delete(job, side)
    except RigError as error:
        if error.code != Code.VmNotFound:
            raise
        others = [other for other in await sides_of(job.context, job.vm) if other != side]
        hint = f"; side {others[0]} has one: --side {others[0]}" if others else ""
        raise RigError(error.code, f"side {side}: {error.message}{hint}") from error


async def _check_delete(job: JobContext, side: Side) -> None:
    if side == "site":
        await job.context.site.check_delete(vm=job.vm)
        return
    try:
        disks = await job.context.azure.list_disks(vm=job.vm)
    except RigError as error:
        if error.code != Code.DiskCorrupt:  # a disk that cannot be opened can be deleted
            raise
    else:
        preflight.require_idle(disks, f"VM {job.vm!r} at the recovery side")


async def delete_vm(job: JobContext) -> None:
    """Delete the VM's disks, logs and replication relationship."""
    try:
        if job.variables["side"] == "site":
            await job.context.site.delete_vm(vm=job.vm)
        else:
            await job.context.azure.remove_vm(vm=job.vm)
    except RigError as error:
        if error.code != Code.VmNotFound:  # the first task found it, so it was deleted before a kill
            raise


def _deleted(session: Session, job: JobRow) -> None:
    side = job.variables["side"]
    session.execute(delete(KnownDiskRow).where(KnownDiskRow.fabric == side, KnownDiskRow.vm == job.vm))
    if side == "azure":
        session.execute(delete(AzureVmRow).where(AzureVmRow.name == job.vm))


# ---- rename


def require_renamable(session: Session, vm: str, name: str) -> None:
    """Check that the vault allows the new name.

    Raises:
        RigError: ``JobInProgress``, ``VmExists``, ``RecoveryInUse``, ``InvalidState``.
    """
    engine.require_no_job(session, vm)
    engine.require_no_job(session, name)
    if session.get(ItemRow, name) is not None:
        raise RigError(Code.VmExists, f"a VM {name!r} is protected already")
    item = session.get(ItemRow, vm)
    if item is not None and item.test_failover_state != TEST_NONE:
        raise RigError(
            Code.InvalidState, f"VM {vm!r} cannot be renamed while it has a test VM: siterig cleanup {vm} removes it"
        )
    mounted = session.scalars(select(MountRow.name).where(MountRow.vm == vm).order_by(MountRow.name)).first()
    if mounted is not None:
        raise RigError(
            Code.RecoveryInUse,
            f"VM {vm!r} cannot be renamed while a point of it is mounted: siterig point unmount {vm} {mounted} ends that",
        )
    row = session.get(AzureVmRow, vm)
    if row is not None and row.owner != vm:
        raise RigError(Code.InvalidState, f"VM {vm!r} cannot be renamed: it is the {row.kind} VM of {row.owner!r}")
    others = [other for other in azure_vms.names_of(session, vm) if other != vm]
    if others:
        raise RigError(
            Code.InvalidState, f"VM {vm!r} cannot be renamed while the recovery side has {', '.join(others)} of it"
        )


async def check_rename(job: JobContext) -> None:
    """Check that the new name is free and the VM's disks are unused.

    Raises:
        RigError: ``VmExists``, ``DiskInUse`` or ``VmBusy``.
    """
    name = job.variables["name"]
    at_site, at_azure = await job.context.site.list_vms(), await job.context.azure.list_disks()
    for disk in (*at_site, *at_azure):
        if disk.vm == name:
            raise RigError(Code.VmExists, f"VM {job.vm!r} cannot be renamed: there is a VM {name!r} already ({disk.path})")
    for disks, where in ((at_site, "at the site"), (at_azure, "at the recovery side")):
        own = [disk for disk in disks if disk.vm == job.vm]
        preflight.require_idle(own, f"VM {job.vm!r} {where}")
        if any(disk.promotion is not None for disk in own):
            raise RigError(
                Code.VmBusy,
                f"VM {job.vm!r} cannot be renamed while its disks are hydrated after a commit",
                recoverable=True,
            )
    job.variables["sides"] = [
        side for side, disks in (("site", at_site), ("azure", at_azure)) if any(disk.vm == job.vm for disk in disks)
    ]


async def rename_vm(job: JobContext) -> None:
    """Rename the VM on both sides; after a failure restore the old name."""
    try:
        await _rename(job, job.vm, job.variables["name"])
    except RigError:
        with suppress(RigError):
            await _rename(job, job.variables["name"], job.vm)
        raise


async def _rename(job: JobContext, vm: str, name: str) -> None:
    if "azure" in job.variables["sides"]:
        await job.context.azure.rename_vm(vm=vm, name=name)
    if "site" in job.variables["sides"]:
        await job.context.site.rename_vm(vm=vm, name=name)


def _renamed(session: Session, job: JobRow) -> None:
    """Change every row that names the VM, also of the history; texts stay unchanged."""
    old, new = job.vm, job.variables["name"]
    health.rename_vm_disks(session, old, old, new)
    session.flush()
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("PRAGMA defer_foreign_keys = ON"))  # for this transaction
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_keys:
            if key.target_fullname == "item.vm":
                session.execute(update(table).where(key.parent == old).values({key.parent.name: new}))
    session.execute(update(ItemRow).where(ItemRow.vm == old).values(vm=new))
    session.execute(update(AzureVmRow).where(AzureVmRow.owner == old).values(owner=new))
    session.execute(update(AzureVmRow).where(AzureVmRow.name == old).values(name=new))
    session.execute(update(JobRow).where(JobRow.vm == old).values(vm=new))
    session.execute(update(EventRow).where(EventRow.affected_object == old).values(affected_object=new))
    session.execute(delete(KnownDiskRow).where(KnownDiskRow.vm == old))
    session.expire_all()


def name_in_vault(session: Session, vm: str) -> str:
    """Return the vault's name of a VM that the site calls ``vm``; it differs during a rename."""
    if session.get(ItemRow, vm) is None:
        query = select(JobRow).where(JobRow.key == RENAME.key, JobRow.end_ns.is_(None))
        for job in session.scalars(query):
            if job.variables["name"] == vm:
                return job.vm
    return vm


def variables_of_delete(side: Side) -> dict[str, Any]:
    """Return the arguments of the job :data:`DELETE`."""
    return {"side": side}


def variables_of_rename(name: str) -> dict[str, Any]:
    """Return the arguments of the job :data:`RENAME`."""
    return {"name": name}


# Scenario and task names are this rig's: the service leaves VMs to their hypervisor.
DELETE = Scenario(
    key="delete-vm",
    name="DeleteVm",
    friendly_name="Delete the virtual machine",
    tasks=(
        TaskKind("DeleteVmPreflightChecksTask", "Checking prerequisites for deletion", check_delete),
        TaskKind("DeleteVmTask", "Deleting the virtual machine", delete_vm, cancellable=False),
    ),
    without_item=_deleted,
    resumed=True,
)
RENAME = Scenario(
    key="rename-vm",
    name="RenameVm",
    friendly_name="Rename the virtual machine",
    tasks=(
        TaskKind("RenameVmPreflightChecksTask", "Checking prerequisites for the new name", check_rename),
        TaskKind("RenameVmTask", "Renaming the virtual machine", rename_vm, cancellable=False),
    ),
    without_item=_renamed,
    resumed=True,
)
