"""The evaluation of conditions: each look at the rig says whether they hold, and what was seen."""

from __future__ import annotations

import fnmatch
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from siterig.azure_emu.vault.model.api import Event, HealthError, Job, ProtectedItem, Task
from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.errors import RigError
from siterig.scenario_runs.machines import Machines, names
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenarios.faults.values import FaultTrigger
from siterig.scenarios.files import conditions as tables
from siterig.scenarios.files.topology import SECOND_NS

UNPROTECTED = "Unprotected"
NONE = "none"


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at the rig: whether a condition holds, and what was seen."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """The moment at which a wait began: the site's position, and the acknowledged steps of each workload."""

    position: int
    acknowledged: dict[str, int] = field(default_factory=dict)


class Conditions:
    """Looks at a rig.

    Args:
        rig: the rig.
        machines: its workloads.
        marks: the marks that are set so far.
    """

    def __init__(self, rig: ScenarioRig, machines: Machines, marks: Sequence[str]) -> None:
        self._rig, self._machines, self._marks = rig, machines, marks

    def baseline(self) -> Baseline:
        """Return the present moment, as the beginning of a wait."""
        counts = {name: load.acknowledged() for name, load in self._machines.loads.items()}
        return Baseline(self.position(), counts)

    def position(self) -> int:
        """Return the position of the site's newest write; 0 while it cannot be read."""
        try:
            return read_position(self._rig.site_position)
        except (OSError, RigError):
            return 0

    async def holds(self, condition: tables.ScenarioCondition, base: Baseline) -> Observation:
        """Look whether all parts of a condition hold; a role that does not answer is an observation, too."""
        found: list[Observation] = []
        for kind in tables.ScenarioCondition.model_fields:
            value = getattr(condition, kind)
            if value is not None:
                found.append(await self.look(kind, value, base))
        return Observation(all(each.ok for each in found), "; ".join(each.text for each in found))

    async def look(self, kind: str, value: Any, base: Baseline) -> Observation:
        """Look whether one part of a condition holds."""
        looks: dict[str, Callable[[], Awaitable[Observation]]] = {
            "item": lambda: self._item(value),
            "job": lambda: self._job(value),
            "event": lambda: self._event(value),
            "role": lambda: self._role(value),
            "vm": lambda: self._vm(value),
            "disk": lambda: self._disk(value),
            "workload": lambda: self._workload(value, base),
            "fault": lambda: self._fault(value),
            "replicated": lambda: self._replicated(value, base),
        }
        try:
            return await looks[kind]()
        except RigError as error:
            return Observation(False, f"{error.code}: {error.message}")

    async def reached(self, trigger: FaultTrigger, now_s: float) -> Observation:
        """Look whether a moment has come; ``now_s`` is the time since the timeline began."""
        match trigger.kind:
            case "event":
                return await self.look("event", tables.EventCondition(code=trigger.name), Baseline(0))
            case "fault":
                return await self.look("fault", tables.FaultCondition(name=trigger.name), Baseline(0))
            case "mark":
                return Observation(trigger.name in self._marks, f"marks: {names(self._marks)}")
            case "position":
                position = self.position()
                return Observation(position >= trigger.number, f"position {position}")
            case "time":
                return Observation(now_s * SECOND_NS >= trigger.number, f"{now_s:.1f} s")

    async def _item(self, wanted: tables.ItemCondition) -> Observation:
        item = next((each for each in await self._rig.vault.items() if each.name == wanted.vm), None)
        if item is None:
            return Observation(wanted.state == UNPROTECTED, f"{wanted.vm}: {UNPROTECTED}")
        text = f"{wanted.vm}: {item_text(item)}"
        points = None
        if wanted.points is not None:
            points = len(await self._rig.vault.points(vm=wanted.vm))
            text += f", {points} points"
        ok = (
            _fits(wanted.state, item.protectionState)
            and wanted.location in (None, item.activeLocation)
            and wanted.health in (None, item.replicationHealth)
            and _fits(wanted.resync, item.resynchronizationRequired or NONE)
            and _fits(wanted.test_failover, item.testFailoverState)
            and (wanted.points is None or (points is not None and points in wanted.points))
            and _below(wanted.rpo_max, item.lastRpoInSeconds)
            and _below(wanted.lag_max, item.applied_lag_s)
            and _has_error(wanted, item.healthErrors)
        )
        return Observation(ok, text)

    async def _job(self, wanted: tables.JobCondition) -> Observation:
        jobs = [
            job
            for job in await self._rig.vault.jobs()
            if fnmatch.fnmatchcase(job.scenarioName, wanted.scenario) and wanted.vm in (None, job.vm)
        ]
        if not jobs:
            return Observation(False, f"there is no job {wanted.scenario}")
        ok = [job for job in jobs if _job_fits(wanted, job)]
        return Observation(bool(ok), job_text((ok or jobs)[0]))

    async def _event(self, wanted: tables.EventCondition) -> Observation:
        found = [
            event
            for event in await self._rig.vault.events()
            if fnmatch.fnmatchcase(event.eventCode, wanted.code)
            and _fits(wanted.vm, event.affectedObject)
            and wanted.severity in (None, event.severity)
            and _fits(wanted.text, event.description)
        ]
        return Observation(len(found) in wanted.count, f"{len(found)} events {wanted.code}{_newest(found)}")

    async def _role(self, wanted: tables.RoleCondition) -> Observation:
        roles = {role.name: role.state for role in (await self._rig.supervisor.status()).roles}
        state = roles.get(wanted.name)
        if state is None:
            return Observation(False, f"there is no role {wanted.name}; there are: {names(roles)}")
        return Observation(fnmatch.fnmatchcase(state, wanted.state), f"role {wanted.name}: {state}")

    async def _vm(self, wanted: tables.VmCondition) -> Observation:
        vms = [vm.name for vm in await self._rig.vault.list_vms() if vm.side == wanted.side]
        return Observation((wanted.name in vms) == wanted.exists, f"VMs on side {wanted.side}: {names(vms)}")

    async def _disk(self, wanted: tables.DiskCondition) -> Observation:
        for disk in await self._rig.site.list_disks(vm=wanted.vm):
            if disk.name == wanted.name:
                ok = (
                    _fits(wanted.resync, disk.needs_resync or NONE)
                    and wanted.snapshot in (None, disk.snapshot)
                    and (wanted.unsent is None or disk.unsent_log_bytes in wanted.unsent)
                )
                text = f"resync {disk.needs_resync or NONE}, snapshot {disk.snapshot}, {disk.unsent_log_bytes} bytes unsent"
                return Observation(ok, f"disk {wanted.vm}/{wanted.name}: {text}")
        return Observation(False, f"there is no disk {wanted.vm}/{wanted.name}")

    async def _workload(self, wanted: tables.WorkloadCondition, base: Baseline) -> Observation:
        load = self._machines.loads[wanted.name]
        count = load.acknowledged()
        more = count - base.acknowledged.get(wanted.name, 0)
        ok = (
            (wanted.acknowledged is None or count in wanted.acknowledged)
            and (wanted.more is None or more in wanted.more)
            and wanted.running in (None, load.is_running)
        )
        state = "runs" if load.is_running else "does not run"
        return Observation(ok, f"workload {wanted.name}: {count} acknowledged, {more} since the wait began, it {state}")

    async def _fault(self, wanted: tables.FaultCondition) -> Observation:
        rules = {rule.name: rule for rule in (await self._rig.faults.list_faults()).rules}
        rule = rules.get(wanted.name)
        if rule is None:
            return Observation(False, f"fault {wanted.name!r} is not armed; armed are: {names(rules)}")
        text = f"fault {wanted.name!r}: {rule.state}, matched {rule.matched}, fired {rule.fired}"
        return Observation(rule.fired in wanted.fired, text)

    async def _replicated(self, vm: str, base: Baseline) -> Observation:
        points = await self._rig.vault.points(vm=vm, limit=1)
        newest = points[0].position if points else 0
        return Observation(newest >= base.position, f"{vm}: newest point at {newest}, wanted {base.position}")


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or fnmatch.fnmatchcase(text, pattern)


def _below(limit_ns: int | None, seconds: float | None) -> bool:
    return limit_ns is None or (seconds is not None and seconds * SECOND_NS <= limit_ns)


def _has_error(wanted: tables.ItemCondition, errors: Sequence[HealthError]) -> bool:
    if wanted.error is None and wanted.attempt is None:
        return True
    if wanted.error == NONE:
        return not errors
    return any(
        _fits(wanted.error, error.errorCode) and (wanted.attempt is None or error.attempt in wanted.attempt)
        for error in errors
    )


def _job_fits(wanted: tables.JobCondition, job: Job) -> bool:
    state = wanted.state if wanted.state is not None or wanted.error is not None else "Succeeded"
    errors = [error.code for error in job.errors]
    waits = any(task.waiting_for is not None for task in job.tasks)
    return (
        _fits(state, job.state)
        and _fits(wanted.description, job.stateDescription or "")
        and (wanted.error is None or any(fnmatch.fnmatchcase(code, wanted.error) for code in errors))
        and (wanted.tasks is None or _tasks_fit(wanted.tasks, job.tasks))
        and wanted.waiting in (None, waits)
    )


def task_state(task: Task) -> str:
    """Return the state of a task; ``Skipped`` for one that had no work."""
    return "Skipped" if task.stateDescription == "Skipped" else task.state


def _tasks_fit(wanted: Sequence[str], tasks: Sequence[Task]) -> bool:
    if len(wanted) != len(tasks):
        return False
    for text, task in zip(wanted, tasks, strict=True):
        name, _, state = text.partition(" ")
        if name != task.name or (state and state != task_state(task)):
            return False
    return True


def item_text(item: ProtectedItem) -> str:
    """Return the state of a protected item in one line."""
    errors = ", ".join(f"{error.errorCode} (attempt {error.attempt})" for error in item.healthErrors)
    rpo = "-" if item.lastRpoInSeconds is None else f"{item.lastRpoInSeconds:.1f} s"
    return (
        f"{item.protectionState} ({item.activeLocation}), health {item.replicationHealth}, errors {errors or NONE}, "
        f"resync {item.resynchronizationRequired or NONE}, RPO {rpo}"
    )


def job_text(job: Job) -> str:
    """Return the state of a job, its tasks and errors in one line."""
    tasks = ", ".join(f"{task.name} {task_state(task)}" for task in job.tasks)
    errors = "".join(f"; {error.code}: {error.message}" for error in job.errors)
    return f"job {job.scenarioName} of {job.vm} {job.state}: {tasks}{errors}"


def _newest(events: Sequence[Event]) -> str:
    return f", the newest: {events[0].description}" if events else ""
