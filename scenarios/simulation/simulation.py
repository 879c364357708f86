"""One run of a simulation: a VM is protected, its guest writes, faults come and go, everything heals, all is checked."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from siterig.azure_emu.vault.model import bounds
from siterig.azure_emu.vault.model.resources import Job, ProtectedItem
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.host.disk_host import DiskHost
from siterig.scenarios.simulation.administrator import Administrator
from siterig.scenarios.simulation.coverage import Coverage
from siterig.scenarios.simulation.disk_model import DiskModel
from siterig.scenarios.simulation.fault_driver import FaultDriver
from siterig.scenarios.simulation.invariants import MARKER, Finding, Invariants
from siterig.scenarios.simulation.rig import runtime
from siterig.scenarios.simulation.rig.plan import RunPlan
from siterig.scenarios.simulation.rig.world import SIZES, VM, World, WorldParts
from siterig.scenarios.simulation.start_state import StartState

LOOK_EVERY_S = 20.0
NEWS_S = 1.0
"""The time between two looks for news that cost no call."""
NORMAL_S_MAX = 60.0
"""The time for which health may stay Normal after the bound for a VM without a new point: rounds, reports, clocks."""
SILENT_JOB_S = 300.0
"""A job that is in progress for this time shows what it waits for."""
BLOB_LOSSES_MIN = 2
"""The first loss of blobs makes parts bad; only another one, after they were sent again, makes them unusable."""


_LASTING = {"ReplicationCyclesMissed", "DisksAvailableForProtection"}
"""Reasons that a healed rig may have: missed cycles stay in the figure of the last hour, and a disk may stay unprotected."""


@dataclass(slots=True)
class RunResult:
    """The result of one run.

    Attributes:
        digest: the hash of the trace.
        points: the number of recovery points that were compared.
        coverage: the counts of what occurred.
        simulated_s: the simulated time.
        processor_s: the processor time of the run.
    """

    plan: RunPlan
    digest: str = ""
    calls: int = 0
    points: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    simulated_s: float = 0.0
    processor_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


class Simulator:
    """Runs plans, one after the other, in a folder in memory."""

    def __init__(self, folder: Path) -> None:
        """Use an empty folder; the caller deletes it afterwards."""
        self._runs = folder / "run"
        self._start_folder = folder / "start"
        self._start: StartState | None = None

    def run(self, plan: RunPlan, parts: WorldParts | None = None) -> RunResult:
        """Run a plan."""
        begun_s = time.process_time()
        start = self._protected() if plan.begins_protected else None
        if self._runs.exists():
            shutil.rmtree(self._runs)
        self._runs.mkdir()
        with _collected_afterwards():
            result = _run(plan, self._runs, parts or WorldParts(), start).result
        result.processor_s = time.process_time() - begun_s
        return result

    def _protected(self) -> StartState:
        if self._start is None:
            self._start_folder.mkdir()
            quiet = _run(_QUIET, self._start_folder, WorldParts(), None)
            if quiet.result.findings:
                raise AssertionError(f"the run without faults fails: {quiet.result.findings[0]}")
            self._start = StartState.of(quiet.world, quiet.invariants, quiet.result.simulated_s)
        return self._start


_QUIET = RunPlan(0, (), 30.0, interval_s=30.0, app_consistent_every_s=60.0, writes_per_s=0.5)


def _run(plan: RunPlan, folder: Path, parts: WorldParts, start: StartState | None) -> Simulation:
    async def main() -> Simulation:
        simulation = Simulation(plan, folder, parts, start)
        await simulation.run()
        return simulation

    return runtime.run(main, plan.seed)


@contextmanager
def _collected_afterwards() -> Iterator[None]:
    """Collect cyclic garbage after the run only: during it, the collector would look at the same live objects many times.

    The world of the run must be garbage by then.  An object that is alive at a collection is taken for a long-lived one, and
    the next collections of this function do not look at it again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(1)  # the objects of this run, and not those of the whole process
        if was_enabled:
            gc.enable()


class Simulation:
    """One run."""

    def __init__(self, plan: RunPlan, folder: Path, parts: WorldParts, start: StartState | None) -> None:
        """Prepare a run, which begins with nothing, or with the state ``start``."""
        self.plan = plan
        self.invariants = Invariants(SYSTEM_CLOCK.trio_time_s, lambda: folder / "managed")
        if start is not None:
            start.copy_files(folder)
        self.world = World(folder, plan, self.invariants, parts, begun_s=0.0 if start is None else start.begun_s)
        if start is not None:
            start.put_into(self.world, self.invariants)
        self.world.on_site_opened = self._site_opened
        self.faults = FaultDriver(self.world, self.invariants)
        self.administrator = Administrator(self.world, self.invariants)
        self.world.on_azure_opened = self.administrator.azure_opened
        self.result = RunResult(plan)
        self._clock = self.world.clocks["recovery"]
        self._begins_protected = start is not None
        self._seen_resync: str | None = None
        self._points: set[int] = set()
        self._progress_s = 0.0
        """The time at which the newest recovery point was seen first."""

    async def run(self) -> RunResult:
        """Run to the end, and return the result."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.world.supervisor.run)
            if not self._begins_protected:
                await self._make_vm()
                nursery.start_soon(self._protect)
            nursery.start_soon(self._write)
            nursery.start_soon(self.faults.run)
            nursery.start_soon(self.administrator.run)
            while (left_s := self.plan.active_s - self._now_s()) > 0:
                await self._clock.sleep(min(LOOK_EVERY_S, left_s))
                await self._look()
            await self.faults.heal()
            self.administrator.heal()
            await self._converge()
            await self._finish()
            nursery.cancel_scope.cancel()
        return self._collected()

    def _collected(self) -> RunResult:
        result = self.result
        result.simulated_s = self._now_s()
        result.findings = self.invariants.findings
        result.digest, result.calls = self.invariants.trace.digest, self.invariants.trace.count
        result.points = len(self._points)
        result.coverage = self.invariants.coverage
        result.trace = list(self.invariants.trace.lines)
        return result

    def _now_s(self) -> float:
        return SYSTEM_CLOCK.trio_time_s()

    # --- the guest ----------------------------------------------------------------------------------------------

    async def _make_vm(self) -> None:
        while self.world.site_host is None:
            await self._clock.sleep(0.1)
        for name, size in SIZES.items():
            info = await self.world.site_host.create_disk(vm=VM, name=name, size_bytes=size)
            self.invariants.memory.names[info.disk_id] = name
            self.invariants.memory.models[name] = DiskModel(size)
            if self.plan.loses_power:
                self.world.site_host.disk(VM, name).faults.keep_unsynced()
        for name in SIZES:
            self._write_once(self.world.site_host, name)

    async def _write(self) -> None:
        draws = self.world.draws
        while True:
            await self._clock.sleep(draws.expovariate(self.plan.writes_per_s))
            name, flushes = draws.choice(list(self.invariants.memory.models)), draws.random() < 0.3
            vm, guests = self.administrator.vm, self.world.guests
            if vm.side == "azure" and self.world.azure_host is not None:
                self._write_recovered(self.world.azure_host, name)
            host = self.world.site_host
            is_off = vm.side != "site" or guests.is_off or guests.is_frozen or not self.faults.guest_runs
            if host is None or is_off:
                continue
            self._write_once(host, name)
            if flushes:
                self._flush(host, name)

    def _drawn_write(self, name: str) -> tuple[int, bytes]:
        draws = self.world.draws
        length = draws.choice((512, 1024, 4096))
        offset = draws.randrange(0, self.invariants.memory.models[name].size_bytes - length + 1, 512)
        data = (MARKER * 2)[: draws.randrange(40, 80)] + draws.randbytes(length)
        return offset, data[:length]

    def _write_recovered(self, host: DiskHost, name: str) -> None:
        offset, data = self._drawn_write(name)
        try:
            host.disk(VM, name).write(offset, data)
        except (OSError, RigError) as error:
            self.invariants.note(f"write to the recovered VM refused: {type(error).__name__}")
            return
        self.administrator.vm.write(name, offset, data)

    def _write_once(self, host: DiskHost, name: str) -> None:
        offset, data = self._drawn_write(name)
        try:
            host.disk(VM, name).write(offset, data)
        except (OSError, RigError) as error:
            self.invariants.note(f"guest write refused: {type(error).__name__}")
            return
        self.invariants.memory.models[name].write(host.positions.value, offset, data)

    def _flush(self, host: DiskHost, name: str) -> None:
        try:
            self.world.parts.flush(host.disk(VM, name))
        except (OSError, RigError):
            return
        self.invariants.memory.models[name].flushed()

    def _site_opened(self, host: DiskHost) -> None:
        if not self.invariants.memory.models or not self.administrator.vm.has_site_disks:
            return
        if self.faults.power_was_lost:
            self.faults.power_was_lost = False
            self.invariants.begin_again(host, VM)
        else:
            self.invariants.check_source(host, VM, "a restart of the disk host")

    # --- the administrator --------------------------------------------------------------------------------------

    async def _protect(self) -> None:
        """Protect the VM; repeat it while it fails."""
        while True:
            try:
                await self.world.vault.enable_protection(
                    vm=VM, interval_s=self.plan.interval_s, app_consistent_every_s=self.plan.app_consistent_every_s
                )
            except RigError as error:
                self.invariants.note(f"protect refused: {error.code}")
                if error.code in (Code.InvalidState, Code.JobInProgress):
                    return
                await self._clock.sleep(5.0)
            else:
                return

    async def _look(self) -> ProtectedItem | None:
        """Look at the item and its points as a user does; None if the vault does not answer."""
        try:
            items = await self.world.vault.items()
            points = await self.world.vault.points(vm=VM) if items else []
        except RigError:
            return None
        newest = max(self._points, default=0)
        self._points.update(point.position for point in points)
        self.invariants.check_new_points(points)
        if max(self._points, default=0) > newest:
            self._progress_s = self._now_s()
        if not items:
            return None
        (item,) = items
        self.invariants.coverage.states[item.protectionState] += 1
        self._note_resync(item)
        self._check_health(item)
        self.invariants.note(f"item {item.protectionState} {item.replicationHealth} {len(points)} points")
        return item

    def _check_health(self, item: ProtectedItem) -> None:
        """Check promise 6: health is Normal only while data are applied."""
        if item.protectionState != "Protected" or item.paused_since is not None or item.activeLocation != "Primary":
            self._progress_s = self._now_s()
        age_s = self._now_s() - self._progress_s
        bound_s = bounds.point_s(item.policy_interval_s) + NORMAL_S_MAX
        if item.protectionState == "Protected" and item.replicationHealth == "Normal" and age_s > bound_s:
            self.invariants.broken("Normal only while data are applied", f"no new point for {age_s:.0f} s")

    def _note_resync(self, item: ProtectedItem) -> None:
        reason = item.resynchronizationRequired
        if reason is not None and reason != self._seen_resync:
            self.invariants.coverage.resyncs[reason] += 1
            self._check_resync(reason)
        self._seen_resync = reason

    def _check_resync(self, reason: str) -> None:
        kinds = {fault.kind for fault in self.plan.faults}
        if reason == "PartUnusable" and self.faults.blob_losses >= BLOB_LOSSES_MIN:
            return
        if reason != "PartUnusable" and (reason == Code.LogOverflow or kinds & {"power-loss", "disk-full"}):
            return
        if reason == "ResynchronizationFailed" and kinds:
            return
        self.invariants.broken("no resync without a cause", f"{reason}, after {sorted(kinds)}")

    # --- the end ------------------------------------------------------------------------------------------------

    async def _converge(self) -> None:
        """Wait until the healed rig is healthy, and do what an administrator has to do."""
        healed_s = self._now_s()
        latest = 0 if self.world.site_host is None else self.world.site_host.positions.value
        item: ProtectedItem | None = None
        while self._now_s() < healed_s + self.plan.heals_within_s:
            is_at_rest = item is not None and self.administrator.is_at_rest(item)
            await self._wait_for_point(latest, LOOK_EVERY_S if is_at_rest else LOOK_EVERY_S / 4)
            if self._now_s() > healed_s + SILENT_JOB_S:
                await self._check_silence(healed_s)
            jobs = await self._jobs()  # before the item: its state is that after all of them
            item = await self._look()
            if item is None:
                await self._protect_again()
                continue
            if self.administrator.is_busy or any(job.endTime is None for job in jobs):
                continue
            self.administrator.adopt(item, jobs)
            if not self.administrator.is_at_rest(item):
                await self.administrator.lead_back(item)
            elif item.protectionState == "Protected" and item.resynchronizationRequired is None:
                errors = {error.errorCode for error in item.healthErrors}
                rpo_s, bound_s = item.lastRpoInSeconds, bounds.point_s(item.policy_interval_s)
                is_current = max(self._points, default=0) > latest and rpo_s is not None and rpo_s < bound_s
                if is_current and errors <= _LASTING:
                    return
            else:
                await self._repair(item)
        self.invariants.broken("a healed network leads back to Normal", self._stuck(item))

    async def _wait_for_point(self, position: int, within_s: float) -> None:
        """Wait until there may be a first point after a position, or this time is over."""
        until_s = self._now_s() + within_s
        is_there = max(self._points, default=0) > position
        while (left_s := until_s - self._now_s()) > 0:
            await self._clock.sleep(left_s if is_there else min(left_s, NEWS_S))
            if not is_there and self.invariants.applied_position() > position:
                return

    async def _has_job(self) -> bool:
        return any(job.endTime is None for job in await self._jobs())

    async def _check_silence(self, healed_s: float) -> None:
        """Check that a job which has made no progress for long shows a wait."""
        shown = any(role.waits.list() for role in self.world.roles.values())
        for job in await self._jobs():
            if job.endTime is None and not shown and not any(task.waiting_for for task in job.tasks):
                age_s = self._now_s() - healed_s
                text = f"{job.scenarioName} is in progress {age_s:.0f} s after the end of all faults"
                self.invariants.broken("every wait ends or is shown", text)

    async def _jobs(self) -> list[Job]:
        try:
            return await self.world.vault.jobs()
        except RigError:
            return []

    async def _protect_again(self) -> None:
        if not await self._has_job():
            await self._protect()

    async def _repair(self, item: ProtectedItem) -> None:
        try:
            if item.protectionState == "Protected":
                await self.world.vault.resync(vm=VM)
            else:
                await self._protect()
        except RigError as error:
            self.invariants.note(f"repair refused: {error.code} {error.message}")

    def _stuck(self, item: ProtectedItem | None) -> str:
        waits = [
            f"{role.name}: {wait.code} {wait.reason}" for role in self.world.roles.values() for wait in role.waits.list()
        ]
        state = "no item" if item is None else f"{item.protectionState} {item.replicationHealth}"
        errors = [] if item is None else [f"{error.errorCode}: {error.summaryMessage}" for error in item.healthErrors]
        return f"{state}; health errors {errors}; waits {waits}"

    async def _finish(self) -> None:
        """Check the disks at the end."""
        host = self.world.site_host
        if host is not None and self.administrator.vm.has_site_disks:
            self.invariants.check_source(host, VM, "the end")
        self.invariants.check_files([self.world.managed, self.world.folder / "azure"])
        try:
            points = await self.world.vault.points(vm=VM)
        except RigError as error:
            self.invariants.broken("the vault answers at the end", str(error))
        else:
            self.invariants.check_points(points)
