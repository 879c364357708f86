"""The disks of a VM as its operating system uses them: attached, checked, mounted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.resources import Vm
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.scenarios.contracts.finding import CheckFinding

COPIES_S = 30.0
"""The wait for copies of a mount in other mount namespaces; the programs that make them mostly end soon."""


@dataclass(frozen=True)
class GuestDisk:
    """A disk of a guest: its file, its file system, and its loop device and mount point on this machine."""

    name: str
    path: Path
    filesystem: str
    loop: str
    where: Path


class Guest:
    """The attached disks of one VM; :meth:`release` unmounts and detaches them."""

    def __init__(self, vm: str, disks: list[GuestDisk]) -> None:
        self.vm = vm
        self.disks = disks

    @classmethod
    async def attach(cls, vm: Vm, filesystems: Mapping[str, str], folder: Path) -> Guest:
        """Attach a loop device to each disk; nothing is mounted yet.  On failure nothing stays attached."""
        guest = cls(vm.name, [])
        try:
            for disk in vm.disks:
                loop = await loop_devices.attach(Path(disk.path))
                guest.disks.append(GuestDisk(disk.name, Path(disk.path), filesystems[disk.name], loop, folder / disk.name))
        except BaseException:
            await guest.release()
            raise
        return guest

    def __getitem__(self, disk: str) -> Path:
        """Return the mount point of a disk."""
        return next(entry.where for entry in self.disks if entry.name == disk)

    async def mount(self) -> None:
        """Mount every disk; the file systems' journals recover if they need to."""
        for disk in self.disks:
            await loop_devices.mount(disk.loop, disk.where, disk.filesystem)

    async def unmount(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Unmount every disk, and wait for the copies of the mounts in other mount namespaces.

        A copy keeps the file system in use: its journal is not empty, and no checker can open the device.

        Raises:
            RigError: ``VmBusy`` if a disk is in use, or a mount namespace keeps a copy for longer than ``COPIES_S``.
        """
        for disk in self.disks:
            await loop_devices.unmount(disk.where)
            copies: list[str] = []
            with clock.move_on_after(COPIES_S):
                while copies := await loop_devices.copies_of_loop(disk.loop):
                    await clock.sleep(0.1)
            if copies:
                text = (
                    f"disk {disk.name!r} of VM {self.vm!r} is unmounted here, and still mounted in the mount namespace of "
                )
                raise RigError(Code.VmBusy, text + ", ".join(copies))

    async def recover(self) -> list[CheckFinding]:
        """Recover like a machine after a crash, and check the result: mount, unmount, fsck, mount again."""
        await self.mount()
        await self.unmount()
        findings = [await check_filesystem(disk) for disk in self.disks]
        await self.mount()
        return findings

    async def release(self) -> list[str]:
        """Unmount and detach, also if the server of the disks is dead; a second call does nothing.

        Cancellation does not interrupt it.

        Returns:
            One line of text for each thing that was done.
        """
        done: list[str] = []
        with trio.CancelScope(shield=True):
            for disk in self.disks:
                done += await loop_devices.release_below(disk.path.parent)
        return done


async def check_filesystem(disk: GuestDisk) -> CheckFinding:
    """Run the file system's own checker on an unmounted disk, read-only."""
    if disk.filesystem == "xfs":
        command = ["xfs_repair", "-n", disk.loop]
    elif disk.filesystem == "ext4":
        command = ["e2fsck", "-f", "-n", disk.loop]
    elif disk.filesystem == "btrfs":
        command = ["btrfs", "check", "--readonly", disk.loop]
    else:
        raise RigError(Code.UnknownFilesystem, f"file system {disk.filesystem!r} cannot be checked: ext4, xfs or btrfs")
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    # Programs print their version on standard error: their result is the last line.
    lines = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
    shown = " ".join(command[:-1])
    evidence = f"{shown}: exit status {done.returncode}; {lines[-1].strip() if lines else 'no output'}"
    if done.returncode != 0:
        evidence += " | " + " | ".join(line.strip() for line in lines[:8])
    return CheckFinding(f"file system of disk {disk.name} ({disk.filesystem})", done.returncode == 0, evidence)
