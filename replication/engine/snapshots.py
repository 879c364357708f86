"""Reads a disk's snapshot through its file in the mount, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from siterig.blockfs.layers.layer import RawLayer
from siterig.cext.checksums import chunk_tags_fd

CHUNK_BYTES = 1 << 20


class SnapshotFile(Protocol):
    """A snapshot that is open for reading.  Its calls block: use them in a thread."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``."""
        ...

    def tags(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Return the keyed tags (:func:`siterig.cext.checksums.chunk_tag`) of ``count`` chunks from chunk ``first``."""
        ...

    def close(self) -> None:
        """Close the snapshot."""
        ...


class MountedSnapshot(SnapshotFile):
    """The read-only file of a snapshot in the mount."""

    def __init__(self, path: Path) -> None:
        self._file = RawLayer(path)

    def pread(self, offset: int, length: int) -> bytes:
        return self._file.pread(offset, length)

    def close(self) -> None:
        self._file.close()

    def tags(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Return keyed tags as the base class does; holes are not read."""
        return chunk_tags_fd(self._file.fileno(), key, chunk_bytes, first, count)


def pieces(data_ranges: list[tuple[int, int]], start: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the data from ``start`` on; no piece crosses the border of a chunk."""
    for offset, length in data_ranges:
        at, end = max(offset, start), offset + length
        while at < end:
            stop = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield at, stop - at
            at = stop
