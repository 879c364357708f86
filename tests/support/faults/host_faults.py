"""Fault rules for the host's files in a test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from siterig.core.fault_contract import FaultPlan, FaultReport
from siterig.host_faults.injector import HostFileInjector
from siterig.host_faults.places import FilePlaces
from siterig.scenarios.faults.rules import read_rule


def plan(words: str, *, seed: int = 1, is_open: bool = True) -> FaultPlan:
    """Return the plan of a rule in words."""
    rule = read_rule(words)
    return FaultPlan(name=rule.label, rule=rule.document(), seed=seed, is_open=is_open)


async def report(injector: HostFileInjector, after: int = 0, epoch: str = "") -> FaultReport:
    """Return what the injector did, without waiting."""
    return await injector.fault_report(after=after, epoch=epoch, patience_s=0)


@asynccontextmanager
async def armed(places: Sequence[FilePlaces], *rules: str, seed: int = 1, **kwargs: Any) -> AsyncIterator[HostFileInjector]:
    """Arm rules until the end of the block."""
    injector = HostFileInjector(places, **kwargs)
    try:
        await injector.arm_faults(plans=[plan(words, seed=seed) for words in rules])
        yield injector
    finally:
        injector.close()
