"""The way from a command to the director of faults: that of a mount, or of a rig, which the first command has started.

The modules of the fault language are loaded only when they are needed: commands without faults import this, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli.light_commands import running
from siterig.core.paths import Layout

if TYPE_CHECKING:
    from siterig.core.fault_contract import FaultControl, FaultSummary
    from siterig.core.supervisor_contract import SupervisorControl


def _of_mount(mnt: Path) -> FaultControl:
    from siterig.core.fault_contract import FaultControl
    from siterig.images.mount_calls import of_mount

    return of_mount(mnt, FaultControl)


async def started_director(folder: Path, mnt: Path | None = None) -> FaultControl:
    """Return the director of a mount, or of a rig that is up, which is started if it does not run yet."""
    return await _started(running(folder)) if mnt is None else _of_mount(mnt)


async def _started(layout: Layout) -> FaultControl:
    from siterig.core.fault_contract import DIRECTOR
    from siterig.rpc import directory

    supervisor = directory.supervisor(layout)
    if not await _is_started(supervisor):
        await supervisor.start_role(name=DIRECTOR)
    return directory.faults(layout)


async def director_if_any(folder: Path, mnt: Path | None = None) -> FaultControl | None:
    """Return the director of a mount, or of a rig that is up; None if no command needed it yet, so there are no rules."""
    from siterig.rpc import directory

    if mnt is not None:
        return _of_mount(mnt)
    layout = running(folder)
    return directory.faults(layout) if await _is_started(directory.supervisor(layout)) else None


async def known_director(folder: Path, mnt: Path | None, name: str) -> FaultControl:
    """Return the director that has a rule of this name; ``InvalidFault`` if there are no rules at all."""
    director = await director_if_any(folder, mnt)
    if director is None:
        raise RigError(Code.InvalidFault, f"there is no fault {name!r}; there are: none")
    return director


async def _is_started(supervisor: SupervisorControl) -> bool:
    from siterig.core.fault_contract import DIRECTOR

    return any(role.name == DIRECTOR for role in (await supervisor.status()).roles)


async def arm(layout: Layout, rules: list[dict[str, Any]], seed: int | None) -> FaultSummary:
    """Arm rules in a rig that is up, and return all rules, with the seed of those that were added."""
    return await add(await _started(layout), rules, seed)


async def add(director: FaultControl, rules: list[dict[str, Any]], seed: int | None) -> FaultSummary:
    """Arm rules, and return all rules, with the seed of those that were added."""
    armed = await director.add_faults(rules=rules, seed=seed)
    return armed if seed is None else armed.model_copy(update={"seed": seed})


def rules_of_file(file: Path, seed: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """Return the rules of a file, and the seed: that of the command, or that of the file."""
    from siterig.scenarios.faults.rule_files import read_rules

    rules = read_rules(file)
    return [rule.document() for rule in rules.fault], rules.seed if seed is None else seed
