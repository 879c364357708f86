"""The drill: it protects a VM, loses the site, recovers, fails back, and checks every promise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.scenarios.contracts.results import DrillResult, RpoSample
from siterig.scenarios.contracts.rig import Rig
from siterig.scenarios.drill import drill_loss, drill_protection
from siterig.scenarios.drill.drill_run import DrillRun, DrillSettings
from siterig.scenarios.drill.narrator import Narrator

_RPO_EVERY_S = 1.0


@dataclass(frozen=True)
class DrillStep:
    """One stage of the drill; checks and the timeline refer to it by ``name``."""

    name: str
    title: str
    work: Callable[[DrillRun], Awaitable[None]]


FIRST_STEP = 3
"""The caller checks the machine (1), starts the rig (2), and reports at the end (10)."""
STEP_COUNT = 10
STEPS = (
    DrillStep("source", "A source VM with two disks, real files, and a ledger at work", drill_protection.make_source),
    DrillStep("protect", "Enable protection under load: initial replication", drill_protection.protect),
    DrillStep("replicate", "Delta replication and recovery points", drill_protection.replicate),
    DrillStep("test", "Test failover of the application-consistent point", drill_protection.test_failover),
    DrillStep("loss", "The site is lost: unplanned failover to Latest", drill_loss.lose_site),
    DrillStep("work", "Commit; the workload continues in the recovered VM", drill_loss.work_on),
    DrillStep("failback", "Failback, commit, protected again", drill_loss.fail_back),
)


async def run_drill(rig: Rig, settings: DrillSettings, narrator: Narrator) -> DrillResult:
    """Run all steps on a rig that is up and has no VM with the name of the settings.

    A failed check is recorded and the drill continues.  An error ends the drill and is the ``error`` of the result.  No
    workload, mount or loop device of the drill remains, also after an error or a cancellation.
    """
    run = DrillRun(rig, settings, narrator)
    started = SYSTEM_CLOCK.utc()
    error: str | None = None
    jobs: list[Job] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sample_rpo, run)
            error = await _run_steps(run)
            jobs = await _jobs(run)
            nursery.cancel_scope.cancel()
    finally:
        leftovers = await _clean_up(run)
    return DrillResult(
        ok=error is None and not leftovers and all(check.ok for check in run.checks),
        error=error or leftovers,
        started=started.isoformat(timespec="seconds"),
        duration_s=run.now(),
        vm=settings.vm,
        interval_s=settings.interval_s,
        steps=[step.name for step in STEPS],
        checks=run.checks,
        timeline=run.timeline,
        rpo=run.rpo,
        measures=run.measures,
        jobs=jobs,
    )


async def _run_steps(run: DrillRun) -> str | None:
    try:
        for number, step in enumerate(STEPS, FIRST_STEP):
            run.begin(step.name, number, STEP_COUNT, step.title)
            await step.work(run)
    except RigError as error:
        run.say(f"{error.code}: {error.message}", "bad")
        return f"{error.code}: {error.message}"
    return None


async def _sample_rpo(run: DrillRun) -> None:
    """Sample the RPO of the protected item once a second."""
    while True:
        try:
            items = await run.rig.vault.items()
            rpo_s = next((item.lastRpoInSeconds for item in items if item.name == run.settings.vm), None)
        except RigError:
            rpo_s = None  # a gap in the curve, not the end of the drill
        run.rpo.append(RpoSample(at_s=run.now(), rpo_s=rpo_s))
        await SYSTEM_CLOCK.sleep(_RPO_EVERY_S)


async def _jobs(run: DrillRun) -> list[Job]:
    try:
        return await run.rig.vault.jobs()
    except RigError as error:
        run.say(f"the jobs cannot be listed: {error.message}", "bad")
        return []


async def _clean_up(run: DrillRun) -> str | None:
    """Stop the workload and release mounts and loop devices; return the failures, or None."""
    left: list[str] = []
    with trio.CancelScope(shield=True):
        await run.stop_ledger()
        for guest in reversed(run.guests):
            try:
                await guest.release()
            except RigError as error:
                run.say(f"{error.code}: {error.message}", "bad")
                left.append(error.message)
        run.guests.clear()
    return "; ".join(left) or None
