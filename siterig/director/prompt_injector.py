"""An injector whose calls end soon: a role that is stopped must not keep a change of other rules waiting."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import ArmedFaults, DiskCopies, FaultInjector, FaultPlan, FaultReport

T = TypeVar("T")
CHANGE_S = 5.0
"""The time within which a role carries out a change, or counts as away."""
REPORT_S = 1.0
"""The time within which a role reports, beside its patience."""


class PromptInjector(FaultInjector):
    """The injector of a role, within time limits.

    Args:
        role: the name of the role.
        injector: its injector.
        clock: the clock of the limits.
    """

    def __init__(self, role: str, injector: FaultInjector, clock: Clock) -> None:
        self._role, self._injector, self._clock = role, injector, clock

    async def _within(self, limit_s: float, call: Awaitable[T]) -> T:
        with self._clock.move_on_after(limit_s):
            return await call
        raise RigError(
            Code.RoleUnavailable, f"the {self._role} did not answer within {limit_s:g} s", recoverable=True, role=self._role
        )

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        return await self._within(CHANGE_S, self._injector.arm_faults(plans=plans))

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        return await self._within(CHANGE_S, self._injector.disarm_faults(names=names))

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        return await self._within(CHANGE_S, self._injector.set_fault_window(name=name, is_open=is_open))

    async def note_copies(self, *, copies: DiskCopies) -> None:
        await self._within(CHANGE_S, self._injector.note_copies(copies=copies))

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        call = self._injector.fault_report(after=after, epoch=epoch, patience_s=patience_s)
        return await self._within(patience_s + REPORT_S, call)
