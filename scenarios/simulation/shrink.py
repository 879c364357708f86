"""Shrinks a failing plan: the fewest operations, and the fewest and shortest faults, that still break the same invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from siterig.scenarios.simulation.rig.plan import RunPlan

T = TypeVar("T")

SHORTEST_S = 1.0


def shrink(plan: RunPlan, still_fails: Callable[[RunPlan], bool]) -> RunPlan:
    """Return the smallest plan that was found for which ``still_fails`` is true; it is true for ``plan``."""
    found = True
    while found:
        found = False
        for smaller in _smaller(plan):
            if still_fails(smaller):
                plan, found = smaller, True
                break
    return plan


def _smaller(plan: RunPlan) -> Iterator[RunPlan]:
    """Yield smaller plans, those first that leave out most."""
    for faults in _fewer(plan.faults):
        yield replace(plan, faults=faults)
    for operations in _fewer(plan.operations):
        yield replace(plan, operations=operations)
    if not plan.begins_protected:
        yield replace(plan, begins_protected=True)
    if plan.app_consistent_every_s is not None:
        yield replace(plan, app_consistent_every_s=None)
    ends_s = [fault.at_s + fault.lasts_s for fault in plan.faults] + [operation.at_s for operation in plan.operations]
    last_s = max(ends_s, default=0.0)
    if plan.active_s > last_s + 30.0:
        yield replace(plan, active_s=last_s + 30.0)
    for number, fault in enumerate(plan.faults):
        if fault.lasts_s > SHORTEST_S:
            shorter = replace(fault, lasts_s=max(SHORTEST_S, fault.lasts_s / 2))
            yield replace(plan, faults=(*plan.faults[:number], shorter, *plan.faults[number + 1 :]))


def _fewer(events: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    """Yield the halves of a long tuple, and then the tuple without each of its elements."""
    if len(events) > 2:
        half = len(events) // 2
        yield events[:half]
        yield events[half:]
    for number in range(len(events)):
        yield events[:number] + events[number + 1 :]
