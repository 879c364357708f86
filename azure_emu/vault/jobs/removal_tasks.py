"""The job that removes disks from the protection of a VM, and the end of their managed disks.

The site removes a disk first.  Its answer is the position of the last cut that can have the disk; a repeated call has the
same answer.  Points at later positions wait until the vault has recorded that position.  So no point ever lacks a disk that
it shows, and after a kill the job continues.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, ItemRow, JobRow, MountRow
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind
from siterig.azure_emu.vault.keys.data_key_store import delete_data_keys
from siterig.azure_emu.vault.points import points
from siterig.blockfs.core.errors import Code, RigError

DISKS = "disks"
"""The key of the job's variables for the names of the disks."""


def check_removal(item: ItemRow, names: list[str]) -> None:
    """Check that these disks are replicated, and that another one is.

    Raises:
        RigError: ``DiskNotFound``, ``BadRequest``.
    """
    there = [disk.name for disk in item.disks]
    for name in names:
        if name not in there:
            raise RigError(
                Code.DiskNotFound, f"disk {name!r} of VM {item.vm!r} is not replicated; allowed: {', '.join(there)}"
            )
    if not names or not set(there) - set(names):
        raise RigError(
            Code.BadRequest,
            f"disks: {', '.join(names) or 'none'}; allowed: one or more of {', '.join(there)} of VM {item.vm!r}, and at "
            f"least one must stay (siterig unprotect {item.vm} ends the protection)",
        )


async def remove_disks(job: JobContext) -> None:
    """Remove the disks at the site, and then in the vault."""
    names: list[str] = job.variables[DISKS]
    position = await job.context.site.remove_disks(vm=job.vm, disks=names)

    def record(session: Session, item: ItemRow) -> None:
        for disk in item.disks:
            if disk.name in names:
                disk.last_position = position
        item.excluded_disks = sorted({*item.excluded_disks, *names})
        session.flush()
        session.expire(item, ["disks", "removed_disks"])
        for point in points.complete_waiting(session, item):
            points.record_created(session, item.vm, points.to_wire(point), job.context.clock.wall_ns())

    await job.change(record)


def _removed(session: Session, item: ItemRow, job: JobRow) -> None:
    text = f"disks of VM {item.vm!r} are not replicated any more: {', '.join(job.variables[DISKS])}; older points keep them"
    events.record(
        session, vm=item.vm, code="DisksRemoved", kind="VmReplication", severity="OK", text=text, now_ns=job.end_ns or 0
    )


def find_unneeded(session: Session, item: ItemRow, oldest_position: int) -> list[str]:
    """Return the ids of the removed disks that no state needs: neither points, from the oldest on, nor mounts and VMs."""
    if not item.removed_disks:
        return []
    used = [oldest_position, *session.scalars(select(MountRow.position).where(MountRow.vm == item.vm))]
    used += [position or 0 for position in session.scalars(select(AzureVmRow.position).where(AzureVmRow.owner == item.vm))]
    return [disk.disk_id for disk in item.removed_disks if not disk_sets.has_state(disk, min(used))]


async def delete_removed(context: VaultContext, disk_id: str) -> None:
    """Delete the managed disk of a removed disk; it can be repeated after a kill."""
    await context.recovery.delete_managed_disk(disk_id=disk_id)
    await context.database.transact(lambda session: forget_disk(session, disk_id))


def forget_disk(session: Session, disk_id: str) -> None:
    """Delete the row of a disk, and its keys, after its managed disk."""
    delete_data_keys(session, disk_id)
    session.execute(delete(DiskRow).where(DiskRow.disk_id == disk_id))


# The name is that of the operation of the service's API, which has it for Azure VMs only.
REMOVE = Scenario(
    key="remove-disks",
    name="RemoveDisks",
    friendly_name="Remove disks",
    # To be completed: the site may have removed the disks already.
    tasks=(TaskKind("RemoveDisksTask", "Removing disks from replication", remove_disks, cancellable=False),),
    succeeded=_removed,
    resumed=True,
)
