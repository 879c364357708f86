"""Task bodies of failovers from the site to Azure: test, unplanned, planned, and their commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from sqlalchemy import delete
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets
from siterig.azure_emu.vault.context.states import (
    RECOVERY,
    TEST_CLEANUP_COMPLETING,
    TEST_COMPLETED,
    TEST_COMPLETING,
    TEST_FAILED,
    TEST_NONE,
    ProtectionState,
)
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.context.vm_names import AzureVmKind
from siterig.azure_emu.vault.db.schema import CycleRow, ItemRow, JobRow
from siterig.azure_emu.vault.inventory import azure_vms, inventory, target_names
from siterig.azure_emu.vault.jobs import preflight
from siterig.azure_emu.vault.jobs.engine import (
    SKIPPED,
    JobContext,
    Scenario,
    TaskKind,
    TaskOutcome,
    failed_but_continued,
    with_warning,
)
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.monitoring import damage, health
from siterig.azure_emu.vault.points import points, selectors
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError

_log = structlog.get_logger()

VM_NAME = "vm_name"
"""The key of a job's variables for the name of the VM that it makes."""
SITE_ANSWER_S = 30.0
"""The limit for each call to the site in an unplanned failover, because the site can hang."""


async def _from_site(
    context: VaultContext, call: Callable[[], Awaitable[object]], what: str, limit_s: float = SITE_ANSWER_S
) -> RigError | None:
    """Call a site that may be lost; return the reason if the call failed.  A role that is restarting is waited for."""
    try:
        with context.clock.real.fail_after(limit_s):
            await context.roles.retry_while_away(call, on_wait=lambda _reason: None, lost_is_final=True, limit_s=limit_s)
    except RigError as error:
        reason = error
    except trio.TooSlowError:
        reason = RigError(Code.SiteTimeout, f"the site did not {what} within {limit_s:g} s", recoverable=True)
    else:
        return None
    _log.info("site_call_failed", what=what, reason=reason.message)
    return reason


async def suspend_replication(job: JobContext) -> None:
    """Stop the cycles: first in the database, which the site asks when it comes back, then at the site if it answers."""

    def suspend(_session: Session, item: ItemRow) -> None:
        item.suspended, item.paused_ns = True, None

    await job.change(suspend)
    await _from_site(job.context, lambda: job.context.site.suspend(vm=job.vm), "suspend replication")


async def _resolve_choice(job: JobContext) -> RecoveryPoint:
    if (between := job.variables["between"]) is not None:
        return RecoveryPoint.model_validate(between)
    choice = job.variables["choice"]
    return await job.change(lambda session, item: points.resolve(session, item.vm, choice))


async def _process_latest(job: JobContext, newest: RecoveryPoint) -> RecoveryPoint:
    """Apply the parts in the cache account; return the newest state that all disks have."""
    disk_ids = await job.change(lambda _session, item: [disk.disk_id for disk in item.disks])
    marks = await job.context.recovery.process_latest(disk_ids=disk_ids)

    def latest(session: Session, item: ItemRow) -> RecoveryPoint:
        found = points.newest(session, item.vm)  # processing may have brought newer ones
        return points.latest_state(item, marks, newest if found is None else found)

    return await job.change(latest)


async def check_test(job: JobContext) -> TaskOutcome | None:
    """Check that the recovery point can be read and that a test VM can be made from it."""
    await _hold_point(job, await _resolve_choice(job))
    outcome = await _choose_name(job, "TestFailover")
    await preflight.can_read(job.context, job.vm, _held_point(job).position)
    return outcome


async def check_unplanned(job: JobContext) -> TaskOutcome | None:
    """Check that the recovery point can be read and that the VM can be made from it, in place of a former one."""
    await _hold_point(job, await _resolve_choice(job))
    outcome = await _choose_name(job, "Recovered")
    await preflight.can_read(job.context, job.vm, _held_point(job).position)
    return outcome


async def _choose_name(job: JobContext, kind: AzureVmKind) -> TaskOutcome | None:
    """Choose the name of the VM that the job makes, and check that it can be made."""
    name, warning = await target_names.free_name(job.context, job.vm, kind)
    await preflight.can_make(job.context, job.vm, name, kind)
    job.variables[VM_NAME] = name
    return None if warning is None else with_warning(warning)


async def synchronize_latest(job: JobContext) -> TaskOutcome | None:
    """Apply all parts in the cache account if the point is ``Latest``; an unusable part ends that early."""
    if job.variables["choice"] != selectors.LATEST:
        return SKIPPED
    await _hold_point(job, await _process_latest(job, _held_point(job)))
    left = await job.change(lambda session, item: health.apply_error(session, item.vm))
    if left is None:
        return None
    text = f"VM {job.vm!r}: this state is not the newest that was sent, because a part cannot be applied: {left.message}"
    return with_warning(RigError(Code.LatestIncomplete, text))


async def _hold_point(job: JobContext, point: RecoveryPoint) -> None:
    job.variables["point"] = point.model_dump()
    job.result_point = point


def _held_point(job: JobContext) -> RecoveryPoint:
    return RecoveryPoint.model_validate(job.variables["point"])


async def _damage_of(job: JobContext, point: RecoveryPoint) -> TaskOutcome | None:
    """Return a warning if the state is known to be damaged; a damaged state is used, because it is better than none."""
    known = await job.change(lambda session, item: damage.warning_at(session, item.vm, point.position))
    return None if known is None else with_warning(known)


# ---- test failover


async def prepare_test(job: JobContext) -> TaskOutcome | None:
    """Open the disks of the test VM."""
    name, point = job.variables[VM_NAME], _held_point(job)
    await azure_vms.open_at(job.context, job.vm, name, "TestFailover", point)

    def completing(_session: Session, item: ItemRow) -> None:
        item.test_failover_state = TEST_COMPLETING

    await job.change(completing)
    return await _damage_of(job, point)


async def boot_test(job: JobContext) -> None:
    """Check that the test VM has all its disks."""
    job.result_vm = await azure_vms.verify(job.context, job.vm, job.variables[VM_NAME], "TestFailover")


async def check_cleanup(job: JobContext) -> None:
    """Check that nothing uses the test VM's disks.

    Raises:
        RigError: ``DiskInUse``.
    """
    name = await target_names.name_of(job.context, job.vm, "TestFailover")
    preflight.require_idle(await azure_vms.disks_of(job.context, name), f"VM {name!r} at the recovery side")


async def end_test(job: JobContext) -> None:
    """Remove the test VM and its disks (``DiskInUse`` while they are in use)."""
    await target_names.remove(job.context, job.vm, "TestFailover")


async def cleanup_test(job: JobContext) -> None:
    """Show that the cleanup is completing; the state changes at the end of the job."""

    def completing(_session: Session, item: ItemRow) -> None:
        item.test_failover_state = TEST_CLEANUP_COMPLETING

    await job.change(completing)


# ---- unplanned failover


async def shutdown_source_if_possible(job: JobContext) -> TaskOutcome | None:
    """Shut the source down if that was requested; a failure does not stop the failover.

    Replication continues until the new VM exists, so a failed failover loses nothing.
    """
    if job.variables["change"]:
        return SKIPPED  # the failover whose point is changed has already handled the source
    site, vm = job.context.site, job.vm
    outcome: TaskOutcome | None = SKIPPED
    if job.variables["source_actions"]:
        failure = await _from_site(job.context, lambda: site.shutdown_vm(vm=vm), "shut the VM down")
        outcome = None if failure is None else failed_but_continued(failure)
        if failure is None and job.variables["choice"] == selectors.LATEST:
            # The VM is down, so after one more cycle the failover loses nothing.
            last = await _from_site(
                job.context,
                lambda: site.replicate_now(vm=vm, kind="CrashConsistent", name="last"),
                "send the last changes",
            )
            outcome = None if last is None else failed_but_continued(last)
    return outcome


async def fail_over(job: JobContext) -> TaskOutcome | None:
    """Open the VM's disks on the recovery side, all at the position of the point."""
    name, point = job.variables[VM_NAME], _held_point(job)
    written = [disk for disk in await azure_vms.disks_of(job.context, name) if disk.last_seq]
    await azure_vms.open_at(job.context, job.vm, name, "Recovered", point)
    if job.variables.get("change") and written:
        names = ", ".join(disk.name for disk in written)
        return with_warning(
            RigError(
                Code.RecoveredVmReplaced,
                f"VM {name!r} was made from another point before; changes made to it since then are lost: disks {names}",
            )
        )
    return await _damage_of(job, point)


async def start_on_secondary(job: JobContext) -> None:
    """Check that the VM has all its disks, and then suspend replication; an earlier failure stops no cycle."""
    job.result_vm = await azure_vms.verify(job.context, job.vm, job.variables[VM_NAME], "Recovered")
    if not job.variables.get("change"):
        await suspend_replication(job)


# ---- planned failover to Azure


async def planned_preflight(job: JobContext) -> TaskOutcome | None:
    """Check that the site answers, that its logs are complete, so that nothing is lost, and that the VM can be made."""
    await inventory.site_disks(job.context, job.vm)

    def why_not(_session: Session, item: ItemRow) -> str | None:
        return "replication was suspended by a failover that failed" if item.suspended else item.resync_reason

    reason = await job.change(why_not)
    if reason is not None:
        raise RigError(
            Code.ResynchronizationRequired,
            f"VM {job.vm!r} has to be resynchronized before a planned failover: {reason}",
        )
    outcome = await _choose_name(job, "Recovered")
    newest = await job.change(lambda session, item: points.newest(session, item.vm))
    if newest is not None:
        await preflight.can_read(job.context, job.vm, newest.position)
    await job.context.site.check_shutdown(vm=job.vm)
    return outcome


async def shutdown_source(job: JobContext) -> None:
    """Shut the VM down; if that fails, so does the planned failover.

    Raises:
        RigError: ``VmBusy``.
    """
    await job.context.site.shutdown_vm(vm=job.vm)


async def synchronize_all(job: JobContext) -> None:
    """Apply all data that the VM has written."""
    cut = await job.context.site.replicate_now(vm=job.vm, kind="CrashConsistent", name="planned-failover")
    disk_ids = await job.change(lambda _session, item: [disk.disk_id for disk in item.disks])
    for mark in await job.context.recovery.process_latest(disk_ids=disk_ids):
        if not mark.sync_complete or mark.complete_position < cut.position:
            raise RigError(
                Code.NotSynchronized,
                f"disk {mark.disk_id} of VM {job.vm!r} is applied up to position {mark.complete_position}; a planned "
                f"failover needs position {cut.position}, the last before the shutdown",
                recoverable=True,  # a killed account loses blobs, and the site sends them again
            )
    point = RecoveryPoint(
        id=cut.tag_id,
        name=cut.name,
        type="CrashConsistent",
        time=rfc3339(cut.time_ns),
        position=cut.position,
        time_ns=cut.time_ns,
        lacking_disks=await job.change(lambda _session, item: disk_sets.lacking(item, cut.position)),
    )
    await _hold_point(job, point)


# ---- commit


async def check_commit(job: JobContext) -> None:
    """Check that the VM is complete, and that there is room for the hydration of its disks."""
    name = await target_names.name_of(job.context, job.vm, "Recovered")
    await azure_vms.verify(job.context, job.vm, name, "Recovered")
    await job.context.azure.check_hydration(vm=name)


async def commit(job: JobContext) -> None:
    """Start the hydration of the VM's disks, which continues in the background after the job.

    The changes in the vault happen in the transaction that ends the job (:func:`_committed`).
    """
    await job.context.azure.hydrate_vm(vm=await target_names.name_of(job.context, job.vm, "Recovered"))


def _committed(session: Session, item: ItemRow, _job: JobRow) -> None:
    """Delete the points and the state of replication; the managed disks stay, for a reprotection."""
    points.delete_all(session, item.vm)
    item.points_after_position = max([item.points_after_position, *(disk.complete_position for disk in item.disks)])
    health.clear_errors(session, item.vm, None)
    session.execute(delete(CycleRow).where(CycleRow.vm == item.vm))
    item.resync_reason = None
    item.sent_position, item.sent_time_ns, item.sent_elapsed_ns = 0, None, None
    item.protected_since_elapsed_ns = None
    item.active_location = RECOVERY
    item.protection_state = ProtectionState.COMMITTED


def _to(state: ProtectionState) -> Callable[[Session, ItemRow, JobRow], None]:
    def change(_session: Session, item: ItemRow, _job: JobRow) -> None:
        item.protection_state = state

    return change


def _test_to(state: str) -> Callable[[Session, ItemRow, JobRow], None]:
    def change(_session: Session, item: ItemRow, _job: JobRow) -> None:
        item.test_failover_state = state

    return change


def _failed_over(item: ItemRow, job: JobRow) -> None:
    item.failover_position = RecoveryPoint.model_validate(job.variables["point"]).position


def _planned_done(_session: Session, item: ItemRow, job: JobRow) -> None:
    item.protection_state = ProtectionState.PLANNED_DONE
    _failed_over(item, job)


def _unplanned_done(_session: Session, item: ItemRow, job: JobRow) -> None:
    _failed_over(item, job)
    item.protection_state = ProtectionState.CHANGE_POINT_DONE if job.variables["change"] else ProtectionState.UNPLANNED_DONE


def _unplanned_failed(_session: Session, item: ItemRow, job: JobRow) -> None:
    item.protection_state = (
        ProtectionState.CHANGE_POINT_FAILED if job.variables["change"] else ProtectionState.UNPLANNED_FAILED
    )


TEST = Scenario(
    key="test",
    name="TestFailover",
    friendly_name="Test failover",
    tasks=(
        TaskKind("TestFailoverPreflightChecksTask", "Checking prerequisites for test failover", check_test),
        TaskKind("BeginTestFailoverTask", "Synchronizing the latest changes", synchronize_latest),
        TaskKind("PrepareTestProtectedEntitiesTask", "Creating the test virtual machine", prepare_test),
        TaskKind("BootTestProtectedEntitiesTask", "Starting the test virtual machine", boot_test),
    ),
    succeeded=_test_to(TEST_COMPLETED),
    # Also if the first task failed: all operations are allowed in this state, and a cleanup then has nothing to remove.
    failed=_test_to(TEST_FAILED),
    resumed=False,
)
CLEANUP = Scenario(
    key="cleanup",
    name="TestFailoverCleanup",
    friendly_name="Test failover cleanup",
    tasks=(
        TaskKind(
            "TestFailoverCleanupPreflightChecksTask", "Checking prerequisites for the cleanup", check_cleanup, checks=True
        ),
        TaskKind("EndTestFailoverTask", "Removing the test virtual machine", end_test),
        TaskKind("CleanupTestProtectedEntitiesTask", "Cleaning up the test environment", cleanup_test),
    ),
    succeeded=_test_to(TEST_NONE),
    # Parts of the test VM may exist: the cleanup can be repeated.
    failed=_test_to(TEST_FAILED),
    resumed=True,
)
UNPLANNED = Scenario(
    key="unplanned",
    name="UnplannedFailover",
    friendly_name="Failover",
    tasks=(
        TaskKind(
            "UnplannedFailoverPreflightChecksTask", "Checking prerequisites for failover", check_unplanned, checks=True
        ),
        TaskKind(
            "ShutdownVmOnPrimaryForUFO",
            "Shutting down the virtual machine",
            shutdown_source_if_possible,
            waits_for_roles=False,
        ),
        TaskKind("PrepareForUnPlannedFailoverTask", "Synchronizing the latest changes", synchronize_latest),
        TaskKind("FailoverTask", "Failing over", fail_over),
        TaskKind("StartVmOnSecondary", "Starting the replica virtual machine", start_on_secondary, cancellable=False),
    ),
    succeeded=_unplanned_done,
    failed=_unplanned_failed,
    resumed=False,
)
PLANNED = Scenario(
    key="planned",
    name="PlannedFailover",
    friendly_name="Planned failover",
    tasks=(
        TaskKind(
            "PlannedFailoverPreflightChecksTask",
            "Checking prerequisites for failover",
            planned_preflight,
            waits_for_roles=False,
            checks=True,
        ),
        TaskKind("ShutdownVmOnPrimary", "Shutting down the virtual machine", shutdown_source, waits_for_roles=False),
        TaskKind("PrepareForFailoverTask", "Synchronizing the latest changes", synchronize_all),
        TaskKind("FailoverTask", "Failing over", fail_over),
        TaskKind("StartVmOnSecondary", "Starting the replica virtual machine", start_on_secondary, cancellable=False),
    ),
    succeeded=_planned_done,
    failed=_to(ProtectionState.PLANNED_FAILED),
    resumed=False,
)
COMMIT = Scenario(
    key="commit",
    name="CommitFailover",
    friendly_name="Commit",
    tasks=(
        TaskKind("VmCommitPrerequisitesCheck", "Checking prerequisites for commit", check_commit, checks=True),
        TaskKind("VmCommit", "Committing the failover", commit, cancellable=False),
    ),
    succeeded=_committed,
    failed=_to(ProtectionState.COMMIT_TO_RECOVERY_FAILED),
    resumed=True,
)
