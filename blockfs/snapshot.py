"""Copy-before-write snapshot of one disk, for initial replication and resync.

Fault contract: lives only as long as the process; a leftover store file is deleted at the next start, and the copy
that used it takes a new snapshot.  If the store's space runs out, the snapshot fails (``SnapshotFailed``), the
disk does not.
"""

from __future__ import annotations

import os
from pathlib import Path

from blockfs.errors import RigError
from blockfs.layers import Layer

CHUNK_BYTES = 64 << 10


class Snapshot:
    """A disk as it was.  Chunks that are about to change are copied to ``path`` first, until they are released."""

    def __init__(self, layer: Layer, path: Path, *, first_seq: int) -> None:
        self.first_seq = first_seq
        """First sequence number of the log that is not in the snapshot."""
        self.size_bytes = layer.size_bytes
        self.data_ranges = layer.data_ranges()
        self.store_bytes = 0
        self._layer = layer
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._preserved = bytearray(-(-self.size_bytes // CHUNK_BYTES))
        self._released = 0
        self._failed: str | None = None

    def before_write(self, offset: int, length: int) -> None:
        """Preserve what the range holds now.  Never raises for lack of space: the snapshot fails, the write goes on."""
        if self._failed or length == 0:
            return
        first = max(offset, self._released) // CHUNK_BYTES
        last = min(offset + length, self.size_bytes) - 1
        for chunk in range(first, last // CHUNK_BYTES + 1):
            if not self._preserved[chunk]:
                start = chunk * CHUNK_BYTES
                try:
                    data = self._layer.pread(start, min(CHUNK_BYTES, self.size_bytes - start))
                    os.pwrite(self._fd, data, start)
                except OSError as exc:
                    self._failed = exc.strerror or str(exc)
                    return
                self._preserved[chunk] = 1
                self.store_bytes += len(data)

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes as they were; ``SnapshotFailed`` if they could not be kept, or were released."""
        if self._failed:
            raise RigError("SnapshotFailed", f"{self._path.name}: could not keep old data: {self._failed}", recoverable=True)
        if offset < self._released:
            raise RigError("SnapshotFailed", f"{self._path.name}: byte {offset} was released (below {self._released})")
        pieces = []
        end = offset + length
        while offset < end:
            chunk = offset // CHUNK_BYTES
            step = min(end, (chunk + 1) * CHUNK_BYTES) - offset
            pieces.append(os.pread(self._fd, step, offset) if self._preserved[chunk] else self._layer.pread(offset, step))
            offset += step
        return b"".join(pieces)

    def release(self, upto: int) -> None:
        """Bytes below ``upto`` need not be preserved any more (rounded down to a chunk)."""
        self._released = max(self._released, min(upto, self.size_bytes) // CHUNK_BYTES * CHUNK_BYTES)

    def close(self) -> None:
        """Remove the snapshot and its store; who still has it open gets errors."""
        self._failed = "the snapshot was removed"
        os.close(self._fd)
        self._path.unlink()
