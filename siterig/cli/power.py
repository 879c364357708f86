"""The loss of power of a VM's disks, or of a whole site, by hand.

Unsynced writes can be lost only if their old bytes are kept, from before the writes.  So a loss can be prepared: a rule that
waits for a mark of its own lets the disks keep them.  Without that nothing is unsynced, which a power loss allows, too.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from siterig.blockfs.core.errors import Code, RigError

if TYPE_CHECKING:
    from siterig.core.fault_contract import FaultControl
    from siterig.scenarios.faults.records import Injection


def loss_name(target: str) -> str:
    """Return the name of the rule by which a VM or a site loses its power."""
    return f"power loss of {target}"


def loss_rule(target: str, where: dict[str, str], power: str, *, tear: bool, mark: str | None = None) -> dict[str, Any]:
    """Return the document of a power loss: of ``where``, at once or after a mark."""
    what: dict[str, Any] = {"power": power} | ({"tear": {}} if tear else {})
    when = {} if mark is None else {"when": {"after": f"mark:{mark}"}}
    return {"name": loss_name(target), "where": {"layer": "machine", **where}, "what": what, **when}


async def prepare(
    director: FaultControl, target: str, where: dict[str, str], power: str, *, tear: bool, seed: int | None
) -> None:
    """Let the disks keep their unsynced writes from now on, for :func:`lose`.

    Raises:
        RigError: ``InvalidFault`` if it is prepared already.
    """
    mark = f"{loss_name(target)} {secrets.token_hex(4)}"
    await director.add_faults(rules=[loss_rule(target, where, power, tear=tear, mark=mark)], seed=seed)


async def lose(
    director: FaultControl, target: str, where: dict[str, str], power: str, *, tear: bool, seed: int | None
) -> Injection:
    """Lose the power, as it was prepared, or at once; return the effect.

    Raises:
        RigError: ``FaultNotPossible`` if it was prepared with other options.
    """
    name = loss_name(target)
    known = next((rule for rule in (await director.list_faults()).rules if rule.name == name), None)
    if known is None:
        await director.add_faults(rules=[loss_rule(target, where, power, tear=tear)], seed=seed)
    elif known.state != "waiting":
        raise RigError(Code.FaultNotPossible, f"{name}: it has happened already; siterig fault remove {name!r} ends it")
    elif tear or seed is not None:
        option = "--tear" if tear else f"--seed {seed}"
        raise RigError(
            Code.FaultNotPossible, f"{name}: {option} was to be given with --prepare; leave it out, or remove the rule"
        )
    else:
        from siterig.scenarios.faults.rules import read_rule

        after = read_rule(known.words).when.after
        await director.note_mark(name="" if after is None else after.name)
    injections = [each for each in await director.injections(after=0) if each.rule == name]
    if not injections:
        raise RigError(Code.FaultNotPossible, f"{name}: it did not happen; the log of the role faults has the reason")
    return injections[-1]
