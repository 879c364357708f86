"""Faults of the rig's clock: wall time that jumps, and roles whose wall time differs or drifts.

All of them last: they are moved back when their rule is removed or its window closes.  ``siterig clock reset`` ends them
before that.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import structlog

from siterig.blockfs.clocks.clock_page import ClockPage, ensure_page
from siterig.blockfs.clocks.imposed_faults import ImposedClockFaults
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.documents.nearest import hint
from siterig.blockfs.documents.quantities import drift_text, time_shift_text
from siterig.core.fault_contract import DIRECTOR
from siterig.director.injectors import LayerInjector, not_possible
from siterig.scenarios.faults.rules import FaultRule, mark_words
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision

_log = structlog.get_logger("faults")


class ClockInjector(LayerInjector):
    """The injector of the layer ``clock``.

    Args:
        page: the page of the rig's clock.
        file: the list of the faults that are in force.
    """

    layers = ("clock",)

    def __init__(self, page: Path, file: Path) -> None:
        ensure_page(page)
        self._page = ClockPage(page)
        self._control = RigClockControl(page)
        self._faults = ImposedClockFaults(self._page, file)

    def _roles(self, rule: FaultRule) -> list[str]:
        """Return the roles that a rule names; the director itself is none of them, unless it is named exactly."""
        known = [slot.name for slot in self._page.slots()]
        pattern = rule.where.role or "*"
        roles = [name for name in known if fnmatch.fnmatchcase(name, pattern) and (name != DIRECTOR or name == pattern)]
        if not roles:
            text = f"where.role: {pattern!r} matches no role{hint(pattern, known)}; allowed: {', '.join(known)}"
            raise not_possible(rule, text)
        return roles

    async def check(self, rule: FaultRule) -> None:
        what = rule.what
        if rule.where.role is not None:
            self._roles(rule)
        elif what.skew is not None or what.drift is not None:
            key = "skew" if what.skew is not None else "drift"
            raise not_possible(rule, f"what.{key}: where.role is missing; {key} is a difference between roles: name one")

    async def act(self, decision: FaultDecision) -> str:
        rule, what = decision.rule, decision.rule.what
        if what.jump is not None and rule.where.role is None:
            change = self._faults.impose_jump(decision.label, what.jump)
            done, of = f"wall time jumped by {time_shift_text(what.jump)}", "all roles"
        elif what.jump is not None:
            roles = self._roles(rule)
            change = self._faults.impose_skew(decision.label, roles, what.jump)
            done, of = f"wall time jumped by {time_shift_text(what.jump)}", ", ".join(roles)
        elif what.skew is not None or what.drift is not None:
            roles = self._roles(rule)
            change = self._faults.impose_skew(decision.label, roles, what.skew or 0, drift_ppm=what.drift or 0)
            parts = [] if what.skew is None else [f"skewed by {time_shift_text(what.skew)}"]
            parts += [] if what.drift is None else [f"drifts by {drift_text(what.drift)}"]
            done, of = "wall time " + " and ".join(parts), ", ".join(roles)
        else:
            return mark_words(rule)
        await self._control.wait_followed(change)
        return f"{done}: {of}"

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        await self._lift([armed.label for armed in rules])

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._lift([armed.label])

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        open_now = {armed.label for armed in rules if armed.window.is_open}
        await self._lift({each.fault for each in self._faults.imposed()} - open_now)

    async def _lift(self, faults: Sequence[str] | set[str]) -> None:
        before = self._page.sequence
        try:
            change = self._faults.lift(faults)
        except OSError as error:
            names = ", ".join(map(repr, sorted(faults)))
            text = f"fault {names}: the clock cannot be moved back: {error}; when that is repaired, remove the fault again"
            raise RigError(Code.FaultNotPossible, text) from error
        if change == before:
            return
        try:
            await self._control.wait_followed(change)
        except RigError as error:  # the clock is moved back; a stopped role follows when it continues
            if error.code != Code.ClockNotFollowed:
                raise
            _log.warning("clock_not_followed", reason=error.message)
