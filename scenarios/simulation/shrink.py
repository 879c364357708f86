"""Shrinks a failing plan: the fewest and shortest faults that still break the same invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from siterig.scenarios.simulation.rig.plan import RunPlan

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
    count = len(plan.faults)
    if count > 2:
        half = count // 2
        yield plan.with_faults(plan.faults[:half])
        yield plan.with_faults(plan.faults[half:])
    for number in range(count):
        yield plan.with_faults(plan.faults[:number] + plan.faults[number + 1 :])
    if not plan.begins_protected:
        yield replace(plan, begins_protected=True)
    if plan.app_consistent_every_s is not None:
        yield replace(plan, app_consistent_every_s=None)
    last_s = max((fault.at_s + fault.lasts_s for fault in plan.faults), default=0.0)
    if plan.active_s > last_s + 30.0:
        yield replace(plan, active_s=last_s + 30.0)
    for number, fault in enumerate(plan.faults):
        if fault.lasts_s > SHORTEST_S:
            shorter = replace(fault, lasts_s=max(SHORTEST_S, fault.lasts_s / 2))
            yield plan.with_faults((*plan.faults[:number], shorter, *plan.faults[number + 1 :]))
