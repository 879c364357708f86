"""One image file: its format, and its lock against other writers.

Fault contract: it has no state except the lock, which ends with the process.  Two processes of siterig exclude each other
unless both only read.  A mount that ends keeps the lock until its log is closed, and the next one waits for that, however
slow the machine is.  QEMU locks single bytes of its images to show how it uses them; the same locks (``F_OFD_SETLK``)
notice and exclude it.  Loop devices take no locks; they are looked for once.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import block_device, safe_files, user_files
from siterig.blockfs.files.file_limit import check_file_limit
from siterig.blockfs.files.lock_holders import LockHolder, lock_holders
from siterig.blockfs.files.open_file_locks import is_locked_by_another, lock_request
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.images import image_headers, image_kind, vhd
from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.blockfs.images.image_kind import WANTED, Contents

LOCK_PATIENCE_S = 3.0
"""Seconds to wait for the lock of another program."""
END_PATIENCE_S = 300.0
"""Seconds to wait for a mount that ends: it stays locked until its log is closed, on a disk that may be slow."""
NOTED_AFTER_S = 1.0
"""Seconds after which the user learns of the wait for a mount that ends."""
_LOOK_EVERY_S = 0.5
"""Seconds between two looks at the process that has the lock."""
MountFormat = Literal["raw", "vhd"]

_QEMU_WRITES, _QEMU_BEARS_NO_WRITER = (
    101,
    201,
)  # bytes that QEMU locks (block/file-posix.c)


@dataclass(frozen=True, slots=True)
class LockedFile:
    """The file of an image of any format, open and locked.

    Attributes:
        path: absolute path without symbolic links.
        size_bytes: size of the file or block device.
        read_only: True if it was opened so, or its file system is read-only.
    """

    path: Path
    fd: int
    size_bytes: int
    is_device: bool
    read_only: bool

    def contents(self) -> Contents:
        """Read the first and last bytes of the file."""
        return Contents.of(self.fd, self.size_bytes)

    def bytes(self) -> ImageBytes:
        """Return a reader of the file's bytes, for headers."""
        return ImageBytes(self.path, self.fd, self.size_bytes)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is open and locked, and can be exposed as a disk.

    Attributes:
        path: absolute path without symbolic links.
        size_bytes: size of the disk; in a VHD the footer follows it.
        read_only: True if it was opened so, or its file system is read-only.
    """

    path: Path
    format: MountFormat
    size_bytes: int
    read_only: bool
    fd: int
    is_device: bool = False

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self.fd)


Note = Callable[[str], None]
"""Receives a remark for the user."""


def ignore_note(_text: str) -> None:
    """Drop a remark."""


async def open_image(
    path: Path, *, format_: MountFormat | None = None, read_only: bool = False, note: Note = ignore_note
) -> Image:
    """Open and lock an image.

    Args:
        path: the image.
        format_: its format; None to detect it from name and contents.
        read_only: refuse writers only.
        note: hears of a wait for a mount that ends.
    Raises:
        RigError: ``ImageUnusable``, ``InvalidDiskSize``, ``VhdCorrupt``, ``VhdUnsupported`` if it cannot be exposed as a
            disk; ``ImageBusy`` if another program uses it.
    """
    file = await open_locked(path, read_only=read_only, note=note)
    try:
        found, size_bytes = await trio.to_thread.run_sync(_exposed_as, file, format_, abandon_on_cancel=True)
        if not file.read_only:
            check_file_limit(str(file.path), file.size_bytes, is_device=file.is_device)
    except BaseException:
        file.close()
        raise
    return Image(file.path, found, size_bytes, file.read_only, file.fd, file.is_device)


async def open_locked(path: Path, *, read_only: bool, note: Note = ignore_note) -> LockedFile:
    """Open and lock the file of an image of any format, as :func:`open_image` does.

    A cancelled call returns at once, also while the file system does not answer.

    Raises:
        RigError: ``ImageUnusable`` or ``ImageBusy``.
    """
    # In threads: the path may be in a file system that another process of siterig serves.
    real = await trio.to_thread.run_sync(_resolved, path, abandon_on_cancel=True)
    if not read_only:
        await _refuse_mounted(real)
    fd, read_only = await _opened(real, read_only)
    try:
        await _lock(real, fd, shared=read_only, note=note)
        await _refuse_loops(real, fd)
        return LockedFile(real, fd, block_device.size_bytes(fd), block_device.is_block_device(fd), read_only)
    except BaseException:
        os.close(fd)
        raise


def _resolved(path: Path) -> Path:
    try:
        return safe_files.resolve(path)
    except OSError as exc:
        raise user_files.NotOpenedError(Code.ImageUnusable, path, exc) from exc


async def _opened(path: Path, read_only: bool) -> tuple[int, bool]:
    """Return a descriptor, and True if it is read-only."""
    open_ = partial(user_files.open_file, path, code=Code.ImageUnusable, purpose=WANTED, devices=True)
    try:
        return await user_files.open_in_thread(partial(open_, os.O_RDONLY if read_only else os.O_RDWR)), read_only
    except user_files.NotOpenedError as error:
        if read_only:
            raise
        if error.errno == errno.EROFS:
            return await user_files.open_in_thread(partial(open_, os.O_RDONLY)), True
        hint = "; it can be mounted read-only" if os.access(path, os.R_OK) else ""
        raise RigError(error.code, f"{error.message}{hint}") from error


async def _refuse_mounted(path: Path) -> None:
    """Raise ``ImageBusy`` if another process of siterig has the image mounted.

    This is checked before the image is opened for writing, which that process could take for a change of its disk.
    """
    if (where := mounted_at(path)) is None:
        return
    try:
        fd = await user_files.open_in_thread(
            partial(user_files.open_file, path, os.O_RDONLY, code=Code.ImageUnusable, purpose=WANTED, devices=True)
        )
    except user_files.NotOpenedError:
        return  # opening it for writing reports why
    try:
        if is_locked_by_another(fd, 0):
            raise await _busy(path, fd, where)
    finally:
        os.close(fd)


def _wanted_lock(*, shared: bool) -> bytes:
    kind, start, length = (fcntl.F_RDLCK, _QEMU_BEARS_NO_WRITER, 1) if shared else (fcntl.F_WRLCK, 0, 0)
    return lock_request(kind, start, length)


def try_lock(path: Path, fd: int, *, shared: bool) -> bool:
    """Lock an image without waiting; ``shared`` excludes writers only.

    Returns:
        False if another program has a conflicting lock.

    Raises:
        RigError: ``ImageUnusable`` if the file system has no locks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _wanted_lock(shared=shared))
        return not shared or not is_locked_by_another(fd, _QEMU_WRITES)
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise RigError(Code.ImageUnusable, f"{path}: cannot be locked: {reason(exc, path)}") from exc
        return False


async def _lock(path: Path, fd: int, *, shared: bool, note: Note) -> None:
    if try_lock(path, fd, shared=shared):
        return
    where = mounted_at(path)
    if where is None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_lose_patience, path, fd, note, nursery.cancel_scope)
            wanted = _wanted_lock(shared=shared)
            await trio.to_thread.run_sync(fcntl.fcntl, fd, fcntl.F_OFD_SETLKW, wanted, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        if try_lock(path, fd, shared=shared):
            return
    raise await _busy(path, fd, where)


async def _lose_patience(path: Path, fd: int, note: Note, waiting: trio.CancelScope, clock: Clock = SYSTEM_CLOCK) -> None:
    """End the wait for a lock when it is no use to wait longer."""
    await clock.sleep(min(NOTED_AFTER_S, LOCK_PATIENCE_S))
    begun_s, is_noted = clock.trio_time_s() - min(NOTED_AFTER_S, LOCK_PATIENCE_S), False
    while (waited_s := clock.trio_time_s() - begun_s) < END_PATIENCE_S:
        ending = [holder.name for holder in await trio.to_thread.run_sync(lock_holders, path, fd) if _ends(holder, path)]
        if not ending and waited_s >= LOCK_PATIENCE_S:
            break
        if ending and not is_noted:
            note(f"{path}: waiting for the end of its last mount, {', '.join(ending)}")
            is_noted = True
        await clock.sleep(_LOOK_EVERY_S)
    waiting.cancel()


def _ends(holder: LockHolder, path: Path) -> bool:
    """Return True if a process is a mount of the image that has been unmounted, or is not mounted yet."""
    words = holder.command_line()
    program = next((number for number, word in enumerate(words) if word.rpartition("/")[2] == "siterig"), len(words))
    if "mount" not in words[program:]:
        return False
    table = holder.mountinfo()
    return bool(table) and all(source != mount_source(path) for _, source, _ in loop_devices.parse_mountinfo(table))


async def _busy(path: Path, fd: int, where: str | None) -> RigError:
    holders = [holder.name for holder in await trio.to_thread.run_sync(lock_holders, path, fd)]
    holders = holders or [name for use in await loop_devices.uses(path) for name in use.processes]
    at = f" (mounted at {where})" if where else ""
    return RigError(Code.ImageBusy, f"{path}: is in use by {', '.join(holders) or 'another process'}{at}")


async def _refuse_loops(path: Path, fd: int) -> None:
    for use in await loop_devices.loops(path):
        raise RigError(Code.ImageBusy, f"{path}: is in use by {', '.join(filter(None, (use.loop, *use.mountpoints)))}")
    found = os.fstat(fd)
    for loop in await loop_devices.loops_on((found.st_dev, found.st_ino), str(path)):
        raise RigError(Code.ImageBusy, f"{path}: is in use by {loop}, under another name")


def mount_source(path: Path) -> str:
    """Return the source that the table of mounts shows for the image."""
    return f"siterig:{path}"


def mounted_at(path: Path) -> str | None:
    """Return the mountpoint of the image in this process's mount namespace; None if it is not mounted there."""
    return next((point for _, source, point in loop_devices.mounts() if source == mount_source(path)), None)


def _exposed_as(file: LockedFile, format_: MountFormat | None) -> tuple[MountFormat, int]:
    """Return the format of the image and the size of its disk."""
    found = format_ or image_kind.guess(file.path, file.contents(), is_device=file.is_device)
    if found == "vhd":
        return "vhd", vhd.read_fixed(file.bytes())
    if found != "raw":
        raise image_headers.not_exposed(file.bytes(), found)
    check_raw_size(file)
    return "raw", file.size_bytes


def check_raw_size(file: LockedFile, sector_bytes: int = SECTOR_BYTES) -> None:
    """Raise ``InvalidDiskSize`` unless the file has whole sectors."""
    if file.size_bytes == 0 or file.size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"{file.path}: has {file.size_bytes} bytes; a raw image has a positive multiple of {sector_bytes}, the size of "
            "a sector",
        )
