"""The lives of rules of links and of the blob service: what they hold ends with their window.

A life begins in the moment in which the window of its rule opens, which is the moment from which the schedule counts
operations.  So no operation is counted without its fault, also while other rules of the same call are still being armed.
"""

from __future__ import annotations

from collections.abc import Collection

from siterig.blockfs.core.clock import Clock
from siterig.net.link_faults import FaultLife
from siterig.net.pacing import Pacer
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.schedule import ArmedRule, FaultListener


class RuleLife(FaultLife):
    """The life of one rule, and the rate that it keeps."""

    def __init__(self, rate: int | None, clock: Clock) -> None:
        """Begin; ``rate`` is in bytes a second, None for no limit."""
        super().__init__()
        self.pacer = None if rate is None else Pacer(rate, clock, self.ended)


class RuleLives(FaultListener):
    """The lives of all rules of some layers; it listens to the schedule."""

    def __init__(self, layers: Collection[LayerName], clock: Clock) -> None:
        """Begin without rules.

        Args:
            layers: the layers.
            clock: measures rates.
        """
        self._layers, self._clock = layers, clock
        self._lives: dict[str, RuleLife] = {}

    def of(self, label: str) -> RuleLife | None:
        """Return the life of a rule; None if its window is not open, or it is being removed."""
        life = self._lives.get(label)
        return None if life is None or life.is_over else life

    def continue_with(self, armed: ArmedRule) -> None:
        """Begin the life of a rule that a former director armed, if its window is open."""
        if armed.window.is_open and self.of(armed.label) is None:
            self._begin(armed)

    def end(self, armed: ArmedRule) -> None:
        """End the life of a rule: it holds nothing any more."""
        if (life := self._lives.get(armed.label)) is not None:
            life.ended.set()

    def window_changed(self, armed: ArmedRule) -> None:
        if armed.rule.where.layer not in self._layers:
            return
        if armed.window.is_open:
            self._begin(armed)
        else:
            self.end(armed)

    def rule_removed(self, armed: ArmedRule) -> None:
        if armed.rule.where.layer in self._layers:
            self.end(armed)
            self._lives.pop(armed.label, None)

    def _begin(self, armed: ArmedRule) -> None:
        self._lives[armed.label] = RuleLife(armed.rule.what.rate, self._clock)
