"""A sync part that is made in memory has the records that a sync stream writes to a file."""

from __future__ import annotations

import random
import uuid
from collections import deque
from pathlib import Path

from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.transfer.codec import unpack, verify
from siterig.blockfs.transfer.part_index import index_segment
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part
from siterig.blockfs.transfer.sync_stream import SyncStream

ORIGIN = SyncOrigin(
    disk_id=str(uuid.UUID(int=5)), generation=3, disk_size_bytes=1 << 20, position=77, time_ns=1234, first_seq=9
)


def test_a_part_in_memory_equals_the_part_of_a_stream(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(70_000)
    chunks = [DiskChunk(0, 4096, data[:4096]), DiskChunk(8192, 65536, None), DiskChunk(80_384, 65_536, data[4096:69_632])]
    stream = SyncStream(
        tmp_path,
        disk_id=ORIGIN.disk_id,
        generation=ORIGIN.generation,
        disk_size_bytes=ORIGIN.disk_size_bytes,
        position=ORIGIN.position,
        time_ns=ORIGIN.time_ns,
        first_seq=ORIGIN.first_seq,
        part_bytes_max=1 << 20,
        first_part=4,
    )
    for chunk in chunks:
        assert not isinstance(chunk.data, memoryview)
        assert stream.add(chunk.offset, chunk.data, chunk.length) is None
    name, file = stream.finish()
    left = deque(chunks)
    packed = pack_sync_part(ORIGIN, 4, left, is_last=True)
    assert not left, "the chunks are freed while they are compressed"
    assert name == ORIGIN.part(4)
    made = tmp_path / "made"
    unpack(name, packed, made)
    found = []
    for path in (file, made):
        verify(name, path)
        with SegmentReader(path) as reader:
            records = [(item.type, item.seq, item.position, item.offset, item.length) for item in reader.records()]
            payloads = [reader.payload(item) for item in reader.records() if item.type.name == "WRITE"]
            found.append((reader.header, records, payloads))
    assert found[0] == found[1]
    index = index_segment(made.read_bytes(), name, ORIGIN.disk_size_bytes)
    assert index.sync_end_seq == ORIGIN.first_seq


def test_a_part_without_data_ends_a_stream(tmp_path: Path) -> None:
    packed = pack_sync_part(ORIGIN, 1, deque(), is_last=True)
    unpack(ORIGIN.part(1), packed, tmp_path / "part")
