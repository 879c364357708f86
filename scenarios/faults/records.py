"""The records of a run's faults: each injection, the state of each rule, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.scenarios.faults.catalog import IMMEDIATE

LOGGED_MAX = 8
"""The ranges of an injection in a line of a log; the timeline and ``siterig fault`` have all."""


class Injection(WireModel):
    """One fault that was injected."""

    sequence: Whole
    """Number within the run, from 1."""
    rule: str
    layer: str
    operation: str
    """The operation in words; ``-`` if the fault acted without one."""
    n: Whole
    """The number of the operation among those that match the rule, from 1."""
    time: str
    """RFC 3339 in UTC."""
    position: Whole | None = None
    done: str
    """The action, in words."""
    ranges: tuple[tuple[int, int], ...] = ()
    """Start and length of the bytes that were changed, lost or not delivered."""

    @property
    def text(self) -> str:
        """The operation, if there was one, and the action."""
        return self.done if self.operation == IMMEDIATE else f"{self.operation}: {self.done}"


class RuleStatus(WireModel):
    """A rule of a schedule, as ``siterig fault list`` shows it."""

    name: str
    words: str
    layer: str
    state: Literal["waiting", "armed", "over", "removed"]
    """``waiting`` for its window, ``armed``, ``over`` when its window has closed."""
    matched: Whole
    fired: Whole
    spared: Whole
    """Faults that did not happen because they would have destroyed the last intact copy of a block."""
    last: str | None
    """Time of the last fault."""
    waiting: Whole = 0
    """Operations that the rule keeps waiting now."""
    expected: str


class FaultVerdict(WireModel):
    """The verdict on a rule: it fired as often as it should, or it did not."""

    name: str
    ok: bool
    fired: Whole
    expected: str
    text: str


def logged_ranges(ranges: Sequence[tuple[int, int]]) -> dict[str, object]:
    """Return the ranges of an injection for a line of a log: the first ``LOGGED_MAX``, and the number of the others."""
    shown: dict[str, object] = {"ranges": [list(each) for each in ranges[:LOGGED_MAX]]}
    return shown if len(ranges) <= LOGGED_MAX else shown | {"more_ranges": len(ranges) - LOGGED_MAX}
