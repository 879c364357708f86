"""Unpacking a part stops as soon as its bytes cannot be the part that its name describes."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from siterig.blockfs.changelog.segment import HEADER_BYTES, RECORD_HEADER_BYTES
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.part_name import PartName
from tests.support.disks.disk_history import DISK_ID, SiteDisk

GIB = 1 << 30


def refused(part: PartName, data: bytes) -> str:
    with pytest.raises(RigError) as caught:
        decompress(part, data)
    assert caught.value.code == "PartCorrupt"
    return caught.value.message.removeprefix(f"part {part.blob()}: ")


def packed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(raw)


def log_part(tmp_path: Path, records: int = 3) -> tuple[PartName, bytes]:
    disk = SiteDisk(tmp_path, random.Random(5))
    for number in range(records):
        disk.write(number * 512, bytes([number]) * 512)
    return disk.close_log()


@pytest.mark.slow
def test_a_small_blob_of_a_gigabyte_is_refused_with_little_memory() -> None:
    """33 KB of zstd hold a gigabyte of zeros; the memory of the process grows by less than 32 MiB."""
    program = f"""
import resource, zstandard
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.codec import decompress
chunks = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj(size={GIB})
data = b"".join(chunks.compress(bytes(1 << 20)) for _ in range(1024)) + chunks.flush()
assert len(data) < 40_000, len(data)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decompress(PartName({DISK_ID!r}, 1, "log", 1, 1), data)
except RigError as error:
    print(error.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PartCorrupt", "True"]


def test_unpacking_stops_at_more_records_than_the_name_allows(tmp_path: Path) -> None:
    part, data = log_part(tmp_path, records=3)
    shorter = PartName(DISK_ID, 1, "log", part.first, part.last - 1)
    assert refused(shorter, data) == "holds more than the 2 records of its name"


def test_zero_records_beyond_the_name_are_refused_with_little_memory(tmp_path: Path) -> None:
    """The header and the form of each record are right, but there are many more records than the one of the name."""
    part, data = log_part(tmp_path, records=1)
    raw = zstandard.ZstdDecompressor().decompress(data)
    head = bytearray(raw[HEADER_BYTES : HEADER_BYTES + RECORD_HEADER_BYTES])
    struct.pack_into("<I", head, 48, 1 << 20)
    bomb = packed(raw[:HEADER_BYTES] + (bytes(head) + bytes(1 << 20)) * 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(part, bomb) == "holds more than the 1 records of its name"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


def test_a_sync_part_does_not_hold_more_bytes_than_its_disk(tmp_path: Path) -> None:
    disk = SiteDisk(tmp_path, random.Random(5))
    disk.write(0, b"x" * 4096)
    part, data = disk.sync()[0]
    raw = zstandard.ZstdDecompressor().decompress(data)
    head = bytearray(raw[HEADER_BYTES : HEADER_BYTES + RECORD_HEADER_BYTES])
    struct.pack_into("<I", head, 48, 1 << 20)
    assert refused(part, packed(raw[:HEADER_BYTES] + (bytes(head) + bytes(1 << 20)) * 20)) == (
        "holds more bytes than the disk of its header has"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data + b"x", "has 1 bytes after its end"),
        (lambda data: data + data, "after its end"),
        (lambda data: data[:-1], "is truncated at byte"),
        (lambda data: data[: len(data) // 2], "is truncated at byte"),
        (lambda data: data[:5], "zstd"),
        (lambda _data: b"", "zstd"),
        (lambda _data: b"not zstd at all", "is not sound zstd data"),
        (lambda _data: zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 500), "declares"),
    ],
)
def test_data_that_is_not_exactly_one_whole_zstd_frame_is_refused(tmp_path: Path, change: object, why: str) -> None:
    part, data = log_part(tmp_path)
    assert callable(change)
    assert why in refused(part, change(data))


def test_a_part_of_any_size_unpacks_to_the_bytes_that_were_packed(tmp_path: Path) -> None:
    disk = SiteDisk(tmp_path, random.Random(9))
    disk.scribble(300)
    part, data = disk.close_log()
    assert decompress(part, data) == zstandard.ZstdDecompressor().decompress(data)
