"""Carries out the faults of a plan."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable

import trio

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_faults import PowerLoss, lose_power
from siterig.scenarios.simulation.invariants import Invariants
from siterig.scenarios.simulation.rig.full_disk import FullDisk
from siterig.scenarios.simulation.rig.plan import LINKS, ROLES, PlannedFault
from siterig.scenarios.simulation.rig.role import SimulatedRole
from siterig.scenarios.simulation.rig.world import World

ROLES_OF_SITE = ("site", "agent")
OFF_S = 10.0
"""The time for which a host without power is off."""


class FaultDriver:
    """The faults of one run.

    Attributes:
        guest_runs: False while the host of the guest is off.
        power_was_lost: True from a loss of power until the site's disk host has started again.
        blob_losses: how often blobs of the account were lost or damaged.
    """

    def __init__(self, world: World, invariants: Invariants) -> None:
        self._world = world
        self._invariants = invariants
        self._clock = world.clocks["recovery"]
        self.guest_runs = True
        self.power_was_lost = False
        self.blob_losses = 0
        self._full = FullDisk(world.folders)
        self._healed = False

    async def run(self) -> None:
        """Carry out all faults, each in a task of its own."""
        begun_s = self._clock.trio_time_s()
        async with trio.open_nursery() as nursery:
            for fault in self._world.plan.faults:
                await self._clock.sleep_until(begun_s + fault.at_s)
                if self._healed:
                    return
                nursery.start_soon(self._carry_out, fault)

    async def heal(self) -> None:
        """End all faults, and begin none any more."""
        self._healed = True
        world = self._world
        world.network.heal()
        world.account.failing = 0.0
        world.guests.fault = None
        self._full.end_all()
        for role in world.roles.values():
            role.slowness_s = 0.0
            self._release(role)
        await trio.lowlevel.checkpoint()
        self._invariants.note("healed")

    async def _carry_out(self, fault: PlannedFault) -> None:
        self._invariants.note(f"fault {fault}")
        self._invariants.coverage.faults[fault.kind] += 1
        if fault.target:
            self._invariants.coverage.targets[f"{fault.kind} {fault.target}"] += 1
        if fault.kind == "power-loss":
            await self._lose_power(fault)
        elif fault.lasts_s:
            end = self._begin(fault)
            await self._clock.sleep(fault.lasts_s)
            end()
        else:
            self._strike(fault)

    def _strike(self, fault: PlannedFault) -> None:
        """Carry out a fault that is over at once."""
        world = self._world
        if fault.kind == "lost-blobs":
            self._note_blobs("lost", len(world.account.lose(fault.amount)))
        elif fault.kind == "damaged-blobs":
            self._note_blobs("damaged", len(world.account.damage(fault.amount)))
        elif fault.kind == "kill":
            world.roles[fault.target].kill()
        elif fault.kind == "kill-at-point":
            world.roles[fault.target].kill_after(int(fault.amount))
        elif fault.kind == "clock-step":
            world.clocks[fault.target].ahead_ns += int(fault.amount * 1e9)

    def _note_blobs(self, what: str, count: int) -> None:
        self._invariants.note(f"{what} {count} blobs")
        self.blob_losses += count > 0

    def _begin(self, fault: PlannedFault) -> Callable[[], None]:
        """Begin a fault that lasts, and return the function that ends it."""
        if fault.target in LINKS:
            return self._of_links(fault)
        if fault.target in ROLES:
            return self._of_roles(fault)
        return self._of_hosts(fault)

    def _of_links(self, fault: PlannedFault) -> Callable[[], None]:
        network, trouble = self._world.network, self._world.network.of(fault.target)
        if fault.kind == "cut":
            network.cut(fault.target, "refuse")
        elif fault.kind == "swallow":
            network.cut(fault.target, "swallow")
        elif fault.kind == "lossy":
            trouble.lose_request = trouble.lose_answer = fault.amount
        else:
            trouble.delay_s = fault.amount
        return trouble.end

    def _of_roles(self, fault: PlannedFault) -> Callable[[], None]:
        role = self._world.roles[fault.target]
        if fault.kind == "hold":
            self._world.supervisor.hold(role)
            return lambda: self._release(role)
        role.slowness_s = fault.amount
        return lambda: setattr(role, "slowness_s", 0.0)

    def _release(self, role: SimulatedRole) -> None:
        if self.guest_runs or role.name not in ROLES_OF_SITE:
            self._world.supervisor.release(role)

    def _of_hosts(self, fault: PlannedFault) -> Callable[[], None]:
        world = self._world
        if fault.kind == "failing-account":
            world.account.failing = fault.amount
            return lambda: setattr(world.account, "failing", 0.0)
        if fault.kind == "disk-full":
            self._full.begin(fault.target)
            return lambda: self._full.end(fault.target)
        world.guests.fault = "refuses" if fault.kind == "freeze-refuses" else "hangs"
        return lambda: setattr(world.guests, "fault", None)

    async def _lose_power(self, fault: PlannedFault) -> None:
        """Let the site's host lose its power: unsynced writes are lost, and both roles of the site end."""
        world = self._world
        if not self.guest_runs:
            return
        self.guest_runs = False
        host = world.site_host
        if host is not None and not self.power_was_lost:
            disks = [disk.faults for disk in host.registry.all_disks()]
            how = PowerLoss(stream=int(fault.at_s * 1000), keeps=True, tear_bytes=512)
            try:
                await lose_power(disks, how)
            except (RigError, OSError) as error:
                self._invariants.broken("power can be lost", str(error))
        self.power_was_lost = True
        self._lose_unsynced_spool(random.Random(f"{world.plan.seed} {fault.at_s}"))  # noqa: S311 (no secret)
        for name in ROLES_OF_SITE:
            world.supervisor.hold(world.roles[name])
        boot.emulate_reboot(uuid.uuid4())
        world.clocks["site"].reboot()
        await self._clock.sleep(OFF_S)
        self.guest_runs = True
        for name in ROLES_OF_SITE:
            world.supervisor.release(world.roles[name])

    def _lose_unsynced_spool(self, draws: random.Random) -> None:
        """Lose bytes of the agent's spool, which is not synchronized (:mod:`siterig.replication.parts.spool`)."""
        for path in sorted((self._world.folder / "agent" / "spool").rglob("*.zst")):
            match draws.choice(("kept", "empty", "torn", "missing")):
                case "empty":
                    os.truncate(path, 0)
                case "torn":
                    os.truncate(path, draws.randrange(path.stat().st_size + 1))
                case "missing":
                    path.unlink()
                case _:
                    pass
