"""Reading a disk's snapshot: through its file in the mount, in chunks."""

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
        """Exactly ``length`` bytes."""
        ...

    def tags(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Keyed tags of ``count`` chunks from chunk ``first``, as :func:`siterig.cext.checksums.chunk_tag` makes them."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class MountedSnapshot:
    """The snapshot's read-only file in the mount."""

    def __init__(self, path: Path) -> None:
        self._file = RawLayer(path)
        self.pread = self._file.pread
        self.close = self._file.close

    def tags(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Keyed tags; holes are skipped."""
        return chunk_tags_fd(self._file.fileno(), key, chunk_bytes, first, count)


def pieces(data_ranges: list[tuple[int, int]], start: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is to be read from ``start`` on; no piece crosses a chunk's border."""
    for offset, length in data_ranges:
        at, end = max(offset, start), offset + length
        while at < end:
            stop = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield at, stop - at
            at = stop
