"""A folder to mount on: checks that it can be used, creates it, and unmounts it without harm to its users."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_devices

SOURCE_PREFIX = "siterig:"
"""The beginning of the source of all siterig mounts in the table of mounts."""
FUSE_DEVICE = "/dev/fuse"
_FUSE_NUMBER = os.makedev(10, 229)
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


@dataclass(frozen=True, slots=True)
class Mountpoint:
    """A folder to mount on; ``path`` is absolute and free of links, ``made`` is True if it was created for the mount."""

    path: Path
    made: bool

    def remove_if_created(self) -> None:
        """Remove the folder if it was created for the mount; call it after the unmount."""
        if self.made:
            try:
                self.path.rmdir()
            except OSError:  # another program put a file there
                return


def open_fuse() -> None:
    """Open the FUSE device and close it; raise ``OSError`` if that fails or if another file has its name (``ENODEV``)."""
    fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_rdev != _FUSE_NUMBER:
            raise OSError(errno.ENODEV, "is not the kernel's FUSE device", FUSE_DEVICE)
    finally:
        os.close(fd)


def check_fuse() -> None:
    """Raise ``FuseMissing`` or ``NotPermitted`` if this process cannot mount a FUSE file system."""
    try:
        open_fuse()
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise RigError(
                Code.NotPermitted, f"{FUSE_DEVICE} cannot be opened: {reason(exc, FUSE_DEVICE)}: ask for access to it"
            ) from exc
        raise RigError(
            Code.FuseMissing,
            f"{FUSE_DEVICE}: {reason(exc, FUSE_DEVICE)}: modprobe fuse; in a container: --device {FUSE_DEVICE}",
        ) from exc
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise RigError(
            Code.FuseMissing,
            "fusermount3 is not installed, and users other than root need it to mount; on Debian: apt-get install fuse3",
        )


def prepare(where: Path) -> Mountpoint:
    """Return a folder to mount on: an empty one, or a new one; a dead siterig mount counts as an empty folder.

    Raises:
        RigError: ``FolderUnusable`` if it cannot be mounted on, ``MountFailed`` if something is mounted there.
    """
    try:
        path = safe_files.resolve(where)
    except OSError as exc:
        raise _unusable(where, reason(exc, where)) from exc
    try:
        os.statvfs(path)  # stat could be answered from the kernel's cache, also for a dead mount
    except FileNotFoundError:
        return _make(path)
    except OSError as exc:
        if exc.errno not in _DEAD:
            raise _unusable(path, reason(exc, path)) from exc
        source = _mounted(path)
        if source is None or not source.startswith(SOURCE_PREFIX):
            raise _unusable(path, f"a dead mount of {source} is in the way: umount it first") from exc
        return Mountpoint(path, made=False)
    if not path.is_dir():
        raise _unusable(path, "is not a folder")
    source = _mounted(path)
    if source is not None:
        raise RigError(Code.MountFailed, f"{path}: {source} is mounted here already")
    try:
        entry = next(path.iterdir(), None)
    except OSError as exc:
        raise _unusable(path, reason(exc, path)) from exc
    if entry is not None:
        raise _unusable(path, f"is not empty ({entry.name!r} is in it), and a mount would hide what is there")
    if not os.access(path, os.W_OK):
        raise _unusable(path, "you may not write to it, and only a writable folder can be mounted on")
    return Mountpoint(path, made=False)


def _make(path: Path) -> Mountpoint:
    try:
        safe_files.make_folder(path)
    except OSError as exc:
        why = f"its parent {path.parent} does not exist" if exc.errno == errno.ENOENT else reason(exc, path)
        raise _unusable(path, f"cannot be created: {why}") from exc
    return Mountpoint(path, made=True)


def _unusable(path: Path, reason: str | None) -> RigError:
    return RigError(Code.FolderUnusable, f"{path}: {reason}; give an empty folder, or a new one")


def _mounted(path: Path) -> str | None:
    """Return the source of the topmost mount at a folder, or None."""
    return next((source for _, source, point in reversed(loop_devices.mounts()) if point == str(path)), None)


async def unmount(mountpoint: Path) -> str | None:
    """Unmount like ``umount``; its server keeps running meanwhile.  Returns the reason if the mount is in use, else None."""
    command = ["umount", "--no-canonicalize"] if os.geteuid() == 0 else ["fusermount3", "-u", "--"]
    result = await trio.run_process(
        [*command, str(mountpoint)],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        start_new_session=True,  # a Ctrl-C at the terminal must not reach it
        env=os.environ | {"LC_ALL": "C"},
    )
    return None if result.returncode == 0 else result.stderr.decode(errors="replace").strip()


async def users(disk: Path) -> list[str]:
    """List the users of a mounted disk: loop devices with their mount points, and processes that use it or its folder."""
    found = []
    for use in await loop_devices.loops(disk):
        at = [f"at {where}" for where in use.mountpoints]
        at += [f"in the mount namespace of {process}" for process in await loop_devices.copies_of_loop(use.loop or "")]
        found.append(f"{use.loop} (mounted {', '.join(at)})" if at else f"{use.loop}")
    return found + await loop_devices.processes_at(disk.parent)


async def is_being_released(disk: Path) -> bool:
    """Return whether no user of a mounted disk stays: there are only loop devices that end at their last close, or none."""
    loops = await loop_devices.loops(disk)
    if not all(not use.mountpoints and loop_devices.ends_at_last_close(use.loop or "") for use in loops):
        return False
    return not await loop_devices.processes_at(disk.parent)


async def copies(device: str) -> list[str]:
    """Return ``name (pid)`` of one process of each other mount namespace in which a device (``MAJ:MIN``) is mounted."""
    return await loop_devices.mounted_elsewhere(device)


def device_at(where: Path) -> str:
    """Return the device number (``MAJ:MIN``) of the last mount at a folder; empty if there is none."""
    points = {point: number for number, _, point in loop_devices.mounts()}
    return points.get(str(where), "")
