"""The loss of power of a VM's disks, or of a whole site, by hand.

Unsynced writes can be lost only if their old bytes are kept, from before the writes.  So a loss can be prepared: a rule that
waits for a mark of its own lets the disks keep them.  Without that nothing is unsynced, which a power loss allows, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import output

if TYPE_CHECKING:
    from siterig.core.fault_contract import FaultControl
    from siterig.core.power_contract import LossExtent
    from siterig.scenarios.faults.records import Injection


_EXTENTS: dict[LossExtent, dict[str, Any]] = {"all": {}, "torn": {"tear": {}}, "random": {"survive": "random"}}


@dataclass(frozen=True, slots=True)
class PowerTarget:
    """The machines that lose their power.

    Args:
        name: the target in words, ``VM web01``.
        where: its place in a rule of the layer machine.
        fault: the value of ``power``.
    """

    name: str
    where: Mapping[str, str]
    fault: Literal["loss", "off"]

    @classmethod
    def vm(cls, vm: str) -> PowerTarget:
        """Return a VM, which has its power again at once."""
        return cls(f"VM {vm}", {"vm": vm}, "loss")

    @classmethod
    def site(cls, site: str) -> PowerTarget:
        """Return a site, which stays lost."""
        return cls(site, {"host": site}, "off")

    @property
    def rule_name(self) -> str:
        """The name of the rule of its power loss."""
        return f"power loss of {self.name}"

    def rule(self, extent: LossExtent, *, mark: str | None = None) -> dict[str, Any]:
        """Return the document of that rule: at once or after a mark."""
        what: dict[str, Any] = {"power": self.fault} | _EXTENTS[extent]
        when = {} if mark is None else {"when": {"after": f"mark:{mark}"}}
        return {"name": self.rule_name, "where": {"layer": "machine", **self.where}, "what": what, **when}


def extent_of(*, tear: bool, all_: bool) -> LossExtent:
    """Return the extent that the options name; ``BadRequest`` if both are set."""
    if tear and all_:
        raise RigError(Code.BadRequest, "--tear and --all: they exclude each other: writes are either torn or lost")
    return "torn" if tear else "all" if all_ else "random"


async def prepare(director: FaultControl, target: PowerTarget, extent: LossExtent, seed: int | None) -> int:
    """Let the disks keep their unsynced writes from now on, for :func:`lose`; return the seed of the random choices.

    Raises:
        RigError: ``InvalidFault`` if it is prepared already.
    """
    mark = f"{target.rule_name} {secrets.token_hex(4)}"
    chosen = _seed(seed)
    await director.add_faults(rules=[target.rule(extent, mark=mark)], seed=chosen)
    return chosen


def note_seed(seed: int | None, extent: LossExtent) -> None:
    """Show the seed of the random choices that a command made."""
    if seed is not None and extent != "all":
        output.notice(f"seed {seed}")


def _seed(seed: int | None) -> int:
    return secrets.randbelow(10**9) if seed is None else seed


async def lose(
    director: FaultControl, target: PowerTarget, extent: LossExtent, seed: int | None
) -> tuple[Injection, int | None]:
    """Lose the power, as it was prepared, or at once; return the effect, and the seed unless :func:`prepare` had it.

    Raises:
        RigError: ``FaultNotPossible`` if it was prepared with other options.
    """
    name, chosen = target.rule_name, None
    known = next((rule for rule in (await director.list_faults()).rules if rule.name == name), None)
    if known is None:
        chosen = _seed(seed)
        await director.add_faults(rules=[target.rule(extent)], seed=chosen)
    elif known.state != "waiting":
        raise RigError(Code.FaultNotPossible, f"{name}: it has happened already; siterig fault remove {name!r} ends it")
    elif extent != "random" or seed is not None:
        option = f"--seed {seed}" if seed is not None else "--tear" if extent == "torn" else "--all"
        text = f"{name}: {option} had to be given with --prepare; leave it out, or remove the rule"
        raise RigError(Code.FaultNotPossible, text)
    else:
        from siterig.scenarios.faults.rules import read_rule

        after = read_rule(known.words).when.after
        await director.note_mark(name="" if after is None else after.name)
    injections = [each for each in await director.injections(after=0) if each.rule == name]
    if not injections:
        raise RigError(Code.FaultNotPossible, f"{name}: it did not happen; the log of the role faults has the reason")
    return injections[-1], chosen
