"""The peer: the least a pyfuse3 file system can do for one file.

``python -m bench.servers.naive_passthrough FILE MOUNT`` serves it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

INODE = pyfuse3.InodeT(2)


class OneFile(pyfuse3.Operations):
    """``MOUNT/os.img`` is FILE: pread, pwrite, fdatasync, no log."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDWR)

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.st_mode = stat.S_IFDIR | 0o700 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else os.fstat(self._fd).st_size
        entry.entry_timeout = entry.attr_timeout = 300
        return entry

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        """Return the attributes of the folder or the file."""
        return self._attributes(inode)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of the only file."""
        if name != b"os.img":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(INODE)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the file."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Read from the file."""
        return os.pread(self._fd, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Write to the file."""
        return os.pwrite(self._fd, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Sync the file in a thread, as siterig does."""
        await trio.to_thread.run_sync(os.fdatasync, self._fd)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing at a close of the file."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing at the last close of the file."""


def main() -> None:
    """Serve until unmounted."""
    path, mountpoint = Path(sys.argv[1]), sys.argv[2]
    pyfuse3.init(OneFile(path), mountpoint, set(pyfuse3.default_options) | {"fsname=siterig:naive"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
