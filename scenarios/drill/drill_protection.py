"""The steps of the drill before the loss of the site: source VM, protection, delta replication, test failover."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.choices import OFFICIAL_INTERVALS_S
from siterig.azure_emu.vault.model.resources import Job, RecoveryPoint
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.scenarios.checks.vm_checks import check_vm
from siterig.scenarios.drill.drill_run import FILESYSTEMS, MIB, DrillRun
from siterig.scenarios.workloads import corpus


async def make_source(run: DrillRun) -> None:
    """Create a VM with two formatted disks, fill them with files of this machine, and start a ledger."""
    settings = run.settings
    sizes = {"os": settings.os_bytes, "data": settings.data_bytes}
    specs = [DiskSpec(name=name, size_bytes=sizes[name], filesystem=kind) for name, kind in FILESYSTEMS.items()]
    vm = await run.rig.vault.create_vm(vm=settings.vm, disks=specs)
    for disk in vm.disks:
        run.say(f"disk {disk.name}: {disk.size_bytes // MIB} MiB {FILESYSTEMS[disk.name]}, {disk.path}")
    guest = await run.attach(vm, "source")
    await guest.mount()
    files = await trio.to_thread.run_sync(corpus.choose, settings.corpus_bytes)
    total, copied = sum(size for _, size in files), 0
    with run.narrator.progress("filling the disks") as update:

        def progress(more: int) -> None:
            nonlocal copied
            copied += more
            update(copied, total)

        for name, share in zip(FILESYSTEMS, corpus.distribute(files, len(FILESYSTEMS)), strict=True):
            run.manifests[name] = await corpus.fill(share, guest[name], progress)
    evidence = f"{len(files)} files, {total / MIB:.0f} MiB, copied and synced"
    run.check("real files of this machine on both disks", total >= settings.corpus_bytes, evidence)
    await run.start_ledger(guest, "site")
    modes = "each transaction fsynced on os (rollback journal), then on data (WAL), then acknowledged"
    run.check("the ledger runs", _acknowledged(run) > 0, f"{_acknowledged(run)} transactions; {modes}")


async def protect(run: DrillRun) -> None:
    """Enable protection under load, and wait for the initial replication and the end of the jobs."""
    settings = run.settings
    if settings.interval_s not in OFFICIAL_INTERVALS_S:
        official = "/".join(f"{interval_s:g}" for interval_s in OFFICIAL_INTERVALS_S)
        run.say(f"replication interval {settings.interval_s:g} s: only in this rig, the service has {official} s")
    before = _acknowledged(run)
    enable = await run.rig.vault.enable_protection(vm=settings.vm, interval_s=settings.interval_s)
    await run.finish(enable)
    logs: list[Path] = []
    states: list[str] = []
    with run.narrator.progress("initial replication") as update:

        async def protected() -> bool:
            await run.show_progress(update)
            logs[:] = logs or await _logs(run)
            item = await run.item()
            if states[-1:] != [item.protectionState]:
                states.append(item.protectionState)
                run.say(f"protectionState {item.protectionState}")
            if item.protectionState.endswith("Failed"):
                raise RigError(Code.JobFailed, f"{settings.vm} could not be protected: {item.protectionState}")
            return item.protectionState == "Protected"

        await run.until(f"{settings.vm} to be Protected", protected)
    logs = logs or await _logs(run)
    _check_logs(run, logs)
    run.check("load continued during initial replication", _acknowledged(run) > before, _growth(before, _acknowledged(run)))
    disks = await run.rig.site.list_disks(vm=settings.vm)
    with_snapshot = [disk.name for disk in disks if disk.snapshot]
    run.check("snapshot removed", not with_snapshot, f"disks with a snapshot: {', '.join(with_snapshot) or 'none'}")
    jobs = await run.rig.vault.jobs()
    for name, job in {"EnableDr": enable, "Finalize protection": None}.items():
        finalize_job = next((entry for entry in jobs if _is(entry, job, name)), None)
        if finalize_job is not None and finalize_job.endTime is None:
            finalize_job = await run.finish(finalize_job)
        run.check(
            f"job {name} succeeded", finalize_job is not None and finalize_job.state == "Succeeded", _tasks(finalize_job)
        )


def _is(entry: Job, job: Job | None, name: str) -> bool:
    return entry.name == job.name if job else name.partition(" ")[0] in entry.scenarioName + entry.friendlyName


def _tasks(job: Job | None) -> str:
    if job is None:
        return "there is no such job"
    tasks = ", ".join(f"{task.name} {task.state}" for task in job.tasks)
    return f"{job.scenarioName} {job.state}: {tasks}"


def _acknowledged(run: DrillRun) -> int:
    return run.ledger.acknowledged_count() if run.ledger else 0


def _growth(before: int, after: int) -> str:
    return f"{after - before} transactions acknowledged meanwhile"


async def _logs(run: DrillRun) -> list[Path]:
    """List the change logs in the folder of the disks in the mount."""
    folders = {disk.path.parent for disk in run.guests[0].disks}
    return sorted([Path(found) for folder in folders for found in await trio.Path(folder).glob("*.hrl")])


def _check_logs(run: DrillRun, logs: list[Path]) -> None:
    names = ", ".join(path.name for path in logs)
    with_log = {disk.name for disk in run.guests[0].disks if any(path.name.startswith(f"{disk.name}.") for path in logs)}
    run.check("change logs beside the disks", with_log == set(FILESYSTEMS), f"in the mount: {names or 'none'}")
    refused = []
    for path in logs:
        try:
            path.open("r+b").close()
        except OSError as error:
            refused.append(f"{path.name}: {reason(error, path.name)}")
    run.check("change logs are read-only", len(refused) == len(logs) > 0, f"to write was refused: {'; '.join(refused)}")


async def _check_transit(run: DrillRun) -> None:
    """Check that a closed log is kept until it is applied, and that writes go to another log meanwhile."""
    seen: list[str] = []

    async def in_transit() -> bool:
        newest = {disk.disk_id: disk for disk in await run.rig.site.list_disks(vm=run.settings.vm)}
        for log in await run.rig.site.segments(vm=run.settings.vm):
            disk = newest[log.disk_id]
            if disk.last_seq > log.last_seq:
                name = Path(log.path).name
                seen.append(f"{name}, closed, ends with record {log.last_seq}; disk {disk.name} is at {disk.last_seq}")
        return bool(seen)

    await run.until("a closed log in transit while another takes writes", in_transit)
    run.check("one log is in transit while another takes writes", bool(seen), seen[0])


async def replicate(run: DrillRun) -> None:
    """Run two cycles of delta replication and take one application-consistent point under load."""
    seen: list[RecoveryPoint] = []

    async def two_points() -> bool:
        seen[:] = await _points(run)
        return len(seen) >= 2

    await run.until("two crash-consistent points", two_points)
    for point in seen:
        run.say(f"point {point.type} at position {point.position}")
    await _check_transit(run)
    before = _acknowledged(run)
    point = await run.rig.vault.create_point(
        vm=run.settings.vm, kind="ApplicationConsistent", name="drill: both file systems frozen"
    )
    run.check(
        "application-consistent point by freeze and thaw of both file systems",
        point.type == "ApplicationConsistent",
        f"point {point.name} at position {point.position}",
    )
    await run.wait_for_load()
    run.check("load continued after the thaw", _acknowledged(run) > before, _growth(before, _acknowledged(run)))
    positions = [entry.position for entry in await _points(run)]
    rising = all(one < other for one, other in pairwise(positions))
    run.check("positions of the points rise with time", rising, ", ".join(map(str, positions)))


async def _points(run: DrillRun) -> list[RecoveryPoint]:
    points = await run.rig.vault.points(vm=run.settings.vm)
    return sorted(points, key=lambda point: point.time_ns)


async def test_failover(run: DrillRun) -> None:
    """Fail over the newest application-consistent point to a test VM, check it, and remove it."""
    points = [point for point in await _points(run) if point.type == "ApplicationConsistent"]
    if not points:
        raise RigError(Code.NoSuchPoint, f"{run.settings.vm} has no application-consistent point")
    point, before = points[-1], _acknowledged(run)
    job = await run.finish(await run.rig.vault.test_failover(vm=run.settings.vm, point=point.id))
    if job.result is None:
        raise RigError(Code.JobFailed, f"job {job.scenarioName} does not name the VM that it created")
    run.say(f"VM {job.result.name} on {job.result.side}, from position {point.position}")
    guest = await run.attach(job.result, "test")
    verdict = await check_vm(guest, run.manifests, run.acks("site"), point.position)
    run.findings(verdict.findings)
    await run.release(guest)
    await run.finish(await run.rig.vault.cleanup_test_failover(vm=run.settings.vm))
    left = [vm.name for vm in await run.rig.vault.list_vms() if vm.name == job.result.name]
    run.check("test VM removed", not left, f"VMs of that name: {len(left)}")
    after = await run.wait_for_load()
    run.check("the source never stopped", after > before, _growth(before, after))
