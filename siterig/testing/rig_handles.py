"""The handles that a test gets for a rig that is up, and for a VM in it.

The methods block; each runs its calls in a trio run of its own, in another thread, so it works with every event loop or
none.
:attr:`RigHandle.testbed` has the same calls for tests with trio.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from siterig.azure_emu.vault.model.resources import Event, Job, ProtectedItem, RecoveryPoint, Vm
from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.paths import Layout
from siterig.testing.disk_handles import mount, save_disk, unmount, write_out
from siterig.testing.testbed import Testbed
from siterig.testing.timeline import Timeline
from siterig.testing.trio_thread import run_in_thread

T = TypeVar("T")
_POLL_S = 0.05


class RigHandle:
    """A rig that is up.

    Attributes:
        folder: its state folder, the value of the option ``--dir``.
        testbed: the same rig for tests with trio.
        interval_s: the replication interval of :meth:`VmHandle.protect`.
        timeout_s: the longest wait for a job.
        is_shared: other processes use it, too.
    """

    def __init__(self, folder: Path, *, interval_s: float, timeout_s: float, is_shared: bool = False) -> None:
        """Use the rig in ``folder``; :meth:`siterig.testing.Workbench.rig` makes one."""
        self.folder, self.interval_s, self.timeout_s, self.is_shared = folder, interval_s, timeout_s, is_shared
        self.testbed = Testbed(Layout.of(folder))
        self.timeline = Timeline()
        self._vms: list[VmHandle] = []

    def call(self, work: Callable[[Testbed], Awaitable[T]]) -> T:
        """Run an async function with the testbed, and return its result.

        Example:
            ``rig.call(lambda bed: bed.vault.items())``

        Raises:
            RigError: the failure of the call.
        """
        return run_in_thread(lambda: work(self.testbed))

    def run(self, *words: str) -> Any:
        """Run a command of ``siterig`` on this rig, and return its last value of JSON; None if it printed none.

        Example:
            ``rig.run("failover", "unplanned", vm.name)``

        Raises:
            RigError: the error of the command, or ``BadRequest`` if the command is wrong.
        """
        command = [sys.executable, "-m", "siterig", *words, "--dir", str(self.folder), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
        self.timeline.add("command", words=words, exit_status=done.returncode)
        if done.returncode == 0:
            return _last_json(done.stdout)
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        error = next((line["error"] for line in lines if "error" in line), None)
        if error is None:
            error = {"code": Code.BadRequest, "message": done.stderr.strip() or f"exit status {done.returncode}"}
        raise RigError(Code.of(error["code"]), f"siterig {' '.join(words)}: {error['message']}")

    def check_own(self, what: str) -> None:
        """Check that no other process uses the rig, because ``what`` changes it for all of them.

        Raises:
            RigError: ``BadRequest``.
        """
        if self.is_shared:
            raise RigError(
                Code.BadRequest,
                f"{what}: other workers share this rig, and their tests would meet the change, too: give these tests a rig "
                "of their own, siterig_rig = testing.rig(share=False)",
            )

    def vm(self, name: str, disks: Mapping[str, DiskSpec]) -> VmHandle:
        """Create a source VM; the handle removes it at the end.

        Raises:
            RigError: ``VmExists`` and others of the vault.
        """
        made = self.call(lambda bed: bed.vault.create_vm(vm=name, disks=list(disks.values())))
        self.timeline.add("vm_created", vm=name)
        handle = VmHandle(self, made)
        self._vms.append(handle)
        return handle

    def lose_site(self) -> None:
        """Kill the processes of the site, as its loss would; they stay down."""
        self.call(lambda bed: bed.kill_site())
        self.timeline.add("site_lost")

    def restore_site(self) -> None:
        """Start the processes of the site again, and return when they answer."""
        self.call(lambda bed: bed.restart_site())
        self.timeline.add("site_restored")

    def events(self) -> list[Event]:
        """Return all events of the vault, newest first."""
        return self.call(lambda bed: bed.vault.events())

    def item(self, vm: str) -> ProtectedItem | None:
        """Return the protected item of a VM; None if the VM is not protected."""
        return next((item for item in self.call(lambda bed: bed.vault.items()) if item.name == vm), None)

    def finish(self, begin: Callable[[Testbed], Awaitable[Job]]) -> Job:
        """Begin a job, wait for its end, and return it.

        Raises:
            RigError: ``JobFailed`` with the job's own errors, also if it does not end within ``timeout_s``.
        """

        async def work() -> Job:
            job = await begin(self.testbed)
            with SYSTEM_CLOCK.move_on_after(self.timeout_s):
                while job.endTime is None:
                    await SYSTEM_CLOCK.sleep(_POLL_S)
                    job = await self.testbed.vault.job(name=job.name)
                return job
            waits = [task.waiting_for for task in job.tasks if task.waiting_for is not None]
            text = f"job {job.scenarioName} of {job.vm} did not end within {self.timeout_s:g} s; it waits for: "
            raise RigError(Code.JobFailed, text + ("; ".join(waits) or "nothing that it reports"))

        job = run_in_thread(work)
        self.timeline.add("job_ended", job=job.scenarioName, vm=job.vm, state=job.state)
        if job.state != "Succeeded":
            errors = "; ".join(f"{error.message} ({error.code})" for error in job.errors)
            raise RigError(Code.JobFailed, f"job {job.scenarioName} of {job.vm} ended {job.state}: {errors}")
        return job

    def until(self, what: str, check: Callable[[Testbed], Awaitable[bool]]) -> None:
        """Wait until ``check`` returns True.

        Raises:
            RigError: ``JobFailed`` with ``what`` after ``timeout_s``.
        """

        async def work() -> None:
            with SYSTEM_CLOCK.move_on_after(self.timeout_s):
                while not await check(self.testbed):
                    await SYSTEM_CLOCK.sleep(_POLL_S)
                return
            raise RigError(Code.JobFailed, f"{what} did not happen within {self.timeout_s:g} s")

        run_in_thread(work)

    def keep(self, folder: Path) -> list[Path]:
        """Save the logs of the rig, its events and jobs, and the timeline to a folder; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = [folder / "timeline.jsonl"]
        self.timeline.save(kept[0])
        for name, ask in (("events.json", self.events), ("jobs.json", lambda: self.call(lambda bed: bed.vault.jobs()))):
            try:
                text = json.dumps([value.model_dump(by_alias=True) for value in ask()], indent=1)
            except RigError as error:
                text = json.dumps({"error": error.message})
            kept.append(folder / name)
            kept[-1].write_text(text + "\n")
        for log in sorted((self.folder / "log").glob("*.log")):
            kept.append(folder / log.name)
            kept[-1].write_bytes(log.read_bytes())
        return kept

    def clear(self) -> None:
        """Remove the VMs that were created through this handle, with their protection and their copies.

        A lost site is restored first.

        Raises:
            RigError: ``InvalidState`` if a VM was failed over, because the vault keeps such a VM; ``JobFailed`` and others.
        """
        if not self._vms:
            return
        while self._vms:
            self._vms[-1].release(even_if_used=True)
            self.call(self._remover(self._vms.pop().name))

    def _remover(self, name: str) -> Callable[[Testbed], Awaitable[None]]:
        async def ended(bed: Testbed, job: Job) -> None:
            with SYSTEM_CLOCK.fail_after(self.timeout_s):
                while job.endTime is None:
                    await SYSTEM_CLOCK.sleep(_POLL_S)
                    job = await bed.vault.job(name=job.name)

        async def remove(bed: Testbed) -> None:
            if any(role.state != "ready" for role in (await bed.supervisor.status()).roles):
                await bed.restart_site()
            if any(vm.name == f"{name}-test" for vm in await bed.vault.list_vms()):
                await ended(bed, await bed.vault.cleanup_test_failover(vm=name))
            if any(item.name == name for item in await bed.vault.items()):
                await ended(bed, await bed.vault.disable_protection(vm=name))
            for vm in await bed.vault.list_vms():
                if vm.name == name:
                    await ended(bed, await bed.vault.delete_vm(vm=name, side=vm.side))

        return remove


def _last_json(text: str) -> Any:
    """Return the last of several documents of JSON; None if there is none."""
    found, rest = None, text.strip()
    while rest:
        found, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].strip()
    return found


class VmHandle:
    """A VM of a rig, at the site or at the recovery side.

    Attributes:
        rig: its rig.
        name: its name.
        side: ``site`` or ``azure``.
        disks: the file of each disk.
    """

    def __init__(self, rig: RigHandle, vm: Vm) -> None:
        """Describe a VM that exists; :meth:`RigHandle.vm` creates one."""
        self.rig, self.name, self.side = rig, vm.name, vm.side
        self.disks = {disk.name: Path(disk.path) for disk in vm.disks}
        self._mounted: list[Path] = []
        self._copies: list[VmHandle] = []

    @property
    def position(self) -> int:
        """The position of the newest write on the VM's side; a write that has returned has a lower or equal position."""
        bed = self.rig.testbed
        return read_position(bed.site_position if self.side == "site" else bed.azure_position)

    @contextmanager
    def mounted(self, disk: str = "data", kind: str = "ext4") -> Iterator[Path]:
        """Mount the file system of a disk for the time of the block.

        Args:
            disk: the name of the disk.
            kind: ``ext4`` or ``xfs``.

        Yields:
            The folder at which it is mounted.

        Raises:
            RigError: ``DiskNotFound``, ``MountFailed``; ``VmBusy`` at the end if a program still uses it.
        """
        where = self.mount(disk, kind)
        failed = True
        try:
            yield where
            failed = False
        finally:
            self.unmount(where, even_if_used=failed)

    def mount(self, disk: str = "data", kind: str = "ext4") -> Path:
        """Mount the file system of a disk until :meth:`unmount` or the end of the VM, and return the folder."""
        if disk not in self.disks:
            raise RigError(Code.DiskNotFound, f"VM {self.name} has no disk {disk!r}; it has: {', '.join(self.disks)}")
        where = self.rig.testbed.folder / f"{self.side}-{self.name}-{disk}"
        mount(self.disks[disk], where, kind)
        self._mounted.append(where)
        return where

    def unmount(self, where: Path, *, even_if_used: bool = False) -> None:
        """Unmount a folder of :meth:`mount`; raises ``VmBusy`` with the users, unless ``even_if_used``."""
        unmount(where, even_if_used=even_if_used)
        self._mounted.remove(where)

    def keep(self, folder: Path) -> list[Path]:
        """Save its disks, and those of the VMs that its failovers made, as ``SIDE-VM-DISK.img``; and all that its rig keeps.

        See :meth:`RigHandle.keep`.
        """
        return [*self.rig.keep(folder), *self.save_disks(folder)]

    def save_disks(self, folder: Path) -> list[Path]:
        """Copy its disks, and those of the VMs that its failovers made, to a folder; return the copies."""
        for where in self._mounted:
            write_out(where)
        kept = [path for copy in self._copies for path in copy.save_disks(folder)]
        for disk, path in self.disks.items():
            kept += save_disk(path, folder / f"{self.side}-{self.name}-{disk}.img")
        return kept

    def release(self, *, even_if_used: bool = False) -> None:
        """Unmount everything of this VM and of the VMs that its failovers made."""
        for copy in self._copies:
            copy.release(even_if_used=even_if_used)
        for where in reversed(self._mounted.copy()):
            self.unmount(where, even_if_used=even_if_used)

    def protect(self, interval_s: float | None = None) -> RecoveryPoint:
        """Protect the VM, wait until it is protected and has a recovery point, and return that point.

        Args:
            interval_s: the replication interval in seconds; without it the setting ``interval``.

        Raises:
            RigError: ``JobFailed``, ``InvalidState``.
        """
        wanted = interval_s or self.rig.interval_s
        self.rig.finish(lambda bed: bed.vault.enable_protection(vm=self.name, interval_s=wanted))
        found: list[RecoveryPoint] = []

        async def protected(bed: Testbed) -> bool:
            items = [item for item in await bed.vault.items() if item.name == self.name]
            if not items or items[0].protectionState != "Protected":
                return False
            found[:] = await bed.vault.points(vm=self.name, limit=1)
            return bool(found)

        self.rig.until(f"{self.name} to be protected", protected)
        return found[0]

    def take_point(self, name: str = "test", *, app_consistent: bool = False) -> RecoveryPoint:
        """Make a recovery point of the current state; returns when it can be used."""
        kind: TagKind = "ApplicationConsistent" if app_consistent else "CrashConsistent"
        return self.rig.call(lambda bed: bed.vault.create_point(vm=self.name, kind=kind, name=name))

    def points(self) -> list[RecoveryPoint]:
        """Return the available recovery points, newest first."""
        return self.rig.call(lambda bed: bed.vault.points(vm=self.name))

    def wait_until_replicated(self, position: int | None = None) -> RecoveryPoint:
        """Wait for a recovery point with everything up to a position, and return it.

        Args:
            position: the position; without it the newest one now.
        """
        wanted = self.position if position is None else position
        found: list[RecoveryPoint] = []

        async def replicated(bed: Testbed) -> bool:
            found[:] = await bed.vault.points(vm=self.name, limit=1)
            return bool(found) and found[0].position >= wanted

        self.rig.until(f"replication of {self.name} up to position {wanted}", replicated)
        return found[0]

    def test_failover(self, point: str = "Latest") -> VmHandle:
        """Make the VM ``NAME-test`` from a recovery point, while replication continues, and return it."""
        return self._made(self.rig.finish(lambda bed: bed.vault.test_failover(vm=self.name, point=point)))

    def cleanup(self) -> None:
        """End the test failover; its VM is removed."""
        for copy in self._copies:
            copy.release()
        self.rig.finish(lambda bed: bed.vault.cleanup_test_failover(vm=self.name))
        self._copies.clear()

    def failover(self, point: str = "Latest", *, planned: bool = False) -> VmHandle:
        """Fail over to the recovery side, and return the VM there.

        Args:
            point: the recovery point of an unplanned failover.
            planned: shut the VM down at the site, and send the rest first: nothing is lost.
        """
        if planned:
            self.release()
            return self._made(self.rig.finish(lambda bed: bed.vault.planned_failover(vm=self.name)))
        return self._made(self.rig.finish(lambda bed: bed.vault.unplanned_failover(vm=self.name, point=point)))

    def commit(self) -> None:
        """Make a failover or a failback final."""
        self.rig.finish(lambda bed: bed.vault.commit_failover(vm=self.name))

    def failback(self) -> VmHandle:
        """Return a committed VM to the site; its disks on the recovery side must not be mounted."""
        for copy in self._copies:
            copy.release()
        job = self.rig.finish(lambda bed: bed.vault.failback(vm=self.name))
        if job.result is not None:
            return self._made(job)
        source = next(
            vm for vm in self.rig.call(lambda bed: bed.vault.list_vms()) if vm.name == self.name and vm.side == "site"
        )
        return VmHandle(self.rig, source)

    def _made(self, job: Job) -> VmHandle:
        if job.result is None:
            raise RigError(Code.JobFailed, f"job {job.scenarioName} of {job.vm} does not name the VM that it made")
        self._copies.append(VmHandle(self.rig, job.result))
        return self._copies[-1]
