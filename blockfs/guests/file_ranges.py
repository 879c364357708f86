"""The bytes of a disk in which files of its guest lie: the map of extents of a file system that this host has mounted.

Source: Documentation/filesystems/fiemap.rst and <linux/fiemap.h> of the kernel.  Only file systems whose map has addresses
of the device are used: ext4 (and ext2, ext3) and XFS.  An address of btrfs is one of its own volumes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import fnmatch
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices

ByteRange = tuple[int, int]
"""Start and length in bytes."""
MAPPED_FILESYSTEMS = ("ext4", "xfs", "ext3", "ext2")
_FS_IOC_FIEMAP = 0xC020660B
_HEADER, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")
_EXTENTS_AT_ONCE = 512
_FLAG_SYNC, _LAST = 0x1, 0x1
_NOT_ON_THE_DEVICE = 0x2 | 0x4 | 0x8 | 0x200  # unknown place, delayed allocation, encoded, inside metadata
_SECTOR_BYTES = 512
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountedFileSystem:
    """A mounted file system over a disk.

    Attributes:
        mountpoint: where this host has mounted it.
        kind: its type, as the kernel names it.
        offset_bytes: the first byte of its device (a loop device or one of its partitions) on the disk.
        device: the device.
    """

    mountpoint: Path
    kind: str
    offset_bytes: int
    device: str


def file_systems_over(disk: Path) -> list[MountedFileSystem]:
    """Return the file systems that are mounted from loop devices over a disk file, and from their partitions."""
    mounted = _whole_mounts()
    found = []
    for use in loop_devices.loop_uses():
        if use.loop is None or use.disk != os.path.realpath(disk):
            continue
        for number, device, offset in _devices(Path("/sys/block", Path(use.loop).name)):
            found += [
                MountedFileSystem(where, kind, offset, device)
                for mounted_number, source, where, kind in mounted
                if number == mounted_number or source == device
            ]
    return found


def _devices(entry: Path) -> Iterator[tuple[str, str, int]]:
    """Yield number, name and first byte on the disk of a loop device and of its partitions."""
    try:
        offset = int((entry / "loop/offset").read_text())
        yield (entry / "dev").read_text().strip(), f"/dev/{entry.name}", offset
        for part in sorted(entry.glob(f"{entry.name}p*")):
            start = int((part / "start").read_text()) * _SECTOR_BYTES
            yield (part / "dev").read_text().strip(), f"/dev/{part.name}", offset + start
    except (OSError, ValueError):  # it was detached meanwhile
        return


def _whole_mounts() -> list[tuple[str, str, Path, str]]:
    """Return device number, source, mount point and type of each mount of a whole file system."""
    found = []
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    for line in text.rstrip("\n").split("\n"):
        left, _, right = line.partition(" - ")
        (number, source, point), *_ = loop_devices.parse_mountinfo(line)
        if left.split(" ")[3] == "/" or right.startswith("btrfs "):  # otherwise it is a folder that is bound elsewhere
            found.append((number, source, Path(point), right.split(" ")[0]))
    return found


def ranges_of(disk: Path, pattern: str) -> list[ByteRange]:
    """Return the bytes of a disk in which the files lie that a pattern names; unwritten bytes of the guest are synced first.

    It waits for the disk: call it in a thread.

    Args:
        disk: the file of the disk, over which this host has mounted its file system.
        pattern: an absolute path in that file system; ``*``, ``?`` and ``[...]`` as in a shell, and ``*`` also for ``/``.

    Returns:
        Start and length of the ranges, ascending, none of which touches another.

    Raises:
        RigError: ``FaultNotPossible`` if nothing is mounted, the file system has no usable map, or no file matches.
    """
    there = file_systems_over(disk)
    usable = [each for each in there if each.kind in MAPPED_FILESYSTEMS]
    if not there:
        remedy = "attach a loop device to it and mount it on this host first"
        raise _not_possible(f"no file system of {disk} is mounted here: {remedy}")
    if not usable:
        kinds = ", ".join(f"{each.kind} at {each.mountpoint}" for each in there)
        raise _not_possible(f"{kinds}: its files cannot be mapped to bytes of the disk; allowed: ext4, xfs")
    found: list[ByteRange] = []
    files = 0
    for each in usable:
        _sync(each.mountpoint)
        for path in matching_files(each.mountpoint, pattern):
            files += 1
            found += [(each.offset_bytes + start, length) for start, length in _extents(path)]
    where = ", ".join(str(each.mountpoint) for each in usable)
    if not files:
        raise _not_possible(f"{pattern!r} matches no file of {where}: write the path as it is in that file system")
    if not found:
        raise _not_possible(f"the files that {pattern!r} matches at {where} have no blocks on the disk: write to them first")
    return merged(found)


def merged(ranges: list[ByteRange]) -> list[ByteRange]:
    """Return ranges in ascending order, with those that overlap or touch as one."""
    found: list[ByteRange] = []
    for start, length in sorted(ranges):
        if found and start <= found[-1][0] + found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], start + length - found[-1][0])
        else:
            found.append((start, length))
    return found


def _not_possible(why: str) -> RigError:
    return RigError(Code.FaultNotPossible, why)


def sync_file_system(mountpoint: Path) -> None:
    """Let a mounted file system write everything.

    Raises:
        OSError: a write failed.
    """
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The first call also reports an error of an earlier write, which a rule may have caused.
        if _libc.syncfs(fd) != 0 and _libc.syncfs(fd) != 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def _sync(mountpoint: Path) -> None:
    """Let the file system write everything, so that each file has its place."""
    try:
        sync_file_system(mountpoint)
    except OSError as error:
        raise _not_possible(f"{mountpoint} cannot be synced: {error.strerror}") from error


def matching_files(mountpoint: Path, pattern: str) -> Iterator[Path]:
    """Yield the regular files of one file system that match, without following links."""
    literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    if literal == pattern:
        path = mountpoint / pattern.lstrip("/")
        if _is_file(path, mountpoint):
            yield path
        return
    root = mountpoint / literal.rpartition("/")[0].lstrip("/")
    device = mountpoint.stat().st_dev
    for folder, names, files in os.walk(root):
        at = Path(folder)
        names[:] = [name for name in names if _device(at / name) == device]
        for name in files:
            path = at / name
            if fnmatch.fnmatchcase(f"/{path.relative_to(mountpoint)}", pattern) and _is_file(path, mountpoint):
                yield path


def _device(path: Path) -> int | None:
    try:
        return path.lstat().st_dev
    except OSError:
        return None


def _is_file(path: Path, mountpoint: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_dev == mountpoint.stat().st_dev


def _extents(path: Path) -> Iterator[ByteRange]:
    """Yield start and length on the device of the extents of a file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:  # it was deleted meanwhile
        return
    except OSError as error:
        raise _not_possible(f"{path} cannot be opened: {error.strerror}") from error
    try:
        at, is_last = 0, False
        while not is_last:
            extents = _extents_from(fd, at)
            is_last = not extents
            for logical, physical, length, flags in extents:
                at, is_last = logical + length, bool(flags & _LAST)
                if not flags & _NOT_ON_THE_DEVICE and length:
                    yield physical, length
    except OSError as error:
        raise _not_possible(f"{path} has no map of its extents: {error.strerror}") from error
    finally:
        os.close(fd)


def _extents_from(fd: int, start: int) -> list[tuple[int, int, int, int]]:
    """Return place in the file, place on the device, length and flags of the first extents from ``start``."""
    request = bytearray(_HEADER.size + _EXTENTS_AT_ONCE * _EXTENT.size)
    _HEADER.pack_into(request, 0, start, (1 << 64) - 1 - start, _FLAG_SYNC, 0, _EXTENTS_AT_ONCE, 0)
    fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    count = _HEADER.unpack_from(request)[3]
    return [_EXTENT.unpack_from(request, _HEADER.size + i * _EXTENT.size) for i in range(count)]
