"""The FUSE file system: disks as files, and read-only: their fixed VHDs, change logs, snapshots and counters.

Fault contract: it has no state except open handles.  :mod:`siterig.blockfs.fuse.server` mounts and serves it.

This module answers requests about names and attributes.  The disk in C reads and writes the bytes: for the FUSE server
(:mod:`siterig.blockfs.fuse.server`), or through the methods below if there is no FUSE server.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyfuse3
import structlog
import trio

from siterig.blockfs.changelog.disk_log import find_segments, segment_number
from siterig.blockfs.changelog.shown_log import open_decrypted
from siterig.blockfs.contracts import counters
from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk import disk_report
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.file_attributes import READ_ONLY_MODE, FileTimes, WantedAttributes
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.host.disk_tree import ROOT, DiskTree
from siterig.blockfs.images import vhd
from siterig.cext._core import ffi, lib

ATTRIBUTE_TIMEOUT_S = 0.0
"""Seconds for which the kernel may cache attributes: none, because some changes do not come through the kernel."""
ENTRY_TIMEOUT_S = 1.0
"""Seconds for which the kernel may cache that a name leads to a file."""
WAITING_MAX = 512
"""Most requests that wait for fault rules at the same time, each in a thread, if there is no FUSE server."""
INODES = 1 << 52
"""Inode numbers are smaller than this, so that every program and JSON can represent them."""
_log = structlog.get_logger("siterig.blockfs.fuse.filesystem")


@dataclass(frozen=True, slots=True)
class _Node:
    """The object of an inode: a folder, by its path (``ROOT`` is the root folder), or a file in that folder."""

    folder: str = ROOT
    file: str = ""

    def parent(self) -> _Node:
        """Return the parent of a folder; the root folder is its own parent."""
        return _Node(self.folder.rpartition("/")[0])


@dataclass(frozen=True, slots=True)
class _Handle:
    """An open file of a disk; ``uncached``: the kernel caches no page of it."""

    disk: Disk
    is_disk: bool
    uncached: bool


class DiskFileSystem(pyfuse3.Operations):
    """The names and attributes of the disks of a :class:`DiskTree`.

    The inode number of a file depends on its path and its disk: a disk that replaces another has a different number.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False  # it reorders and merges the guest's writes before they are logged

    def __init__(self, tree: DiskTree, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__()
        self._tree = tree
        self._clock = clock
        self._nodes: dict[int, _Node] = {pyfuse3.ROOT_INODE: _Node()}
        self._inodes: dict[_Node, tuple[str, int]] = {_Node(): ("", pyfuse3.ROOT_INODE)}
        self._stats_times: weakref.WeakKeyDictionary[Disk, tuple[DiskCounters, int]] = weakref.WeakKeyDictionary()
        self._handles: dict[int, _Handle] = {}
        self._waiting = trio.CapacityLimiter(WAITING_MAX)
        tree.on_grown(self._forget_size)

    @property
    def inodes_known(self) -> int:
        """Number of inodes that the file system remembers: one for each path that a request has found."""
        return len(self._nodes)

    # --- names --------------------------------------------------------------------------------------------------

    def _inode(self, node: _Node, identity: str = "") -> int:
        """Return an inode number that is the same after each start, and different for each ``identity`` of the same path."""
        known = self._inodes.get(node)
        if known is not None and known[0] == identity:
            return known[1]
        name = os.fsencode(f"{node.folder}\0{node.file}\0{identity}")
        number = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") % INODES
        while number <= pyfuse3.ROOT_INODE or self._nodes.get(number, node) != node:
            number = (number + 1) % INODES
        self._inodes[node] = (identity, number)
        self._nodes[number] = node
        return number

    def _child(self, folder: str, name: str) -> _Node:
        if name in self._tree.folders(folder):
            return _Node(f"{folder}/{name}" if folder else name)
        return _Node(folder, name)

    def _names(self, folder: str) -> list[str]:
        names = list(self._tree.folders(folder))
        for disk in (self._tree.disks_in(folder) or {}).values():
            names.append(f"{disk.paths.name}.img")
            if vhd.can_be_vhd(disk.size_bytes):
                names.append(f"{disk.paths.name}.vhd")
            names.append(f"{disk.paths.name}.stats")
            names += [path.name for _, path in find_segments(disk.paths.folder, disk.paths.name)]
            if disk.snapshot is not None:
                names.append(f"{disk.paths.name}.snapshot")
        return sorted(names)

    def _disk_of(self, node: _Node, suffix: str) -> Disk | None:
        if not node.file.endswith(suffix):
            return None
        return (self._tree.disks_in(node.folder) or {}).get(node.file.removesuffix(suffix))

    def _log_of(self, node: _Node) -> tuple[Disk, int, Path] | None:
        """Return disk, number and backing file of a segment in the mount; None if the file is no segment."""
        name = node.file.removesuffix(".hrl").rpartition(".")[0]  # a disk's name may have dots
        disk = (self._tree.disks_in(node.folder) or {}).get(name)
        number = segment_number(disk.paths.name, node.file) if disk is not None else None
        if disk is None or number is None:
            return None
        path = disk.paths.folder / node.file
        return (disk, number, path) if path.exists() else None

    def _attributes(self, node: _Node) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file or folder; ``ENOENT`` if it does not exist any more."""
        entry = pyfuse3.EntryAttributes()
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_blksize = 4096
        entry.st_nlink = 1
        entry.entry_timeout = ENTRY_TIMEOUT_S
        entry.attr_timeout = ATTRIBUTE_TIMEOUT_S
        if not node.file:
            self._describe_folder(node, entry)
        elif (disk := self._disk_of(node, ".img")) is not None:
            entry.st_size, entry.st_mode = disk.size_bytes, stat.S_IFREG | disk.attributes.mode
            entry.st_uid, entry.st_gid = disk.attributes.owner
            _set_times(entry, disk.attributes.times)
            entry.st_ino = self._inode(node, disk.attributes.identity)
            entry.st_blocks = _blocks(disk.stored_bytes)
        else:
            self._describe_made(node, entry)
        return entry

    def _describe_folder(self, node: _Node, entry: pyfuse3.EntryAttributes) -> None:
        if self._tree.disks_in(node.folder) is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o700, 2
        with contextlib.suppress(FileNotFoundError):  # its last name is being removed
            _set_times(entry, _times_of(self._tree.kept_in(node.folder).stat()))
        entry.st_ino = self._inode(node)

    def _describe_made(self, node: _Node, entry: pyfuse3.EntryAttributes) -> None:
        """Fill in the attributes of a read-only file that is derived from a disk."""
        stored_bytes = None
        if (disk := self._disk_of(node, ".vhd")) is not None and vhd.can_be_vhd(disk.size_bytes):
            size_bytes, times = disk.size_bytes + vhd.FOOTER_BYTES, disk.attributes.times
            stored_bytes = disk.stored_bytes + vhd.FOOTER_BYTES
        elif (disk := self._disk_of(node, ".snapshot")) is not None and disk.snapshot is not None:
            size_bytes, times = disk.snapshot.size_bytes, FileTimes.at(disk.snapshot.begun_ns)
        elif (disk := self._disk_of(node, ".stats")) is not None:
            size_bytes, times = 0, self._times_of_stats(disk)  # as in /proc: the text is made when the file is opened
        elif (found := self._log_of(node)) is not None:
            disk, number, path = found
            try:
                size_bytes, times = disk.tracking.segment_bytes(number, path), _times_of(path.stat())
            except FileNotFoundError as exc:  # applied and deleted just now
                raise pyfuse3.FUSEError(errno.ENOENT) from exc
        else:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_size, entry.st_mode = size_bytes, stat.S_IFREG | READ_ONLY_MODE
        entry.st_blocks = _blocks(size_bytes if stored_bytes is None else stored_bytes)
        _set_times(entry, times)
        entry.st_ino = self._inode(node, disk.attributes.identity)

    def _times_of_stats(self, disk: Disk) -> FileTimes:
        """Return the time at which the counters were last found changed."""
        found = disk_report.count(disk)
        before = self._stats_times.get(disk)
        if before is None or before[0] != found:
            before = self._stats_times[disk] = (found, self._clock.wall_ns())
        return FileTimes.at(before[1])

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes of a name in a folder."""
        parent, text = self._nodes[parent_inode], os.fsdecode(name)
        if text in (".", ".."):
            return self._attributes(parent if text == "." else parent.parent())
        if parent.file:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return self._attributes(self._child(parent.folder, text))

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file or folder."""
        return self._attributes(self._nodes[inode])

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Grow a disk, or set its mode, owner and times; other changes are refused (``EPERM``, ``EROFS``)."""
        node = self._nodes[inode]
        entry = self._attributes(node)
        disk = self._disk_of(node, ".img")
        if disk is None:
            raise pyfuse3.FUSEError(errno.EPERM)
        if disk.read_only:
            raise pyfuse3.FUSEError(errno.EROFS)
        attributes = _wanted(attr, fields)
        try:
            if fields.update_size and attr.st_size != entry.st_size:
                disk.resize(attr.st_size)
            elif not attributes.nothing:
                disk.attributes.change(attributes)
        except RigError as exc:
            _log.info("attributes_not_set", disk=str(disk.paths), code=exc.code, message=exc.message)
            refused = exc.code == Code.InvalidDiskSize
            raise pyfuse3.FUSEError(_why_not_resized(disk, attr.st_size) if refused else errno.EIO) from exc
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc
        return self._attributes(node)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """Return the inode of a folder as its handle."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a folder; names may appear and disappear meanwhile."""
        folder = self._nodes[fh].folder
        for i, name in enumerate(self._names(folder)[start_id:], start_id + 1):
            try:
                entry = self._attributes(self._child(folder, name))
            except (pyfuse3.FUSEError, FileNotFoundError):
                continue
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, i):
                return

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the space of the host's file system, which the disks and logs share."""
        found, data = os.statvfs(self._tree.root), pyfuse3.StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, field, getattr(found, field))
        data.f_namemax = 255
        return data

    # The names follow from the disks of the host: no name can be created, removed or moved in the mount.  Without these
    # methods a caller would get ENOSYS, "Function not implemented".

    async def create(self, *_args: object, **_more: object) -> NoReturn:
        """Refuse to create, remove or rename anything (``EPERM``)."""
        raise pyfuse3.FUSEError(errno.EPERM)

    mknod = mkdir = symlink = link = unlink = rmdir = rename = create

    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Return True: the mount is private, so only its owner gets here."""
        return True

    # --- bytes --------------------------------------------------------------------------------------------------

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a disk for reading or writing, or its VHD form, log, snapshot or counters for reading."""
        try:
            return self._open(inode, flags)
        except OSError as exc:  # for example, no descriptor is left: that must not end the mount
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    def _open(self, inode: pyfuse3.InodeT, flags: int) -> pyfuse3.FileInfo:
        node, writable = self._nodes[inode], flags & os.O_ACCMODE != os.O_RDONLY
        if (disk := self._disk_of(node, ".img")) is not None:
            if writable and disk.read_only:
                raise pyfuse3.FUSEError(errno.EROFS)
            uncached = self._is_uncached(disk, direct=bool(flags & os.O_DIRECT))
            return self._opened(disk, lib.SR_HANDLE_DISK, writable=writable, uncached=uncached)
        if writable:
            raise pyfuse3.FUSEError(errno.EACCES)
        if (disk := self._disk_of(node, ".vhd")) is not None and vhd.can_be_vhd(disk.size_bytes):
            footer = vhd.fixed_footer(disk.size_bytes, disk.state.disk_id)
            return self._opened(disk, lib.SR_HANDLE_VHD, footer=footer)
        if (disk := self._disk_of(node, ".snapshot")) is not None and disk.snapshot is not None:
            return self._opened(disk, lib.SR_HANDLE_SNAPSHOT)
        if (disk := self._disk_of(node, ".stats")) is not None:
            return self._opened_text(disk, counters.as_text(disk_report.count(disk)))
        if (found := self._log_of(node)) is not None:
            disk, number, path = found
            if disk.cipher is not None:
                fd = open_decrypted(path, disk.cipher, disk.tracking.segment_bytes(number, path))
                return self._opened(disk, lib.SR_HANDLE_FILE, fd=fd)
            return self._opened(disk, lib.SR_HANDLE_LOG, fd=safe_files.open_file(path, os.O_RDONLY), number=number)
        raise pyfuse3.FUSEError(errno.ENOENT)

    def _is_uncached(self, disk: Disk, *, direct: bool) -> bool:
        """Return True if the kernel must cache no page for a program that opens the disk now.

        The mode is that of the programs that have the disk open already.  Otherwise it is uncached for ``O_DIRECT``: the
        kernel then sends writes in parallel, as the FUSE server asked.  Never both modes at once: an uncached write clears
        the cache before it is sent and not after it, so a reader meanwhile would keep old bytes.
        """
        others = [handle.uncached for handle in self._handles.values() if handle.disk is disk and handle.is_disk]
        return others[0] if others else direct

    def _opened(
        self,
        disk: Disk,
        kind: int,
        *,
        writable: bool = False,
        uncached: bool = True,
        footer: bytes = b"",
        fd: int = -1,
        number: int = 0,
    ) -> pyfuse3.FileInfo:
        handle = _open_handle(disk, kind, writable=writable, footer=footer, fd=fd, number=number)
        self._handles[handle] = _Handle(disk, kind == lib.SR_HANDLE_DISK, uncached)
        disk.handles += 1
        # Cached pages may belong to another disk: a VM that was removed and created again has the same inodes.
        # Only the disk is cached: the other files have pages of their own, and change without the kernel's knowledge.
        return pyfuse3.FileInfo(fh=handle, direct_io=uncached, keep_cache=False)

    def _opened_text(self, disk: Disk, text: str) -> pyfuse3.FileInfo:
        fd = os.memfd_create("text", os.MFD_CLOEXEC)
        os.pwrite(fd, text.encode(), 0)
        return pyfuse3.FileInfo(fh=_open_handle(disk, lib.SR_HANDLE_FILE, fd=fd), direct_io=True, keep_cache=False)

    # If the FUSE server runs, it answers these requests itself, with the same functions in C.

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Read bytes of an open file."""
        data = bytearray(size)
        done = await self._answered(fh, lambda handle: lib.sr_handle_read(handle, ffi.from_buffer(data), size, off))
        return bytes(data[:done])

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Log bytes, then write them to the disk; return their number."""
        return await self._answered(fh, lambda handle: lib.sr_handle_write(handle, ffi.from_buffer(buf), len(buf), off))

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Put all acknowledged writes on stable storage, in the log and on the disk."""
        _answer(await self._in_thread(lib.sr_handle_flush, fh))

    async def _answered(self, fh: pyfuse3.FileHandleT, request: Callable[[int], int]) -> int:
        """Execute a request on a handle; in a thread if it may wait for a fault rule, because this thread must not."""
        result = request(fh | lib.SR_HANDLE_NO_WAIT)
        if result == lib.SR_WOULD_WAIT:
            result = await self._in_thread(request, fh)
        return _answer(result)

    async def _in_thread(self, request: Callable[[int], int], fh: pyfuse3.FileHandleT) -> int:
        # At the end of the mount no answer is needed; the request ends when the disk's waits are ended.
        return await trio.to_thread.run_sync(request, fh, abandon_on_cancel=True, limiter=self._waiting)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing: the kernel calls it at each close of a descriptor, and a close is no barrier."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a handle after its last descriptor was closed."""
        lib.sr_handle_close(fh)
        if (handle := self._handles.pop(fh, None)) is not None:  # a reader of the counters does not use the disk
            handle.disk.released()

    # --- the caches of the kernel -------------------------------------------------------------------------------

    def _forget_size(self, disk: Disk) -> None:
        """Make the kernel ask again for a disk's size.  It cannot block, because the kernel has no data to write back."""
        for suffix in ("img", "vhd"):
            known = self._inodes.get(_Node(disk.paths.vm, f"{disk.paths.name}.{suffix}"))
            if known is None:
                continue
            try:
                pyfuse3.invalidate_inode(pyfuse3.InodeT(known[1]), attr_only=True)
            except OSError as exc:  # it has no such inode any more, or asks again when a program needs the size
                _log.debug("size_not_forgotten", disk=str(disk.paths), error=reason(exc))


def _open_handle(
    disk: Disk, kind: int, *, writable: bool = False, footer: bytes = b"", fd: int = -1, number: int = 0
) -> pyfuse3.FileHandleT:
    """Open a handle in C, which owns ``fd`` from now on."""
    handle = int(lib.sr_handle_open(disk.c, kind, writable, footer, fd, number))
    if handle < 0:
        if fd >= 0:
            os.close(fd)
        raise pyfuse3.FUSEError(-handle)
    return pyfuse3.FileHandleT(handle)


def _wanted(attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> WantedAttributes:
    """Return the attributes to set; ``EPERM`` for mode bits that no disk has: set-user-ID, set-group-ID, sticky."""
    mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
    if mode is not None and mode & ~0o777:
        raise pyfuse3.FUSEError(errno.EPERM)
    return WantedAttributes(
        mode=mode,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )


def _blocks(stored_bytes: int) -> int:
    """Return the number of 512-byte blocks: programs look for holes only if fewer blocks are stored than the size needs."""
    return -(-stored_bytes // 512)


def _times_of(status: os.stat_result) -> FileTimes:
    return FileTimes(status.st_mtime_ns, status.st_mtime_ns, status.st_ctime_ns)


def _set_times(entry: pyfuse3.EntryAttributes, times: FileTimes) -> None:
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = times.atime_ns, times.mtime_ns, times.ctime_ns


def _why_not_resized(disk: Disk, size_bytes: int) -> int:
    """Return the errno of a refused size: the same as for ``fallocate`` (cext/src/disk/disk.h, sr_disk_reach)."""
    if size_bytes < disk.size_bytes:
        return errno.EPERM
    step_bytes = disk.growth_step_bytes
    return errno.EINVAL if step_bytes and size_bytes % step_bytes else errno.EFBIG


def _answer(result: int) -> int:
    """Return the result of a function in C; raise its errno for the guest if it is negative."""
    if result < 0:
        raise pyfuse3.FUSEError(-result)
    return int(result)
