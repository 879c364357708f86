"""Watches a rig during a scenario: health, RPO, events, injections and its clock, as moments of the timeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from siterig.azure_emu.vault.model.resources import Event, HealthError
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.scenario_runs.clock_watch import ClockWatch
from siterig.scenario_runs.conditions import item_text
from siterig.scenario_runs.records import LineSeverity, RunRecords
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenarios.contracts.results import RpoSample
from siterig.scenarios.faults.records import Injection

_EVERY_S = 0.2
_SEVERITIES: dict[str, LineSeverity] = {"OK": "info", "Warning": "bad", "Critical": "bad"}
_SHOWN_INJECTIONS = 20
"""Injections of one rule that are shown on the terminal; all of them are in the report."""


@dataclass(frozen=True, slots=True)
class SeenRetry:
    """A failed attempt, and the announced time until the next one.

    The attempt failed between two looks, so the time is between two bounds: ``delay_s`` counts from the look that saw it,
    ``delay_s_max`` from the one before.  They are close unless the machine is slow.
    """

    vm: str
    code: str
    attempt: int
    delay_s: float
    delay_s_max: float


@dataclass
class Watcher:
    """Everything that was seen.

    Args:
        rig: the rig.
        records: gets the moments.
        clock: watches the clock of the rig.
        has_faults: True if the rig's faults are watched, too.
    """

    rig: ScenarioRig
    records: RunRecords
    clock: ClockWatch
    has_faults: bool
    events: list[Event] = field(default_factory=list)
    injections: list[Injection] = field(default_factory=list)
    retries: list[SeenRetry] = field(default_factory=list)
    _items: dict[str, str] = field(default_factory=dict)
    _looked_ns: int | None = None
    """The time at which the last question for the items began that was answered."""
    _attempts: set[tuple[str, str, int, str]] = field(default_factory=set)
    _shown: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Look at the rig until this is cancelled; a role that does not answer is passed over."""
        while True:
            await self.look()
            await SYSTEM_CLOCK.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look once."""
        for look in (self._look_at_clock, self._look_at_items, self._look_at_events, self._look_at_injections):
            try:
                await look()
            except RigError:
                continue  # a gap in the records, not the end of the run

    async def _look_at_clock(self) -> None:
        self.clock.look()

    async def _look_at_items(self) -> None:
        asked_ns = self.rig.wall_ns()
        items = await self.rig.vault.items()
        now_ns = self.rig.wall_ns()
        if items:
            self.records.rpo.append(RpoSample(at_s=self.records.now(), rpo_s=items[0].lastRpoInSeconds))
        for item in items:
            text = item_text(item).partition(", RPO")[0]
            if self._items.get(item.name) != text:
                self._items[item.name] = text
                severity: LineSeverity = "bad" if item.replicationHealth in ("Warning", "Critical") else "info"
                self.records.say("health", f"{item.name}: {text}", severity)
            for error in item.healthErrors:
                self._note_retry(item.name, error, now_ns)
        self._looked_ns = asked_ns

    def _note_retry(self, vm: str, error: HealthError, now_ns: int) -> None:
        if error.next_try_time is None:
            return
        key = (vm, error.errorCode, error.attempt, error.next_try_time)
        if key not in self._attempts:
            self._attempts.add(key)
            due_s = datetime.fromisoformat(error.next_try_time).timestamp()
            before_ns = now_ns if self._looked_ns is None else self._looked_ns
            bounds = due_s - now_ns / 1e9, due_s - before_ns / 1e9
            self.retries.append(SeenRetry(vm, error.errorCode, error.attempt, *bounds))

    async def _look_at_events(self) -> None:
        found = await self.rig.vault.events()
        new = found[: len(found) - len(self.events)]
        for event in reversed(new):
            self.records.say(
                "event",
                f"event {event.eventCode} ({event.affectedObject}): {event.description}",
                _SEVERITIES[event.severity],
                is_shown=False,
            )
        self.events = found

    async def _look_at_injections(self) -> None:
        if not self.has_faults:
            return
        after = self.injections[-1].sequence if self.injections else 0
        for injection in await self.rig.faults.injections(after=after):
            self.injections.append(injection)
            shown = self._shown[injection.rule] = self._shown.get(injection.rule, 0) + 1
            text = f"fault {injection.rule}: {injection.text}"
            self.records.say("fault", text, "bad", is_shown=shown <= _SHOWN_INJECTIONS)
