"""The VMs of a scenario as their operating systems use them: mounted disks, and workloads on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.choices import Side
from siterig.azure_emu.vault.model.resources import Vm
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenario_runs.records import RunRecords
from siterig.scenario_runs.scenario_rig import ScenarioRig
from siterig.scenarios.files.scenario import ScenarioDocument
from siterig.scenarios.loads.load import Load, LoadPlace, LoadVerdict
from siterig.scenarios.loads.make_load import make_load
from siterig.scenarios.workloads.guest import Guest


class Machines:
    """The guests and the workloads of a scenario; :meth:`release_all` leaves no mount, loop device or process."""

    def __init__(self, scenario: ScenarioDocument, rig: ScenarioRig, records: RunRecords) -> None:
        self._scenario, self._rig, self._records = scenario, rig, records
        self._filesystems = {vm.name: vm.filesystems() for vm in scenario.topology.vm}
        self._guests: dict[tuple[str, Side], Guest] = {}
        self.loads: dict[str, Load] = {}
        self._eras: dict[str, tuple[Side, int]] = {}
        self._runs_at: dict[str, tuple[str, Side]] = {}
        for table in scenario.workload:
            self.loads[table.name] = make_load(table, list(self._filesystems[table.vm]))

    def add_vm(self, name: str, filesystems: dict[str, str]) -> None:
        """Note the file systems of a VM that was created during the run."""
        self._filesystems[name] = filesystems

    def vm_of_load(self, load: str) -> str:
        """Return the VM of a workload."""
        return next(table.vm for table in self._scenario.workload if table.name == load)

    async def find_vm(self, name: str, side: Side) -> Vm:
        """Return a VM of one side; raise ``VmNotFound`` if it is not there."""
        for vm in await self._rig.vault.list_vms():
            if vm.name == name and vm.side == side:
                return vm
        raise RigError(Code.VmNotFound, f"there is no VM {name!r} on side {side}")

    async def attach(self, name: str, side: Side, *, like: str | None = None) -> Guest:
        """Attach the disks of a VM that have a file system; they are not mounted yet.

        Args:
            name: the VM.
            side: its side.
            like: the VM whose file systems it has; the VM itself if left out.
        """
        filesystems = self._filesystems[like or name]
        vm = await self.find_vm(name, side)
        with_system = vm.model_copy(update={"disks": [disk for disk in vm.disks if disk.name in filesystems]})
        return await Guest.attach(with_system, filesystems, self._rig.folder / "mnt" / f"{side}-{name}")

    async def boot(self, name: str, side: Side) -> Guest:
        """Mount the disks of a VM, unless they are mounted."""
        key = (name, side)
        if key not in self._guests:
            guest = await self.attach(name, side)
            try:
                await guest.mount()
            except BaseException:
                await guest.release()
                raise
            self._guests[key] = guest
        return self._guests[key]

    async def start_load(self, name: str, side: Side = "site") -> None:
        """Start a workload in its VM on one side; the VM is booted if necessary."""
        load, vm = self.loads[name], self.vm_of_load(name)
        if load.is_running:
            raise RigError(Code.WorkloadFailed, f"workload {name!r} runs already")
        await load.stop()  # the remains of one that ended by itself
        guest = await self.boot(vm, side)
        last_side, number = self._eras.get(name, (side, 1))
        self._eras[name] = (side, number + (last_side != side))
        place = LoadPlace(
            mounts={disk.name: disk.where for disk in guest.disks},
            position=self._rig.site_position if side == "site" else self._rig.azure_position,
            folder=self._rig.folder,
            era=self._era(name),
        )
        await load.start(place)
        self._runs_at[name] = (vm, side)
        self._records.say("workload", f"workload {name} runs in {vm} ({side})")

    def _era(self, name: str) -> str:
        side, number = self._eras.get(name, ("site", 1))
        return f"{side}-{number}"

    async def stop_load(self, name: str) -> None:
        """Stop a workload; one that does not run is no error."""
        load = self.loads[name]
        if self._runs_at.pop(name, None) is None:
            return
        count = load.acknowledged()
        error = await load.stop()
        text = f"workload {name} stopped after {count} acknowledged steps" + (f": {error}" if error else "")
        self._records.say("workload", text, "bad" if error else "info")

    async def shut_down(self, vm: str, side: Side) -> None:
        """Stop the workloads in a VM, and unmount and detach its disks."""
        for name, place in list(self._runs_at.items()):
            if place == (vm, side):
                await self.stop_load(name)
        guest = self._guests.pop((vm, side), None)
        if guest is not None:
            await guest.release()
            self._records.say("workload", f"VM {vm} ({side}) is shut down: disks unmounted and detached")

    async def drop_side(self, side: Side) -> None:
        """Release all guests of a side whose disk host is gone."""
        for vm, where in list(self._guests):
            if where == side:
                await self.shut_down(vm, side)

    async def check_load(self, name: str, vm: str, side: Side, cut: int | None) -> LoadVerdict:
        """Recover the disks of a VM that is not booted, and check file systems and the data of a workload.

        Args:
            name: the workload.
            vm: the VM whose disks are checked.
            side: its side.
            cut: the position of the disks' state; None if everything acknowledged must be there.
        """
        guest = await self.attach(vm, side, like=self.vm_of_load(name))
        try:
            findings = await guest.recover()
            mounts = {disk.name: disk.where for disk in guest.disks}
            verdict = await self.loads[name].check(mounts, self._rig.folder, self._era(name), cut)
        finally:
            await guest.release()
        return LoadVerdict(
            [*findings, *verdict.findings], verdict.acknowledged, verdict.present, verdict.lost, verdict.newest_ns
        )

    async def release_all(self) -> list[str]:
        """Stop all workloads and release all guests; return the failures.  Cancellation does not interrupt it."""
        failures: list[str] = []
        with trio.CancelScope(shield=True):
            for name in list(self.loads):
                await self._try(failures, self.loads[name].stop)
                self._runs_at.pop(name, None)
            for guest in reversed(list(self._guests.values())):
                await self._try(failures, guest.release)
            self._guests.clear()
        return failures

    @staticmethod
    async def _try(failures: list[str], work: object) -> None:
        try:
            await work()  # type: ignore[operator]
        except RigError as error:
            failures.append(f"{error.code}: {error.message}")


def disk_path(vm: Vm, disk: str) -> Path:
    """Return the file of a disk."""
    return Path(next(found.path for found in vm.disks if found.name == disk))


def names(texts: Iterable[str]) -> str:
    """Return names as text, or ``none``."""
    return ", ".join(texts) or "none"
