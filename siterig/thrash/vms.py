"""A VM of a thrash: its writers run whenever its disks are there, and each of its recovery points is compared with them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.resources import RecoveryPoint, Vm
from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.files_load import FilesLoad
from siterig.scenarios.loads.fio_load import FioLoad
from siterig.scenarios.loads.ledger_load import LedgerLoad
from siterig.scenarios.loads.load import LoadPlace, acknowledged
from siterig.scenarios.loads.postgres_load import PostgresLoad
from siterig.scenarios.loads.process_load import ProcessLoad
from siterig.scenarios.loads.raw_load import RawLoad, RawTable
from siterig.scenarios.workloads.ack_log import Ack
from siterig.scenarios.workloads.guest import Guest, check_filesystem
from siterig.testing.crash_states import copy_sparse
from siterig.testing.testbed import Testbed
from siterig.thrash.plan import MIB, VmPlan, WriterKind, WriterPlan

GROWTH_BYTES = 8 * MIB
_RATES: Mapping[WriterKind, int] = {"raw": 15, "files": 5, "fio": 2, "ledger": 3, "ledger-postgresql": 5}
"""The steps a second of each writer."""
_LOADS: Mapping[WriterKind, type[ProcessLoad[WorkloadTable]]] = {
    "files": FilesLoad,
    "fio": FioLoad,
    "ledger": LedgerLoad,
    "ledger-postgresql": PostgresLoad,
}
_FIO_ROUNDS_KEPT = 20
_SECOND_AREA = 40 * MIB
_ERA = "site"
_POLL_S = 0.3


class ThrashVm:
    """A VM at the site.

    Args:
        plan: its disks and writers.
        rig: the rig.
        seed: the seed of the raw writes.

    Attributes:
        reboots: how often its disks were lost and it was started again.
        last_error: the reason for which it does not run, as seen last.
        findings: acknowledged steps that were missing after a restart.
    """

    def __init__(self, plan: VmPlan, rig: Testbed, seed: int) -> None:
        self.plan, self._rig, self._seed = plan, rig, seed
        self.reboots = 0
        self.last_error = "it was not started yet"
        self.findings: list[CheckFinding] = []
        self._filesystems = {disk.name: str(disk.kind) for disk in plan.disks if disk.kind != "raw"}
        self._loads: list[ProcessLoad[WorkloadTable] | ProcessLoad[RawTable]] = []
        for writer in plan.writers:
            self._loads += self._loads_of(writer)
        self._sizes = {disk.name: disk.size_bytes for disk in plan.disks}
        self._growths: list[tuple[str, int, int, int]] = []
        """Each growth of a disk: its name, the positions before and after, and the size after it."""
        self._guest: Guest | None = None
        self._runs = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.plan.name

    @property
    def runs(self) -> bool:
        """True while all of its writers run."""
        return self._runs and all(load.is_running for load in self._loads)

    @property
    def acknowledged(self) -> int:
        """The steps of its writers that were acknowledged so far."""
        return sum(load.acknowledged() for load in self._loads)

    def _loads_of(self, writer: WriterPlan) -> list[ProcessLoad[WorkloadTable] | ProcessLoad[RawTable]]:
        name, rate = f"{self.name}-{writer.disks[0]}", _RATES[writer.kind]
        if writer.kind == "raw":
            return [self._raw(writer.disks[0], start) for start in (0, _SECOND_AREA)]
        table = WorkloadTable(name=name, kind=writer.kind, vm=self.name, rate=rate)
        if writer.kind == "fio":
            table = table.model_copy(update={"rounds": sys.maxsize, "kept": _FIO_ROUNDS_KEPT})
        return [_LOADS[writer.kind](table, writer.disks)]

    def _raw(self, disk: str, start: int) -> RawLoad:
        name = f"{self.name}-{disk}-{start}"
        return RawLoad(RawTable(name, f"{self._seed}/{name}", start, _RATES["raw"]), [disk])

    # --- life -----------------------------------------------------------------------------------------------------

    async def create(self) -> None:
        """Create the VM and its disks."""
        specs = [
            DiskSpec(
                name=disk.name,
                size_bytes=disk.size_bytes,
                filesystem=None if disk.kind == "raw" else disk.kind,
            )
            for disk in self.plan.disks
        ]
        await self._rig.vault.create_vm(vm=self.name, disks=specs)

    async def keep_running(self) -> None:
        """Start the writers, and start them again whenever the VM has lost its disks; runs until it is cancelled."""
        while True:
            if not self._runs:
                try:
                    await self.boot()
                except (RigError, OSError) as error:
                    self.last_error = str(error)
            elif not self.runs:
                self.reboots += 1
                await self.shut_down()
            await SYSTEM_CLOCK.sleep(_POLL_S)

    async def boot(self) -> None:
        """Mount the file systems and start the writers.

        Raises:
            RigError: the reason for which that is not possible; nothing stays mounted then.
        """
        try:
            self._guest = await self._attach(await self._vm())
            await self._guest.mount()
            place = LoadPlace(
                mounts=self._places(self._guest, await self._vm()),
                position=self._rig.site_position,
                folder=self._rig.folder,
                era=_ERA,
            )
            for load in self._loads:
                acks = acknowledged(self._rig.folder, load.table.name, _ERA)
                await load.start(place)
                self._check_found(load, acks)
            self._runs = True
        except BaseException:
            await self.shut_down()
            raise

    def _check_found(self, load: ProcessLoad[WorkloadTable] | ProcessLoad[RawTable], acks: list[Ack]) -> None:
        """Check that a writer has found all steps on the disks that it had acknowledged before."""
        if acks and load.found < acks[-1].n:
            text = (
                f"step {acks[-1].n} was acknowledged at position {acks[-1].end_position}; after a restart the disks have "
                f"step {load.found}"
            )
            self.findings.append(CheckFinding(f"{load.table.name}: acknowledged steps after a restart", False, text))

    async def shut_down(self) -> None:
        """Stop the writers, unmount and detach; does nothing if that is done.  Cancellation does not interrupt it."""
        with trio.CancelScope(shield=True):
            self._runs = False
            for load in self._loads:
                error = await load.stop()
                if error is not None:
                    self.last_error = error
            guest, self._guest = self._guest, None
            if guest is not None:
                await guest.release()

    async def grow(self) -> bool:
        """Grow the first raw disk once, and write across its old end from the next start on; False if there is none."""
        disk = next((disk for disk in self.plan.disks if disk.kind == "raw"), None)
        if disk is None or self._growths:
            return False
        before, old, new = read_position(self._rig.site_position), self._sizes[disk.name], disk.size_bytes + GROWTH_BYTES
        await self._rig.site.resize_disk(vm=self.name, disk=disk.name, size_bytes=new)
        self._growths.append((disk.name, before, read_position(self._rig.site_position), new))
        self._loads.append(self._raw(disk.name, old - 2 * MIB))
        return True

    async def _vm(self) -> Vm:
        vms = await self._rig.vault.list_vms()
        found = next((vm for vm in vms if vm.name == self.name and vm.side == "site"), None)
        if found is None:
            raise RigError(Code.VmNotFound, f"there is no VM {self.name!r} at the site")
        return found

    async def _attach(self, vm: Vm, folder: str = "mnt") -> Guest:
        formatted = vm.model_copy(update={"disks": [disk for disk in vm.disks if disk.name in self._filesystems]})
        return await Guest.attach(formatted, self._filesystems, self._rig.folder / folder / self.name)

    def _places(self, guest: Guest, vm: Vm) -> dict[str, Path]:
        """Return the mount point of each disk with a file system, and the file of each other one."""
        raw = {disk.name: Path(disk.path) for disk in vm.disks if disk.name not in self._filesystems}
        return raw | {disk.name: disk.where for disk in guest.disks}

    # --- checks ---------------------------------------------------------------------------------------------------

    async def check_source(self) -> list[CheckFinding]:
        """Check that the disks of the VM, which is shut down, have everything that was acknowledged."""
        vm = await self._vm()
        guest = await self._attach(vm)
        try:
            return await self._check(guest, self._places(guest, vm), None)
        finally:
            await guest.release()

    async def check_point(self, point: RecoveryPoint) -> list[CheckFinding]:
        """Mount a point, and compare all of its disks with what the writers did up to its position."""
        mounted = await self._rig.vault.mount_point(vm=self.name, point=point.id)
        copies = self._rig.folder / "copies" / self.name
        copies.mkdir(parents=True, exist_ok=True)
        try:
            if mounted.broken is not None:
                return [CheckFinding("point", False, mounted.broken)]
            paths = {disk.name: Path(disk.path) for disk in mounted.disks}
            findings = [
                await trio.to_thread.run_sync(self._check_shape, disk.name, paths[disk.name], point.position)
                for disk in self.plan.disks
            ]
            vm = await self._vm()
            for name in self._filesystems:  # a file system recovers by writes, and a mounted point is read-only
                copy = copies / f"{name}.img"
                copy.unlink(missing_ok=True)
                await trio.to_thread.run_sync(copy_sparse, paths[name], copy)
                paths[name] = copy
            copied = vm.model_copy(
                update={"disks": [disk.model_copy(update={"path": str(paths[disk.name])}) for disk in vm.disks]}
            )
            guest = await self._attach(copied, "check")
            try:
                return findings + await self._check(guest, self._places(guest, copied), point.position)
            finally:
                await guest.release()
        finally:
            with trio.CancelScope(shield=True):
                shutil.rmtree(copies, ignore_errors=True)
                await self._rig.vault.unmount_point(vm=self.name, name=mounted.name)

    async def _check(self, guest: Guest, places: Mapping[str, Path], cut: int | None) -> list[CheckFinding]:
        """Recover the file systems as after a crash, check the data, then the file systems."""
        await guest.mount()
        findings = []
        for load in self._loads:
            verdict = await load.check(places, self._rig.folder, _ERA, cut)
            name = load.table.name
            findings += [CheckFinding(f"{name}: {each.name}", each.ok, each.evidence) for each in verdict.findings]
        await guest.unmount()
        return findings + [await check_filesystem(disk) for disk in guest.disks]

    def _check_shape(self, disk: str, image: Path, position: int) -> CheckFinding:
        """Check the size of a disk, and that a raw one has zeros wherever nothing was written."""
        sizes = {self._size_at(disk, position, grown=grown) for grown in (False, True)}
        size = image.stat().st_size
        if size not in sizes:
            return CheckFinding(f"{disk}: size", False, f"{size} bytes; possible: {', '.join(map(str, sorted(sizes)))}")
        if disk in self._filesystems:
            return CheckFinding(f"{disk}: size", True, f"{size} bytes")
        areas = [load.area for load in self._loads if isinstance(load, RawLoad) and load.disks[0] == disk]
        return CheckFinding(f"{disk}: elsewhere", *partial(_is_zero_outside, image, areas)())

    def _size_at(self, disk: str, position: int, *, grown: bool) -> int:
        """Return the size of a disk at a position; ``grown`` decides if the disk was being grown there."""
        size = self._sizes[disk]
        for name, before, after, new in self._growths:
            if name == disk and (position > after or (grown and position >= before)):
                size = new
        return size


def _is_zero_outside(image: Path, areas: list[range]) -> tuple[bool, str]:
    """Return whether a disk has zeros outside of some areas, and a text about it."""
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, size = 0, os.fstat(fd).st_size
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: there are no data up to the end
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            data = bytearray(os.pread(fd, at - start, start))
            for area in areas:
                first, last = max(area.start, start) - start, min(area.stop, at) - start
                if first < last:
                    data[first:last] = bytes(last - first)
            if data.count(0) != len(data):
                wrong = start + next(index for index, byte in enumerate(data) if byte)
                return False, f"byte {wrong} is not zero, and nothing was written there"
    finally:
        os.close(fd)
    return True, "zeros wherever nothing was written"
