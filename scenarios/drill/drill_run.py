"""The state of a running drill, its records, and the waits that its steps share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from siterig.azure_emu.vault.model.resources import Job, ProtectedItem, Vm
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.checks.vm_checks import DATA_DB, OS_DB
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.contracts.results import Check, Measures, RpoSample, TimelineEvent
from siterig.scenarios.contracts.rig import Rig, Update
from siterig.scenarios.drill.narrator import Narrator
from siterig.scenarios.workloads.corpus import Manifest
from siterig.scenarios.workloads.guest import Guest
from siterig.scenarios.workloads.ledger_process import LedgerProcess

MIB = 1024 * 1024
FILESYSTEMS = {"os": "ext4", "data": "xfs"}
_POLL_S = 0.2


@dataclass(frozen=True)
class DrillSettings:
    """Sizes and rates of a drill.

    Args:
        interval_s: replication interval.
        rate_per_s: transactions of the ledger per second.
        load: transactions that must be acknowledged before the drill counts the load as running.
        step_timeout_s: time limit of one wait.
    """

    vm: str = "web01"
    os_bytes: int = 1024 * MIB
    data_bytes: int = 1024 * MIB
    corpus_bytes: int = 200 * MIB
    interval_s: float = 5.0
    rate_per_s: float = 100.0
    load: int = 100
    step_timeout_s: float = 180.0


@dataclass
class DrillRun:
    """The state of a drill.  One task changes it (the sampler only appends to ``rpo``)."""

    rig: Rig
    settings: DrillSettings
    narrator: Narrator
    step: str = ""
    checks: list[Check] = field(default_factory=list)
    timeline: list[TimelineEvent] = field(default_factory=list)
    rpo: list[RpoSample] = field(default_factory=list)
    measures: Measures = field(default_factory=Measures)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    ledger: LedgerProcess | None = None
    guests: list[Guest] = field(default_factory=list)
    _started: float = field(default_factory=SYSTEM_CLOCK.trio_time_s)

    def now(self) -> float:
        """Return the seconds since the start of the drill."""
        return SYSTEM_CLOCK.trio_time_s() - self._started

    def begin(self, name: str, number: int, count: int, title: str) -> None:
        """Begin a step."""
        self.step = name
        self.narrator.step(number, count, title)
        self.timeline.append(TimelineEvent(at_s=self.now(), step=name, text=title))

    def say(self, text: str, severity: Literal["info", "good", "bad"] = "info") -> None:
        """Add a line to the timeline."""
        event = TimelineEvent(at_s=self.now(), step=self.step, text=text, severity=severity)
        self.timeline.append(event)
        self.narrator.event(event)

    def check(self, name: str, ok: bool, evidence: str) -> None:
        """Record one check; the drill continues after a failed check, but its result is not ok."""
        check = Check(step=self.step, name=name, ok=ok, evidence=evidence)
        self.checks.append(check)
        self.narrator.check(self.now(), check)

    def findings(self, findings: Iterable[CheckFinding]) -> None:
        """Record the findings of a checker."""
        for finding in findings:
            self.check(finding.name, finding.ok, finding.evidence)

    def acks(self, where: str) -> Path:
        """Return the acknowledgement log of the ledger on a side (``site``, ``azure``, ``site-again``)."""
        return self.rig.folder / f"ledger-{where}.acks"

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Poll until the condition is true; raise ``DrillTimedOut`` with ``what`` after the time limit."""
        limit = self.settings.step_timeout_s
        with trio.move_on_after(limit):
            while not await condition():
                await SYSTEM_CLOCK.sleep(_POLL_S)
            return
        raise RigError(Code.DrillTimedOut, f"{what}: not within {limit:g} s")

    async def item(self) -> ProtectedItem:
        """Return the protected item of the VM; raise ``VmNotFound`` if it is not protected."""
        for item in await self.rig.vault.items():
            if item.name == self.settings.vm:
                return item
        raise RigError(Code.VmNotFound, f"vm {self.settings.vm!r} is not protected")

    async def finish(self, job: Job) -> Job:
        """Wait for the end of a job and add its tasks to the timeline; raise ``JobFailed`` with its errors."""
        said: dict[str, str] = {}
        with self.narrator.progress(job.friendlyName) as update:

            async def ended() -> bool:
                nonlocal job
                job = await self.rig.vault.job(name=job.name)
                self._say_tasks(job, said)
                await self.show_progress(update)
                return job.endTime is not None

            await self.until(f"job {job.scenarioName} to end", ended)
        if job.state == "Failed":
            reasons = "; ".join(f"{error.code}: {error.message}" for error in job.errors) or "no reason given"
            raise RigError(Code.JobFailed, f"job {job.scenarioName} of {job.targetObjectName} failed: {reasons}")
        return job

    def _say_tasks(self, job: Job, printed: dict[str, str]) -> None:
        for task in job.tasks:
            state = task.state if task.stateDescription in (None, "Completed") else task.stateDescription
            if task.endTime is not None and printed.get(task.name) != state:
                printed[task.name] = state
                self.say(f"{job.scenarioName}: {task.name} {state}", "bad" if task.state == "Failed" else "info")

    async def show_progress(self, update: Update) -> None:
        """Show the progress that the agent reports for the VM."""
        try:
            progress = await self.rig.vault.progress(vm=self.settings.vm)
        except RigError:
            return  # a bar is not worth failing for
        if progress.disks:  # between two copies there is nothing to draw: the bar stays as it is
            update(sum(disk.done_bytes for disk in progress.disks), sum(disk.total_bytes for disk in progress.disks))

    async def attach(self, vm: Vm, folder: str) -> Guest:
        """Attach the disks of a VM on this machine; the end of the drill releases them."""
        guest = await Guest.attach(vm, FILESYSTEMS, self.rig.folder / "mnt" / folder)
        self.guests.append(guest)
        return guest

    async def release(self, guest: Guest) -> None:
        """Shut a guest down: unmount and detach its disks."""
        await guest.release()
        self.guests.remove(guest)

    async def start_ledger(self, guest: Guest, side: Literal["site", "azure", "site-again"]) -> LedgerProcess:
        """Start the workload in a mounted guest and wait for ``load`` transactions."""
        position = self.rig.azure_position if side == "azure" else self.rig.site_position
        os_db, data_db = guest["os"] / OS_DB, guest["data"] / DATA_DB
        for database in (os_db, data_db):
            await trio.Path(database.parent).mkdir(exist_ok=True)
        self.ledger = await LedgerProcess.start(
            os_db=os_db,
            data_db=data_db,
            acks=self.acks(side),
            position=position,
            rate_per_s=self.settings.rate_per_s,
            mounted=[disk.where for disk in guest.disks],
        )
        await self.wait_for_load()
        return self.ledger

    async def wait_for_load(self) -> int:
        """Wait until the ledger has acknowledged ``load`` more transactions, and return their total number.

        Raises:
            RigError: ``LedgerFailed`` if no ledger runs, or if it ended.
        """
        ledger = self.ledger
        if ledger is None:
            raise RigError(Code.LedgerFailed, "no ledger is running")
        wanted = ledger.acknowledged_count() + self.settings.load

        async def reached() -> bool:
            if not ledger.running:
                end = await ledger.ended()
                raise RigError(Code.LedgerFailed, f"the ledger ended after transaction {end.acknowledged}: {end.error}")
            return ledger.acknowledged_count() >= wanted

        await self.until(f"{self.settings.load} more transactions", reached)
        return ledger.acknowledged_count()

    async def stop_ledger(self) -> None:
        """End the workload, if there is one."""
        if self.ledger is not None:
            await self.ledger.stop()
            self.ledger = None
