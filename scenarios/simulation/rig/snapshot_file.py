"""A snapshot that is read from the disk host in this process, with the errors of a mount whose server is gone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.cext.checksums import chunk_tag
from siterig.cext.packed_tags import PackedTags, Span
from siterig.replication.engine.snapshots import SnapshotFile


class HostSnapshot(SnapshotFile):
    """The snapshot of one disk of one life of the host."""

    def __init__(self, present: Callable[[], DiskHost | None], host: DiskHost, path: Path) -> None:
        """Open the snapshot that ``path`` names in the mount.

        Args:
            present: returns the disk host that lives now.
            host: the disk host that serves the snapshot.
            path: the path of the snapshot's file in the mount.
        """
        self._present = present
        self._host = host
        self._path = path
        snapshot = host.disk(path.parent.name, path.stem).snapshot
        if snapshot is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        self._snapshot = snapshot

    def pread_into(self, offset: int, memory: memoryview) -> None:
        memory[:] = self._pread(offset, len(memory))

    def _pread(self, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        if self._present() is not self._host:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(self._path))
        return self._snapshot.pread(offset, length)

    def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
        size, packed = self._snapshot.size_bytes, bytearray()
        for first, count in spans:
            for chunk in range(first, first + count):
                begin = chunk * chunk_bytes
                piece = self._pread(begin, max(0, min(chunk_bytes, size - begin))).ljust(chunk_bytes, b"\0")
                tag = chunk_tag(key, chunk, piece)
                if any(tag):
                    packed += chunk.to_bytes(8, "little") + tag
        return PackedTags(bytes(packed), None)

    def close(self) -> None:
        pass
