"""A disk of a mounted point as an image file, in one of several formats.

Fault contract: the image is written to a file without a name, made durable, and then named.  So a file with its name is
complete, and an end of any kind (an error, Ctrl-C, a kill, a power loss) leaves no other file.  Where the file system has no
files without names (for example NFS and FAT), the image is written to ``.NAME.XXXXXXXX.part``: an error or Ctrl-C deletes
this file, and a kill leaves it.  The folder is held by :mod:`siterig.blockfs.files.safe_files`: no link of another user is
followed, and no file of another user is replaced.

A block device is written in place, opened exclusively: one that is mounted, used as swap or held by another program is
refused.  An export that ends early leaves it partly written, and the error reports that; bytes behind the end of the disk
are not changed.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import block_device, safe_files, user_files
from siterig.blockfs.files.host_errors import os_errors_as
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.safe_files import FILE_MODE, Folder
from siterig.blockfs.files.sparse_copy import SparseCopy, unreadable
from siterig.blockfs.images import qemu_img
from siterig.blockfs.images.vhdx_writer import VhdxWriter

OWN_FORMATS = ("raw", "vhd")
ExportFormat = Literal["raw", "vhd", "qcow2", "vhdx", "vmdk"]


def check(to: Path, format_: ExportFormat, *, force: bool) -> None:
    """Refuse what cannot be written.

    ``FileExists``, ``ForeignFile``, ``BadRequest``, ``ImageBusy``, ``HostIoError``, ``ToolMissing``.
    """
    if str(to) == "-":
        raise RigError(Code.BadRequest, f"{to}: an image is not written to standard output; name a file")
    if _is_device(to):
        if not force:
            raise _device_there(to)
        if format_ != "raw":
            raise RigError(Code.BadRequest, f"{to}: is a block device, which takes format raw and not {format_}")
        os.close(_open_device(to))
    else:
        with _folder_of(to) as (folder, name):
            if (there := _there(folder, name, to)) is not None and (there.code != Code.FileExists or not force):
                raise there
            folder.check_free(name)
    if format_ not in OWN_FORMATS:
        qemu_img.require(f"format {format_}")


@contextmanager
def _folder_of(to: Path) -> Iterator[tuple[Folder, str]]:
    """The folder in which the image is to be made, held, and its name there; a symbolic link is followed first."""
    with ExitStack() as stack:
        with os_errors_as(str(to)):
            try:
                real = safe_files.resolve(to)
                folder = stack.enter_context(safe_files.held(real.parent))
            except (FileNotFoundError, NotADirectoryError):
                text = f"{to}: its folder does not exist; name a file in an existing folder"
                raise RigError(Code.BadRequest, text) from None
        yield folder, real.name


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symbolic link",
}


def _there(folder: Folder, name: str, shown: Path) -> RigError | None:
    """An error about what has that name: ``FileExists`` of a file, else ``BadRequest``; None: nothing has it."""
    try:
        mode = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return RigError(Code.FileExists, f"{shown} is there already: name another file, or replace it with --force")
    return RigError(Code.BadRequest, f"{shown}: is a {_KINDS.get(stat.S_IFMT(mode), 'block device')}; name a file")


def _device_there(to: Path) -> RigError:
    return RigError(Code.FileExists, f"{to} is a block device: --force overwrites its contents")


async def export(
    source: Path, to: Path, format_: ExportFormat, *, force: bool, advance: Advance, sector_bytes: int = SECTOR_BYTES
) -> None:
    """Write the disk in ``source`` (for ``vhd`` the one with a footer) to ``to``; a symbolic link stays one.

    ``FileExists``, ``ForeignFile``; ``BadRequest``: there is something that is no file; ``DiskFull``, ``HostIoError``,
    ``ReadFailed``, ``ConvertFailed``; ``InvalidDiskSize``: too large for the file system.
    """
    if _is_device(to):
        if not force:
            raise _device_there(to)
        await _write_device(source, to, advance)
        return
    with _folder_of(to) as (folder, name):
        await _write_file(source, _Part(folder, name), format_, advance, force=force, sector_bytes=sector_bytes)


async def _write_file(
    source: Path, part: _Part, format_: ExportFormat, advance: Advance, *, force: bool, sector_bytes: int
) -> None:
    try:
        if format_ in OWN_FORMATS:
            await _copy(source, part, advance)
        else:
            await _convert(source, part, format_, advance, sector_bytes)
        await trio.to_thread.run_sync(part.publish, force)
    except RigError as error:
        if error.code != Code.ReadFailed:
            raise
        raise RigError(error.code, f"{part.to}: was not created: {error.message}") from error
    finally:
        part.close()


@contextmanager
def _opened(source: Path) -> Iterator[FileIO]:
    """For reading; ``ReadFailed``."""
    try:
        reading = source.open("rb", buffering=0)
    except OSError as exc:
        raise unreadable(source, 0, reason(exc, source)) from exc
    try:
        yield reading
    finally:
        with suppress(OSError):  # if its file system went away, closing fails, too, and nothing was written
            reading.close()


def _is_device(to: Path) -> bool:
    try:
        return stat.S_ISBLK(to.stat().st_mode)
    except OSError:
        return False


def _open_device(to: Path) -> int:
    """For writing, and for nobody else meanwhile."""
    return user_files.open_file(to, os.O_RDWR, code=Code.BadRequest, purpose="name a file or a block device", devices=True)


async def _write_device(source: Path, to: Path, advance: Advance) -> None:
    """``InvalidDiskSize`` if the device is smaller than the disk; then nothing is written."""
    target = _open_device(to)
    try:
        with _opened(source) as reading:
            size_bytes, room_bytes = os.fstat(reading.fileno()).st_size, block_device.size_bytes(target)
            if room_bytes < size_bytes:
                raise RigError(Code.InvalidDiskSize, f"{to}: has {room_bytes} bytes; the disk has {size_bytes}")
            try:
                copy = SparseCopy(source, reading.fileno(), to, target, size_bytes, target_is_zero=False)
                await copy.run(advance)
                with os_errors_as(str(to)):
                    await trio.to_thread.run_sync(os.fsync, target)
            except RigError as error:
                raise RigError(error.code, f"{to}: is partly overwritten: {error.message}") from error
    finally:
        os.close(target)


async def _copy(source: Path, part: _Part, advance: Advance) -> None:
    with _opened(source) as reading:
        size_bytes = os.fstat(reading.fileno()).st_size
        with os_errors_as(str(part.to)):
            os.ftruncate(part.fd, size_bytes)
        await SparseCopy(source, reading.fileno(), part.to, part.fd, size_bytes).run(advance)


async def _convert(source: Path, part: _Part, format_: ExportFormat, advance: Advance, sector_bytes: int) -> None:
    with _opened(source) as reading:
        opened = qemu_img.OpenImage(source, reading.fileno(), "raw")
        size_bytes = os.fstat(reading.fileno()).st_size
        if format_ == "vhdx" and sector_bytes != SECTOR_BYTES:
            await VhdxWriter(source, reading.fileno(), part.to, part.fd, size_bytes, sector_bytes).run(advance)
            return
        await qemu_img.convert(opened, qemu_img.Target(part.to, part.fd), to=format_, size_bytes=size_bytes, advance=advance)


class _Part:
    """The image before it has its name in the folder; ``to``: its path, for messages."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.to = folder.path / name
        self._folder = folder
        self._name = name
        self._hidden = f".{name}.{secrets.token_hex(4)}.part"
        self._is_hidden = False
        with os_errors_as(str(self.to)):
            try:
                self.fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, FILE_MODE, dir_fd=folder.fd)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                    raise
                self.fd = folder.open(self._hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR)
                self._is_hidden = True
            os.fchmod(self.fd, FILE_MODE)

    def publish(self, force: bool) -> None:
        """Make it durable and name it.

        ``FileExists`` unless a file that is there is to be replaced; ``ForeignFile``: it is another user's; ``BadRequest``.
        """
        with os_errors_as(str(self.to)):
            os.fsync(self.fd)
            if force:
                self._replace()
            else:
                self._name_new()
            self._folder.sync()

    def _replace(self) -> None:
        if not self._is_hidden:
            self._link(self._hidden)
            self._is_hidden = True
        there = _there(self._folder, self._name, self.to)
        if there is not None and there.code != Code.FileExists:
            raise there
        self._folder.rename(self._hidden, self._name)

    def _name_new(self) -> None:
        try:
            try:
                self._link(self._name)  # unlike a rename, it replaces nothing that came meanwhile
            except PermissionError:  # a file system without hard links
                self._folder.rename_new(self._hidden, self._name)
        except FileExistsError as error:
            raise _there(self._folder, self._name, self.to) or error from None

    def _link(self, name: str) -> None:
        # With a folder it is linkat, which follows the path to a file without a name.
        path = self._folder.path / self._hidden if self._is_hidden else f"/proc/self/fd/{self.fd}"
        os.link(path, name, dst_dir_fd=self._folder.fd, follow_symlinks=True)

    def close(self) -> None:
        """Release it; what has not been published is gone."""
        os.close(self.fd)
        if self._is_hidden:
            self._folder.unlink(self._hidden, missing_ok=True)
