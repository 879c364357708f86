"""Watches the clock of a rig: each change of it, by an operation, a fault rule or a command, is a moment of the timeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from siterig.blockfs.clocks.clock_terms import MILLION, ClockTerms, KernelTimes, RoleTerms
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.documents.quantities import drift_text, duration_text, time_shift_text
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.scenario_rig import CLOCK_PAGE, ScenarioRig


@dataclass
class ClockWatch:
    """The changes that were seen so far.

    Args:
        rig: the rig.
        records: gets the moments.
    """

    rig: ScenarioRig
    records: RunRecords
    _terms: ClockTerms = field(default_factory=ClockTerms)

    def look(self) -> None:
        """Record the change since the last look; several changes between two looks are one moment.

        Raises:
            RigError: ``ClockDamaged``.
        """
        if not (self.rig.root / CLOCK_PAGE).exists():
            return
        with self.rig.clock() as clock:
            terms, names = clock.terms(), clock.role_names()
        before, self._terms = self._terms, terms
        if terms.generation == before.generation:
            return
        kernel = KernelTimes.now()
        changes = "; ".join(changes_between(before, terms, kernel, names)) or "no time changed"
        number = terms.generation - before.generation
        several = "" if number == 1 else f" ({number} changes)"
        self.records.say("clock", f"clock{several}: {changes}; it shows {rfc3339(terms.wall_at(kernel))}")

    @property
    def text(self) -> str:
        """The clock that the roles had."""
        number = self._terms.generation
        if not number:
            return "the clock of the host"
        return f"a clock of the rig's own, which was changed {'once' if number == 1 else f'{number} times'}"


def changes_between(before: ClockTerms, after: ClockTerms, kernel: KernelTimes, names: dict[int, str]) -> Iterator[str]:
    """Return each difference between two terms of a clock in words; ``names`` are those of the roles, by their slots."""
    if after.rate_ppm != before.rate_ppm:
        yield f"it runs at {after.rate_ppm / MILLION:g} times real speed"
        before = replace(before, wall_ns=after.wall_ns, monotonic_ns=after.monotonic_ns)  # a new rate moves both a little
    advanced_ns = after.monotonic_ns - before.monotonic_ns
    if advanced_ns:
        yield f"it advanced by {duration_text(advanced_ns)}"
    jumped_ns = after.wall_ns - before.wall_ns - advanced_ns
    if jumped_ns:
        yield f"wall time jumped by {time_shift_text(jumped_ns)}"
    for slot, (old, new) in enumerate(zip(before.roles, after.roles, strict=True)):
        if new != old:
            yield f"wall time of {names.get(slot, f'role {slot}')} {_skew_text(new)}"


def _skew_text(role: RoleTerms) -> str:
    parts = [f"is skewed by {time_shift_text(role.skew_ns)}"] if role.skew_ns else []
    parts += [f"drifts by {drift_text(role.drift_ppm)}"] if role.drift_ppm else []
    return " and ".join(parts) or "is that of the others again"
