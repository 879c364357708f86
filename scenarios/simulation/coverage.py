"""The coverage of runs: how often each fault, operation, job, state and resync has occurred, summed over many seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Coverage:
    """The counts of one run, or of many.

    Attributes:
        faults: the faults that were carried out, by kind.
        targets: the links, roles and hosts that a fault was about, as ``KIND TARGET``.
        operations: the operations of the administrator that were carried out, by kind.
        jobs: the jobs that succeeded, by scenario.
        states: the states of the item that the administrator saw.
        resyncs: the reasons of resynchronizations.
    """

    faults: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    resyncs: Counter[str] = field(default_factory=Counter)

    def add(self, other: Coverage) -> None:
        """Add the counts of other runs."""
        for each in fields(self):
            getattr(self, each.name).update(getattr(other, each.name))

    def lines(self) -> list[str]:
        """Return a line for each kind of counts."""
        return [f"{each.name}: {_text(getattr(self, each.name))}" for each in fields(self)]


def _text(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
