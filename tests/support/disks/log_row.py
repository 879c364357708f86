"""Consecutive segments that a test makes, with the disk's bytes after each record."""

from __future__ import annotations

import uuid
from pathlib import Path

from hypothesis import strategies as st

from siterig.blockfs.changelog.segment import FLAG_CLEAN_CLOSE, RecordType, SegmentHeader, SegmentWriter
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.core.boot import current_boot_id

DISK_ID = "6a83da7e-b542-496d-a113-08b9b71d9e21"
DISK_BYTES = 64 * 1024
START = bytes(i * 7 % 251 for i in range(DISK_BYTES))

Op = tuple[RecordType, int, int, int]
"""The kind, offset and length of an operation, and the byte that fills a WRITE."""


class LogRow:
    """Appends records to segments ``os.NNNNNN.hrl`` of ``folder``; positions leave gaps.

    ``states`` has the disk's bytes by position, ``tags`` has positions by name.
    """

    def __init__(self, folder: Path, *, disk_id: str = DISK_ID, generation: int = 2, name: str = "os") -> None:
        self.folder, self.disk_id, self.generation, self.name = folder, disk_id, generation, name
        self.data = bytearray(START)
        self.paths: list[Path] = []
        self.seq = 0
        self.position = 40
        self.states = {self.position: START}
        self.tags: dict[str, int] = {}
        self._writer: SegmentWriter | None = None

    def rotate(self) -> None:
        """Close the current segment, and begin the next one."""
        self.close()
        path = self.folder / f"{self.name}.{len(self.paths) + 1:06d}.hrl"
        header = SegmentHeader(self.disk_id, self.generation, "log", self.seq + 1, current_boot_id(), 1, len(self.data))
        self._writer = SegmentWriter.create(path, header)
        self.paths.append(path)

    def close(self) -> None:
        """Close the current segment."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close_cleanly(self) -> None:
        """Append the FLUSH of a clean close, and close the file."""
        self._append(RecordType.FLUSH, flags=FLAG_CLEAN_CLOSE)
        self.close()

    def _append(self, kind: RecordType, offset: int = 0, length: int = 0, payload: bytes = b"", flags: int = 0) -> None:
        assert self._writer is not None
        self.seq += 1
        self.position += 3
        self._writer.append(
            kind,
            seq=self.seq,
            position=self.position,
            time_ns=self.seq,
            offset=offset,
            length=length,
            payload=payload,
            flags=flags,
        )
        self.states[self.position] = bytes(self.data)

    def _begun(self) -> None:
        if self._writer is None:
            self.rotate()

    def do(self, op: Op) -> None:
        """Do and log a WRITE, ZERO, DISCARD, FLUSH or RESIZE (by ``length`` bytes)."""
        self._begun()
        kind, offset, length, fill = op
        if kind is RecordType.WRITE:
            self.write(offset, bytes([fill]) * length)
        elif kind in (RecordType.ZERO, RecordType.DISCARD):
            self.data[offset : offset + length] = bytes(length)
            self._append(kind, offset, length)
        elif kind is RecordType.RESIZE:
            self.data.extend(bytes(length))
            self._append(kind, 0, len(self.data))
        else:
            self._append(kind)

    def write(self, offset: int, payload: bytes) -> None:
        """Write bytes, and log the write."""
        self._begun()
        self.data[offset : offset + len(payload)] = payload
        self._append(RecordType.WRITE, offset, len(payload), payload)

    def tag(self, name: str) -> None:
        """Log a tag."""
        self._begun()
        tag_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        tag = TagSeen(tag_id=tag_id, kind="ApplicationConsistent", name=name, position=self.position + 3, time_ns=0)
        self._append(RecordType.TAG, payload=encode_tag(tag))
        self.tags[name] = self.position


def operations(unit_bytes: int) -> st.SearchStrategy[list[Op]]:
    """Return a strategy for lists of operations within the disk, with offsets and lengths in multiples of ``unit_bytes``."""
    units = DISK_BYTES // unit_bytes
    kinds = st.sampled_from([RecordType.WRITE, RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD, RecordType.FLUSH])
    one = st.tuples(kinds, st.integers(0, units - 1), st.integers(1, max(5000 // unit_bytes, 1)), st.integers(0, 255)).map(
        lambda op: (op[0], op[1] * unit_bytes, min(op[2], units - op[1]) * unit_bytes, op[3])
    )
    return st.lists(one, min_size=1, max_size=25)
