"""Attaches loop devices by the kernel's calls, without a program: in less than a millisecond, from any thread.

:mod:`siterig.blockfs.guests.loop_devices` uses ``losetup``, which suits a role that attaches a disk now and then.  A test
that gets a file system of its own cannot wait for that.

Fault contract: the kernel detaches such a device as soon as nothing uses it any more (``LO_FLAGS_AUTOCLEAR``), so a process
that is killed leaves at most a mount.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError

CONTROL = "/dev/loop-control"
_TRIES_MAX = 64
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # <linux/loop.h>
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_CONFIG = struct.Struct("=II 3Q Q Q 4I 64s 64s 32s 2Q 8Q")
"""``struct loop_config``: descriptor, block size, ``struct loop_info64`` (whose flags are number 9 here), reserved."""


@contextmanager
def attached(disk: Path, *, read_only: bool = False, sector_bytes: int = 512) -> Iterator[str]:
    """Attach a loop device to a disk file for the time of the block, or longer if it is mounted within the block.

    Args:
        disk: the disk file.
        read_only: the device refuses writes.
        sector_bytes: the logical sector size that the device declares.

    Yields:
        The name of the device (``/dev/loopN``).

    Raises:
        RigError: ``AttachFailed``.
    """
    try:
        backing = os.open(disk, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            device, name = _attach(backing, (_READ_ONLY if read_only else 0) | _AUTOCLEAR | _DIRECT_IO, sector_bytes)
        finally:
            os.close(backing)
    except OSError as exc:
        raise RigError(
            Code.AttachFailed,
            f"disk {disk} cannot be attached to a loop device: {exc.strerror}; siterig doctor checks it",
        ) from exc
    try:
        yield name
    finally:
        os.close(device)


def _attach(backing: int, flags: int, sector_bytes: int) -> tuple[int, str]:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES_MAX):
            name = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            try:
                values = [backing, sector_bytes, 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", *[0] * 10]
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(*values))
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:  # another process has taken it since
                    raise
            else:
                return device, name
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"{_TRIES_MAX} free devices were taken by other programs")
