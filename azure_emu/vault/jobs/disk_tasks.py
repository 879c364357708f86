"""The jobs that add disks to the protection of a VM and remove them, and the end of the managed disks of removed disks.

**Added.**  The site copies the disks, and then makes every cut with them.  Its answer is a position after which every cut
has them; a repeated call may have a later one.  Once the vault has recorded it, later points wait for the disks.
Points that became available before lack them, whether their cuts had them or not.  So the vault and the site need no common
moment, and a kill of either is a delay.

**Removed.**  The site removes a disk first.  Its answer is the position of the last cut that can have the disk; a repeated
call has the same answer.  Points at later positions wait until the vault has recorded that position.  So no point ever lacks
a disk that it shows, and after a kill the job continues.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, ItemRow, JobRow, MountRow
from siterig.azure_emu.vault.jobs.engine import (
    INFORMATION,
    JobContext,
    Scenario,
    TaskKind,
    TaskOutcome,
    note_copied,
    site_progress,
)
from siterig.azure_emu.vault.keys.data_key_store import delete_data_keys
from siterig.azure_emu.vault.monitoring import health
from siterig.azure_emu.vault.points import points
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError

DISKS = "disks"
"""The key of the job's variables for the names of the disks."""
_WITHDRAWN = 0
"""The last position of a disk whose join has ended before any state had it."""


def check_joining(item: ItemRow, names: list[str], vm_disks: list[str]) -> None:
    """Check that these are disks of the VM that are not replicated; ``vm_disks`` are all disks of the VM.

    Raises:
        RigError: ``DiskNotFound``, ``BadRequest``.
    """
    replicated = {disk.name for disk in item.disks}
    free = [name for name in vm_disks if name not in replicated]
    for name in names:
        if name not in vm_disks:
            raise RigError(
                Code.DiskNotFound, f"VM {item.vm!r} has no disk {name!r}; not protected are: {', '.join(free) or 'none'}"
            )
        if name in replicated:
            raise RigError(
                Code.BadRequest,
                f"disk {name!r} of VM {item.vm!r} is protected; not protected are: {', '.join(free) or 'none'}",
            )
    if not names:
        raise RigError(Code.BadRequest, f"disks: none; allowed: one or more of {', '.join(free) or 'none'}")


async def create_targets(job: JobContext) -> None:
    """Check the disks, and create their managed disks; one that a removed disk still has is used again."""
    names: list[str] = job.variables[DISKS]
    others = [disk.name for disk in await job.context.site.list_vms() if disk.vm == job.vm and disk.name not in names]
    for disk in await job.context.site.check_vm(vm=job.vm, excluded=others):
        async with job.context.managed_disks.hold(disk.disk_id):
            await job.change(partial(_begin_join, disk=disk))
            await job.context.recovery.create_managed_disk(disk_id=disk.disk_id, size_bytes=disk.size_bytes)


def _begin_join(session: Session, item: ItemRow, disk: DiskInfo) -> None:
    row = session.get(DiskRow, disk.disk_id)
    if row is None:
        row = DiskRow(
            disk_id=disk.disk_id,
            vm=item.vm,
            name=disk.name,
            size_bytes=disk.size_bytes,
            generation=0,
            sync_parts=0,
            sync_complete=False,
            log_seq=0,
            complete_position=0,
            complete_time_ns=0,
            sector_bytes=disk.sector_bytes,
            former_ranges=[],
        )
        session.add(row)
    elif row.last_position is None:
        return  # the task is run again
    elif row.first_position is not None:
        row.former_ranges = [*row.former_ranges, [row.first_position, row.last_position]]
    row.first_position, row.last_position = None, None
    item.excluded_disks = sorted({*item.excluded_disks, disk.name})
    disk_sets.changed(session, item)


async def add_disks(job: JobContext) -> None:
    """Let the site copy the disks, and replicate them from then on."""
    names: list[str] = job.variables[DISKS]
    position = await job.context.site.add_disks(vm=job.vm, disks=names)
    await note_copied(job)

    def record(session: Session, item: ItemRow) -> None:
        first_position = max(position, points.newest_used_position(session, item.vm)) + 1
        for disk in item.known_disks:
            if disk.name in names and _is_copied(disk):
                disk.first_position = first_position
        item.excluded_disks = [name for name in item.excluded_disks if name not in names]
        item.new_disks = [name for name in item.new_disks if name not in names]
        disk_sets.changed(session, item)

    await job.change(record)


async def first_point_with(job: JobContext) -> TaskOutcome | None:
    """Wait for a point that has the disks; if a resync is due, they are part of it, and the job does not wait."""
    names: list[str] = job.variables[DISKS]

    def resync_is_due(_session: Session, item: ItemRow) -> bool:
        return item.resync_reason is not None

    if not await job.change(resync_is_due):
        try:
            await job.context.site.replicate_now(vm=job.vm, kind="CrashConsistent", name="disks-added")
        except RigError as error:
            if job.context.roles.role_cause(error) is not None:
                raise
            # The agent retries by its table, or reports a resync; the point of the next cycle is as good.

    def there(session: Session) -> TaskOutcome | bool | None:
        job.context.roles.require("agent", "azurite", "applier")
        health.require_not_blocked(session, job.vm)
        item, newest = find_item(session, job.vm), points.newest(session, job.vm)
        if newest is not None and set(names) <= {disk.name for disk in disk_sets.of_state(item, newest.position)}:
            return True
        return INFORMATION if item.resync_reason is not None else None

    with job.context.awaiting_apply(
        job.vm, f"the first recovery point of VM {job.vm!r} with the added disks is not applied yet"
    ):
        found = await job.context.notifications.wait_until(job.vm, there)
    return found if isinstance(found, TaskOutcome) else None


async def _withdraw(context: VaultContext, vm: str) -> None:
    """End the join at the site, because a user cancels the job."""

    def look(session: Session) -> list[str]:
        return [disk.name for disk in find_item(session, vm).known_disks if _is_copied(disk)]

    await context.site.withdraw_disks(vm=vm, disks=await context.database.transact(look))


def _is_copied(disk: DiskRow) -> bool:
    return disk.first_position is None and disk.last_position is None


def _added(session: Session, item: ItemRow, job: JobRow) -> None:
    text = f"disks of VM {item.vm!r} are protected: {', '.join(job.variables[DISKS])}; older points lack them"
    events.record(
        session, vm=item.vm, code="DisksAdded", kind="VmReplication", severity="OK", text=text, now_ns=job.end_ns or 0
    )


def _failed(session: Session, item: ItemRow, _job: JobRow) -> None:
    """Take the disks for removed ones that no state has; the retention deletes their managed disks, and tells the site."""
    for disk in item.known_disks:
        if _is_copied(disk):
            disk.last_position = _WITHDRAWN
    disk_sets.changed(session, item)


# The name is that of the operation of the service's API, which has it for Azure VMs only.
ADD = Scenario(
    key="add-disks",
    name="AddDisks",
    friendly_name="Add disks",
    tasks=(
        TaskKind("CreateProtectionTargetTask", "Creating the replication target", create_targets),
        TaskKind("AddDisksTask", "Copying the disks", add_disks),
        TaskKind(
            "WaitForFirstRecoveryPointTask", "Waiting for the first recovery point", first_point_with, cancellable=False
        ),
    ),
    succeeded=_added,
    failed=_failed,
    progress=site_progress,
    stop=_withdraw,
    resumed=True,
)


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
                if disk.first_position is not None and disk.first_position > position:
                    disk.first_position = None  # no point had it
        item.excluded_disks = sorted({*item.excluded_disks, *names})
        item.new_disks = [name for name in item.new_disks if name not in names]
        disk_sets.changed(session, item)
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
    return [disk.disk_id for disk in item.removed_disks if disk_sets.oldest_needed(disk, min(used)) is None]


async def delete_removed(context: VaultContext, disk_id: str) -> None:
    """Delete the managed disk of a removed disk; it can be repeated after a kill.

    The site removes a disk that no point had first: the end of its join may not have reached the site.
    """

    def look(session: Session) -> tuple[str, str, bool] | None:
        disk = session.get(DiskRow, disk_id)
        if disk is None or disk.last_position is None:
            return None  # it joins again
        return disk.vm, disk.name, disk.first_position is None

    async with context.managed_disks.hold(disk_id):
        found = await context.database.transact(look)
        if found is None:
            return
        vm, name, has_not_joined = found
        if has_not_joined:
            await context.site.withdraw_disks(vm=vm, disks=[name])
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
