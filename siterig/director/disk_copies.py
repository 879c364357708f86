"""The disks that rules with ``recoverable = true`` may damage, as the vault and the supervisor know them.

They are looked for while such a rule is armed: after each moment of the vault, after each change of a role, and once a
second.  A failover, a lost site or a host that is off therefore ends such damage shortly after it began, not at the same
moment: nothing waits for it.  While the vault does not answer the last answer counts, because no failover can begin then.

Fault contract: a role that was started again spares all disks until the next look, within a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from siterig.azure_emu.vault.model.api import StatusApi
from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.core.fault_contract import DiskCopies
from siterig.core.supervisor_contract import SupervisorControl
from siterig.scenarios.faults.schedule import FaultSchedule

LOOK_EVERY_S = 1.0
_REPLICATED = "Protected"
_REPLICATING = (
    "InitialReplicationInProgress",
    "InitialReplicationCompletedOnPrimary",
    "InitialReplicationCompletedOnRecovery",
    _REPLICATED,
)
"""The states in which the VM runs at the site, and its disks are copied."""
_log = structlog.get_logger("faults")


class DiskCopiesWatch:
    """Reports to the injectors of roles which disks both sides have.

    Args:
        schedule: the rules.
        vault: the protected items, and the names of their disks.
        supervisor: the states of roles.
        tell: awaited with the disks; tells the roles.
        clock: the clock of the looks.
    """

    def __init__(
        self,
        schedule: FaultSchedule,
        *,
        vault: StatusApi,
        supervisor: SupervisorControl,
        tell: Callable[[DiskCopies], Awaitable[None]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._schedule, self._vault, self._supervisor = schedule, vault, supervisor
        self._tell, self._clock = tell, clock
        self._changed = trio.Event()

    def note_change(self) -> None:
        """Look again now: something happened in the vault, or to a role."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, wait_for_change: Callable[[], trio.Event]) -> None:
        """Follow the rig while a rule needs it, until cancelled.

        Args:
            wait_for_change: returns an event that is set at the next change of the rules.
        """
        while True:
            rules, changed = wait_for_change(), self._changed
            if not any(armed.rule.spares_last_copies for armed in self._schedule.armed()):
                await rules.wait()
                continue
            await self.look()
            with self._clock.move_on_after(LOOK_EVERY_S):
                await changed.wait()

    async def look(self) -> None:
        """Ask which disks both sides have now, and report it to the roles; without an answer they spare all disks."""
        try:
            copies = await self._copies()
        except RigError as error:
            _log.info("disk_copies_unknown", code=error.code, reason=error.message)
            copies = DiskCopies()  # a side may be lost at this moment
        await self._tell(copies)

    async def _copies(self) -> DiskCopies:
        held = {role.name for role in (await self._supervisor.status()).roles if role.state in ("held", "failed")}
        if "site" in held:
            return DiskCopies()
        items = {item.name: item for item in await self._vault.items() if _is_at_site(item)}
        disks = [disk for disk in await self._vault.managed_disks() if disk.vm in items]
        whole = set() if "applier" in held else {item.name for item in items.values() if _is_replicated(item)}
        return DiskCopies(
            at_site=[f"{disk.vm}/{disk.name}" for disk in disks],
            at_both=[f"{disk.vm}/{disk.name}" for disk in disks if disk.vm in whole],
        )


def _is_at_site(item: ProtectedItem) -> bool:
    """Return True if the VM runs at the site, and a copy there can be sent to the recovery side again."""
    return item.activeLocation == "Primary" and item.protectionState in _REPLICATING


def _is_replicated(item: ProtectedItem) -> bool:
    """Return True if the recovery side has the whole VM, up to the changes that the log still has."""
    return item.protectionState == _REPLICATED and item.resynchronizationRequired is None
