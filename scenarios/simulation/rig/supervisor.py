"""The supervisor of a simulation: it starts the roles again, and reports their states to the vault."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from siterig.azure_emu.contracts.reports import RoleReports, RoleState, RoleStatus
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import RigError
from siterig.scenarios.simulation.rig.role import SimulatedRole

REPORT_S = 10.0


class SimulatedSupervisor:
    """Keeps the roles alive until cancelled."""

    def __init__(
        self, roles: list[SimulatedRole], clock: Clock, draws: random.Random, on_end: Callable[[SimulatedRole], None]
    ) -> None:
        """Supervise roles.

        Args:
            roles: the roles.
            clock: the time.
            draws: random delays of the restarts.
            on_end: called after each life of a role.
        """
        self._roles = roles
        self._clock = clock
        self._draws = draws
        self._on_end = on_end
        self._held: dict[str, trio.Event] = {}
        self.reports: RoleReports | None = None

    async def run(self) -> None:
        """Run all roles."""
        async with trio.open_nursery() as nursery:
            for role in self._roles:
                nursery.start_soon(self._keep_alive, role)
            nursery.start_soon(self._report)

    def hold(self, role: SimulatedRole) -> None:
        """Kill a role, and do not start it again until :meth:`release`."""
        self._held.setdefault(role.name, trio.Event())
        role.kill()

    def release(self, role: SimulatedRole) -> None:
        """Let a held role start again."""
        held = self._held.pop(role.name, None)
        if held is not None:
            held.set()

    async def _keep_alive(self, role: SimulatedRole) -> None:
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(role.live)
            self._on_end(role)
            await self._clock.sleep(self._draws.choice((0.2, 1.0, 3.0)))
            while role.name in self._held:
                await self._held[role.name].wait()

    async def _report(self) -> None:
        while True:
            await self._clock.sleep(REPORT_S)
            if self.reports is not None:
                try:
                    await self.reports.report_roles(roles=[self._status(role) for role in self._roles])
                except RigError:
                    continue  # the vault is away; the next report has the present states

    def _status(self, role: SimulatedRole) -> RoleStatus:
        state: RoleState = "ready" if role.is_up else "held" if role.name in self._held else "restarting"
        return RoleStatus(
            name=role.name,
            state=state,
            pid=role.life,
            restarts=max(0, role.life - 1),
            detail="",
            since_ns=role.state_since_ns,
            waits=role.waits.list(),
        )
