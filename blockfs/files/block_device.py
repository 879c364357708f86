"""Block devices of this host: their sizes, sectors and users."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from pathlib import Path

from siterig.blockfs.guests import loop_devices

_BLKSSZGET = 0x1268  # linux/fs.h
_INT = struct.Struct("i")


def is_block_device(fd: int) -> bool:
    """Return True if the descriptor belongs to a block device."""
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def size_bytes(fd: int) -> int:
    """Return the size of a block device or a file; the file offset does not change."""
    if not is_block_device(fd):
        return os.fstat(fd).st_size
    before = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.lseek(fd, before, os.SEEK_SET)


def logical_sector_bytes(fd: int) -> int:
    """Return the logical sector size that a block device declares."""
    return int(_INT.unpack(fcntl.ioctl(fd, _BLKSSZGET, _INT.pack(0)))[0])


def holders(device: int) -> list[str]:
    """Return the mounts, swap areas and devices that use a device (``st_rdev``) or one of its partitions.

    The list has what the kernel shows to this user.
    """
    sys_folder = Path("/sys/dev/block", f"{os.major(device)}:{os.minor(device)}")
    folders = [sys_folder, *sorted(path.parent for path in sys_folder.glob("*/partition"))]
    numbers = {_text(folder / "dev") for folder in folders}
    found = [f"mounted at {point}" for number, _, point in loop_devices.mounts() if number in numbers]
    swap = {line.split(" ")[0] for line in _text(Path("/proc/swaps")).splitlines()[1:]}
    for folder in folders:
        name = folder.resolve().name
        found += [f"/dev/{holder.name} lies on it" for holder in sorted(folder.glob("holders/*"))]
        if f"/dev/{name}" in swap:
            found.append("it is used as swap")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
