"""The FUSE file system: a folder a VM, in it the disks as files; as fixed VHDs, their change logs and snapshots read-only.

Fault contract: holds no state of its own but open handles.  It is mounted and served by :mod:`blockfs.serving`.

Requests on disks run on the trio thread (:mod:`blockfs.disk` says why); only fsync goes to a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import structlog

from blockfs import vhd
from blockfs.disk import Disk
from blockfs.disk_log import find_segments, is_segment
from blockfs.errors import RigError
from blockfs.host import DiskHost

ATTRIBUTE_TIMEOUT_S = 1.0
_log = structlog.get_logger("blockfs.filesystem")


@dataclass(frozen=True, slots=True)
class _Node:
    """What an inode stands for: the root, a VM's folder (``vm``), or a file in it (``vm``/``file``)."""

    vm: str = ""
    file: str = ""


@dataclass(slots=True)
class _Handle:
    """An open file: how to read it; the disk, if it is one that can be written."""

    read: Callable[[int, int], bytes]
    disk: Disk | None
    release: Callable[[], None]
    writable: bool


class DiskFileSystem(pyfuse3.Operations):
    """The names and attributes of a :class:`DiskHost`'s disks.  Inodes are handed out once and never used again."""

    supports_dot_lookup = True
    enable_writeback_cache = False  # it reorders and merges the guest's writes before they are logged

    def __init__(self, host: DiskHost) -> None:
        super().__init__()
        self._host = host
        self._nodes: dict[int, _Node] = {pyfuse3.ROOT_INODE: _Node()}
        self._inodes: dict[_Node, int] = {_Node(): pyfuse3.ROOT_INODE}
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1

    # --- names --------------------------------------------------------------------------------------------------

    def _inode(self, node: _Node) -> int:
        inode = self._inodes.get(node)
        if inode is None:
            inode = pyfuse3.InodeT(pyfuse3.ROOT_INODE + len(self._nodes))
            self._inodes[node] = inode
            self._nodes[inode] = node
        return inode

    def _names(self, node: _Node) -> list[str]:
        if not node.vm:
            return sorted(self._host.vms)
        names = []
        for disk in self._host.vms.get(node.vm, {}).values():
            names.append(f"{disk.place.name}.img")
            if vhd.can_be_vhd(disk.size_bytes):
                names.append(f"{disk.place.name}.vhd")
            names += [path.name for _, path in find_segments(disk.place.folder, disk.place.name)]
            if disk.snapshot is not None:
                names.append(f"{disk.place.name}.snapshot")
        return sorted(names)

    def _disk_of(self, node: _Node, suffix: str) -> Disk | None:
        if not node.file.endswith(suffix):
            return None
        return self._host.vms.get(node.vm, {}).get(node.file.removesuffix(suffix))

    def _log_path(self, node: _Node) -> Path | None:
        """The backing file of a change log in the mount."""
        disk = self._host.vms.get(node.vm, {}).get(node.file.split(".", 1)[0])
        if disk is None:
            return None
        path = disk.place.folder / node.file
        return path if is_segment(disk.place.name, node.file) and path.exists() else None

    def _attributes(self, node: _Node) -> pyfuse3.EntryAttributes:
        """``ENOENT`` for what is no longer there."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._inode(node)
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_blksize = 4096
        entry.entry_timeout = entry.attr_timeout = ATTRIBUTE_TIMEOUT_S
        if not node.file:
            if node.vm and node.vm not in self._host.vms:
                raise pyfuse3.FUSEError(errno.ENOENT)
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o700, 2
            return entry
        entry.st_nlink = 1
        if (disk := self._disk_of(node, ".img")) is not None:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o600, disk.size_bytes
        elif (disk := self._disk_of(node, ".vhd")) is not None and vhd.can_be_vhd(disk.size_bytes):
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o400, disk.size_bytes + vhd.FOOTER_BYTES
        elif (disk := self._disk_of(node, ".snapshot")) is not None and disk.snapshot is not None:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o400, disk.snapshot.size_bytes
        elif (path := self._log_path(node)) is not None:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o400, path.stat().st_size
            entry.attr_timeout = 0  # it grows without the kernel's knowledge
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_blocks = -(-entry.st_size // 512)
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name in a folder."""
        parent, text = self._nodes[parent_inode], os.fsdecode(name)
        if text in (".", ".."):
            return self._attributes(parent if text == "." else _Node())
        if parent.file:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return self._attributes(_Node(parent.vm, text) if parent.vm else _Node(text))

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        """Attributes of a file or folder."""
        return self._attributes(self._nodes[inode])

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Times are taken and forgotten; size, mode and owner cannot be changed from here (``EPERM``)."""
        entry = self._attributes(self._nodes[inode])
        if (fields.update_size and attr.st_size != entry.st_size) or fields.update_mode or fields.update_uid:
            raise pyfuse3.FUSEError(errno.EPERM)
        return entry

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """A folder's handle is its inode."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a folder; names may come and go meanwhile."""
        node = self._nodes[fh]
        for i, name in enumerate(self._names(node)[start_id:], start_id + 1):
            try:
                entry = self._attributes(_Node(node.vm, name) if node.vm else _Node(name))
            except (pyfuse3.FUSEError, FileNotFoundError):
                continue
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, i):
                return

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The space of the host's file system, which the disks and logs share."""
        found, data = os.statvfs(self._host.root), pyfuse3.StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, field, getattr(found, field))
        data.f_namemax = 255
        return data

    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Only the owner gets here: the mount is private."""
        return True

    # --- bytes --------------------------------------------------------------------------------------------------

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Disks can be read and written; their VHD form, logs and snapshots read."""
        node, writable = self._nodes[inode], flags & os.O_ACCMODE != os.O_RDONLY
        if (disk := self._disk_of(node, ".img")) is not None:
            disk.handles += 1
            return self._opened(_Handle(disk.read, disk, disk.released, writable), direct_io=False)
        if writable:
            raise pyfuse3.FUSEError(errno.EACCES)
        if (disk := self._disk_of(node, ".vhd")) is not None and vhd.can_be_vhd(disk.size_bytes):
            # Not cached: it has other pages than the disk's own file, which somebody may be writing to.
            disk.handles += 1
            return self._opened(_Handle(_vhd_reader(disk), None, disk.released, writable=False), direct_io=True)
        if (disk := self._disk_of(node, ".snapshot")) is not None and disk.snapshot is not None:
            return self._opened(_Handle(disk.snapshot.pread, None, lambda: None, writable=False), direct_io=True)
        if (path := self._log_path(node)) is not None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._opened(
                _Handle(lambda offset, length: os.pread(fd, length, offset), None, lambda: os.close(fd), writable=False),
                direct_io=True,
            )
        raise pyfuse3.FUSEError(errno.ENOENT)

    def _opened(self, handle: _Handle, *, direct_io: bool) -> pyfuse3.FileInfo:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        # What the kernel has cached may be of another disk: a VM that was removed and made again has the same inodes.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(number), direct_io=direct_io, keep_cache=False)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Bytes of a disk, log or snapshot."""
        with _as_fuse_error():
            return self._handles[fh].read(off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Bytes to a disk: logged, then written."""
        handle = self._handles[fh]
        if handle.disk is None or not handle.writable:
            raise pyfuse3.FUSEError(errno.EBADF)
        with _as_fuse_error():
            handle.disk.write(off, buf)
        return len(buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """The durability barrier: the log and the disk."""
        disk = self._handles[fh].disk
        if disk is not None:
            with _as_fuse_error():
                await disk.flush()

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Runs at each close of a descriptor; it is no barrier."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """The last descriptor of a handle was closed."""
        self._handles.pop(fh).release()


def _vhd_reader(disk: Disk) -> Callable[[int, int], bytes]:
    """Reads a disk as a fixed VHD: its bytes, then the footer."""
    footer = vhd.fixed_footer(disk.size_bytes, disk.state.disk_id)

    def read(offset: int, length: int) -> bytes:
        behind = max(offset - disk.size_bytes, 0)
        data = disk.read(offset, length)
        return data + footer[behind : behind + length - len(data)]

    return read


@contextlib.contextmanager
def _as_fuse_error() -> Iterator[None]:
    """Turn a file error into the guest's errno, and a ``RigError`` into ``EIO`` with a line in the log."""
    try:
        yield
    except OSError as exc:
        raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc
    except RigError as exc:
        _log.warning("request_failed", code=exc.code, message=exc.message)
        raise pyfuse3.FUSEError(errno.EIO) from exc
