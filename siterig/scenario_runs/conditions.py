"""The evaluation of conditions: each look at the rig says whether they hold, and what was seen."""

from __future__ import annotations

import fnmatch
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from siterig.azure_emu.vault.model.resources import Event, HealthError, Job, ProtectedItem, Task
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
        faults: the fault rules of this run.  A proof leaves some out: a condition of one of those holds, so that a proof
            does not fail only because a rule that is not armed did not fire.
    """

    def __init__(self, rig: ScenarioRig, machines: Machines, marks: Sequence[str], faults: Sequence[str]) -> None:
        self._rig, self._machines, self._marks, self._faults = rig, machines, marks, faults

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
                code, _, vm = trigger.name.partition("/")
                return await self.look("event", tables.EventCondition(code=code, vm=vm or None), Baseline(0))
            case "fault":
                return await self.look("fault", tables.FaultCondition(name=trigger.name), Baseline(0))
            case "mark":
                return Observation(trigger.name in self._marks, f"marks: {names(self._marks)}")
            case "position":
                position = self.position()
                return Observation(position >= trigger.number, f"position {position}")
            case "time":
                return Observation(now_s * SECOND_NS >= trigger.number, f"{now_s:.1f} s")

    async def _item(self, condition: tables.ItemCondition) -> Observation:
        item = next((each for each in await self._rig.vault.items() if each.name == condition.vm), None)
        if item is None:
            return Observation(condition.state == UNPROTECTED, f"{condition.vm}: {UNPROTECTED}")
        text = f"{condition.vm}: {item_text(item)}"
        points = None
        if condition.points is not None:
            points = len(await self._rig.vault.points(vm=condition.vm))
            text += f", {points} points"
        ok = (
            _fits(condition.state, item.protectionState)
            and condition.location in (None, item.activeLocation)
            and condition.health in (None, item.replicationHealth)
            and _fits(condition.resync, item.resynchronizationRequired or NONE)
            and _fits(condition.test_failover, item.testFailoverState)
            and (condition.points is None or (points is not None and points in condition.points))
            and _below(condition.rpo_max, item.lastRpoInSeconds)
            and _at_least(condition.rpo_min, item.lastRpoInSeconds)
            and _below(condition.lag_max, item.applied_lag_s)
            and _has_error(condition, item.healthErrors)
        )
        return Observation(ok, text)

    async def _job(self, condition: tables.JobCondition) -> Observation:
        jobs = [
            job
            for job in await self._rig.vault.jobs()
            if fnmatch.fnmatchcase(job.scenarioName, condition.scenario) and condition.vm in (None, job.vm)
        ]
        if not jobs:
            return Observation(False, f"there is no job {condition.scenario}")
        ok = [job for job in jobs if _job_fits(condition, job)]
        return Observation(bool(ok), job_text((ok or jobs)[0]))

    async def _event(self, condition: tables.EventCondition) -> Observation:
        found = [
            event
            for event in await self._rig.vault.events()
            if fnmatch.fnmatchcase(event.eventCode, condition.code)
            and _fits(condition.vm, event.affectedObject)
            and condition.severity in (None, event.severity)
            and _fits(condition.text, event.description)
        ]
        return Observation(len(found) in condition.count, f"{len(found)} events {condition.code}{_newest(found)}")

    async def _role(self, condition: tables.RoleCondition) -> Observation:
        roles = {role.name: role.state for role in (await self._rig.supervisor.status()).roles}
        state = roles.get(condition.name)
        if state is None:
            return Observation(False, f"there is no role {condition.name}; there are: {names(roles)}")
        return Observation(fnmatch.fnmatchcase(state, condition.state), f"role {condition.name}: {state}")

    async def _vm(self, condition: tables.VmCondition) -> Observation:
        vms = [vm.name for vm in await self._rig.vault.list_vms() if vm.side == condition.side]
        return Observation((condition.name in vms) == condition.exists, f"VMs on side {condition.side}: {names(vms)}")

    async def _disk(self, condition: tables.DiskCondition) -> Observation:
        for disk in await self._rig.site.list_disks(vm=condition.vm):
            if disk.name == condition.name:
                ok = (
                    _fits(condition.resync, disk.needs_resync or NONE)
                    and condition.snapshot in (None, disk.snapshot)
                    and (condition.unsent is None or disk.unsent_log_bytes in condition.unsent)
                )
                text = f"resync {disk.needs_resync or NONE}, snapshot {disk.snapshot}, {disk.unsent_log_bytes} bytes unsent"
                return Observation(ok, f"disk {condition.vm}/{condition.name}: {text}")
        return Observation(False, f"there is no disk {condition.vm}/{condition.name}")

    async def _workload(self, condition: tables.WorkloadCondition, base: Baseline) -> Observation:
        load = self._machines.loads[condition.name]
        count = load.acknowledged()
        more = count - base.acknowledged.get(condition.name, 0)
        ok = (
            (condition.acknowledged is None or count in condition.acknowledged)
            and (condition.more is None or more in condition.more)
            and condition.running in (None, load.is_running)
        )
        state = "runs" if load.is_running else "does not run"
        return Observation(ok, f"workload {condition.name}: {count} acknowledged, {more} since the wait began, it {state}")

    async def _fault(self, condition: tables.FaultCondition) -> Observation:
        if condition.name not in self._faults:
            return Observation(True, f"fault {condition.name!r} is left out")
        rules = {rule.name: rule for rule in (await self._rig.faults.list_faults()).rules}
        rule = rules.get(condition.name)
        if rule is None:
            return Observation(False, f"fault {condition.name!r} is not armed; armed are: {names(rules)}")
        text = f"fault {condition.name!r}: {rule.state}, matched {rule.matched}, fired {rule.fired}"
        return Observation(rule.fired in condition.fired, text)

    async def _replicated(self, vm: str, base: Baseline) -> Observation:
        points = await self._rig.vault.points(vm=vm, limit=1)
        newest = points[0].position if points else 0
        return Observation(newest >= base.position, f"{vm}: newest point at {newest}, wanted {base.position}")


def _fits(pattern: str | None, text: str) -> bool:
    return pattern is None or fnmatch.fnmatchcase(text, pattern)


def _below(limit_ns: int | None, seconds: float | None) -> bool:
    return limit_ns is None or (seconds is not None and seconds * SECOND_NS <= limit_ns)


def _at_least(limit_ns: int | None, seconds: float | None) -> bool:
    return limit_ns is None or (seconds is not None and seconds * SECOND_NS >= limit_ns)


def _has_error(condition: tables.ItemCondition, errors: Sequence[HealthError]) -> bool:
    if condition.error is None and condition.attempt is None:
        return True
    if condition.error == NONE:
        return not errors
    return any(
        _fits(condition.error, error.errorCode) and (condition.attempt is None or error.attempt in condition.attempt)
        for error in errors
    )


def _job_fits(condition: tables.JobCondition, job: Job) -> bool:
    state = condition.state if condition.state is not None or condition.error is not None else "Succeeded"
    errors = [error.code for error in job.errors]
    waits = any(task.waiting_for is not None for task in job.tasks)
    return (
        _fits(state, job.state)
        and _fits(condition.description, job.stateDescription or "")
        and (condition.error is None or any(fnmatch.fnmatchcase(code, condition.error) for code in errors))
        and (condition.tasks is None or _tasks_fit(condition.tasks, job.tasks))
        and condition.waiting in (None, waits)
    )


def task_state(task: Task) -> str:
    """Return the state of a task; ``Skipped`` for one that had no work."""
    return "Skipped" if task.stateDescription == "Skipped" else task.state


def _tasks_fit(condition: Sequence[str], tasks: Sequence[Task]) -> bool:
    if len(condition) != len(tasks):
        return False
    for text, task in zip(condition, tasks, strict=True):
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
