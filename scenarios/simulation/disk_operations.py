"""The operations of the simulated administrator on the disks of a VM: attach one, protect disks, end their protection."""

from __future__ import annotations

from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.simulation.disk_model import DiskModel
from siterig.scenarios.simulation.invariants import Invariants
from siterig.scenarios.simulation.rig.world import VM, World

ADDED_DISK = "logs"
ADDED_BYTES = 128 << 10
LOOK_S = 5.0
_ADD, _REMOVE = "AddDisks", "RemoveDisks"
"""The scenarios of the jobs."""


class DiskOperations:
    """The operations of one run; their jobs end one after the other."""

    def __init__(self, world: World, invariants: Invariants) -> None:
        self._world = world
        self._vault = world.vault
        self._clock = world.clocks["recovery"]
        self._promises = invariants.disks
        self._invariants = invariants
        self._asked: dict[str, list[str]] = {_ADD: [], _REMOVE: []}
        """The disks of the newest call for each scenario, whose answer may be lost."""

    async def attach(self) -> None:
        """Attach a disk, once; repeat the call until it is certain that the VM has it."""
        while ADDED_DISK not in self._invariants.memory.models:
            try:
                await self._vault.attach_disk(vm=VM, disk=DiskSpec(name=ADDED_DISK, size_bytes=ADDED_BYTES))
            except RigError as error:
                self._invariants.note(f"attach refused: {error.code}")
                if error.code != Code.DiskExists:
                    if not (error.recoverable or error.uncertain):
                        return
                    await self._clock.sleep(LOOK_S)
                    continue
            await self._take_over()

    async def _take_over(self) -> None:
        """Let the guest write to the attached disk from now on."""
        while (host := self._world.site_host) is None:
            await self._clock.sleep(1.0)
        disk = host.disk(VM, ADDED_DISK)
        if self._world.plan.loses_power:
            disk.faults.keep_unsynced()
        self._promises.attached(ADDED_DISK)
        self._invariants.memory.names[disk.state.disk_id] = ADDED_DISK
        self._invariants.memory.models[ADDED_DISK] = DiskModel(ADDED_BYTES)

    async def protect(self) -> None:
        """Protect all disks that are not replicated; without one, attach one first."""
        free = await self._unprotected()
        if not free:
            await self.attach()
            free = await self._unprotected()
        if free:
            self._begin(_ADD, free)
            await self._vault.add_disks(vm=VM, disks=free)

    async def unprotect(self) -> None:
        """End the protection of the attached disk if it is replicated, or else that of another one."""
        replicated = self._invariants.memory.models.keys() - set(await self._unprotected())
        name = ADDED_DISK if ADDED_DISK in replicated else "data"
        self._begin(_REMOVE, [name])
        await self._vault.remove_disks(vm=VM, disks=[name])

    def adopt(self, job: Job) -> None:
        """Take over the result of a job that has succeeded."""
        if job.scenarioName not in self._asked:
            return
        names, added = self._asked[job.scenarioName], job.scenarioName == _ADD
        in_newest = added and job.stateDescription == "Completed"  # if a resync is due, the job does not wait for a point
        self._promises.succeeded(names, self._position(), has=added, in_newest=in_newest)
        if not added:
            for disk_id, name in self._invariants.memory.names.items():
                if name in names:
                    self._invariants.memory.ended[disk_id] = name

    def _begin(self, scenario: str, names: list[str]) -> None:
        self._asked[scenario] = names
        self._promises.asked(names, self._position(), joins=scenario == _ADD)

    def _position(self) -> int | None:
        host = self._world.site_host
        return None if host is None else host.positions.value

    async def _unprotected(self) -> list[str]:
        items = await self._vault.items()
        excluded = set(items[0].excluded_disks) if items else set()
        return [name for name in self._invariants.memory.models if name in excluded]
