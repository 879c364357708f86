"""A disk of a mounted point as an image file, in any of the formats people ask for.

Fault contract: the image is written without a name, made durable, and then named: it is there whole or not at all, and an
end of any kind (an error, Ctrl-C, a kill, power) leaves nothing.  Where the file system has no files without names (NFS and
FAT, say), it is hidden (``.NAME.XXXXXXXX.part``) meanwhile: an error or Ctrl-C takes that away; a kill leaves it.

A block device is written in place, opened exclusively: one that is mounted, used as swap or held by another program is
refused.  An export that ends early leaves it partly written, which the error says; what lies behind the end of the disk
is not touched.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import trio

from blockfs import block_device, qemu_img, safe_files, user_files
from blockfs.durable import rename_new, sync_folder
from blockfs.errors import RigError
from blockfs.host_folder import told_of
from blockfs.qemu_img import Advance
from blockfs.sector_size import SECTOR_BYTES_DEFAULT
from blockfs.sparse_copy import SparseCopy
from blockfs.vhdx_writer import VhdxWriter

OWN_FORMATS = ("raw", "vhd")
Format = Literal["raw", "vhd", "qcow2", "vhdx", "vmdk"]


def check(to: Path, format_: Format, *, force: bool) -> None:
    """Refuse what cannot be written: ``FileExists``, ``BadRequest``, ``ImageBusy``, ``HostIoError``, ``ToolMissing``."""
    if str(to) == "-":
        raise RigError("BadRequest", f"{to}: an image is not written to standard output; name a file")
    with told_of(str(to)):
        there = _there(to, Path.stat)
        folder = Path(os.path.realpath(to)).parent
        if there is None and not folder.is_dir():
            raise RigError("BadRequest", f"{to}: is in a folder that is not there; name the image file to make")
    if there is not None and (there.code != "FileExists" or not force):
        raise there
    if _is_device(to):
        if format_ != "raw":
            raise RigError("BadRequest", f"{to}: is a block device, which takes format raw and not {format_}")
        os.close(_open_device(to))
    if format_ not in OWN_FORMATS:
        qemu_img.require(f"format {format_}")


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFCHR: "device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symbolic link",
}


def _there(to: Path, look: Callable[[Path], os.stat_result]) -> RigError | None:
    """What is to be said of what has that name: ``FileExists`` of a file, else ``BadRequest``; None: nothing has it."""
    try:
        mode = look(to).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return RigError("FileExists", f"{to} is there already: name another file, or replace it with --force")
    if stat.S_ISBLK(mode):
        return RigError("FileExists", f"{to} is a block device: --force overwrites its contents")
    return RigError("BadRequest", f"{to}: is a {_KINDS[stat.S_IFMT(mode)]}; name a file")


async def export(
    source: Path, to: Path, format_: Format, *, force: bool, advance: Advance, sector_bytes: int = SECTOR_BYTES_DEFAULT
) -> None:
    """Write the disk in ``source`` (for ``vhd`` the one with a footer) to ``to``; a symbolic link stays one.

    ``FileExists``; ``BadRequest``: there is something that is no file; ``DiskFull``, ``HostIoError``, ``ReadFailed``,
    ``ConvertFailed``; ``InvalidDiskSize``: too large for the file system.
    """
    if _is_device(to):
        if not force:
            raise RigError("FileExists", f"{to} is a block device: --force overwrites its contents")
        await _write_device(source, to, advance)
        return
    part = _Part(to)
    try:
        if format_ in OWN_FORMATS:
            await _copy(source, part, advance)
        else:
            await _convert(source, part, format_, advance, sector_bytes)
        await trio.to_thread.run_sync(part.publish, force)
    except RigError as error:
        if error.code != "ReadFailed":
            raise
        raise RigError(error.code, f"{part.to}: was not made: {error.message}") from error
    finally:
        part.close()


def _is_device(to: Path) -> bool:
    try:
        return stat.S_ISBLK(to.stat().st_mode)
    except OSError:
        return False


def _open_device(to: Path) -> int:
    """For writing, and for nobody else meanwhile."""
    return user_files.open_file(to, os.O_RDWR, code="BadRequest", wanted="name a file or a block device", devices=True)


async def _write_device(source: Path, to: Path, advance: Advance) -> None:
    """``InvalidDiskSize`` if the device is smaller than the disk; then nothing is written."""
    target = _open_device(to)
    try:
        with source.open("rb", buffering=0) as reading:
            size_bytes, room_bytes = os.fstat(reading.fileno()).st_size, block_device.size_bytes(target)
            if room_bytes < size_bytes:
                raise RigError("InvalidDiskSize", f"{to}: has {room_bytes} bytes; the disk has {size_bytes}")
            try:
                copy = SparseCopy(source, reading.fileno(), to, target, size_bytes, target_is_zero=False)
                await copy.run(advance)
                with told_of(str(to)):
                    await trio.to_thread.run_sync(os.fsync, target)
            except RigError as error:
                raise RigError(error.code, f"{to}: is partly overwritten: {error.message}") from error
    finally:
        os.close(target)


async def _copy(source: Path, part: _Part, advance: Advance) -> None:
    with source.open("rb", buffering=0) as reading:
        size_bytes = os.fstat(reading.fileno()).st_size
        with told_of(str(part.to)):
            os.ftruncate(part.fd, size_bytes)
        await SparseCopy(source, reading.fileno(), part.to, part.fd, size_bytes).run(advance)


async def _convert(source: Path, part: _Part, format_: Format, advance: Advance, sector_bytes: int) -> None:
    with source.open("rb", buffering=0) as reading:
        opened = qemu_img.OpenImage(source, reading.fileno(), "raw")
        size_bytes = os.fstat(reading.fileno()).st_size
        if format_ == "vhdx" and sector_bytes != SECTOR_BYTES_DEFAULT:
            await VhdxWriter(source, reading.fileno(), part.to, part.fd, size_bytes, sector_bytes).run(advance)
            return
        await qemu_img.convert(opened, qemu_img.Target(part.to, part.fd), to=format_, size_bytes=size_bytes, advance=advance)


class _Part:
    """The image ``to`` before it has that name.  ``path``: how another program gets at it."""

    def __init__(self, to: Path) -> None:
        with told_of(str(to)):
            self.to = to = safe_files.resolve(to)
        self._hidden = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.part")
        with told_of(str(to)):
            try:
                self.fd = os.open(to.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
                self.path = Path(f"/proc/{os.getpid()}/fd/{self.fd}")
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
                    raise
                self.fd = os.open(self._hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
                self.path = self._hidden

    def publish(self, force: bool) -> None:
        """Make it durable and name it; ``FileExists`` unless a file that is there is to be replaced, ``BadRequest``."""
        with told_of(str(self.to)):
            os.fsync(self.fd)
            if force:
                if self.path != self._hidden:
                    self._link(self._hidden)
                there = _there(self.to, Path.lstat)
                if there is not None and there.code != "FileExists":
                    raise there
                safe_files.rename(self._hidden, self.to)
            else:
                self._name()
            sync_folder(self.to.parent)

    def _name(self) -> None:
        try:
            try:
                self._link(self.to)  # unlike a rename, it replaces nothing that came meanwhile
            except PermissionError:  # a file system without hard links
                rename_new(self._hidden, self.to)
        except FileExistsError as error:
            raise _there(self.to, Path.lstat) or error from None

    def _link(self, to: Path) -> None:
        folder = os.open(to.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # with a folder it is linkat, which follows the path to a file without a name
            os.link(self.path, to.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go; what has not been published is gone."""
        os.close(self.fd)
        self._hidden.unlink(missing_ok=True)
