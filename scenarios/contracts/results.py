"""The result of a drill: the schema of ``report.json`` (docs/reference/drill.md).

Times are seconds since the start of the drill.
"""

from __future__ import annotations

from typing import Literal

from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core.wire_model import WireModel

SCHEMA = 1


class Check(WireModel):
    """One condition that had to hold; ``evidence`` describes the observation, so that a reader can verify it."""

    step: str
    name: str
    ok: bool
    evidence: str


class TimelineEvent(WireModel):
    """One event, with the text shown on the console; ``step`` is the step in which it happened."""

    at_s: float
    step: str
    text: str
    severity: Literal["info", "good", "bad"] = "info"


class RpoSample(WireModel):
    """One sample of the vault's ``lastRpoInSeconds``; None before the first point and while no replication runs."""

    at_s: float
    rpo_s: float | None


class Measures(WireModel):
    """The measures of the loss of the site; None until the drill reached them.

    ``rpo_s``: from the last state that the recovered VM holds to the loss of the site.  ``rpo_transactions``: acknowledged
    before the loss and absent afterwards.  ``rto_s``: from the order to fail over to verified disks.
    ``failback_s``: from the order to fail back to the committed VM at the site.
    """

    rpo_s: float | None = None
    rpo_transactions: int | None = None
    rto_s: float | None = None
    failback_s: float | None = None


class Host(WireModel):
    """The machine that a drill ran on; unknown values are None.  ``file_system`` is that of the folder of the rig."""

    system: str | None
    kernel: str
    cpus: int
    cpu_model: str | None
    memory_bytes: int
    file_system: str | None


class Setup(WireModel):
    """The tested software and machine.  ``commit`` ends with ``-dirty`` if the code had changes; None if it is unknown.

    The sizes are those of the disks ``os`` and ``data`` and of the files that were copied to them.
    """

    version: str
    commit: str | None
    python: str
    azurite: str | None
    host: Host
    command_line: list[str]
    os_bytes: int
    data_bytes: int
    corpus_bytes: int


class DrillResult(WireModel):
    """The whole result: ``ok`` means that the drill completed and all checks passed; ``error`` is what ended it."""

    schema_version: int = SCHEMA
    ok: bool
    error: str | None
    started: str
    duration_s: float
    vm: str
    interval_s: float
    steps: list[str]
    checks: list[Check]
    timeline: list[TimelineEvent]
    rpo: list[RpoSample]
    measures: Measures
    jobs: list[Job]
    clock: str | None = None
    """The clock of the rig in words; None if it was the system's."""
    tested: Setup | None = None
