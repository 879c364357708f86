"""The events of a rig that fault rules wait for: those of the vault, and starts and ends of roles.

Two long polls, and only while rules are armed: a rig without faults is not asked anything.  An event of a VM or a role is
noted by its name, ``InitialReplicationStarted``, and by its name with the VM or role, ``InitialReplicationStarted/web01``.
The position of the site is read while a rule waits for one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import structlog
import trio

from siterig.azure_emu.contracts.moments import MomentFeed
from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.core.supervisor_contract import SupervisorControl
from siterig.scenarios.faults.schedule import FaultSchedule

PATIENCE_S = 3.0
"""One long poll."""
RETRY_S = 0.5
"""The time between two attempts to reach a role that is away."""
POSITION_EVERY_S = 0.1
BEGIN_S = 5.0
"""The longest time for which a new rule waits until its events are followed."""
_log = structlog.get_logger("faults")


class RigEvents:
    """Notes what happens in a rig in a schedule.

    Args:
        schedule: the schedule.
        vault: the moments of the vault.
        supervisor: the changes of roles.
        site: the disk host whose positions rules wait for.
        role_ready: awaited with each role that became ready.
        happened: called after each event.
        clock: the clock of retries.
    """

    def __init__(
        self,
        schedule: FaultSchedule,
        *,
        vault: MomentFeed,
        supervisor: SupervisorControl,
        site: DiskHostControl,
        role_ready: Callable[[str], Awaitable[None]],
        happened: Callable[[], None] = lambda: None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._schedule = schedule
        self._vault, self._supervisor, self._site = vault, supervisor, site
        self._role_ready, self._happened = role_ready, happened
        self._clock = clock
        self._vault_is_followed, self._roles_are_followed = trio.Event(), trio.Event()

    async def run(self, wait_for_change: Callable[[], trio.Event]) -> None:
        """Follow the rig while rules are armed, until cancelled.

        Args:
            wait_for_change: returns an event that is set at the next change of the rules.
        """
        while True:
            change = wait_for_change()
            if not self._schedule.armed():
                await change.wait()
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_vault)
                nursery.start_soon(self._follow_roles)
                nursery.start_soon(self._follow_position)
                while self._schedule.armed():
                    change = wait_for_change()
                    await change.wait()
                self._vault_is_followed, self._roles_are_followed = trio.Event(), trio.Event()
                nursery.cancel_scope.cancel()

    async def wait_followed(self) -> None:
        """Return when no event is missed for which a rule waits: from now on, and for seconds at most."""
        names = [trigger.name for trigger in self._schedule.awaited() if trigger.kind == "event"]
        wanted = [self._roles_are_followed] if names else []
        if any(not name.startswith("Role") for name in names):
            wanted.append(self._vault_is_followed)
        with self._clock.move_on_after(BEGIN_S) as scope:
            for event in wanted:
                await event.wait()
        if scope.cancelled_caught:
            _log.warning("events_not_followed_yet", limit_s=BEGIN_S)

    def _note(self, name: str, subject: str) -> None:
        for text in _names(name, subject):
            self._schedule.note_event(text)
        self._happened()

    async def _follow_vault(self) -> None:
        after, epoch = None, ""
        while True:
            try:
                found = await self._vault.moments(after=after, epoch=epoch, patience_s=PATIENCE_S)
            except RigError as error:
                _log.debug("vault_events_unknown", reason=error.message)
                if after is None and not error.uncertain:  # it does not run: all moments of the next one count
                    after = 0
                    self._vault_is_followed.set()
                await self._clock.sleep(RETRY_S)
                continue
            after, epoch = found.last, found.epoch
            self._vault_is_followed.set()
            for moment in found.moments:
                self._note(moment.name, moment.vm)

    async def _follow_roles(self) -> None:
        last: int | None = None
        while True:
            try:
                patience_s = 0.0 if last is None else PATIENCE_S
                found = await self._supervisor.role_changes(after=last or 0, patience_s=patience_s)
            except RigError as error:
                _log.debug("role_changes_unknown", reason=error.message)
                await self._clock.sleep(RETRY_S)
                continue
            if last is not None:
                for change in found.changes:
                    self._note(change.change, change.role)
                    if change.change == "RoleReady":
                        await self._role_ready(change.role)
            last = found.last
            self._roles_are_followed.set()

    async def _follow_position(self) -> None:
        while True:
            if any(trigger.kind == "position" for trigger in self._schedule.awaited()):
                try:
                    self._schedule.note_position(await self._site.position())
                except RigError as error:
                    _log.debug("position_unknown", reason=error.message)
            await self._clock.sleep(POSITION_EVERY_S)


def _names(name: str, subject: str) -> Iterable[str]:
    return (name, f"{name}/{subject}") if subject else (name,)
