"""The steps of the drill after the loss of the site: unplanned failover, work in the recovered VM, and failback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.resources import Job, Vm
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.checks.vm_checks import check_vm, first_difference
from siterig.scenarios.drill.drill_run import DrillRun
from siterig.scenarios.workloads.ack_log import Ack, read_acks
from siterig.scenarios.workloads.guest import Guest


async def lose_site(run: DrillRun) -> None:
    """Kill the site under load, fail over to Latest, check everything, and measure RPO and RTO."""
    await run.wait_for_load()
    lost_ns = SYSTEM_CLOCK.wall_ns()
    await run.rig.kill_site()
    run.say("THE SITE IS LOST: its disk host and agent were killed (SIGKILL) in mid-load", "bad")
    await _ledger_broke_off(run)
    for guest in list(run.guests):
        await run.release(guest)
    ordered = run.now()
    run.say("unplanned failover to Latest ordered")
    job = await run.finish(await run.rig.vault.unplanned_failover(vm=run.settings.vm, point="Latest"))
    recovered = _made(job)
    position = _position(job)
    run.say(f"VM {recovered.name} on {recovered.side}, from position {position}")
    guest = await run.attach(recovered, "recovered")
    verdict = await check_vm(guest, run.manifests, run.acks("site"), position)
    rto_s = run.now() - ordered
    run.findings(verdict.findings)
    acks = read_acks(run.acks("site"))
    rpo_s = recovery_point_s(acks, verdict.ledger.present, lost_ns)
    run.measures = run.measures.model_copy(update={"rpo_s": rpo_s, "rpo_transactions": verdict.ledger.lost, "rto_s": rto_s})
    shown = "unknown" if rpo_s is None else f"{rpo_s:.1f} s"
    run.say(f"RPO {shown}, {verdict.ledger.lost} of {len(acks)} acknowledged transactions lost; RTO {rto_s:.1f} s", "good")


def recovery_point_s(acks: Sequence[Ack], present: int, lost_ns: int) -> float | None:
    """Return the age in seconds of the newest acknowledged and recovered transaction at the loss; None if there is none."""
    kept = [ack.time_ns for ack in acks if ack.n <= present]
    return max(0.0, (lost_ns - max(kept)) / 1e9) if kept else None


async def _ledger_broke_off(run: DrillRun) -> None:
    if run.ledger is None:
        raise RigError(Code.LedgerFailed, "no ledger is running")
    with trio.move_on_after(run.settings.step_timeout_s):
        end = await run.ledger.ended()
        run.check("the load was interrupted by the loss", end.error is not None, f"ledger: {end.error or 'ended by itself'}")
        run.ledger = None
        return
    raise RigError(Code.DrillTimedOut, "the ledger still runs although the host of its disks was killed")


def _made(job: Job) -> Vm:
    if job.result is None:
        raise RigError(Code.JobFailed, f"job {job.scenarioName} does not name the VM that it created")
    return job.result


def _position(job: Job) -> int:
    if job.recovery_point is not None:
        return job.recovery_point.position
    raise RigError(
        Code.NoSuchPoint, f"job {job.scenarioName} of {job.targetObjectName} does not name the recovery point that it used"
    )


async def work_on(run: DrillRun) -> None:
    """Commit, and continue the workload in the recovered VM."""
    await run.finish(await run.rig.vault.commit_failover(vm=run.settings.vm))
    points = await run.rig.vault.points(vm=run.settings.vm)
    run.check("commit deleted all points", not points, f"{len(points)} points left")
    ledger = await run.start_ledger(run.guests[-1], "azure")
    done = await run.wait_for_load()
    run.check("the workload continues in the recovered VM", done > 0, f"it continued from {ledger.found}, {done} more")


async def fail_back(run: DrillRun) -> None:
    """Start the site again, fail back, compare the disks byte by byte, commit, and protect the VM again."""
    settings = run.settings
    await run.rig.restart_site()
    run.say("the site is up again")
    await run.wait_for_load()
    ordered = run.now()
    await run.stop_ledger()
    recovered = run.guests[-1]
    await run.release(recovered)
    run.say(f"VM {recovered.vm} shut down: workload stopped, disks unmounted")
    job = await run.finish(await run.rig.vault.failback(vm=settings.vm))
    source = await _source(run, job)
    await _compare(run, recovered, source)
    guest = await run.attach(source, "source")
    verdict = await check_vm(guest, run.manifests, run.acks("azure"), None)
    run.findings(verdict.findings)
    await run.finish(await run.rig.vault.commit_failover(vm=settings.vm))
    failback_s = run.now() - ordered
    run.measures = run.measures.model_copy(update={"failback_s": failback_s})
    run.say(f"back at the site after {failback_s:.1f} s", "good")
    await run.start_ledger(guest, "site-again")
    await _protect_again(run)


async def _source(run: DrillRun, job: Job) -> Vm:
    if job.result is not None and job.result.side == "site":
        return job.result
    for vm in await run.rig.vault.list_vms():
        if vm.name == run.settings.vm and vm.side == "site":
            return vm
    raise RigError(Code.VmNotFound, f"vm {run.settings.vm!r} is not at the site after its failback")


async def _compare(run: DrillRun, recovered: Guest, source: Vm) -> None:
    files = {disk.name: disk.path for disk in recovered.disks}
    for disk in source.disks:
        other = files[disk.name]
        with run.narrator.progress(f"comparing disk {disk.name}") as update:
            offset = await first_difference(other, Path(disk.path), lambda done: update(done, disk.size_bytes))  # noqa: B023
        evidence = f"all {disk.size_bytes} bytes are equal" if offset is None else f"first difference at offset {offset}"
        run.check(f"disk {disk.name} is byte for byte the recovery side's", offset is None, evidence)


async def _protect_again(run: DrillRun) -> None:
    """Replicate again under load until a new recovery point is available."""
    await run.finish(await run.rig.vault.reprotect(vm=run.settings.vm))
    with run.narrator.progress("initial replication") as update:

        async def protected() -> bool:
            await run.show_progress(update)
            item = await run.item()
            if item.protectionState.endswith("Failed"):
                raise RigError(Code.JobFailed, f"{run.settings.vm} could not be protected again: {item.protectionState}")
            return item.protectionState == "Protected" and bool(await run.rig.vault.points(vm=run.settings.vm))

        await run.until(f"{run.settings.vm} to be Protected again, with a recovery point", protected)
    item = await run.item()
    points = await run.rig.vault.points(vm=run.settings.vm)
    run.check(
        "protected again",
        item.activeLocation == "Primary",
        f"{item.protectionState}, activeLocation {item.activeLocation}, health {item.replicationHealth}, "
        f"{len(points)} new points",
    )
    await run.wait_for_load()
