"""The interface between the director of a rig's faults and the injectors of its layers.

The director has the schedule and opens and closes windows; an injector carries out the faults of its layers.  There are
three kinds of injectors, and one class for all of them:

- *by operation*: it asks :meth:`siterig.scenarios.faults.schedule.FaultSchedule.decide` for each operation, acts, and
  calls ``record``; it overrides :meth:`LayerInjector.arm`, if it has to prepare anything (a proxy).
- *immediate*: it overrides :meth:`LayerInjector.act`, and :meth:`LayerInjector.disarm` if its faults last.
- *remote*: another role decides (:class:`siterig.core.fault_contract.FaultInjector`); it overrides all other methods.

All calls are on the trio thread of the director, one at a time, except :meth:`LayerInjector.run`.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.rules import FaultRule
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision


class LayerInjector:
    """The injector of some layers; a subclass overrides what it needs."""

    layers: tuple[LayerName, ...] = ()
    """The layers whose rules it gets."""
    is_remote = False
    """True if another role decides which operation meets a fault, and carries out immediate faults when it is armed."""

    async def check(self, rule: FaultRule) -> None:
        """Refuse a rule that cannot be put in force here, before anything is changed.

        Raises:
            RigError: ``FaultNotPossible``; the message names the rule, the key, its value, and what is allowed.
        """

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        """Put new rules in force, all or none, and return when they are; some windows may be closed still.

        Raises:
            RigError: ``FaultNotPossible``, or the error of a role that does not answer.
        """

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        """Undo everything that these rules keep up, adopt their last counts, and return when that is in force.

        It must not fail because a role is away: a fault that ended with its process needs no undoing.
        """

    async def act(self, decision: FaultDecision) -> str:
        """Carry out an immediate fault, and return the action in words; not called for a remote injector."""
        raise not_possible(decision.rule, "it is no immediate fault of this rig")

    async def window_opened(self, armed: ArmedRule) -> None:
        """Let a rule count and act from now on; for an immediate rule ``act`` follows."""

    async def window_closed(self, armed: ArmedRule) -> None:
        """Let a rule act no more; faults that last end, as with :meth:`disarm`."""

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        """Continue with the rules of a director that was killed; immediate faults among them may have happened.

        Args:
            rules: all rules of the layers that are armed; there may be none, and leftovers of others.
        """
        await self.arm(rules)
        for armed in rules:
            if armed.window.is_open:
                await self.window_opened(armed)

    async def collect(self) -> None:
        """Adopt the newest counts and injections that other roles have, before somebody reads them."""

    async def run(self) -> None:
        """Do the background work of the injector until cancelled."""
        await trio.sleep_forever()


def not_possible(rule: FaultRule, reason: str) -> RigError:
    """Return ``FaultNotPossible`` for a rule."""
    return RigError(Code.FaultNotPossible, f"fault {rule.label!r}: {reason}")
