"""A role of the simulated rig: production objects that live in the tasks of one nursery, and die together.

A kill cancels all tasks of the role and drops its objects; its files stay.  Tasks end at the checkpoint at which they wait.
In contrast to a process, a dying task runs its ``finally`` blocks, which may still change files; the kill of real processes
is proved by tests/crash.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.waits import Waits
from siterig.scenarios.simulation.rig.runtime import OWNER, Mortal

RoleBody = Callable[["SimulatedRole", Callable[[], None]], Awaitable[None]]
"""Makes the objects of a role, puts its services into ``services``, calls the function and works until cancelled."""


class SimulatedRole(Mortal):
    """One role, over all of its lives.

    Attributes:
        services: the implementation of each contract that the role offers, while it is up.
        waits: the waits of the present life.
        life: counts the lives.
        slowness_s: the time that each piece of work takes; a fault sets it.
        is_dead: True from a kill until the next life.
        failure: the exception that ended the last life.
    """

    def __init__(self, name: str, clock: Clock, body: RoleBody) -> None:
        self.name = name
        self.clock = clock
        self.waits = Waits(clock)
        self.services: dict[type, Any] = {}
        self.life = 0
        self.slowness_s = 0.0
        self.failure: BaseException | None = None
        self.state_since_ns = 0
        self._body = body
        self._nursery: trio.Nursery | None = None
        self._points_left: int | None = None
        self._is_ready = False
        self.is_dead = False

    @property
    def work_s(self) -> float:
        return self.slowness_s

    @property
    def is_up(self) -> bool:
        """True while the role answers calls."""
        return self._is_ready and self._nursery is not None

    async def live(self) -> None:
        """Live one life, until a kill; an exception of the production code ends it, too, and stays in ``failure``."""
        OWNER.set(self)
        self.life += 1
        self.is_dead = False
        self.waits = Waits(self.clock)
        self.failure = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._body(self, self._become_ready)
        except Exception as error:
            self.failure = error
        finally:
            self._is_ready = False
            self._nursery = None
            self._points_left = None
            self.services = {}
            self.state_since_ns = self.clock.wall_ns()

    def _become_ready(self) -> None:
        self._is_ready = True
        self.state_since_ns = self.clock.wall_ns()

    def start_soon(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Begin work in this role, if it is up."""
        if self._nursery is None or not self._is_ready:
            return False
        self._nursery.start_soon(work)
        return True

    def kill(self) -> None:
        """Kill the role now."""
        self._is_ready = False
        self.is_dead = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def kill_after(self, points: int) -> None:
        """Kill the role when it has reached this number of points (:meth:`reach_point`) from now on."""
        self._points_left = points

    async def reach_point(self) -> None:
        if self._points_left is not None:
            self._points_left -= 1
            if self._points_left <= 0:
                self.kill()
        if self.is_dead:
            await trio.lowlevel.checkpoint_if_cancelled()
