"""The table ``[expect]``: the state of the rig at the end of a scenario, measured bounds, and the checks of data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from siterig.blockfs.documents.quantities import parse_duration
from siterig.scenarios.faults.values import Count, Duration, Text
from siterig.scenarios.files.conditions import (
    DiskCondition,
    EventCondition,
    FaultCondition,
    ItemCondition,
    JobCondition,
    RoleCondition,
    VmCondition,
    WorkloadCondition,
)
from siterig.scenarios.files.timeline_tables import TimelineEntry
from siterig.scenarios.files.topology import SECOND_NS, ScenarioTable


def _delay(text: str) -> str:
    parse_duration(text)
    return text


Delays = tuple[Annotated[str, AfterValidator(_delay)], ...]


class RetryExpectation(ScenarioTable):
    """The times between the attempts of failing replication, as the health error announces them."""

    vm: Text = Field(description="the VM")
    error: Text = Field(default="*", description="pattern of the code of the health error")
    delays: Delays = Field(description='the delay after each attempt from the first, like `["1s", "2s", "4s"]`')
    tolerance: Duration = Field(default=SECOND_NS * 6 // 10, description="allowed difference; `600ms` if left out")


class BoundsExpectation(ScenarioTable):
    """Upper bounds of the measures of the loss of the site."""

    rpo: Duration | None = Field(default=None, description="age of the newest recovered transaction at the loss of the site")
    rto: Duration | None = Field(default=None, description="from the order to fail over to verified disks")
    lost: Count | None = Field(default=None, description="acknowledged transactions that are not on the recovered disks")


class DataExpectation(ScenarioTable):
    """A check of data at the end: file systems, and the data of a workload."""

    workload: Text = Field(description="the workload")
    of: Literal["source", "test", "recovered"] = Field(
        default="test", description="the disks that are checked, as for the operation `check`; `test` if left out"
    )
    point: Text | None = Field(default=None, description="the recovery point of the test failover; `Latest` if left out")


class EqualDisks(ScenarioTable):
    """The disks of a VM at the site and of a test failover to Latest are equal, byte for byte; the VM is shut down first."""

    vm: Text = Field(description="the VM")


class ExpectTable(ScenarioTable):
    """All expectations; those about states may come true within the time limit."""

    within: Duration = Field(default=30 * SECOND_NS, description="time within which states must be reached; `30s`")
    item: tuple[ItemCondition, ...] = Field(default=(), description="protected items")
    job: tuple[JobCondition, ...] = Field(default=(), description="jobs")
    event: tuple[EventCondition, ...] = Field(default=(), description="events")
    role: tuple[RoleCondition, ...] = Field(default=(), description="roles")
    vm: tuple[VmCondition, ...] = Field(default=(), description="VMs")
    disk: tuple[DiskCondition, ...] = Field(default=(), description="disks")
    workload: tuple[WorkloadCondition, ...] = Field(default=(), description="workloads")
    fault: tuple[FaultCondition, ...] = Field(default=(), description="fault rules; each must have fired in any case")
    retry: tuple[RetryExpectation, ...] = Field(default=(), description="retry times")
    bounds: BoundsExpectation = BoundsExpectation()
    data: tuple[DataExpectation, ...] = Field(default=(), description="checks of data")
    equal: tuple[EqualDisks, ...] = Field(default=(), description="disks that must be equal on both sides")


class ProofTable(ScenarioTable):
    """The mechanism that ``siterig scenario run --prove`` switches off: the scenario must fail then."""

    skip: tuple[Text, ...] = Field(default=(), description="entries of the timeline that are left out, by `name`")
    instead: tuple[TimelineEntry, ...] = Field(
        default=(), description="entries that take the place of those with the same `name`"
    )
    disarm: tuple[Text, ...] | None = Field(
        default=None, description="fault rules that are not armed; all if left out, and none if it is `[]`"
    )
    within: Duration = Field(
        default=10 * SECOND_NS,
        description="longest time of each wait; `10s` if left out. With the mechanism no wait may need as long",
    )
