"""An image file by itself: what format it has, and that nobody else writes to it.

Fault contract: holds no state but the lock, which goes with the process.  Two of us exclude each other unless both only
read; QEMU, which locks single bytes of its images to tell what it does with them, is noticed and excluded by the same
locks (``F_OFD_SETLK``).  Who locks nothing (a loop device) is looked for once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from blockfs import hostmounts, vhd
from blockfs.disk_state import ImageStamp
from blockfs.errors import RigError

SECTOR_BYTES = 512
LOCK_PATIENCE_S = 3.0
"""An unmounted image is locked until its log is closed: who mounts it again at once waits so long."""
Format = Literal["raw", "vhd"]

_MAGIC = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
"""Offset, bytes there, and qemu-img's name of formats that are no raw disk."""
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length (0: all), pid
_QEMU_WRITES, _QEMU_BEARS_NO_WRITER = 101, 201  # bytes that QEMU read-locks while it does (block/file-posix.c)


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is open and locked.

    ``path`` is absolute and free of symbolic links.  ``size_bytes`` is the disk's; a VHD's footer lies behind it.
    ``read_only``: as was asked for, or because its file system is.
    """

    path: Path
    format: Format
    size_bytes: int
    read_only: bool
    fd: int

    def stamp(self) -> ImageStamp:
        """What its file's inode says now."""
        found = os.fstat(self.fd)
        return ImageStamp(size_bytes=found.st_size, mtime_ns=found.st_mtime_ns, ctime_ns=found.st_ctime_ns)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self.fd)


async def open_image(path: Path, *, format_: Format | None = None, read_only: bool = False) -> Image:
    """Open and lock an image; its format is told by its name and contents unless given.

    ``ImageUnusable``, ``InvalidDiskSize``, ``VhdCorrupt``, ``VhdUnsupported``: it is none that can be exposed as a disk.
    ``ImageBusy``: somebody else has it.
    """
    # In threads: the path may lead into a file system that another process like this one serves.
    real = Path(await trio.to_thread.run_sync(os.path.realpath, path))
    fd, read_only = await trio.to_thread.run_sync(_opened, real, read_only)
    try:
        await _lock(real, fd, shared=read_only)
        await _refuse_loops(real)
        found, size_bytes = await trio.to_thread.run_sync(_format, real, format_)
    except BaseException:
        os.close(fd)
        raise
    return Image(real, found, size_bytes, read_only, fd)


def _opened(path: Path, read_only: bool) -> tuple[int, bool]:
    """A descriptor, and whether it is read-only; never opens what is no file (a pipe would wait for its other end)."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device" if stat.S_ISBLK(mode) else "no regular file"
            raise RigError("ImageUnusable", f"{path}: is {kind}; an image is a file that holds the bytes of a disk")
        try:
            return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC), read_only
        except OSError as exc:
            if read_only or exc.errno != errno.EROFS:
                raise
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), True
    except FileNotFoundError:
        raise RigError("ImageUnusable", f"{path}: is not there") from None
    except OSError as exc:
        hint = "" if read_only or not os.access(path, os.R_OK) else "; it can be mounted read-only"
        raise RigError("ImageUnusable", f"{path}: cannot be opened: {exc.strerror}{hint}") from exc


async def _lock(path: Path, fd: int, *, shared: bool) -> None:
    kind, start, length = (fcntl.F_RDLCK, _QEMU_BEARS_NO_WRITER, 1) if shared else (fcntl.F_WRLCK, 0, 0)
    wanted = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        if not shared or not _would_block(fd, _QEMU_WRITES):
            return
    except OSError as exc:
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise RigError("ImageUnusable", f"{path}: cannot be locked: {exc.strerror}") from exc
    where = mounted_at(path)
    if where is None:
        with trio.move_on_after(LOCK_PATIENCE_S):
            await trio.to_thread.run_sync(fcntl.fcntl, fd, fcntl.F_OFD_SETLKW, wanted, abandon_on_cancel=True)
            if not shared or not _would_block(fd, _QEMU_WRITES):
                return
    holders = [name for use in await hostmounts.uses(path) for name in use.processes]
    at = f" (mounted at {where})" if where else ""
    raise RigError("ImageBusy", f"{path}: is in use by {', '.join(holders) or 'another process'}{at}")


async def _refuse_loops(path: Path) -> None:
    for use in await hostmounts.loops(path):
        raise RigError("ImageBusy", f"{path}: is in use by {', '.join(filter(None, (use.loop, *use.mountpoints)))}")


def _would_block(fd: int, byte: int) -> bool:
    """Whether somebody else has a lock on the byte."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def mount_source(path: Path) -> str:
    """What the table of mounts shows for the image."""
    return f"siterig:{path}"


def mounted_at(path: Path) -> str | None:
    """Where the image is mounted already, as far as this process can see."""
    return next((point for _, source, point in hostmounts.mounts() if source == mount_source(path)), None)


def _format(path: Path, wanted: Format | None) -> tuple[Format, int]:
    """The format, and the disk's size."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(SECTOR_BYTES)
        file.seek(max(size - vhd.FOOTER_BYTES, 0))
        tail = file.read(vhd.FOOTER_BYTES)
    if wanted is None:
        wanted = _recognized(path, head, tail)
    if wanted == "vhd":
        return "vhd", vhd.read_footer(path)
    if size == 0 or size % SECTOR_BYTES:
        raise RigError(
            "InvalidDiskSize",
            f"{path}: has {size} bytes; a raw image has a positive multiple of {SECTOR_BYTES}, the size of a sector",
        )
    return "raw", size


def other_format(head: bytes) -> str | None:
    """qemu-img's name of the format that a file's first sector is of; None if it may be a raw disk's, or a VHD's."""
    return next((name for at, magic, name in _MAGIC if head[at:].startswith(magic)), None)


def _recognized(path: Path, head: bytes, tail: bytes) -> Format:
    if (name := other_format(head)) is not None:
        raise RigError(
            "ImageUnusable",
            f"{path}: is a {name} image; raw images and fixed VHDs are supported: qemu-img convert -f {name} -O raw "
            "makes a raw image of it",
        )
    named, looks = path.suffix.lower() == ".vhd", vhd.COOKIE in (head[:8], tail[:8], tail[1:9])
    if named and not looks:
        raise RigError(
            "VhdCorrupt",
            f"{path}: is named as a VHD, but its last {vhd.FOOTER_BYTES} bytes are no VHD footer; if it is a raw image, "
            "name it otherwise",
        )
    if looks and not named:
        vhd.read_footer(path)
        # Not guessed: a guest can write what looks like a footer to the end of its raw disk.
        raise RigError(
            "ImageUnusable",
            f"{path}: ends with a VHD footer, but is not named as a VHD: if it is one, name it *.vhd; if every byte is the "
            "disk's, it is raw: mount it with --format raw, or import what qemu-img convert -f raw -O qcow2 makes of it",
        )
    return "vhd" if named else "raw"
