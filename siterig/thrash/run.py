"""Runs a thrash: VMs write, faults strike, points are taken; then everything heals, and each point is compared.

**Order.**  The rig starts, the VMs are created, started and protected.  For the given time the writers run, faults
strike, and points are taken by the schedule and by hand.  Then all faults are removed.  Conditions with a name and a bound
follow: every role is ready, every VM runs, no VM needs a resync, replication is Normal, and a point has everything that was
written.  At the end each recovery point of the vault is mounted and compared, and so are the disks of the source.

**Cleanup.**  Whatever ends the run, also Ctrl-C: writers end, disks are unmounted and detached, and the rig ends.  If this
process is killed, the rig and the writers end by themselves.
"""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.resync_window import ResyncWindow
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.failures import unwrap_rig_error
from siterig.core.paths import Layout
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.loads.make_load import missing_program
from siterig.supervisor import launch
from siterig.testing.testbed import Testbed
from siterig.testing.timeline import Timeline
from siterig.thrash.faults import FaultInjection
from siterig.thrash.plan import WRITERS, DiskKind, WriterKind, draw_faults, draw_vms
from siterig.thrash.resync_causes import MarkedResync, abandoned_logs, missing_cause, time_ns_of
from siterig.thrash.vms import ThrashVm
from siterig.thrash.waits import NamedWaits

_WITHIN_S = 300.0
"""The bound of each wait, far beyond the usual times: a damaged bundle takes 150 s if the agent was restarted since."""
_POINT_WITHIN_S = 40.0
_PROGRESS_S = 10.0
_PROGRAMS: dict[DiskKind, tuple[str, str]] = {
    "ext4": ("mkfs.ext4", "e2fsck"),
    "xfs": ("mkfs.xfs", "xfs_repair"),
    "btrfs": ("mkfs.btrfs", "btrfs"),
}
_MISSED = "ReplicationCyclesMissed"
_REASON = re.compile(r"needs a resync: (\w+)")
_UNEXPECTED = ("Traceback", "call_crashed", "job_crashed")
"""Words that no log of a role may contain."""


@dataclass(frozen=True, slots=True)
class ThrashOptions:
    """The settings of a thrash.

    Args:
        seed: the seed of all choices.
        vms: the number of VMs.
        disks: the number of disks of each.
        seconds: for how long faults strike.
        interval_s: the replication interval; None for one that gives about sixty points for each VM, at least 3 s.
        filesystems: the file systems to use; None for all that this machine has.
    """

    seed: int
    vms: int = 8
    disks: int = 2
    seconds: float = 1800.0
    interval_s: float | None = None
    filesystems: tuple[DiskKind, ...] | None = None

    @property
    def interval(self) -> float:
        """The replication interval in seconds."""
        return self.interval_s or float(max(3, round(self.seconds / 60)))


@dataclass
class ThrashResult:
    """The result: empty ``findings`` are a success."""

    findings: list[str] = field(default_factory=list)
    points_compared: int = 0
    checks: int = 0
    acknowledged: int = 0
    reboots: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    resyncs: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    """The points that were taken by hand, by kind."""
    not_taken: Counter[str] = field(default_factory=Counter)
    """Those that were not, by the code of the reason."""


def available_filesystems() -> tuple[DiskKind, ...]:
    """Return the file systems that this machine can make, mount and check."""
    known = Path("/proc/filesystems").read_text().split()
    return tuple(kind for kind, programs in _PROGRAMS.items() if kind in known and all(map(shutil.which, programs)))


def absent_writers() -> dict[WriterKind, str]:
    """Return the writers for which this machine lacks a program, with the program and its package."""
    found = {kind: missing_program(kind) for kind in WRITERS}
    return {kind: program for kind, program in found.items() if program is not None}


class Thrash:
    """One thrash in a folder.

    Args:
        folder: the folder of the rig; it is empty.
        options: the settings.
        say: shows a line of progress.
    """

    def __init__(self, folder: Path, options: ThrashOptions, say: Callable[[str], None]) -> None:
        self._layout, self._options, self._say = Layout.of(folder), options, say
        self._rig = Testbed(self._layout)
        self.result = ThrashResult()
        self.timeline = Timeline()
        absent = absent_writers()
        for kind, program in absent.items():
            say(f"no writer {kind}: this machine lacks {program}")
        filesystems = options.filesystems or available_filesystems()
        writers = [kind for kind in WRITERS if kind not in absent]
        planned = draw_vms(options.seed, options.vms, options.disks, filesystems, writers)
        self._vms = [ThrashVm(plan, self._rig, options.seed) for plan in planned]
        self._faults = FaultInjection(self._rig, draw_faults(options.seed), self.timeline)
        self.result.faults = self._faults.injected
        self._rng = random.Random(f"{options.seed} operations")  # noqa: S311 (no secrets)
        self._waits = NamedWaits()
        self._stage = "set-up"

    async def run(self) -> ThrashResult:
        """Run it; everything that went wrong is in the result."""
        launched: launch.Launched | None = None
        try:
            launched = await launch.up(
                self._layout, until_eof=True, quick_retries=True, resync_window=ResyncWindow.parse("00:00-24:00")
            )
            await self._run()
        except (RigError, ExceptionGroup) as caught:
            failure = unwrap_rig_error(caught)
            if failure is None:
                raise
            self._find(f"{self._stage}: {failure.code}: {failure.message}")
        finally:
            with trio.CancelScope(shield=True):
                for vm in self._vms:
                    await vm.shut_down()
                if launched is not None:
                    await launched.end()
                if self._layout.root.is_dir():
                    self.timeline.save(self._layout.root / "thrash.jsonl")
        self._read_logs()
        return self.result

    async def _run(self) -> None:
        await self._set_up()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_progress)
            async with trio.open_nursery() as running:
                for vm in self._vms:
                    running.start_soon(vm.keep_running)
                await self._strike()
                await self._heal()
                self._count()
                running.cancel_scope.cancel()
            await self._settle()
            await self._compare()
            nursery.cancel_scope.cancel()

    async def _show_progress(self) -> None:
        """Show a line every few seconds until this is cancelled."""
        began_s = SYSTEM_CLOCK.trio_time_s()
        while True:
            await SYSTEM_CLOCK.sleep(_PROGRESS_S)
            await self._show_line(SYSTEM_CLOCK.trio_time_s() - began_s)

    async def _show_line(self, now_s: float) -> None:
        self._count()
        running = sum(vm.runs for vm in self._vms)
        faults, refused = sum(self._faults.injected.values()), sum(self._faults.refused.values())
        text = (
            f"{now_s:6.0f} s  {self._stage}: {running} of {len(self._vms)} VMs run, {self.result.reboots} restarts, "
            f"{self.result.acknowledged} steps acknowledged, {faults} faults ({refused} refused), "
            f"{sum(self.result.taken.values())} points by hand ({sum(self.result.not_taken.values())} not taken), "
            f"{self.result.points_compared} points compared"
        )
        try:
            with SYSTEM_CLOCK.move_on_after(1.0):
                status = await self._rig.supervisor.status()
                down = ", ".join(f"{role.name} {role.state}" for role in status.roles if role.state != "ready")
                text += f"; {down}" if down else ""
        except RigError as error:
            text += f"; {error.code}"
        self._say(text + (f"; {self._waits.shown}" if self._waits.shown else ""))

    def _count(self) -> None:
        self.result.acknowledged = max(self.result.acknowledged, sum(vm.acknowledged for vm in self._vms))
        self.result.reboots = sum(vm.reboots for vm in self._vms)

    # --- set-up ---------------------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        for vm in self._vms:
            disks = ", ".join(f"{disk.name} {disk.kind}" for disk in vm.plan.disks)
            self._say(f"{vm.name}: {disks}; writers: {', '.join(writer.kind for writer in vm.plan.writers)}")
            await vm.create()
            await vm.boot()
        await self._faults.start()
        for vm in self._vms:
            await self._rig.vault.enable_protection(
                vm=vm.name, interval_s=self._options.interval, app_consistent_every_s=self._options.interval * 5
            )
        await self._waits.until("every VM is protected and has a point", self._all_protected, _WITHIN_S)

    async def _all_protected(self) -> str | None:
        items = await self._rig.vault.items()
        lacking = [f"{item.name} {item.protectionState}" for item in items if item.protectionState != "Protected"]
        for vm in self._vms:
            if not lacking and not await self._rig.vault.points(vm=vm.name, limit=1):
                lacking.append(f"{vm.name} has no point")
        return ", ".join(lacking) or None

    # --- faults ---------------------------------------------------------------------------------------------------

    async def _strike(self) -> None:
        """Let faults strike, take points and grow disks, for the given time."""
        self._stage = "under faults"
        with SYSTEM_CLOCK.move_on_after(self._options.seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._faults.run)
                nursery.start_soon(self._take_points)
                nursery.start_soon(self._grow_disks)

    async def _take_points(self) -> None:
        number = 0
        while True:
            await SYSTEM_CLOCK.sleep(self._rng.uniform(0.5, 1.5) * self._options.interval)
            number += 1
            vm, kind = self._rng.choice(self._vms), self._rng.choice(("CrashConsistent", "ApplicationConsistent"))
            with SYSTEM_CLOCK.move_on_after(_POINT_WITHIN_S) as patience:
                try:
                    await self._rig.vault.create_point(
                        vm=vm.name,
                        kind="CrashConsistent" if kind == "CrashConsistent" else "ApplicationConsistent",
                        name=f"by hand {number}",
                    )
                    self.result.taken[kind] += 1
                except RigError as error:
                    self.result.not_taken[error.code] += 1
            if patience.cancelled_caught:
                self.result.not_taken["no answer"] += 1

    async def _grow_disks(self) -> None:
        for vm in self._vms:
            await SYSTEM_CLOCK.sleep(self._options.seconds / (len(self._vms) + 1))
            try:
                if await vm.grow():
                    self.timeline.add("disk_grown", vm=vm.name)
            except RigError as error:
                self.timeline.add("disk_not_grown", vm=vm.name, error=str(error))

    # --- healing --------------------------------------------------------------------------------------------------

    async def _heal(self) -> None:
        self._stage = "healing"
        await self._waits.until("all faults are removed and every role is ready", self._faults.heal, _WITHIN_S)
        await self._waits.until("every VM runs", self._all_run, _WITHIN_S)
        await self._waits.until("no VM needs a resync", self._no_resync, _WITHIN_S)
        await self._waits.until("replication of every VM is Normal", self._all_normal, _WITHIN_S)

    async def _all_run(self) -> str | None:
        return "; ".join(f"{vm.name}: {vm.last_error}" for vm in self._vms if not vm.runs) or None

    async def _no_resync(self) -> str | None:
        """Look whether a VM is marked, and start its resync by hand unless a job works on it."""
        lacking = []
        for item in await self._rig.vault.items():
            if item.resynchronizationRequired is None and item.protectionState == "Protected":
                continue
            lacking.append(f"{item.name} {item.protectionState}: {item.resynchronizationRequired}")
            if item.resynchronizationRequired is not None and all(
                job.endTime is not None for job in await self._rig.vault.jobs(vm=item.name)
            ):
                await self._rig.vault.resync(vm=item.name)
        return "; ".join(lacking) or None

    async def _all_normal(self) -> str | None:
        lacking = []
        for item in await self._rig.vault.items():
            for error in item.healthErrors:
                if error.errorCode == _MISSED:  # it counts the last hour, so it can outlast the run
                    await self._rig.vault.resolve_health_errors(vm=item.name, code=_MISSED)
            if item.replicationHealth != "Normal" or item.healthErrors or item.resynchronizationRequired is not None:
                errors = ", ".join(f"{error.errorCode}: {error.summaryMessage}" for error in item.healthErrors)
                lacking.append(f"{item.name}: {item.replicationHealth}: {errors or item.resynchronizationRequired}")
        return "; ".join(lacking) or None

    async def _settle(self) -> None:
        """Shut the VMs down, and wait until each has a point with everything that was written."""
        self._stage = "after the writers"
        for vm in self._vms:
            await vm.shut_down()
        written = await self._rig.site.position()

        async def all_in_points() -> str | None:
            lacking = []
            for vm in self._vms:
                points = await self._rig.vault.points(vm=vm.name, limit=1)
                newest = points[0].position if points else 0
                if newest < written:
                    lacking.append(f"{vm.name}: newest point at {newest} of {written}")
            return ", ".join(lacking) or None

        await self._waits.until("every VM has a point with everything that was written", all_in_points, _WITHIN_S)
        await self._waits.until("replication of every VM is Normal after the last point", self._all_normal, _WITHIN_S)
        await self._judge_resyncs()

    async def _judge_resyncs(self) -> None:
        """Find resyncs for whose reason no fault struck before."""
        abandoned = abandoned_logs(sorted((self._layout.root / "log").glob("site.log*")))
        for event in await self._rig.vault.events():
            if event.eventCode == Code.ResynchronizationRequired and (found := _REASON.search(event.description)):
                self.result.resyncs[found[1]] += 1
                resync = MarkedResync(event.affectedObject, found[1], time_ns_of(event.timeOfOccurrence))
                lacking = missing_cause(resync, self._faults.struck, abandoned)
                if lacking is not None:
                    text = f"{event.affectedObject}: a resync without a cause at {event.timeOfOccurrence}"
                    self._find(f"{text}: {event.description}: {lacking}")

    # --- comparison -----------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        self._stage = "comparison"
        async with trio.open_nursery() as nursery:
            for vm in self._vms:
                nursery.start_soon(self._compare_vm, vm)

    async def _compare_vm(self, vm: ThrashVm) -> None:
        self._note(f"{vm.name}, source", vm.findings)
        self._note(f"{vm.name}, source", await vm.check_source())
        verified = await self._rig.vault.verify(vm=vm.name)
        if verified.differing_bytes:
            self._find(f"{vm.name}: siterig verify found {verified.differing_bytes} differing bytes")
        await self._rig.vault.pause_replication(vm=vm.name)  # points that come now would show the same states
        for point in reversed(await self._rig.vault.points(vm=vm.name)):
            what = f"{vm.name}, point {point.name} ({point.type}) at position {point.position}"
            self._note(what, await vm.check_point(point))
            self.result.points_compared += 1

    def _note(self, what: str, findings: list[CheckFinding]) -> None:
        self.result.checks += len(findings)
        for finding in findings:
            if not finding.ok:
                self._find(f"{what}: {finding.name}: {finding.evidence}")

    def _find(self, text: str) -> None:
        self.result.findings.append(text)
        self.timeline.add("finding", text=text)
        self._say(f"FINDING: {text}")

    def _read_logs(self) -> None:
        for log in sorted((self._layout.root / "log").glob("*.log*")):
            for line in log.read_text(errors="replace").splitlines():
                if any(word in line for word in _UNEXPECTED):
                    self._find(f"{log.name}: {line}")
                    break
