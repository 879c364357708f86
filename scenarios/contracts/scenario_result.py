"""The result of a scenario: the JSON of ``siterig scenario run --json`` (docs/reference/json.md).

Times are seconds since the timeline began; what happened before has negative times.
"""

from __future__ import annotations

from typing import Literal

from siterig.azure_emu.vault.model.resources import Event, Job
from siterig.blockfs.core.wire_model import WireModel
from siterig.scenarios.contracts.results import Check, Host, RpoSample
from siterig.scenarios.faults.records import FaultVerdict, Injection

SCENARIO_SCHEMA = 1
Lane = Literal["rig", "operation", "workload", "event", "job", "health", "fault", "clock", "check"]
"""The row of the timeline that something belongs to."""


class ScenarioMoment(WireModel):
    """One thing that happened; ``end_s`` is set for things that lasted."""

    at_s: float
    end_s: float | None = None
    lane: Lane
    text: str
    severity: Literal["info", "good", "bad"] = "info"


class ScenarioMeasures(WireModel):
    """The measures of the loss of the site; None if the scenario did not come so far.

    ``rpo_s``: age of the newest recovered step at the loss of the site.  ``rto_s``: from the order to fail over to verified
    disks.  ``lost``: steps that were acknowledged and are not on the recovered disks.
    """

    rpo_s: float | None = None
    rto_s: float | None = None
    lost: int | None = None


class ScenarioSetup(WireModel):
    """The tested software and machine."""

    version: str
    commit: str | None
    python: str
    azurite: str | None
    host: Host


class ScenarioResult(WireModel):
    """The whole result: ``ok`` means that the timeline completed and everything that was expected holds.

    ``skipped`` is the reason for which it did not run; ``error`` is what ended it; ``without_mechanism`` is set by
    ``--prove``: then the scenario should fail.  ``clock`` is the clock of the roles; times of moments are real time.
    """

    schema_version: int = SCENARIO_SCHEMA
    name: str
    title: str
    file: str
    sentences: list[str]
    seed: int
    ok: bool
    skipped: str | None = None
    error: str | None = None
    without_mechanism: bool = False
    started: str
    duration_s: float
    clock: str = "the clock of the host"
    checks: list[Check]
    moments: list[ScenarioMoment]
    rpo: list[RpoSample]
    measures: ScenarioMeasures
    jobs: list[Job]
    events: list[Event]
    injections: list[Injection]
    verdicts: list[FaultVerdict]
    kept: str | None = None
    tested: ScenarioSetup | None = None
