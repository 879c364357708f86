"""A journal file for tests: changes of a small disk, their payloads and checksums, and the disk after each change."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Source
from siterig.cext.checksums import crc32c

DISK_BYTES = 48 * 1024 + 512
BLOCK_BYTES = 4096
GAP_BYTES = 64
"""The bytes before each payload, as many as in the header of a record."""

_ENTRY = struct.Struct("<QQQQQII")
Change = tuple[bool, int, int]
"""A change: True for a WRITE (False for zeros), offset, length."""

changes = st.lists(
    st.tuples(st.booleans() | st.just(True), st.integers(0, DISK_BYTES - 1), st.integers(1, 13_000)).map(
        lambda change: (change[0], change[1], min(change[2], DISK_BYTES - change[1]))
    ),
    max_size=14,
)
"""A strategy for changes of any bytes; whole blocks are among them, because hypothesis shrinks to round numbers."""


def cut_at_blocks(offset: int, data: bytes) -> list[bytes]:
    """Return the pieces of data that is written to ``offset``."""
    ends = [*range(offset - offset % BLOCK_BYTES + BLOCK_BYTES, offset + len(data), BLOCK_BYTES), offset + len(data)]
    return [data[start - offset : end - offset] for start, end in zip([offset, *ends], ends, strict=False)]


@dataclass
class Volume:
    """Changes of a small disk with their payloads and checksums.

    ``records`` has by position, from 1 on: offset, length, byte of the payload, number of the first piece; the last two are
    None for zeros.  ``states`` has the disk after each record, from position 0 on.
    """

    rng: random.Random = field(default_factory=lambda: random.Random(3))
    raw: bytearray = field(default_factory=bytearray)
    entries: bytearray = field(default_factory=bytearray)
    sums: list[int] = field(default_factory=list)
    records: list[tuple[int, int, int | None, int | None]] = field(default_factory=list)
    states: list[bytes] = field(default_factory=lambda: [bytes(DISK_BYTES)])

    @classmethod
    def of(cls, made: list[Change], start: bytes = bytes(DISK_BYTES)) -> Volume:
        """Return a volume with these changes of a disk that begins as ``start``."""
        volume = cls(states=[start])
        for is_write, offset, length in made:
            volume.change(offset, length, is_write=is_write)
        return volume

    def change(self, offset: int, length: int, *, is_write: bool = True) -> None:
        """Append a change with random data."""
        data = self.rng.randbytes(length) if is_write else bytes(length)
        at, piece = (len(self.raw) + GAP_BYTES, len(self.sums)) if is_write else (None, None)
        if is_write:
            self.raw += bytes(GAP_BYTES) + data
            self.sums += [crc32c(cut) for cut in cut_at_blocks(offset, data)]
        kind = RecordType.WRITE if is_write else self.rng.choice((RecordType.ZERO, RecordType.DISCARD))
        self.records.append((offset, length, at, piece))
        self.entries += _ENTRY.pack(len(self.records), 7, offset, length, at or 0, piece or 0, kind)
        state = bytearray(self.states[-1])
        state[offset : offset + length] = data
        self.states.append(bytes(state))

    def add_to(self, extents: ExtentMap, *, after: int = -1, upto: int | None = None) -> None:
        """Add the records to an extent map."""
        extents.add(1, self.entries, segment_at=0, piece_at=0, after=after, upto=upto)

    def source(self, folder: Path) -> Source:
        """Write the files and open them."""
        (folder / "volume").write_bytes(self.raw)
        (folder / "sums").write_bytes(struct.pack(f"<{len(self.sums)}I", *self.sums))
        return Source(os.open(folder / "volume", os.O_RDONLY), os.open(folder / "sums", os.O_RDONLY))


def blocks_of(data: bytes | bytearray) -> list[bytes]:
    """Return the blocks, the last one padded with zeros."""
    return [bytes(data[at : at + BLOCK_BYTES]).ljust(BLOCK_BYTES, b"\0") for at in range(0, len(data), BLOCK_BYTES)]


def base_source(folder: Path, data: bytes) -> Source:
    """Write a base with the right checksums and open it for reading."""
    (folder / "base").write_bytes(data)
    (folder / "base.sums").write_bytes(b"".join(struct.pack("<II", sum_, sum_) for sum_ in map(crc32c, blocks_of(data))))
    return Source(os.open(folder / "base", os.O_RDONLY), os.open(folder / "base.sums", os.O_RDONLY), paired=True)
