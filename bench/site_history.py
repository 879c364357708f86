"""Parts that a site would send for a disk: packed parts of a generated history, for benchmarks of managed disks.

Every write is 4 KiB of random bytes at a random aligned place, similar to a busy database.
"""

from __future__ import annotations

import random
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from siterig.blockfs.changelog.segment import RecordType, SegmentHeader, SegmentWriter
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.transfer.codec import pack
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_stream import SyncStream

BLOCK_BYTES = 4096
CHUNK_BYTES = 1 << 20
Packed = tuple[PartName, bytes]


@dataclass
class SiteHistory:
    """A disk of ``size_bytes``; positions count up by one a record, a record takes a microsecond."""

    size_bytes: int
    seed: int
    disk_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    position: int = 1
    seq: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311
        self._noise = self._dice.randbytes(64 << 20)
        self._folder = Path(tempfile.mkdtemp(prefix="siterig-history-"))

    def forget(self) -> None:
        """Remove the folder in which parts are assembled."""
        for path in sorted(self._folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self._folder.rmdir()

    def blocks(self, count: int, among: int) -> list[int]:
        """Return so many blocks out of ``among``, at random."""
        return [self._dice.randrange(among) for _ in range(count)]

    def _bytes(self, length: int) -> bytes:
        start = self._dice.randrange(len(self._noise) - length)
        return self._noise[start : start + length]

    def initial(self, data_bytes: int) -> Iterator[Packed]:
        """Return the initial replication of a disk that has ``data_bytes`` of data, from its start."""
        stream = SyncStream(
            self._folder,
            disk_id=self.disk_id,
            generation=1,
            disk_size_bytes=self.size_bytes,
            position=self.position,
            time_ns=self.position * 1000,
            first_seq=1,
        )
        for offset in range(0, data_bytes, CHUNK_BYTES):
            if (done := stream.add(offset, self._bytes(CHUNK_BYTES), CHUNK_BYTES)) is not None:
                yield self._packed(done)
        yield self._packed(stream.finish())

    @staticmethod
    def _packed(done: tuple[PartName, Path]) -> Packed:
        part, path = done
        packed = part, pack(path)
        path.unlink()
        return packed

    def log_part(self, writes: int, *, tag: str | None = None, within_bytes: int | None = None) -> Packed:
        """Return a part of so many writes to the disk's first ``within_bytes``; a TAG named ``tag`` follows."""
        path = self._folder / "part.hrl"
        first = self.seq + 1
        header = SegmentHeader(self.disk_id, 1, "log", first, current_boot_id(), 1, self.size_bytes)
        writer = SegmentWriter.create(path, header)
        among = (within_bytes or self.size_bytes) // BLOCK_BYTES
        for block in self.blocks(writes, among):
            self._append(writer, RecordType.WRITE, block * BLOCK_BYTES, self._bytes(BLOCK_BYTES))
        if tag is not None:
            self._append(writer, RecordType.TAG, 0, self._tag(tag), length=0)
        writer.close()
        return self._packed((PartName(self.disk_id, 1, "log", first, self.seq), path))

    def _append(
        self, writer: SegmentWriter, kind: RecordType, offset: int, payload: bytes, length: int = BLOCK_BYTES
    ) -> None:
        self.seq += 1
        self.position += 1
        writer.append(
            kind,
            seq=self.seq,
            position=self.position,
            time_ns=self.position * 1000,
            offset=offset,
            length=length,
            payload=payload,
        )

    def _tag(self, name: str) -> bytes:
        position = self.position + 1
        tag_id = str(uuid.UUID(int=self._dice.getrandbits(128)))
        return encode_tag(
            TagSeen(tag_id=tag_id, kind="CrashConsistent", name=name, position=position, time_ns=position * 1000)
        )
