"""Reads a disk's snapshot through its file in the mount, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from siterig.blockfs.layers.chunk_tags import DataRanges, tag_chunks
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.chunk_tags import TAGS_MAX
from siterig.cext.packed_tags import PackedTags, Span

CHUNK_BYTES = 1 << 20


class SnapshotFile(Protocol):
    """A snapshot that is open for reading.  Its calls block: use them in a thread."""

    def pread_into(self, offset: int, memory: memoryview) -> None:
        """Fill all of ``memory`` from ``offset`` on."""
        ...

    def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
        """Return the keyed tags (:func:`siterig.cext.checksums.chunk_tag`) of the chunks of spans.

        ``data`` has the ranges that may be other than zeros; nothing else is read.
        """
        ...

    def close(self) -> None:
        """Close the snapshot."""
        ...


class MountedSnapshot(SnapshotFile):
    """The read-only file of a snapshot in the mount."""

    def __init__(self, path: Path) -> None:
        self._file = RawLayer(path)

    def pread_into(self, offset: int, memory: memoryview) -> None:
        self._file.pread_into(offset, memory)

    def close(self) -> None:
        self._file.close()

    def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
        return tag_chunks(self._file, key, chunk_bytes, spans, tags_max=TAGS_MAX, data=data)


def pieces(data_ranges: list[tuple[int, int]], start: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the data from ``start`` on; no piece crosses the border of a chunk."""
    for offset, length in data_ranges:
        at, end = max(offset, start), offset + length
        while at < end:
            stop = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield at, stop - at
            at = stop
