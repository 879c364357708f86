"""The records of a running scenario: checks, moments of the timeline, measures; each is shown when it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.contracts.results import Check, RpoSample
from siterig.scenarios.contracts.scenario_result import Lane, ScenarioMeasures, ScenarioMoment

LineSeverity = Literal["info", "good", "bad"]
Show = Callable[[float, LineSeverity, str, str], None]
"""Called with time, severity, text and evidence for each line of progress."""


@dataclass
class RunRecords:
    """Everything that a scenario has recorded so far.

    Args:
        show: shows a line of progress.
    """

    show: Show
    checks: list[Check] = field(default_factory=list)
    moments: list[ScenarioMoment] = field(default_factory=list)
    rpo: list[RpoSample] = field(default_factory=list)
    measures: ScenarioMeasures = field(default_factory=ScenarioMeasures)
    _zero_s: float = field(default_factory=SYSTEM_CLOCK.trio_time_s)

    def begin_timeline(self) -> None:
        """Let the times of the timeline begin now; what was recorded before gets negative times."""
        shift_s = self.now()
        self._zero_s += shift_s
        self.moments = [
            moment.model_copy(
                update={"at_s": moment.at_s - shift_s, "end_s": None if moment.end_s is None else moment.end_s - shift_s}
            )
            for moment in self.moments
        ]
        self.rpo = [sample.model_copy(update={"at_s": sample.at_s - shift_s}) for sample in self.rpo]

    def now(self) -> float:
        """Return the seconds since the timeline began."""
        return SYSTEM_CLOCK.trio_time_s() - self._zero_s

    def say(
        self, lane: Lane, text: str, severity: LineSeverity = "info", *, began_s: float | None = None, is_shown: bool = True
    ) -> None:
        """Record a moment; with ``began_s`` it lasted from then until now."""
        now = self.now()
        at_s, end_s = (now, None) if began_s is None else (began_s, now)
        self.moments.append(ScenarioMoment(at_s=at_s, end_s=end_s, lane=lane, text=text, severity=severity))
        if is_shown:
            self.show(now, severity, text, "")

    def check(self, step: str, name: str, ok: bool, evidence: str) -> None:
        """Record one check; the run continues after a failed one, but its result is not ok."""
        self.checks.append(Check(step=step, name=name, ok=ok, evidence=evidence))
        severity: LineSeverity = "good" if ok else "bad"
        self.moments.append(ScenarioMoment(at_s=self.now(), lane="check", text=f"{name}: {evidence}", severity=severity))
        self.show(self.now(), severity, name, evidence)

    def findings(self, step: str, findings: list[CheckFinding]) -> None:
        """Record the findings of a checker."""
        for finding in findings:
            self.check(step, finding.name, finding.ok, finding.evidence)

    def measure(self, **measured: float | int | None) -> None:
        """Set measures."""
        self.measures = self.measures.model_copy(update=measured)
