"""Copy-before-write snapshots, for initial replication and resync.  The copying is in C (cext/src/disk/snapshot.c).

Fault contract: lives only as long as the process; a leftover store file is deleted at the next start, and the copy
that used it takes a new snapshot.  If the store's space runs out (the host's, or its share of the disk's size), the
snapshot fails (``SnapshotFailed``), the disk does not.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from siterig.blockfs.changelog.disk_log import DiskLog, check
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.layers.layer import Layer, RawLayer, merge_ranges
from siterig.cext._core import ffi, lib


class Snapshotted(Protocol):
    """What a disk must have for a snapshot of it."""

    @property
    def c(self) -> Any:
        """The disk in C."""
        ...

    @property
    def log(self) -> DiskLog:
        """Its change log."""
        ...

    @property
    def layer(self) -> Layer:
        """Its bytes."""
        ...

    @property
    def snapshot_path(self) -> Path:
        """Where old chunks are kept."""
        ...

    @property
    def snapshot_bytes_max(self) -> int:
        """How much they may take."""
        ...


class Snapshot:
    """A disk as it was.  Chunks that are about to change are copied to a store first, until they are released."""

    def __init__(self, disk: Any, layer: Layer, path: Path, *, first_seq: int, position: int) -> None:
        self.first_seq = first_seq
        """First sequence number of the log that is not in the snapshot."""
        self.position = position
        """The snapshot holds exactly the records up to this position."""
        self.begun_ns = time.time_ns()
        """When it was taken; Unix time."""
        self._disk = disk
        self._path = path
        self.size_bytes = int(self._info.bytes)
        # What was data and is none any more was copied to the store before: together they are all that was data.
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
        """How much the store holds."""
        return int(self._info.store_bytes)

    @property
    def store_bytes_max(self) -> int:
        """How much it may hold."""
        return int(self._info.store_bytes_max)

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes as they were; ``SnapshotFailed`` if they could not be kept, or were released."""
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
        """Bytes below ``upto`` need not be preserved any more (rounded down to a chunk)."""
        lib.sr_snapshot_release(self._disk, upto)

    def close(self) -> None:
        """Remove the snapshot and its store; who still has it open gets errors."""
        lib.sr_snapshot_end(self._disk)
        self._path.unlink()


def begin_snapshots(disks: Sequence[Snapshotted]) -> list[Snapshot]:
    """Snapshots of all the disks at one position.  ``OSError``, ``NotTracked``: none was begun."""
    paths = [disk.snapshot_path for disk in disks]
    fds: list[int] = []
    first_seqs, position = ffi.new("uint64_t[]", len(disks)), ffi.new("uint64_t *")
    try:
        fds += [safe_files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for path in paths]
        limits = [disk.snapshot_bytes_max for disk in disks]
        while (
            rc := lib.sr_snapshots_begin([disk.c for disk in disks], fds, limits, len(disks), first_seqs, position)
        ) == -errno.EAGAIN:
            for disk in disks:
                disk.log.provide_spare()
        check(rc)
    except BaseException:
        for fd, path in zip(fds, paths, strict=False):
            os.close(fd)
            path.unlink()
        raise
    for disk in disks:
        disk.log.reconcile_segments()
    return [
        Snapshot(disk.c, disk.layer, path, first_seq=int(first_seqs[i]), position=int(position[0]))
        for i, (disk, path) in enumerate(zip(disks, paths, strict=True))
    ]
