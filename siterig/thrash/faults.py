"""Injects the faults of a plan into a rig, through the fault language, until it is cancelled; then heals it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import FaultControl
from siterig.scenarios.faults.rules import read_rule
from siterig.testing.testbed import Testbed
from siterig.testing.timeline import Timeline
from siterig.thrash.plan import PlannedRule
from siterig.thrash.resync_causes import StruckFault

AT_ONCE_MAX = 3
"""The most faults that are armed at the same time."""


class FaultInjection:
    """The faults of one thrash.

    Args:
        rig: the rig.
        plan: the faults, in their order.
        timeline: gets each fault.

    Attributes:
        injected: the number of faults that were armed, by kind.
        refused: the number of faults that could not be armed, by the code of the reason, such as a role that is down.
        struck: the faults that were armed, with their times.
    """

    def __init__(self, rig: Testbed, plan: Iterator[PlannedRule], timeline: Timeline) -> None:
        self._rig, self._plan, self._timeline = rig, plan, timeline
        self.injected, self.refused = Counter[str](), Counter[str]()
        self.struck: list[StruckFault] = []
        self._director: FaultControl | None = None
        self._number = 0

    async def start(self) -> None:
        """Start the role that directs faults."""
        self._director = await self._rig.start_faults()

    @property
    def director(self) -> FaultControl:
        """The director of the rig's faults."""
        assert self._director is not None  # noqa: S101 (start was called)
        return self._director

    async def run(self) -> None:
        """Arm one fault after the other, each for its time, several at once; until this is cancelled."""
        limiter = trio.CapacityLimiter(AT_ONCE_MAX)
        async with trio.open_nursery() as nursery:
            for fault in self._plan:
                await SYSTEM_CLOCK.sleep(fault.after_s)
                self._number += 1
                name = f"thrash {self._number}"
                await limiter.acquire_on_behalf_of(name)  # not of the fault: an equal one may be armed
                nursery.start_soon(self._inject, fault, name, limiter)

    async def _inject(self, fault: PlannedRule, name: str, limiter: trio.CapacityLimiter) -> None:
        document = read_rule(f"{fault.words} fired=any").document() | {"name": name}
        struck = StruckFault(fault.kind, SYSTEM_CLOCK.wall_ns())  # from the order: its answer may be late
        try:
            await self.director.add_faults(rules=[document])
            self.struck.append(struck)
            self.injected[fault.kind] += 1
            self._timeline.add("fault_armed", name=name, kind=fault.kind, rule=fault.words, lasts_s=fault.lasts_s)
            await SYSTEM_CLOCK.sleep(fault.lasts_s)
            await self.director.remove_fault(name=name)
            struck.until_ns = SYSTEM_CLOCK.wall_ns()
            self._timeline.add("fault_removed", name=name)
        except RigError as error:
            if error.code is Code.InvalidFault:  # the rule is wrong, and no state of the rig can change that
                raise
            self.refused[error.code] += 1
            self._timeline.add("fault_refused", name=name, kind=fault.kind, rule=fault.words, error=str(error))
        finally:
            limiter.release_on_behalf_of(name)

    async def heal(self) -> str | None:
        """Remove all faults, and start roles that are down; return a text about faults that last."""
        if await self.director.clear_faults():
            return "faults were armed"
        status = await self._rig.supervisor.status()
        down = [role for role in status.roles if role.state != "ready"]
        for role in down:
            if role.state in ("held", "failed"):
                await self._rig.supervisor.start_role(name=role.name)
        return ", ".join(f"role {role.name} {role.state}: {role.detail}" for role in down) or None
