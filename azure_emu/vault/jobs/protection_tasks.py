"""Task bodies that start, restart and end replication: enable, finalize, reprotect, resync, disable."""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events, rig_clock
from siterig.azure_emu.vault.context.states import TEST_NONE, ProtectionState
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import CycleRow, DiskRow, ItemRow, JobRow
from siterig.azure_emu.vault.inventory import azure_vms, disk_limits, inventory, target_names
from siterig.azure_emu.vault.jobs import enable_checks, preflight, seeds, start_time
from siterig.azure_emu.vault.jobs.disk_tasks import forget_disk
from siterig.azure_emu.vault.jobs.engine import (
    INFORMATION,
    SKIPPED,
    JobContext,
    Scenario,
    TaskKind,
    TaskOutcome,
    failed_but_continued,
    note_copied,
    site_progress,
    with_warning,
)
from siterig.azure_emu.vault.jobs.provider_calls import CREATE_RELATIONSHIP, START_REPLICATION, provider_call
from siterig.azure_emu.vault.keys.data_key_store import delete_data_keys
from siterig.azure_emu.vault.model.choices import OFFICIAL_INTERVALS_S
from siterig.azure_emu.vault.monitoring import damage, health
from siterig.azure_emu.vault.monitoring.resync_reasons import LOG_ABANDONED
from siterig.azure_emu.vault.mounts import mounts
from siterig.azure_emu.vault.points import points
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError


async def check_enable(job: JobContext) -> TaskOutcome | None:
    """Check that the VM can be protected, and record its disks in the item."""
    disks = await enable_checks.check_all(job.context, job.vm, seeds.of_job(job), await _excluded(job))
    unavailable = await target_names.unavailable(job.context, job.vm)
    await _adopt_disks(job, disks)
    interval_s = await job.change(lambda _session, item: item.interval_s)
    if unavailable is not None:
        return with_warning(unavailable)
    plain = interval_s in OFFICIAL_INTERVALS_S and not disk_limits.remarks(job.vm, disks)
    return None if plain else INFORMATION


async def _excluded(job: JobContext) -> list[str]:
    return await job.change(lambda _session, item: list(item.excluded_disks))


async def _adopt_disks(job: JobContext, disks: list[DiskInfo]) -> None:
    """Make these the disks of the item, and delete the managed disks of its other disks."""

    def gone(session: Session, item: ItemRow) -> list[str]:
        rows = {row.disk_id: row for row in disk_sets.of_any_state(item)}
        for disk in disks:
            if disk.disk_id not in rows:
                item.disks.append(
                    DiskRow(
                        disk_id=disk.disk_id,
                        name=disk.name,
                        size_bytes=disk.size_bytes,
                        generation=0,
                        sync_parts=0,
                        sync_complete=False,
                        log_seq=0,
                        complete_position=0,
                        complete_time_ns=0,
                        sector_bytes=disk.sector_bytes,
                        first_position=0,
                    )
                )
        session.flush()
        return sorted(set(rows) - {disk.disk_id for disk in disks})

    for disk_id in await job.change(gone):
        await job.context.recovery.delete_managed_disk(disk_id=disk_id)
        await job.change(lambda session, _item, row=disk_id: forget_disk(session, row))  # type: ignore[misc]


async def create_target(job: JobContext) -> None:
    """Create a managed disk for each disk, and fill those that have a seed."""
    for disk_id, size_bytes in await job.change(lambda _session, item: [(d.disk_id, d.size_bytes) for d in item.disks]):
        await job.context.recovery.create_managed_disk(disk_id=disk_id, size_bytes=size_bytes)
    await seeds.fill_all(job)


async def create_target_again(job: JobContext) -> None:
    """Create a managed disk for each replicated disk that the site has now; a failback can have made new disks."""
    disks = await job.context.site.check_vm(vm=job.vm, excluded=await _excluded(job))
    await preflight.can_remove_all(job.context, job.vm)
    await job.begin_changes()
    await _adopt_disks(job, disks)
    await create_target(job)


async def enable_relationship(job: JobContext) -> None:
    """Make the site replicate this VM by the item's policy."""

    def resume(_session: Session, item: ItemRow) -> tuple[float, float | None, list[str]]:
        item.suspended, item.paused_ns = False, None
        return item.interval_s, item.app_consistent_every_s, [disk.name for disk in item.disks]

    interval_s, app_consistent_every_s, names = await job.change(resume)
    is_scheduled = start_time.START in job.variables
    async with provider_call(job, CREATE_RELATIONSHIP):
        disks = await job.context.site.create_relationship(
            vm=job.vm,
            interval_s=interval_s,
            app_consistent_every_s=app_consistent_every_s,
            tracked=not is_scheduled,
            disks=names,
        )
    job.variables["generations"] = {disk.disk_id: disk.generation for disk in disks}


async def start_initial_replication(job: JobContext) -> None:
    """Send every disk to the cache account, as a whole or as it differs from its seed, and wait until it is applied."""

    def begin(session: Session, item: ItemRow) -> None:
        health.clear_errors(session, item.vm, None)
        item.protection_state = ProtectionState.INITIAL

    def sent(_session: Session, item: ItemRow) -> None:
        item.protection_state = ProtectionState.INITIAL_SENT

    await start_time.wait_for_start(job)
    await job.change(begin)
    async with provider_call(job, START_REPLICATION):
        if seeds.SEEDS in job.variables:
            await job.context.site.resync(vm=job.vm)
        else:
            await job.context.site.initial_replication(vm=job.vm)
    await note_copied(job)
    await job.change(sent)
    if start_time.START in job.variables or seeds.SEEDS in job.variables:  # their generation began only now
        disks = await inventory.site_disks(job.context, job.vm)
        job.variables["generations"] = {disk.disk_id: disk.generation for disk in disks}
    await _wait_synced(job, job.variables["generations"])


async def synchronize(job: JobContext, *, limited: bool = False) -> None:
    """Send the differences to the cache account (resync), and wait until they are applied."""
    await job.change(lambda session, item: health.clear_errors(session, item.vm, None))
    await job.context.site.resync(vm=job.vm, limited=limited)
    await note_copied(job)
    disks = await inventory.site_disks(job.context, job.vm)
    await _wait_synced(job, {disk.disk_id: disk.generation for disk in disks})


async def stop_copy(context: VaultContext, vm: str) -> None:
    """Stop the copy at the site of a job that a user cancels."""
    await context.site.stop_copy(vm=vm)


async def _wait_synced(job: JobContext, generations: dict[str, int]) -> None:
    """Wait until every disk's sync of at least this generation is applied, or until an error that is not retried."""

    def synced(session: Session) -> bool | None:
        job.context.roles.require("agent", "azurite", "applier")
        health.require_not_blocked(session, job.vm)
        item = find_item(session, job.vm)
        done = all(disk.sync_complete and disk.generation >= generations.get(disk.disk_id, 0) for disk in item.disks)
        return done or None

    with job.context.awaiting_apply(job.vm, f"the copy of VM {job.vm!r} is sent and not applied yet"):
        await job.context.notifications.wait_until(job.vm, synced)


async def first_point(job: JobContext) -> None:
    """Wait until a recovery point is available; request one at once, because the policy's interval can be long."""

    def begin(session: Session, item: ItemRow) -> bool:
        item.protected_since_elapsed_ns = rig_clock.elapsed_ns(session, job.context.clock)
        return points.newest(session, item.vm) is not None

    if not await job.change(begin):
        try:
            await job.context.site.replicate_now(vm=job.vm, kind="CrashConsistent", name="first")
        except RigError as error:
            if job.context.roles.role_cause(error) is not None or not error.recoverable:
                raise
            # The agent retries by its table; the point of the next cycle is as good.

    def there(session: Session) -> bool | None:
        job.context.roles.require("agent", "azurite", "applier")
        health.require_not_blocked(session, job.vm)
        return True if points.newest(session, job.vm) is not None else None

    with job.context.awaiting_apply(job.vm, f"the first recovery point of VM {job.vm!r} is not applied yet"):
        await job.context.notifications.wait_until(job.vm, there)


async def update_dra_state(_job: JobContext) -> None:
    """Do nothing: the rig's provider has no state to update; the official task is only shown."""


async def reprotect_synchronize(job: JobContext) -> None:
    """Send only the differences, and wait for the first point of the new protection."""
    async with provider_call(job, START_REPLICATION):
        await synchronize(job)
    await first_point(job)


async def repair(job: JobContext) -> None:
    """Resynchronize the VM; first remove the remains of a failed failover."""

    def look(session: Session, item: ItemRow) -> tuple[int, bool]:
        # A resync that is due for another reason, or ordered without one, is to find differences that nobody knows of.
        limited = item.resync_reason in LOG_ABANDONED and not damage.of_vm(session, item.vm)
        return item.resync_marks, limited

    job.variables["resync_marks"], limited = await job.change(look)
    await job.context.site.check_vm(vm=job.vm, excluded=await _excluded(job))
    name = await target_names.name_of(job.context, job.vm, "Recovered")
    leftover = await azure_vms.disks_of(job.context, name)
    preflight.require_idle(leftover, f"VM {name!r} at the recovery side")
    await job.begin_changes()
    await target_names.remove(job.context, job.vm, "Recovered")
    await enable_relationship(job)
    await synchronize(job, limited=limited)
    job.variables["synchronized_elapsed_ns"] = await job.change(
        lambda session, _item: rig_clock.elapsed_ns(session, job.context.clock)
    )


async def disable_at_site(job: JobContext) -> TaskOutcome | None:
    """Remove the relationship at the site, after a check that nothing uses the VM's data on the recovery side.

    A lost site cannot do that; it learns it when it asks (may_replicate).
    """

    def suspend(_session: Session, item: ItemRow) -> None:
        item.suspended = True

    await preflight.can_remove_all(job.context, job.vm)
    await job.begin_changes()
    await job.change(suspend)
    try:
        await job.context.site.remove_relationship(vm=job.vm)
    except RigError as error:
        return SKIPPED if error.code == Code.VmNotFound else failed_but_continued(error)
    return None


async def disable_at_recovery(job: JobContext) -> None:
    """Remove mounted points, copies, remains of failovers, managed disks and blobs.

    Raises:
        RigError: ``RecoveryInUse`` or ``DiskInUse``.
    """
    await mounts.remove_all(job.context, job.vm)
    await azure_vms.remove_copies(job.context, job.vm)
    await target_names.remove(job.context, job.vm, "TestFailover")
    await target_names.remove(job.context, job.vm, "Recovered")
    for disk_id in await job.change(lambda _session, item: [disk.disk_id for disk in disk_sets.of_any_state(item)]):
        await job.context.recovery.delete_managed_disk(disk_id=disk_id)


def _enabled(_session: Session, item: ItemRow, _job: JobRow) -> str:
    item.protection_state = ProtectionState.INITIAL_APPLIED
    return FINALIZE.key


def _enabling_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    before = item.protection_state == ProtectionState.ENABLING
    item.protection_state = ProtectionState.ENABLING_FAILED if before else ProtectionState.INITIAL_FAILED


def _protected(session: Session, item: ItemRow, job: JobRow) -> None:
    item.protection_state = ProtectionState.PROTECTED
    item.failover_position = None
    text = f"VM {item.vm!r} is protected"
    events.record(
        session, vm=item.vm, code="VmProtected", kind="VmReplication", severity="OK", text=text, now_ns=job.end_ns or 0
    )


def _reprotected(session: Session, item: ItemRow, job: JobRow) -> None:
    item.resync_reason = None
    _protected(session, item, job)


def _repaired(session: Session, item: ItemRow, job: JobRow) -> None:
    if item.resync_marks == job.variables["resync_marks"]:
        item.resync_reason = None
    if item.protection_state != ProtectionState.PROTECTED:
        _protected(session, item, job)
    # Cycles that could not run during the resync were not missed.
    item.protected_since_elapsed_ns = job.variables["synchronized_elapsed_ns"]
    session.query(CycleRow).filter(CycleRow.vm == item.vm).delete()


def _reprotect_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.protection_state = ProtectionState.REPROTECT_FAILED


def _repair_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    # The points from before the resync stay valid: the item keeps its state, and a failover stays possible.
    if item.resync_reason is None:
        item.resync_reason = "ResynchronizationFailed"
        item.resync_marks += 1


def _disabled(session: Session, item: ItemRow, _job: JobRow) -> None:
    for disk in disk_sets.of_any_state(item):
        delete_data_keys(session, disk.disk_id)
    session.delete(item)


def _disabling_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.protection_state = ProtectionState.DISABLING_FAILED
    item.test_failover_state = TEST_NONE


ENABLE = Scenario(
    key="enable",
    name="EnableDr",
    friendly_name="Enable replication",
    tasks=(
        TaskKind("EnableProtectionPreflightChecksTask", "Checking prerequisites for enabling protection", check_enable),
        TaskKind("CreateProtectionTargetTask", "Creating the replication target", create_target),
        TaskKind("EnableProtectionTask", "Enabling replication", enable_relationship),
        TaskKind("StartInitialReplicationTask", "Starting initial replication", start_initial_replication),
        TaskKind("UpdateDraStateTask", "Updating the provider states", update_dra_state),
    ),
    succeeded=_enabled,
    failed=_enabling_failed,
    progress=seeds.enable_progress,
    stop=stop_copy,
    resumed=True,
)
# scenarioName and task names are unconfirmed (ASR.md 2): no recording shows them; only the friendly name is official.
FINALIZE = Scenario(
    key="finalize",
    name="FinalizeProtection",
    friendly_name="Finalize protection on the virtual machine",
    tasks=(
        TaskKind("WaitForFirstRecoveryPointTask", "Waiting for the first recovery point", first_point),
        TaskKind("UpdateDraStateTask", "Updating the provider states", update_dra_state),
    ),
    succeeded=_protected,
    failed=_enabling_failed,
    progress=site_progress,
    resumed=True,
)
REPROTECT = Scenario(
    key="reprotect",
    name="ReprotectReplicationGroup",
    friendly_name="Reverse replication",
    tasks=(
        TaskKind("CreateProtectionTargetTask", "Creating the replication target", create_target_again, checks=True),
        TaskKind("EnableProtectionTask", "Enabling replication", enable_relationship),
        TaskKind("StartInitialReplicationTask", "Sending the differences", reprotect_synchronize),
    ),
    succeeded=_reprotected,
    failed=_reprotect_failed,
    progress=site_progress,
    stop=stop_copy,
    resumed=True,
)
REPAIR = Scenario(
    key="repair",
    name="RepairVMReplication",
    friendly_name="Resynchronize the virtual machine",
    tasks=(TaskKind("RepairVmReplicationTask", "Resynchronizing the virtual machine", repair, checks=True),),
    succeeded=_repaired,
    failed=_repair_failed,
    progress=site_progress,
    stop=stop_copy,
    resumed=True,
)
# Task names unconfirmed, after the pattern of EnableDr.
DISABLE = Scenario(
    key="disable",
    name="DisableDr",
    friendly_name="Disable replication",
    tasks=(
        TaskKind("DisableProtectionTask", "Disabling replication at the site", disable_at_site, checks=True),
        TaskKind("CleanupProtectionTargetTask", "Removing the replication target", disable_at_recovery, cancellable=False),
    ),
    succeeded=_disabled,
    failed=_disabling_failed,
    resumed=True,
)
