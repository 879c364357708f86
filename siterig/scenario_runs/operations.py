"""The operations of a timeline: each does its work on the rig, and returns when it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.model.resources import Job, Vm
from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.control import BackingImage
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenario_runs.clock_watch import ClockWatch
from siterig.scenario_runs.conditions import item_text, task_state
from siterig.scenario_runs.machines import Machines
from siterig.scenario_runs.records import LineSeverity, RunRecords
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenario_runs.settings import SettingOperations
from siterig.scenarios.files.scenario import ScenarioDocument
from siterig.scenarios.files.timeline_tables import TimelineEntry
from siterig.scenarios.files.topology import SECOND_NS, TopologyVm
from siterig.scenarios.loads.command_load import OUTPUT_SHOWN, run_bound

T = TypeVar("T")
_POLL_S = 0.1
_REPLICATED_S = 60.0


class OperationFailedError(RigError):
    """An operation failed; ``codes`` are all error codes that name the reason."""

    def __init__(self, message: str, codes: tuple[str, ...]) -> None:
        super().__init__(Code.ScenarioFailed, message)
        self.codes = codes


@dataclass
class Loss:
    """The notes of operations for the measures: the loss of the site, and the order to fail over."""

    lost_ns: int | None = None
    ordered_s: float | None = None
    positions: dict[str, int] = field(default_factory=dict)
    """The position of the state that each VM's last failover used."""


class Operations:
    """Does the operations of a scenario.

    Args:
        scenario: the scenario.
        rig: its rig.
        machines: its VMs and workloads.
        records: gets what happens.
        marks: gets the marks.
    """

    def __init__(
        self, scenario: ScenarioDocument, rig: ScenarioRig, machines: Machines, records: RunRecords, marks: list[str]
    ) -> None:
        self._scenario, self._rig, self._machines, self._records, self._marks = scenario, rig, machines, records, marks
        self.clock = ClockWatch(rig, records)
        self.loss = Loss()
        self._settings = SettingOperations(rig, records, self.finish)
        self._work: Mapping[str, Callable[[TimelineEntry], Awaitable[None]]] = {
            "wait": self._nothing,
            "protect": self._protect,
            "unprotect": self._job(lambda vm, _: rig.vault.disable_protection(vm=vm)),
            "take-point": self._take_point,
            "test-failover": self._job(lambda vm, entry: rig.vault.test_failover(vm=vm, point=entry.point or "Latest")),
            "cleanup": self._job(lambda vm, _: rig.vault.cleanup_test_failover(vm=vm)),
            "unplanned-failover": self._unplanned,
            "planned-failover": self._planned,
            "commit": self._job(lambda vm, _: rig.vault.commit_failover(vm=vm)),
            "failback": self._failback,
            "reprotect": self._reprotect,
            "resync": self._job(lambda vm, _: rig.vault.resync(vm=vm)),
            "pause": self._job(lambda vm, _: rig.vault.pause_replication(vm=vm)),
            "resume": self._job(lambda vm, _: rig.vault.resume_replication(vm=vm)),
            "set-policy": self._settings.set_policy,
            "set-bandwidth": self._settings.set_bandwidth,
            "pin-point": lambda entry: self._settings.pin(entry, pinned=True),
            "unpin-point": lambda entry: self._settings.pin(entry, pinned=False),
            "delete-point": self._settings.delete_point,
            "cancel-job": self._settings.cancel_job,
            "acknowledge-error": self._settings.acknowledge_error,
            "fence": self._settings.fence,
            "unfence": self._settings.unfence,
            "set-names": self._settings.set_names,
            "set-app-script": self._settings.set_app_script,
            "rotate-account-keys": self._settings.rotate_account_keys,
            "set-account": self._settings.set_account,
            "add-disk": self._job(lambda vm, entry: rig.vault.add_disks(vm=vm, disks=[_needed(entry.disk)])),
            "remove-disk": self._job(lambda vm, entry: rig.vault.remove_disks(vm=vm, disks=[_needed(entry.disk)])),
            "create-vm": self._create_vm,
            "delete-vm": self._job(lambda vm, entry: rig.vault.delete_vm(vm=vm, side=entry.side)),
            "resize-disk": self._resize,
            "shut-down": lambda entry: machines.shut_down(_needed(entry.vm), "site"),
            "start-workload": lambda entry: machines.start_load(_needed(entry.workload), entry.side or "site"),
            "stop-workload": lambda entry: machines.stop_load(_needed(entry.workload)),
            "check": self._check,
            "lose-site": self._lose_site,
            "restore-site": lambda _: rig.restart_site(),
            "kill-role": self._kill_role,
            "restart-role": self._restart_role,
            "stop-rig": self._stop_rig,
            "start-rig": self._start_rig,
            "run": self._run,
            "mark": self._mark,
            "add-fault": self._add_fault,
            "remove-fault": self._remove_fault,
            "advance-clock": self._clock,
            "jump-clock": self._clock,
            "skew-clock": self._clock,
        }

    async def do(self, entry: TimelineEntry) -> None:
        """Do the operation of an entry.

        Raises:
            RigError: the error of the operation.
        """
        await self._work[entry.do](entry)

    async def _nothing(self, entry: TimelineEntry) -> None:
        """Only the moment of the entry counts."""

    def _job(self, begin: Callable[[str, TimelineEntry], Awaitable[Job]]) -> Callable[[TimelineEntry], Awaitable[None]]:
        async def work(entry: TimelineEntry) -> None:
            await self.finish(await begin(_needed(entry.vm), entry))

        return work

    async def finish(self, job: Job) -> Job:
        """Wait for the end of a job, and record its tasks.

        Raises:
            OperationFailedError: the job failed or was cancelled.
        """
        began_s, said = self._records.now(), dict[str, str]()
        while True:
            for task in job.tasks:
                if task.endTime is not None and said.get(task.name) != task_state(task):
                    said[task.name] = task_state(task)
                    severity: LineSeverity = "bad" if task.state == "Failed" else "info"
                    self._records.say("job", f"{job.scenarioName}: {task.name} {task_state(task)}", severity)
            if job.endTime is not None:
                break
            await SYSTEM_CLOCK.sleep(_POLL_S)
            try:
                job = await self._rig.vault.job(name=job.name)
            except RigError as error:
                if error.role is None:  # the vault is away: it comes back
                    raise
        ok = job.state == "Succeeded"
        text = f"job {job.scenarioName} of {job.vm} {job.state}"
        self._records.say("job", text, "good" if ok else "bad", began_s=began_s, is_shown=False)
        if not ok:
            reasons = "; ".join(f"{error.code}: {error.message}" for error in job.errors) or "no reason given"
            raise OperationFailedError(f"{text}: {reasons}", tuple(error.code for error in job.errors))
        if job.result is not None and job.recovery_point is not None:
            self.loss.positions[job.result.name] = job.recovery_point.position
        return job

    # --- protection -----------------------------------------------------------------------------------------------

    async def create_vms(self) -> None:
        """Create all VMs of the topology."""
        for vm in self._scenario.topology.vm:
            await self._create(vm)

    async def _create(self, vm: TopologyVm) -> None:
        specs = [
            DiskSpec(
                name=disk.name,
                size_bytes=disk.size,
                filesystem=disk.filesystem,
                sector_bytes=disk.sector,
                backing=self._backing(disk.backing),
            )
            for disk in vm.disk
        ]
        await self._rig.vault.create_vm(vm=vm.name, disks=specs)
        self._machines.add_vm(vm.name, vm.filesystems())

    def _backing(self, path: str | None) -> BackingImage | None:
        return None if path is None else BackingImage(path=str(self._rig.folder / path), format="raw")

    async def _create_vm(self, entry: TimelineEntry) -> None:
        await self._create(TopologyVm(name=_needed(entry.vm), disk=_needed(entry.disk_of_vm)))

    async def protect_vm(self, vm: str, exclude: Sequence[str] = (), seed_from: Sequence[str] = ()) -> None:
        """Enable replication, and wait until the VM is protected and has a recovery point."""
        topology = self._scenario.topology
        every_ns = topology.app_consistent_every
        await self.finish(
            await self._rig.vault.enable_protection(
                vm=vm,
                interval_s=topology.interval_s(vm),
                app_consistent_every_s=None if every_ns is None else every_ns / SECOND_NS,
                history_hours=topology.retention,
                exclude=list(exclude),
                seeds=[SeedSource.parse(text, self._rig.folder, "seed_from") for text in seed_from] or None,
            )
        )
        await self._until_protected(vm)

    async def _until_protected(self, vm: str) -> None:
        while True:
            item = next((each for each in await self._rig.vault.items() if each.name == vm), None)
            if item is None or item.protectionState.endswith("Failed"):
                seen = "not protected" if item is None else item_text(item)
                codes = () if item is None else tuple(error.errorCode for error in item.healthErrors)
                raise OperationFailedError(f"{vm} could not be protected: {seen}", codes)
            if item.protectionState == "Protected" and await self._rig.vault.points(vm=vm, limit=1):
                return
            await SYSTEM_CLOCK.sleep(_POLL_S)

    async def _protect(self, entry: TimelineEntry) -> None:
        await self.protect_vm(_needed(entry.vm), entry.exclude or (), entry.seed_from or ())

    async def _reprotect(self, entry: TimelineEntry) -> None:
        vm = _needed(entry.vm)
        await self.finish(await self._rig.vault.reprotect(vm=vm))
        await self._until_protected(vm)

    async def _take_point(self, entry: TimelineEntry) -> None:
        point = await self._rig.vault.create_point(
            vm=_needed(entry.vm),
            kind="ApplicationConsistent" if entry.app_consistent else "CrashConsistent",
            name=entry.point or "scenario",
        )
        if entry.app_consistent and point.type != "ApplicationConsistent":
            raise OperationFailedError(
                f"the point is crash-consistent: {point.downgraded_because}", (str(point.downgraded_because),)
            )
        self._records.say("job", f"point {point.name} ({point.type}) at position {point.position}")

    async def _resize(self, entry: TimelineEntry) -> None:
        vm, disk, size = _needed(entry.vm), _needed(entry.disk), _needed(entry.size)
        await self._rig.site.resize_disk(vm=vm, disk=disk, size_bytes=size)

    # --- failover -------------------------------------------------------------------------------------------------

    async def _unplanned(self, entry: TimelineEntry) -> None:
        self.loss.ordered_s = self._records.now()
        await self._machines.shut_down(_needed(entry.vm), "azure")  # a change of the recovery point replaces this VM
        job = await self._rig.vault.unplanned_failover(vm=_needed(entry.vm), point=entry.point or "Latest")
        await self.finish(job)

    async def _planned(self, entry: TimelineEntry) -> None:
        vm = _needed(entry.vm)
        await self._machines.shut_down(vm, "site")
        self.loss.ordered_s = self._records.now()
        await self.finish(await self._rig.vault.planned_failover(vm=vm))

    async def _failback(self, entry: TimelineEntry) -> None:
        vm = _needed(entry.vm)
        await self._machines.shut_down(vm, "azure")
        await self.finish(await self._rig.vault.failback(vm=vm))

    # --- checks of data -------------------------------------------------------------------------------------------

    async def _check(self, entry: TimelineEntry) -> None:
        await self.check_data(entry.label, _needed(entry.workload), entry.of or "test", entry.point)

    async def check_data(self, step: str, workload: str, of: str, point: str | None) -> None:
        """Check the data of a workload on the disks of the source, of a test failover, or of the recovered VM."""
        vm = self._machines.vm_of_load(workload)
        if of == "test":
            await self._check_test(step, workload, vm, point or "Latest")
            return
        side: Side = "site" if of == "source" else "azure"
        await self._machines.shut_down(vm, side)
        cut = None if of == "source" else self.loss.positions.get(vm)
        verdict = await self._machines.check_load(workload, vm, side, cut)
        self._records.findings(step, verdict.findings)
        if of == "recovered" and self.loss.ordered_s is not None and self._records.measures.rto_s is None:
            lost_ns, newest_ns = self.loss.lost_ns, verdict.newest_ns
            rpo_s = None if lost_ns is None or newest_ns is None else max(0.0, (lost_ns - newest_ns) / SECOND_NS)
            self._records.measure(rto_s=self._records.now() - self.loss.ordered_s, rpo_s=rpo_s, lost=verdict.lost)

    async def _check_test(self, step: str, workload: str, vm: str, point: str) -> None:
        name = f"{vm}-test"
        made = not any(each.name == name for each in await self._rig.vault.list_vms())
        if made:
            await self.finish(await self._rig.vault.test_failover(vm=vm, point=point))
        verdict = await self._machines.check_load(workload, name, "azure", self.loss.positions.get(name))
        self._records.findings(step, verdict.findings)
        if made:
            await self.finish(await self._rig.vault.cleanup_test_failover(vm=vm))

    async def source_and_test(self, vm: str) -> tuple[Vm, Vm]:
        """Shut a VM down, make a test failover to Latest after everything is replicated, and return both VMs."""
        await self._machines.shut_down(vm, "site")
        written = read_position(self._rig.site_position)
        with SYSTEM_CLOCK.move_on_after(_REPLICATED_S):
            while (await self._rig.vault.points(vm=vm, limit=1))[0].position < written:
                await SYSTEM_CLOCK.sleep(_POLL_S)
        job = await self.finish(await self._rig.vault.test_failover(vm=vm, point="Latest"))
        if job.result is None:
            raise OperationFailedError(f"job {job.scenarioName} does not name the VM that it made", ())
        return await self._machines.find_vm(vm, "site"), job.result

    # --- sites, roles, rig ----------------------------------------------------------------------------------------

    async def _lose_site(self, entry: TimelineEntry) -> None:
        self.loss.lost_ns = SYSTEM_CLOCK.wall_ns()
        await self._rig.kill_site()
        await self._machines.drop_side("site")

    async def _kill_role(self, entry: TimelineEntry) -> None:
        role = _needed(entry.role)
        await self._rig.supervisor.kill_role(name=role, hold=entry.hold)
        if role in ("site", "azure"):
            await self._machines.drop_side("site" if role == "site" else "azure")

    async def _restart_role(self, entry: TimelineEntry) -> None:
        await self._rig.supervisor.start_role(name=_needed(entry.role))

    async def _stop_rig(self, entry: TimelineEntry) -> None:
        await self._machines.drop_side("site")
        await self._machines.drop_side("azure")
        await self._rig.stop()

    async def _start_rig(self, entry: TimelineEntry) -> None:
        await self._rig.start(lambda _role, _state: None)

    async def _run(self, entry: TimelineEntry) -> None:
        variables = {
            "SITERIG_DIR": str(self._rig.root),
            "SITERIG": shlex.join([sys.executable, "-P", "-m", "siterig"]),
            "SITERIG_SCRATCH": str(self._rig.folder),
        }
        status, output = await run_bound(_needed(entry.run), variables)
        shown = f"exit status {status}" + (f": {output[-OUTPUT_SHOWN:]}" if output else "")
        self._records.say("operation", f"{entry.label}: {shown}")
        if status != entry.exit_status:
            raise OperationFailedError(f"{entry.label}: {shown}; wanted: exit status {entry.exit_status}", (str(status),))

    # --- faults and clock -----------------------------------------------------------------------------------------

    async def _mark(self, entry: TimelineEntry) -> None:
        mark = _needed(entry.mark)
        self._marks.append(mark)
        if self._scenario.fault_names:
            await self._rig.faults.note_mark(name=mark)

    async def _add_fault(self, entry: TimelineEntry) -> None:
        await self._rig.faults.add_faults(rules=[_needed(entry.rule).document()])

    async def _remove_fault(self, entry: TimelineEntry) -> None:
        fault = _needed(entry.fault)
        if fault in self._scenario.fault_names:  # a proof leaves it out
            await self._rig.faults.remove_fault(name=fault)

    async def _clock(self, entry: TimelineEntry) -> None:
        with self._rig.clock() as clock:
            match entry.do:
                case "advance-clock":
                    await clock.advance(_needed(entry.by))
                case "jump-clock":
                    await clock.jump(_needed(entry.shift))
                case _:
                    await clock.set_skew([_needed(entry.role)], _needed(entry.shift))
        self.clock.look()


def _needed(value: T | None) -> T:
    """Return a value that the schema demands."""
    assert value is not None  # noqa: S101 (the schema demands it)
    return value
