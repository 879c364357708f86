"""Makes a part of a sync stream in memory: the segment of the chunks that were read of a snapshot, compressed.

:class:`siterig.blockfs.transfer.sync_stream.SyncStream` writes the same segments as files, one after the other; this module
makes each part by itself, so that several are in work at the same time.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass

import zstandard

from siterig.blockfs.changelog.segment import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RecordType,
    SegmentHeader,
    encode_header,
    encode_record,
    record_seed,
)
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.core import boot
from siterig.blockfs.transfer.codec import LEVEL
from siterig.blockfs.transfer.part_name import SYNC_END, PartName

_AT_ONCE_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class SyncOrigin:
    """The snapshot that a sync stream copies.

    Attributes:
        position: the position of the snapshot.
        time_ns: its time, by the wall clock.
        first_seq: first sequence number of the log that is not in the snapshot; the ``sync-end`` tag carries it.
    """

    disk_id: str
    generation: int
    disk_size_bytes: int
    position: int
    time_ns: int
    first_seq: int

    def part(self, number: int) -> PartName:
        """Return the name of a part of the stream."""
        return PartName(self.disk_id, self.generation, "sync", number, number)


@dataclass(frozen=True, slots=True)
class DiskChunk:
    """A range of the disk and its bytes; ``data`` is None for zeros."""

    offset: int
    length: int
    data: bytes | memoryview | None


def pack_sync_part(origin: SyncOrigin, number: int, chunks: deque[DiskChunk], *, is_last: bool) -> bytes:
    """Return part ``number`` of the stream, compressed as :func:`siterig.blockfs.transfer.codec.pack` does.

    Args:
        origin: the snapshot.
        number: the number of the part.
        chunks: its chunks, in their order; they are removed one by one, so that their memory becomes free.
        is_last: True for the last part, which ends with the ``sync-end`` tag.
    """
    header = encode_header(
        SegmentHeader(
            disk_id=origin.disk_id,
            generation=origin.generation,
            stream="sync",
            first_seq=number,
            boot_id=boot.current_boot_id(),
            created_ns=origin.time_ns,
            disk_size_bytes=origin.disk_size_bytes,
        )
    )
    tag = encode_tag(
        TagSeen(
            tag_id=str(uuid.uuid4()),
            kind="CrashConsistent",
            name=SYNC_END,
            position=origin.position,
            time_ns=origin.time_ns,
        )
    )
    size = HEADER_BYTES + sum(RECORD_HEADER_BYTES + len(chunk.data or b"") for chunk in chunks)
    stream = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj(
        size=size + (RECORD_HEADER_BYTES + len(tag) if is_last else 0)
    )
    packed = [stream.compress(header)]
    seed, seq = record_seed(header), 0

    def add(kind: RecordType, offset: int, length: int, payload: bytes | memoryview) -> None:
        nonlocal seq
        seq += 1
        record = encode_record(
            seed,
            kind,
            seq=seq,
            position=origin.position,
            time_ns=origin.time_ns,
            offset=offset,
            length=length,
            payload=payload,
        )
        packed.append(stream.compress(record))
        with memoryview(payload) as view:
            # More at a time would be copied again and again, while the library lets its output grow.
            packed.extend(stream.compress(view[at : at + _AT_ONCE_BYTES]) for at in range(0, len(view), _AT_ONCE_BYTES))

    while chunks:
        chunk = chunks.popleft()
        add(RecordType.ZERO if chunk.data is None else RecordType.WRITE, chunk.offset, chunk.length, chunk.data or b"")
    if is_last:
        add(RecordType.TAG, origin.first_seq, 0, tag)
    packed.append(stream.flush())
    return b"".join(packed)
