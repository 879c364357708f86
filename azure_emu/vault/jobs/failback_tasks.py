"""Task bodies of the failback: full download (``ForDownTime``) of the Azure VM's disks, and its commit.

The download must be *one* state of all disks: nothing may use them from the first byte that is read until the site's disks
are replaced.  The log sequence numbers of the Azure disks show whether anything was written meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets, events
from siterig.azure_emu.vault.context.states import PRIMARY, ProtectionState
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow, JobRow
from siterig.azure_emu.vault.inventory import azure_vms, inventory, target_names
from siterig.azure_emu.vault.jobs import preflight
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind, TaskOutcome, with_warning
from siterig.azure_emu.vault.keys.data_key_store import delete_data_keys
from siterig.azure_emu.vault.model.resources import Vm
from siterig.azure_emu.vault.monitoring import source_watch
from siterig.blockfs.contracts.control import DiskInfo, SourceUse
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import DiskProgress, VmProgress

_CLOSE_TIMEOUT_S = 5.0
EXPORTS_MAX = 3
"""The number of exports of a disk after which a part that the account has lost ends the job."""
_LOST_IN_THE_ACCOUNT = frozenset({Code.PartNotFound, Code.PartUnreadable, Code.PartCorrupt})

_log = structlog.get_logger(__name__)


async def check_failback(job: JobContext) -> TaskOutcome | None:
    """Check that the Azure VM is complete and can replace the site's disks, and delete the parts of an earlier failback.

    Disks of the site that were written to after the failover are named, and will be kept as image files.
    """
    changed = await source_watch.changed_disks(job.context, job.vm)
    job.variables["keep"] = [use.name for use in changed]
    await preflight.can_fail_back(job.context, job.vm, job.variables["keep"])
    await _delete_exports(job, [disk.disk_id for disk in await _azure_disks(job)])
    if not changed:
        return None
    text = (
        f"VM {job.vm!r}: {source_watch.describe(changed)}; a failback replaces these disks, and keeps the old ones as files"
    )
    return with_warning(RigError(Code.SourceChanged, text))


async def _azure_disks(job: JobContext) -> list[DiskInfo]:
    """Return the disks of the recovered VM."""
    return await azure_vms.disks_of(job.context, await target_names.name_of(job.context, job.vm, "Recovered"))


async def _delete_exports(job: JobContext, disk_ids: list[str]) -> None:
    """Delete the parts of an earlier download: they can have an older state, and the next one would keep them."""
    replicas = await job.change(lambda _session, item: {disk.disk_id for disk in disk_sets.of_any_state(item)})
    for disk_id in disk_ids:
        if disk_id not in replicas:  # a managed disk is the base of the Azure VM and must stay
            await job.context.recovery.delete_managed_disk(disk_id=disk_id)


async def shutdown_azure_vm(job: JobContext) -> None:
    """Unmount and detach the Azure VM's disks, check that nothing on this host uses them, and record their state."""
    await job.context.shut_down([Path(disk.path) for disk in await _azure_disks(job)])
    with job.context.clock.real.move_on_after(_CLOSE_TIMEOUT_S):  # the kernel reports a last close with a delay
        while any(disk.open_handles for disk in await _azure_disks(job)):
            await job.context.clock.real.sleep(0.05)
    disks = await _azure_disks(job)
    _require_unused(disks)
    job.variables["disks"] = [
        {"disk_id": d.disk_id, "name": d.name, "path": d.path, "size_bytes": d.size_bytes, "last_seq": d.last_seq}
        for d in disks
    ]


def _require_unused(disks: list[DiskInfo]) -> None:
    for disk in disks:
        if disk.open_handles:
            raise RigError(
                Code.VmBusy,
                f"disk {disk.name!r} of Azure VM {disk.vm!r} is in use: {disk.path} (open handles: {disk.open_handles}); "
                "unmount it and detach its loop devices before failing back",
                recoverable=True,
            )


async def _require_unchanged(job: JobContext) -> None:
    """Check that nothing was written since the state was recorded; otherwise the download is a mixture of states."""
    disks = await _azure_disks(job)
    _require_unused(disks)
    noted = {disk["disk_id"]: disk["last_seq"] for disk in job.variables["disks"]}
    for disk in disks:
        if noted.get(disk.disk_id) != disk.last_seq:
            raise RigError(
                Code.VmBusy,
                f"disk {disk.name!r} of Azure VM {disk.vm!r} was written to while it was downloaded; keep it unmounted and "
                "fail back again",
                recoverable=True,
            )


async def download(job: JobContext) -> None:
    """Download every disk to a staging file at the site.

    If the account has lost or damaged a part, the disk is exported again; an export keeps the parts that are valid.
    """
    disks: list[dict[str, Any]] = job.variables["disks"]
    for disk in disks:
        source_id, size_bytes = disk["disk_id"], disk["size_bytes"]
        for attempt in range(1, EXPORTS_MAX + 1):
            parts = await job.context.recovery.export_disk(source=disk["path"], source_id=source_id, size_bytes=size_bytes)
            try:
                await job.context.site.receive_disk(
                    vm=job.vm, disk=disk["name"], source_id=source_id, size_bytes=size_bytes, parts=parts
                )
                break
            except RigError as error:
                if error.code not in _LOST_IN_THE_ACCOUNT or attempt == EXPORTS_MAX:
                    raise
                _log.warning("export_repeated", vm=job.vm, disk=disk["name"], code=error.code, reason=error.message)
    await _require_unchanged(job)


async def replace_site_disks(job: JobContext) -> TaskOutcome | None:
    """Replace the site's disks by the downloaded ones.  The Azure VM stays until the commit."""
    await _require_unchanged(job)
    changed = await source_watch.changed_disks(job.context, job.vm)
    keep = sorted({*job.variables["keep"], *(use.name for use in changed)})
    disks = await job.context.site.commit_failback(vm=job.vm, keep=keep)
    await job.change(lambda session, _item: _record_overwritten(session, job, changed))
    kept = [disk.kept[-1].path for disk in disks if disk.name in keep and disk.kept]
    if not kept:
        return None
    text = f"VM {job.vm!r}: old disks are kept as {', '.join(kept)}, until siterig disk kept delete removes them"
    return with_warning(RigError(Code.SourceKept, text))


def _record_overwritten(session: Session, job: JobContext, changed: list[SourceUse]) -> None:
    """Record the bytes that were written at the site after the failover's point, which the failback has overwritten."""
    written = {use.name: use.written_bytes for use in changed}
    by_disk = ", ".join(f"{name} {'unknown' if size is None else size}" for name, size in sorted(written.items()))
    known = [size for size in written.values() if size is not None]
    number = str(sum(known)) if known or not written else ""
    if len(known) < len(written):
        number += " and an unknown number of" if known else "an unknown number of"
    text = (
        f"the failback of VM {job.vm!r} overwrote {number} bytes that were written at the site after the recovery point of "
        "the failover"
    )
    events.record(
        session,
        vm=job.vm,
        code="SourceOverwritten",
        kind="VmReplication",
        severity="Warning" if written else "OK",
        text=f"{text} (disk bytes: {by_disk})" if written else text,
        now_ns=job.context.clock.wall_ns(),
    )


async def start_at_site(job: JobContext) -> None:
    """Check that the source VM exists with its disks."""
    job.result_vm = await _site_vm(job)


async def _site_vm(job: JobContext) -> Vm:
    disks = await inventory.site_disks(job.context, job.vm)
    vm = Vm(
        name=job.vm,
        side="site",
        state=ProtectionState.PLANNED_DONE,
        disks=[azure_vms.to_vm_disk(disk) for disk in disks],
    )
    await job.context.database.transact(lambda session: inventory.cache_vm(session, vm))
    return vm


async def check_commit(job: JobContext) -> None:
    """Check that the VM exists at the site, and that the Azure VM is unused and unchanged since its download."""
    await _site_vm(job)
    disks = await _azure_disks(job)
    _require_unused(disks)
    downloaded = await job.context.database.transact(lambda session: _downloaded(session, job.vm))
    for disk in disks:
        if downloaded.get(disk.disk_id, disk.last_seq) != disk.last_seq:
            raise RigError(
                Code.VmChanged,
                f"disk {disk.name!r} of Azure VM {disk.vm!r} was written to after it was downloaded, and a commit would "
                "delete what was written: fail back again (siterig failback)",
            )
    job.variables["exports"] = [disk.disk_id for disk in disks]


def _downloaded(session: Session, vm: str) -> dict[str, int]:
    """Return the log sequence number of each Azure disk at the download of the last successful failback, by disk id."""
    query = select(JobRow.variables).where(JobRow.vm == vm, JobRow.key == FAILBACK.key, JobRow.state == "Succeeded")
    variables = session.scalars(query.order_by(JobRow.id.desc()).limit(1)).first()
    return {} if variables is None else {disk["disk_id"]: disk["last_seq"] for disk in variables.get("disks", [])}


async def commit(job: JobContext) -> None:
    """Delete the Azure VM, its disks and the parts of the download."""
    await target_names.remove(job.context, job.vm, "Recovered")
    exports = job.variables["exports"]
    await _delete_exports(job, exports)
    await job.change(lambda session, item: _delete_export_keys(session, item, exports))


def _delete_export_keys(session: Session, item: ItemRow, disk_ids: list[str]) -> None:
    """Delete the keys of the downloads; no disk gets these ids again."""
    for disk_id in set(disk_ids) - {disk.disk_id for disk in disk_sets.of_any_state(item)}:
        delete_data_keys(session, disk_id)


def _failed_back(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.protection_state = ProtectionState.PLANNED_DONE
    item.failover_position = item.fenced_ns = None  # the site has new disks, which it does not fence


def _failback_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.protection_state = ProtectionState.PLANNED_FAILED


def _committed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.active_location = PRIMARY
    item.protection_state = ProtectionState.COMMITTED


def _commit_failed(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.protection_state = ProtectionState.COMMIT_TO_PRIMARY_FAILED


async def download_progress(context: VaultContext, vm: str, variables: dict[str, Any]) -> VmProgress:
    """Return the bytes of each disk that the recovery side has exported."""
    shown = []
    for disk in variables.get("disks", []):
        done_bytes = await context.recovery.export_progress(source_id=disk["disk_id"])
        shown.append(
            DiskProgress(disk=disk["name"], done_bytes=done_bytes, total_bytes=disk["size_bytes"], sent_bytes=done_bytes)
        )
    return VmProgress(vm=vm, phase="Failback", disks=shown)


FAILBACK = Scenario(
    key="failback",
    name="PlannedFailover",
    friendly_name="Planned failover",
    tasks=(
        TaskKind("PlannedFailoverPreflightChecksTask", "Checking prerequisites for failover", check_failback, checks=True),
        TaskKind("ShutdownVmOnPrimary", "Shutting down the Azure virtual machine", shutdown_azure_vm),
        TaskKind("PrepareForFailoverTask", "Downloading the disks", download),
        TaskKind("FailoverTask", "Failing over to the site", replace_site_disks, cancellable=False),
        TaskKind("StartVmOnSecondary", "Starting the virtual machine at the site", start_at_site, cancellable=False),
    ),
    succeeded=_failed_back,
    failed=_failback_failed,
    progress=download_progress,
    resumed=False,
)
COMMIT = Scenario(
    key="commit-failback",
    name="CommitFailover",
    friendly_name="Commit",
    tasks=(
        TaskKind("VmCommitPrerequisitesCheck", "Checking prerequisites for commit", check_commit, checks=True),
        TaskKind("VmCommit", "Committing the failover and deleting the Azure virtual machine", commit, cancellable=False),
    ),
    succeeded=_committed,
    failed=_commit_failed,
    resumed=True,
)
