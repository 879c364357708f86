"""The handles that a test gets for a disk and for a mounted file system.

Their methods block; a test with an event loop calls them in a thread (``await trio.to_thread.run_sync(fs.remount)``) if its
other tasks must run meanwhile.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_attach, loop_devices
from siterig.cext import linux
from siterig.testing.crash_states import copy_sparse, find_positions, make_state
from siterig.testing.servers.disk_client import DiskClient
from siterig.testing.timeline import Timeline

_MOUNT_OPTIONS = {"xfs": "nouuid"}
"""Copies of one template have one UUID."""


def mount(disk: Path, where: Path, kind: str, *, read_only: bool = False) -> None:
    """Mount the file system of a disk or image through a loop device that ends with the mount; the folder is created.

    Raises:
        RigError: ``AttachFailed``, ``MountFailed``, ``NotPermitted``.
    """
    where.mkdir(parents=True, exist_ok=True)
    with loop_attach.attached(disk, read_only=read_only) as loop:
        try:
            linux.mount(loop, where, kind, _MOUNT_OPTIONS.get(kind, ""), read_only=read_only)
        except OSError as exc:
            code = Code.NotPermitted if exc.errno == errno.EPERM else Code.MountFailed
            raise RigError(code, f"{disk} ({kind}) cannot be mounted at {where}: {reason(exc, where)}") from exc


def unmount(where: Path, *, even_if_used: bool = False) -> bool:
    """Unmount a file system, and return True if nothing uses it any more.

    Args:
        where: the mount point.
        even_if_used: hide a mount that is in use, and return False; it ends with its last user.

    Raises:
        RigError: ``VmBusy`` names the processes that use it.
    """
    for last in (False, True):
        try:
            linux.unmount(where, lazily=False)
        except OSError as exc:
            if exc.errno in (
                errno.EINVAL,
                errno.ENOENT,
            ):  # not mounted any more, or removed with its rig
                return True
            if exc.errno != errno.EBUSY:
                raise RigError(Code.UnmountFailed, f"{where} cannot be unmounted: {reason(exc, where)}") from exc
            if last:
                break
            gc.collect()  # a file or a database that the test forgot to close, and that nothing refers to
        else:
            return True
    if even_if_used:
        linux.unmount(where, lazily=True)
        return False
    users = [*(f"this process: {path}" for path in _own_files(where)), *loop_devices.users_of(where)]
    raise RigError(Code.VmBusy, f"{where} is still in use by {', '.join(users) or 'a program'}: close it first")


def write_out(where: Path) -> None:
    """Let a mounted file system write everything to its disk, if it is mounted and its disk does not fail."""
    from siterig.blockfs.guests.file_ranges import sync_file_system  # noqa: PLC0415 (only files that are kept need it)

    if os.path.ismount(where):
        with suppress(OSError):
            sync_file_system(where)


def save_disk(path: Path, to: Path) -> list[Path]:
    """Copy a disk, and return the copy; if the disk cannot be read, write the reason to ``NAME.error`` and return that."""
    try:
        copy_sparse(path, to)
    except RigError as error:  # its server ended
        to = to.with_name(f"{to.name}.error")
        to.write_text(f"{error.message}\n")
    return [to]


def _own_files(where: Path) -> list[str]:
    """Return the files of this process, and its folder, at or below a path."""
    found = []
    for link in [Path("/proc/self/cwd"), *Path("/proc/self/fd").iterdir()]:
        try:
            target = link.readlink()
        except OSError:
            continue
        if target.is_relative_to(where):
            found.append(str(target))
    return found


class DiskHandle:
    """A disk of a test.

    Attributes:
        name: the name of the disk among all disks of its workbench.
        path: the disk as a file: use it with mkfs, mount, a loop device or QEMU.
        size_bytes: its size.
        template: the image that it began as a copy of; None if it began with zeros.
        fs: the kind of its file system; None if it has none.
        is_logged: every write is recorded.
        timeline: the steps of the disk.
    """

    def __init__(
        self,
        client: DiskClient,
        name: str,
        *,
        size_bytes: int,
        template: Path | None,
        fs: str | None,
        logged: bool,
        states: Path,
    ) -> None:
        """Describe the disk that the server has under this name; :meth:`siterig.testing.Workbench.disk` makes one."""
        self._client, self.name, self.size_bytes = client, name, size_bytes
        self.template, self.fs, self.is_logged = template, fs, logged
        self.path = client.mount / name / "disk.img"
        self._states = states
        self._count = 0
        self.timeline = Timeline()
        self.timeline.add("disk_created", disk=name, size_bytes=size_bytes, template=template, position=self.position)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def server_pid(self) -> int:
        """The process id of the server of all disks of the workbench."""
        return self._client.pid

    def ask(self, method: str, /, **arguments: object) -> Any:
        """Make a call of the disk server about fault rules (``siterig.core.fault_contract``), and return its JSON."""
        return self._client.call(method, **arguments)

    @property
    def folder(self) -> Path:
        """The folder of the host with the files of the disk and its change log."""
        return self._client.folder / "disks" / self.name

    @property
    def position(self) -> int:
        """The position of the newest write to any disk of the workbench.

        A write that has returned has a lower or equal position.
        """
        return read_position(self._client.folder / "disks" / "position")

    @property
    def log(self) -> list[Path]:
        """The segments of the change log; an empty list without the setting ``log``."""
        return sorted(self.folder.glob("disk.*.hrl"))

    def positions(self, at_most: int | None = None, *, after: int = 0) -> list[int]:
        """Return the positions at which the disk changed.

        Args:
            at_most: return only this many positions, at equal distances, the last included.
            after: leave out the positions up to this one.

        Raises:
            RigError: ``BadRequest`` without the setting ``log``.
        """
        self._check_log()
        return find_positions(self.log, at_most, after=after)

    def state_at(self, position: int, to: Path | None = None) -> Path:
        """Make an image of the disk after all writes up to a position: the state that a power cut there leaves.

        Args:
            position: the position.
            to: the image; without it a new file in the folder of the workbench, which is removed with the disk.

        Returns:
            The path of the image.

        Raises:
            RigError: ``BadRequest`` without the setting ``log``.
        """
        self._check_log()
        if to is None:
            self._states.mkdir(exist_ok=True)
            self._count += 1
            to = self._states / f"{self.name}-{self._count}.img"
        return make_state(self.log, position, to, size_bytes=self.size_bytes, base=self.template)

    def _check_log(self) -> None:
        if not self.is_logged:
            raise RigError(
                Code.BadRequest, f"disk {self.name} has no change log: set log=True, --siterig-log or siterig_log"
            )

    def keep(self, folder: Path) -> list[Path]:
        """Save the disk, its beginning, its change log and its timeline to a folder, and return the files.

        The names are ``disk.img`` (as it is now), ``disk.before.img`` (as it began), ``disk.NNNNNN.hrl`` and
        ``timeline.jsonl``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.timeline.add("disk_kept", disk=self.name, position=self.position)
        kept = [folder / "timeline.jsonl"]
        self.timeline.save(kept[0])
        kept += save_disk(self.path, folder / "disk.img")
        if self.template is not None:
            kept.append(folder / "disk.before.img")
            copy_sparse(self.template, kept[-1])
        for segment in self.log:
            kept.append(folder / segment.name)
            shutil.copyfile(segment, kept[-1])
        return kept

    def remove_states(self) -> None:
        """Delete the images that :meth:`state_at` made in the folder of the workbench."""
        for state in self._states.glob(f"{self.name}-*.img"):
            state.unlink()


class FileSystemHandle:
    """A mounted file system of a test; ``fs / "name"`` is a path in it.

    Attributes:
        disk: its disk.
        path: the folder at which it is mounted.
        kind: ``ext4`` or ``xfs``.
    """

    def __init__(self, disk: DiskHandle, where: Path, kind: str) -> None:
        """Describe the file system of ``disk``; :meth:`siterig.testing.Workbench.fs` makes one."""
        self.disk, self.path, self.kind = disk, where, kind
        self._count = 0

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name

    @property
    def position(self) -> int:
        """The position of the newest write; see :attr:`DiskHandle.position`."""
        return self.disk.position

    def keep(self, folder: Path) -> list[Path]:
        """Save the disk, its beginning, its change log and its timeline; see :meth:`DiskHandle.keep`."""
        write_out(self.path)
        return self.disk.keep(folder)

    def mount(self) -> None:
        """Mount the file system again after :meth:`unmount`."""
        mount(self.disk.path, self.path, self.kind)
        self.disk.timeline.add("mounted", path=self.path, position=self.position)

    def unmount(self, *, even_if_used: bool = False) -> None:
        """Unmount the file system, so that everything is on the disk.

        Args:
            even_if_used: do not fail if a program uses it.

        Raises:
            RigError: ``VmBusy`` names the processes that use it.
        """
        released = unmount(self.path, even_if_used=even_if_used)
        self.disk.timeline.add("unmounted" if released else "hidden_while_in_use", path=self.path, position=self.position)

    def remount(self) -> None:
        """Unmount the file system and mount it again, so that everything is read from the disk."""
        self.unmount()
        self.mount()

    def positions(self, at_most: int | None = None, *, after: int = 0) -> list[int]:
        """Return the positions at which the disk changed; see :meth:`DiskHandle.positions`."""
        return self.disk.positions(at_most, after=after)

    @contextmanager
    def state(self, position: int) -> Iterator[Path]:
        """Mount the state that a power cut at ``position`` leaves, for the time of the block.

        The file system replays its journal first, as it does after a crash.  The state is a copy: a program may write to it.

        Yields:
            The folder at which the state is mounted.
        """
        image = self.disk.state_at(position)
        self._count += 1
        where = self.path.with_name(f"{self.path.name}-state{self._count}")
        try:
            mount(image, where, self.kind)
            failed = True
            try:
                yield where
                failed = False
            finally:
                released = unmount(where, even_if_used=failed)
            if released:
                where.rmdir()
        finally:
            image.unlink(missing_ok=True)
