"""The faults of a thrash: as many at once as allowed, also equal ones, each removed after its time."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from siterig.core.fault_contract import FaultControl
from siterig.core.paths import Layout
from siterig.testing.testbed import Testbed
from siterig.testing.timeline import Timeline
from siterig.thrash.faults import AT_ONCE_MAX, FaultInjection
from siterig.thrash.plan import PlannedRule

EQUAL = PlannedRule("kill", "process applier kill=SIGKILL", lasts_s=5.0, after_s=1.0)


class Director:
    """Counts the faults that are armed."""

    def __init__(self) -> None:
        self.armed: set[str] = set()
        self.most = 0

    async def add_faults(self, *, rules: list[dict[str, Any]]) -> None:
        self.armed |= {rule["name"] for rule in rules}
        self.most = max(self.most, len(self.armed))

    async def remove_fault(self, *, name: str) -> None:
        self.armed.remove(name)


class RigWithDirector(Testbed):
    def __init__(self, director: Director) -> None:
        super().__init__(Layout.of(Path("/nowhere")))
        self._director = director

    async def start_faults(self) -> FaultControl:
        return cast("FaultControl", self._director)


async def test_equal_faults_are_armed_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    director = Director()
    injection = FaultInjection(RigWithDirector(director), repeat(EQUAL), Timeline())
    await injection.start()
    with trio.move_on_after(60):
        await injection.run()
    assert director.most == AT_ONCE_MAX
    assert injection.injected["kill"] > 10
