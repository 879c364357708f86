"""Opens files that a user names, only after a check of their type, and without waiting.

Fault contract: a name is resolved once (:func:`siterig.blockfs.files.safe_files.open_named`), to a descriptor whose type is
checked.  Exactly that file is opened for reading or writing, even if the name leads to another file by then.  No FIFO,
socket or character device is opened: that could wait for ever or start something (a tape, a watchdog).  A block device is
opened exclusively: a device that is mounted, used as swap or held by another program is refused, and cannot be mounted while
it is open here.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import block_device, safe_files
from siterig.blockfs.files.os_errors import reason

_NOT_OPENED = {
    stat.S_IFDIR: "is a folder",
    stat.S_IFIFO: "is no regular file, but a FIFO",
    stat.S_IFSOCK: "is no regular file, but a socket",
    stat.S_IFCHR: "is no regular file, but a character device",
    stat.S_IFBLK: "is a block device",
    stat.S_IFLNK: "is a symbolic link",
}


def open_file(path: Path, flags: int, *, code: Code, purpose: str, devices: bool = False) -> int:
    """Return a descriptor of a regular file or, with ``devices``, of a block device; nothing is created.

    Args:
        path: the file.
        flags: flags of open(2).
        code: code of the error if the file is missing, has another type or cannot be opened.
        wanted: end of its message, for example "an image is a file that holds the bytes of a disk".
        devices: True to allow block devices.
    Raises:
        RigError: ``code``; ``ImageBusy`` if the block device is in use; ``ForeignFile`` from
            :func:`siterig.blockfs.files.safe_files.open_named`.
    """
    device = 0

    def check(status: os.stat_result) -> int:
        nonlocal device
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFBLK and devices:
            device = status.st_rdev
            return os.O_EXCL
        if kind != stat.S_IFREG:
            raise RigError(code, f"{path}: {_NOT_OPENED.get(kind, 'is no regular file')}; {purpose}")
        return 0

    try:
        return safe_files.open_named(path, flags | os.O_NOCTTY, check=check)
    except FileNotFoundError:
        raise RigError(code, f"{path}: does not exist") from None
    except OSError as exc:
        if exc.errno == errno.EBUSY and device:
            holders = block_device.holders(device)
            raise RigError(Code.ImageBusy, f"{path}: is in use: {', '.join(holders) or 'another program has it'}") from exc
        raise NotOpenedError(code, path, exc) from exc


class NotOpenedError(RigError):
    """The host did not open a file; ``errno`` is the reason."""

    def __init__(self, code: Code, path: Path, exc: OSError) -> None:
        super().__init__(code, f"{path}: cannot be opened: {reason(exc, path)}")
        self.errno = exc.errno


async def open_in_thread(open_: Callable[[], int]) -> int:
    """Run ``open_`` in a thread and return its descriptor; a cancellation ends the call at once.

    The file system may never answer.  A descriptor that is opened after the cancellation is closed.
    """
    lock = threading.Lock()
    opened: list[int] = []
    abandoned = False

    def work() -> None:
        fd = open_()
        with lock:
            if abandoned:
                os.close(fd)
            else:
                opened.append(fd)

    try:
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)
    except BaseException:
        with lock:
            abandoned = True
            for fd in opened:
                os.close(fd)
        raise
    return opened[0]
