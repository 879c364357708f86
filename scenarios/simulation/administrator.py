"""The administrator of a simulation: carries out the operations of a plan, and leads the VM back to a protected state.

An answer can be lost, and a job can end hours after the call that began it.  So the administrator reads the results of
operations from the item and its jobs, as a user does, and compares the disks with the model when a job has succeeded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from siterig.azure_emu.vault.model.resources import Job, ProtectedItem, RecoveryPoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost
from siterig.scenarios.simulation.disk_operations import DiskOperations
from siterig.scenarios.simulation.invariants import Invariants
from siterig.scenarios.simulation.rig.plan import OperationKind, PlannedOperation
from siterig.scenarios.simulation.rig.world import VM, World
from siterig.scenarios.simulation.running_vm import RunningVm

LOOK_S = 5.0
PAUSED_S = 40.0
REVOKED_S = 40.0
_FAILOVERS = ("UnplannedFailover", "PlannedFailover")
_FAILED_OVER = ("UnplannedFailoverCompleted", "ChangeRecoveryPointCompleted", "PlannedFailoverCompleted")
_AT_REST = ("Protected", "EnablingFailed", "InitialReplicationFailed", "DisablingFailed")
_BEFORE_FAILOVER = ("Protected", "UnplannedFailoverFailed", "PlannedFailoverFailed")


class Administrator:
    """The administrator of one run.

    Attributes:
        vm: the virtual machine, and where it runs.
        is_busy: True while an operation of the plan is being carried out.
    """

    def __init__(self, world: World, invariants: Invariants) -> None:
        self.vm = RunningVm()
        self.is_busy = False
        self._world = world
        self._vault = world.vault
        self._clock = world.clocks["recovery"]
        self._invariants = invariants
        self._disks = DiskOperations(world, invariants)
        self._revoked: set[int] = set()
        self._healed = trio.Event()

    async def run(self) -> None:
        """Carry out the operations of the plan, one after the other; none begins after :meth:`heal`."""
        begun_s = self._clock.trio_time_s()
        for operation in self._world.plan.operations:
            await self._clock.sleep_until(begun_s + operation.at_s)
            if self._healed.is_set():
                return
            self.is_busy = True
            try:
                await self._carry_out(operation)
            finally:
                self.is_busy = False

    def heal(self) -> None:
        """Begin no more operations of the plan."""
        self._healed.set()

    async def _carry_out(self, operation: PlannedOperation) -> None:
        self._invariants.note(f"operation {operation}")
        self._invariants.coverage.operations[operation.kind] += 1
        vault = self._vault
        calls: dict[OperationKind, Callable[[], Awaitable[object]]] = {
            "test-failover": lambda: vault.test_failover(vm=VM, point="LatestProcessed"),
            "planned-failover": lambda: vault.planned_failover(vm=VM),
            "resync": lambda: vault.resync(vm=VM),
            "rotate-key": vault.rotate_key,
            "pin-point": lambda: vault.pin_point(vm=VM, point="LatestProcessed", pinned=True),
            "unplanned-failover": lambda: self._fail_over_unplanned(
                "Latest" if operation.amount > 0.5 else "LatestProcessed"
            ),
            "next-step": self._next_step,
            "verify": self._verify,
            "pause": self._pause,
            "revoke-key": self._revoke,
            "change-policy": lambda: self._change_policy(45.0 if operation.amount > 0.5 else 0.0),
            "create-point": lambda: self._create_point(f"by hand {operation.at_s:g}"),
            "attach-disk": self._disks.attach,
            "protect-disk": self._disks.protect,
            "unprotect-disk": self._disks.unprotect,
        }
        await self._try(calls[operation.kind])
        await self.settle()

    async def _try(self, call: Callable[[], Awaitable[object]]) -> None:
        """Call the vault; the call may be refused, and its answer may get lost."""
        try:
            await call()
        except RigError as error:
            self._invariants.note(f"refused: {error.code} {error.message}")

    async def _next_step(self) -> None:
        item = await self._item()
        if item is not None:
            await self.lead_back(item)

    async def _pause(self) -> None:
        await self._vault.pause_replication(vm=VM)
        await self._clock.sleep(PAUSED_S)
        await self._vault.resume_replication(vm=VM)

    async def _change_policy(self, every_s: float) -> None:
        await self._vault.change_policy(vm=VM, interval_s=20.0, app_consistent_every_s=every_s)

    async def _fail_over_unplanned(self, point: str) -> None:
        item = await self._item()
        if item is None or item.activeLocation != "Primary":
            return
        self.vm.side = None  # the site's VM is lost
        await self._vault.unplanned_failover(vm=VM, point=point)

    async def _verify(self) -> None:
        """Verify; a difference on a VM whose points all equal the model is a wrong result."""
        result = await self._vault.verify(vm=VM)
        if result.differing_bytes:
            self._invariants.broken("a verification finds no difference", repr(result))

    async def _revoke(self) -> None:
        version = next(key.version for key in await self._vault.vault_keys() if key.current)
        self._revoked.add(version)
        try:
            await self._vault.revoke_key(version=version)
            await self._clock.sleep(REVOKED_S)
        finally:
            await self._restore_keys()

    async def _restore_keys(self) -> None:
        """Restore all keys; repeat it until that is certain."""
        for version in sorted(self._revoked):
            while True:
                try:
                    await self._vault.restore_key(version=version)
                except RigError as error:
                    self._invariants.note(f"restore refused: {error.code}")
                    if not error.recoverable:
                        break
                    await self._clock.sleep(LOOK_S)
                else:
                    break
            self._revoked.discard(version)

    async def _create_point(self, name: str) -> None:
        point = await self._vault.create_point(vm=VM, kind="CrashConsistent", name=name)
        self._invariants.check_point(point)

    # --- the results ------------------------------------------------------------------------------------------------

    async def settle(self) -> ProtectedItem | None:
        """Wait until no job runs; return the item, and None if there is none."""
        while True:
            jobs, items = await self._jobs(), await self._items()
            if jobs is not None and items is not None and not any(job.endTime is None for job in jobs):
                for item in items:
                    self.adopt(item, jobs)
                return items[0] if items else None
            await self._clock.sleep(LOOK_S)

    async def _jobs(self) -> list[Job] | None:
        try:
            return await self._vault.jobs()
        except RigError:
            return None

    async def _item(self) -> ProtectedItem | None:
        """Return the item; None if there is none, or the vault does not answer."""
        items = await self._items()
        return items[0] if items else None

    async def _items(self) -> list[ProtectedItem] | None:
        try:
            items = await self._vault.items()
        except RigError:
            return None
        self._invariants.coverage.states.update(item.protectionState for item in items)
        return items

    def adopt(self, item: ProtectedItem, jobs: list[Job]) -> None:
        """Take over the results of the jobs that have ended, while none runs."""
        done = [job for job in jobs if job.state == "Succeeded" and job.name not in self.vm.adopted]
        self.vm.adopted |= {job.name for job in done}
        self._invariants.coverage.jobs.update(job.scenarioName for job in done)
        for job in done:
            if job.scenarioName == "TestFailover" and item.testFailoverState == "Completed" and job.recovery_point:
                self._check_recovered(item.test_vm_name, self._at(job.recovery_point), "a test failover")
            self._disks.adopt(job)
        failovers = [job for job in done if job.scenarioName in _FAILOVERS]
        state = item.protectionState
        if item.activeLocation == "Primary" and state in _FAILED_OVER and failovers:
            self._failed_over(item, failovers[0])  # the newest is the first
        elif item.activeLocation == "Recovery" and state == "PlannedFailoverCompleted" and failovers:
            self._failed_back()
        elif item.activeLocation == "Recovery" and state == "PlannedFailoverFailed":
            self.vm.side = "azure"
        elif state == "ChangeRecoveryPointFailed":
            self.vm.side, self.vm.recovered = None, {}
        elif item.activeLocation == "Primary" and (state in _BEFORE_FAILOVER or not self.vm.recovered):
            self._start_at_site()

    def _start_at_site(self) -> None:
        self.vm.side = "site"
        self._world.guests.is_off = False

    def _at(self, point: RecoveryPoint) -> dict[str, bytes]:
        models, disks = self._invariants.memory.models, self._invariants.disks
        return {name: model.at(point.position) for name, model in models.items() if disks.in_point(name, point)}

    def _failed_over(self, item: ProtectedItem, job: Job) -> None:
        if job.recovery_point is None:
            self._invariants.broken("a failover names its point", job.name)
            return
        expected = self._at(job.recovery_point)
        models = self._invariants.memory.models
        if job.scenarioName == "PlannedFailover" and any(expected[name] != model.now() for name, model in models.items()):
            self._invariants.broken("a planned failover loses nothing", f"position {job.recovery_point.position}")
        self._check_recovered(item.recovery_vm_name, expected, job.scenarioName)
        self.vm.recovered = {name: bytearray(data) for name, data in expected.items()}
        self.vm.side = "azure"

    def _check_recovered(self, name: str, expected: dict[str, bytes], why: str) -> None:
        host = self._world.azure_host
        if host is not None:
            self.check_disks(host, name, expected, f"a recovered VM equals its point: {why}")

    def check_disks(self, host: DiskHost, vm: str, expected: dict[str, bytes], why: str) -> None:
        """Compare all disks of a VM with these bytes; ``why`` is "INVARIANT: occasion"."""
        invariant, _, occasion = why.partition(": ")
        for name, data in expected.items():
            try:
                found = host.disk(vm, name).read(0, len(data))
            except (RigError, OSError) as error:
                self._invariants.broken(invariant, f"disk {name} after {occasion}: {error}")
                continue
            if found != data:
                places = [at for at in range(0, len(data), 512) if found[at : at + 512] != data[at : at + 512]]
                self._invariants.broken(invariant, f"disk {name} after {occasion}: {len(places)} sectors, first {places[0]}")

    def azure_opened(self, host: DiskHost) -> None:
        """Check the recovered VM when the disk host of the recovery side starts again."""
        if self.vm.side == "azure":
            expected = {name: bytes(data) for name, data in self.vm.recovered.items()}
            self.check_disks(host, VM, expected, "a kill loses no write: a restart of the recovery side's disk host")

    def _failed_back(self) -> None:
        host = self._world.site_host
        if host is None:
            return
        expected = {name: bytes(data) for name, data in self.vm.recovered.items()}
        self.check_disks(host, VM, expected, "a failback equals the recovered VM: a failback")
        for name, model in self._invariants.memory.models.items():
            model.begin_again(host.positions.value, host.disk(VM, name).read(0, model.size_bytes))
        self.vm.has_site_disks, self.vm.recovered = True, {}
        self._start_at_site()

    # --- the way back -----------------------------------------------------------------------------------------------

    def is_at_rest(self, item: ProtectedItem) -> bool:
        """Return True if no operation is left over."""
        return (
            not self.is_busy
            and not self._revoked
            and item.activeLocation == "Primary"
            and item.protectionState in _AT_REST
            and self.vm.side == "site"
            and item.paused_since is None
            and item.testFailoverState == "None"
        )

    async def lead_back(self, item: ProtectedItem) -> None:
        """Take the next step that leads a VM back to the protected state at the site, while no job runs."""
        vault, state = self._vault, item.protectionState
        if item.testFailoverState in ("Completed", "Failed"):
            await self._try(lambda: vault.cleanup_test_failover(vm=VM))
        elif item.paused_since is not None:
            await self._try(lambda: vault.resume_replication(vm=VM))
        elif state in ("CommitFailoverCompleted", "PlannedFailoverFailed") and item.activeLocation == "Recovery":
            self.vm.side, self.vm.has_site_disks = None, False
            await self._try(lambda: vault.failback(vm=VM))
        elif state in ("CommitFailoverCompleted", "ReprotectFailed"):
            await self._try(lambda: vault.reprotect(vm=VM))
        elif state == "ChangeRecoveryPointFailed":
            await self._try(lambda: vault.unplanned_failover(vm=VM, point="LatestProcessed"))
        elif state in _FAILED_OVER or state.startswith("CommitFailoverFailed"):
            await self._try(lambda: vault.commit_failover(vm=VM))
        elif state in _BEFORE_FAILOVER[1:] or item.resynchronizationRequired is not None:
            await self._try(lambda: vault.resync(vm=VM))
