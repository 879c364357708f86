"""Conditions of a rig: an entry of the timeline waits for one, and an expectation demands one."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from siterig.blockfs.documents.model_problems import misfit
from siterig.scenarios.faults.values import Duration, Fired, FiredRange, Names, Text
from siterig.scenarios.files.topology import ScenarioTable


class ItemCondition(ScenarioTable):
    """The protected item of a VM."""

    vm: Text = Field(description="the VM")
    state: Text | None = Field(default=None, description="pattern of `protectionState`; `Unprotected`: it is not protected")
    location: Literal["Primary", "Recovery"] | None = Field(default=None, description="`activeLocation`")
    health: Literal["None", "Normal", "Warning", "Critical"] | None = Field(default=None, description="`replicationHealth`")
    error: Text | None = Field(default=None, description="pattern of the code of one of its health errors")
    attempt: Fired | None = Field(default=None, description="number of the failed attempt of that error, like `>=2`")
    resync: Text | None = Field(default=None, description="pattern of `resynchronizationRequired`; `none`: no resync is due")
    test_failover: Text | None = Field(default=None, description="pattern of `testFailoverState`")
    points: Fired | None = Field(default=None, description="number of recovery points, like `>=2`")
    rpo_max: Duration | None = Field(default=None, description="upper bound of `lastRpoInSeconds`")
    rpo_min: Duration | None = Field(default=None, description="lower bound of `lastRpoInSeconds`")
    lag_max: Duration | None = Field(default=None, description="upper bound of `applied_lag_s`")


class JobCondition(ScenarioTable):
    """A job: the newest one that the keys select."""

    scenario: Text = Field(description="pattern of `scenarioName`, like `UnplannedFailover`")
    vm: Text | None = Field(default=None, description="the VM")
    state: Text | None = Field(default=None, description="pattern of `state`; `Succeeded` if state and error are left out")
    description: Text | None = Field(default=None, description="pattern of `stateDescription`")
    error: Text | None = Field(default=None, description="pattern of the code of one of its errors")
    tasks: Names | None = Field(
        default=None, description="its tasks in their order, each `NAME` or `NAME STATE`; `Skipped` is a state, too"
    )
    waiting: bool | None = Field(default=None, description="`true`: one of its tasks waits, and shows why")


class EventCondition(ScenarioTable):
    """Events of the vault since the scenario began."""

    code: Text = Field(description="pattern of `eventCode`")
    vm: Text | None = Field(default=None, description="pattern of `affectedObject`")
    severity: Literal["OK", "Warning", "Critical"] | None = Field(default=None, description="its severity")
    text: Text | None = Field(default=None, description="pattern of `description`")
    count: Fired = Field(default=FiredRange(), description="number of them; `>=1` if left out")


class RoleCondition(ScenarioTable):
    """A role of the rig."""

    name: Text = Field(description="the role")
    state: Text = Field(default="ready", description="pattern of its state; `ready` if left out")


class VmCondition(ScenarioTable):
    """A VM on one side."""

    name: Text = Field(description="the VM")
    side: Literal["site", "azure"] = Field(default="site", description="`site` (default) or `azure`")
    exists: bool = Field(default=True, description="`false`: there is no such VM")


class DiskCondition(ScenarioTable):
    """A disk of the site."""

    vm: Text = Field(description="the VM")
    name: Text = Field(description="the disk")
    resync: Text | None = Field(default=None, description="pattern of `needs_resync`; `none`: nothing")
    snapshot: bool | None = Field(default=None, description="`false`: it has no snapshot")
    unsent: Fired | None = Field(default=None, description="bytes of its unsent log, like `>=1048576`")


class WorkloadCondition(ScenarioTable):
    """A workload."""

    name: Text = Field(description="the workload")
    acknowledged: Fired | None = Field(default=None, description="number of acknowledged steps, like `>=100`")
    more: Fired | None = Field(
        default=None, description="number of steps since the wait began, like `>=20`: it makes progress"
    )
    running: bool | None = Field(default=None, description="`false`: it has ended, for example because its disk failed")


class FaultCondition(ScenarioTable):
    """A fault rule."""

    name: Text = Field(description="the rule")
    fired: Fired = Field(default=FiredRange(), description="how often it has fired; `>=1` if left out")


class ScenarioCondition(ScenarioTable):
    """A condition; with several keys all of them must hold at one moment."""

    item: ItemCondition | None = Field(default=None, description="a protected item")
    job: JobCondition | None = Field(default=None, description="a job")
    event: EventCondition | None = Field(default=None, description="events of the vault")
    role: RoleCondition | None = Field(default=None, description="a role")
    vm: VmCondition | None = Field(default=None, description="a VM")
    disk: DiskCondition | None = Field(default=None, description="a disk of the site")
    workload: WorkloadCondition | None = Field(default=None, description="a workload")
    fault: FaultCondition | None = Field(default=None, description="a fault rule")
    replicated: Text | None = Field(
        default=None, description="a VM: a recovery point has everything that was written before the wait began"
    )

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not self.model_fields_set:
            raise misfit(((), f"has no key; allowed: {', '.join(ScenarioCondition.model_fields)}"))
        return self


CONDITION_KINDS: dict[str, type[ScenarioTable]] = {
    "item": ItemCondition,
    "job": JobCondition,
    "event": EventCondition,
    "role": RoleCondition,
    "vm": VmCondition,
    "disk": DiskCondition,
    "workload": WorkloadCondition,
    "fault": FaultCondition,
}
"""The tables of a condition, for the reference page."""
