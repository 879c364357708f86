"""Copy-before-write snapshots, for initial replication and resync.  C copies the chunks (cext/src/disk/snapshot.c).

Fault contract: a snapshot lives only as long as the process.  A store file that is left is deleted at the next start, and
the copy that used it takes a new snapshot.  If the space of the store runs out (the space of the host, or the store's share
of the disk's size), the snapshot fails (``SnapshotFailed``) and the disk does not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siterig.blockfs.changelog.disk_log import check
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk_core import DiskCore
from siterig.blockfs.disk.disk_tracking import DiskTracking
from siterig.blockfs.files import safe_files
from siterig.blockfs.layers.layer import Layer, RawLayer, merge_ranges
from siterig.cext._core import ffi, lib


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """The parts of a tracked disk of which a snapshot is made."""

    core: DiskCore
    tracking: DiskTracking

    @property
    def path(self) -> Path:
        """The store: the file that keeps old chunks."""
        return self.core.paths.file("snapshot")

    @property
    def bytes_max(self) -> int:
        """The largest number of bytes in the store of a snapshot that begins now."""
        return int(self.core.size_bytes * self.core.options.snapshot_share_max)


class Snapshot:
    """A disk as it was.  Chunks that are about to change are copied to a store first, until they are released.

    Attributes:
        first_seq: first sequence number of the log that is not in the snapshot.
        position: the snapshot holds exactly the records up to this position.
        begun_ns: wall time at which it was taken, in nanoseconds since 1970.
        data_ranges: (offset, length) of the data of the disk as it was.
    """

    def __init__(self, disk: Any, layer: Layer, path: Path, *, first_seq: int, position: int, begun_ns: int) -> None:
        """Describe a snapshot that has begun in the C disk ``disk``."""
        self.first_seq = first_seq
        self.position = position
        self.begun_ns = begun_ns
        self._disk = disk
        self._path = path
        self.size_bytes = int(self._info.bytes)
        # A range that was data and is a hole now was copied to the store before: both together are all former data.
        store = RawLayer(path)
        self.data_ranges = [
            (offset, min(length, self.size_bytes - offset))
            for offset, length in merge_ranges(layer.data_ranges() + store.data_ranges())
            if offset < self.size_bytes
        ]
        store.close()

    @property
    def _info(self) -> Any:
        info = ffi.new("struct sr_snapshot_info *")
        lib.sr_snapshot_info(self._disk, info)
        return info

    @property
    def store_bytes(self) -> int:
        """Bytes of old chunks in the store."""
        return int(self._info.store_bytes)

    @property
    def store_bytes_max(self) -> int:
        """Limit of :attr:`store_bytes`."""
        return int(self._info.store_bytes_max)

    def pread(self, offset: int, length: int) -> bytes:
        """Return the bytes as they were.

        Raises:
            RigError: ``SnapshotFailed`` if they could not be kept, or were released.
        """
        data = bytearray(length)
        rc = lib.sr_snapshot_read(self._disk, ffi.from_buffer(data), length, offset)
        if rc == -errno.EIO:
            raise RigError(Code.SnapshotFailed, f"{self._path.name}: {self._why_not(offset)}", recoverable=True)
        check(rc)
        return bytes(data)

    def _why_not(self, offset: int) -> str:
        info = self._info
        if not info.exists:
            return "the snapshot was removed"
        if info.error == errno.ENOSPC and info.store_bytes + lib.SR_CHUNK_BYTES > info.store_bytes_max:
            return f"could not keep old data: the {info.store_bytes_max} bytes that it may take are used up"
        if info.error:
            return f"could not keep old data: {os.strerror(info.error)}"
        if offset < info.released:
            return f"byte {offset} was released (below {info.released})"
        return f"byte {offset} cannot be read"

    def release(self, upto: int) -> None:
        """Stop preserving bytes below ``upto``, rounded down to a chunk."""
        lib.sr_snapshot_release(self._disk, upto)

    def close(self) -> None:
        """Remove the snapshot and its store; reads through open handles fail from now on."""
        lib.sr_snapshot_end(self._disk)
        self._path.unlink()


def begin_snapshots(disks: Sequence[SnapshotSource]) -> list[Snapshot]:
    """Begin snapshots of all these disks at one position.

    Raises:
        OSError: a store could not be created; no snapshot was begun.
        RigError: ``NotTracked``; no snapshot was begun.
    """
    paths = [disk.path for disk in disks]
    fds: list[int] = []
    first_seqs, position = ffi.new("uint64_t[]", len(disks)), ffi.new("uint64_t *")
    try:
        fds += [safe_files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for path in paths]
        limits = [disk.bytes_max for disk in disks]
        while (
            rc := lib.sr_snapshots_begin([disk.core.c for disk in disks], fds, limits, len(disks), first_seqs, position)
        ) == -errno.EAGAIN:
            for disk in disks:
                disk.tracking.log.provide_spare()
        check(rc)
    except BaseException:
        for fd, path in zip(fds, paths, strict=False):
            os.close(fd)
            path.unlink()
        raise
    for disk in disks:
        disk.tracking.log.reconcile_segments()
    return [
        Snapshot(
            disk.core.c,
            disk.core.layer,
            path,
            first_seq=int(first_seqs[i]),
            position=int(position[0]),
            begun_ns=disk.core.options.clock.wall_ns(),
        )
        for i, (disk, path) in enumerate(zip(disks, paths, strict=True))
    ]
