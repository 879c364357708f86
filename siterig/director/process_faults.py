"""Faults of the processes of a rig: signals, stopped processes, limits, and slow starts.

The supervisor carries them out, because it starts the processes and judges whether they are healthy.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import structlog

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.documents.nearest import hint
from siterig.core.fault_contract import DIRECTOR
from siterig.core.supervisor_contract import RoleFault, RoleStarts, StartFaults, SupervisorControl
from siterig.director.injectors import LayerInjector, not_possible
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import FaultRule, mark_words
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision, FaultSchedule

START = "start"
"""The operation of the layer."""
_log = structlog.get_logger("faults")


class ProcessInjector(LayerInjector, RoleStarts):
    """The injector of the layer ``process``.

    Args:
        schedule: decides for each start of a role.
        supervisor: the supervisor of the rig.
    """

    layers = ("process",)

    def __init__(self, schedule: FaultSchedule, supervisor: SupervisorControl) -> None:
        self._schedule = schedule
        self._supervisor = supervisor

    async def _roles(self, rule: FaultRule) -> list[str]:
        """Return the roles that a rule names; the director itself is none of them."""
        known = [role.name for role in (await self._supervisor.status()).roles if role.name != DIRECTOR]
        pattern = rule.where.role or "*"
        roles = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not roles:
            raise not_possible(
                rule, f"where.role: {pattern!r} matches no role{hint(pattern, known)}; allowed: {', '.join(known)}"
            )
        return roles

    async def check(self, rule: FaultRule) -> None:
        await self._roles(rule)

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        if any(START in armed.rule.operations for armed in rules):
            await self._supervisor.ask_before_starts(ask=True)

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        try:
            for armed in rules:
                await self._supervisor.lift_role_faults(fault=armed.label)
            ended = {armed.label for armed in rules}
            others = [armed for armed in self._schedule.armed("process") if armed.label not in ended]
            if not any(START in armed.rule.operations for armed in others):
                await self._supervisor.ask_before_starts(ask=False)
        except RigError as error:
            if error.uncertain:  # a role may still be stopped
                raise
            _log.info("supervisor_has_ended", reason=error.message)  # and all processes with it

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._supervisor.lift_role_faults(fault=armed.label)

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        known = {armed.label for armed in self._schedule.armed() if armed.window.is_open}
        for fault in {fault.fault for fault in await self._supervisor.role_faults()} - known:
            await self._supervisor.lift_role_faults(fault=fault)
        await self.arm(rules)

    async def act(self, decision: FaultDecision) -> str:
        what = decision.rule.what
        roles = await self._roles(decision.rule)
        if what.kill is None:
            for role in roles:
                await self._supervisor.impose_role_fault(fault=_lasting(decision, role))
            return f"{_words(decision)}: {', '.join(roles)}"
        hit = [
            role
            for role in roles
            if await self._supervisor.signal_role(name=role, signal=what.kill, fault=decision.label) is not None
        ]
        if not hit:
            raise not_possible(decision.rule, f"no process of {', '.join(roles)} runs now, so none can get {what.kill}")
        return f"{_words(decision)}: {', '.join(hit)}"

    # --- starts -----------------------------------------------------------------------------------------------------

    async def role_starts(self, *, role: str) -> StartFaults:
        decisions = self._schedule.decide(FaultOperation("process", START, {"role": role}))
        for decision in decisions:
            self._schedule.record(decision, _words(decision))
        kills = [decision.rule.what.kill for decision in decisions if decision.rule.what.kill is not None]
        return StartFaults(
            delay_ns=sum(decision.delay_ns() for decision in decisions),
            fault=", ".join(decision.label for decision in decisions),
            lasting=[
                _lasting(decision, role).model_copy(update={"ends_with_process": True})
                for decision in decisions
                if _lasts(decision)
            ],
            kill=kills[0] if kills else None,
            when_ready=any(decision.rule.when.timing == "after" for decision in decisions),
        )


def _lasts(decision: FaultDecision) -> bool:
    what = decision.rule.what
    return what.pause is not None or what.files_max is not None or what.memory_max is not None


def _lasting(decision: FaultDecision, role: str) -> RoleFault:
    what = decision.rule.what
    return RoleFault(
        fault=decision.label,
        role=role,
        pause=what.pause is not None,
        files_max=what.files_max,
        memory_max=what.memory_max,
    )


def _words(decision: FaultDecision) -> str:
    what = decision.rule.what
    parts = []
    if what.delay is not None:
        parts.append(f"delayed by {decision.delay_ns() / 1e6:g} ms")
    if what.kill is not None:
        parts.append(f"sent {what.kill}")
    if what.pause is not None:
        parts.append("stopped")
    if what.files_max is not None:
        parts.append(f"limited to {what.files_max} open files")
    if what.memory_max is not None:
        parts.append(f"limited to {what.memory_max} bytes of address space")
    return ", ".join(parts) or mark_words(decision.rule)
