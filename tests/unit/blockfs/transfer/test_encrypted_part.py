"""The encrypted form of a part makes the same states of the disk, also where its records cover lines in part."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.transfer import encrypted_part
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.encrypted_part import encrypted_segment
from siterig.blockfs.transfer.part_index import index_segment
from tests.support.disks.disk_history import SiteDisk

CIPHER = DiskCipher(bytes(range(64)))


def states(before: bytes, segment: bytes, *, is_encrypted: bool) -> list[bytes]:
    """Return the disk after each record that changes it."""
    data, found = bytearray(before), []
    for record in encrypted_part._records(segment):  # noqa: SLF001
        if record.type == RecordType.WRITE:
            has_key = is_encrypted and record.payload
            plain = CIPHER.decrypt(record.payload, record.offset) if has_key else record.payload
            data[record.offset : record.offset + record.length] = plain
        elif record.type in (RecordType.ZERO, RecordType.DISCARD):
            data[record.offset : record.offset + record.length] = bytes(record.length)
        elif record.type == RecordType.RESIZE:
            data.extend(bytes(record.length - len(data)))
        else:
            continue
        found.append(bytes(data))
    return found


def check(disk: SiteDisk, before: bytes) -> None:
    part, packed = disk.close_log()
    segment = decompress(part, packed)
    index = index_segment(segment, part, len(before))

    def read(offset: int, length: int) -> bytes:
        return before[offset : offset + length].ljust(length, b"\0")

    changed = encrypted_segment(CIPHER, part, segment, index, read)
    assert states(before, bytes(changed), is_encrypted=True) == states(before, bytes(segment), is_encrypted=False)
    assert index_segment(changed, part, len(before)).position == index.position


@pytest.mark.parametrize(("offset", "length"), [(0, 8), (0, 17), (8, 8), (15, 2), (16, 16), (5, 4091), (4096, 1), (1, 9000)])
def test_a_record_that_covers_a_line_in_part_keeps_the_rest_of_the_line(tmp_path: Path, offset: int, length: int) -> None:
    disk = SiteDisk(tmp_path, random.Random(1))
    disk.data[:] = random.Random(2).randbytes(len(disk.data))
    before = bytes(disk.data)
    disk.write(offset, random.Random(3).randbytes(length))
    disk.zero(offset, length)
    check(disk, before)


def test_random_records_make_the_same_states(tmp_path: Path, siterig_seed: int) -> None:
    rng = random.Random(siterig_seed)
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk = SiteDisk(folder, rng)
        disk.data[:] = rng.randbytes(len(disk.data))
        before = bytes(disk.data)
        disk.scribble(12)
        check(disk, before)


def test_records_at_the_ends_of_a_disk_that_grows_make_the_same_states(tmp_path: Path) -> None:
    """The first and the last line, before and after a growth within the part; and records of no bytes."""
    disk = SiteDisk(tmp_path, random.Random(1))
    disk.data[:] = random.Random(2).randbytes(len(disk.data))
    before, size = bytes(disk.data), len(disk.data)
    disk.note(RecordType.WRITE, 37, 0)
    disk.note(RecordType.ZERO, 16, 0)
    disk.write(size - 3, b"end")
    disk.zero(0, 1)
    disk.resize(size + 512)
    disk.write(size - 7, b"over the old end")
    disk.zero(size + 9, 3, RecordType.DISCARD)
    disk.write(size + 511, b"z")
    disk.zero(size + 500, 12)
    disk.note(RecordType.DISCARD, size + 5, 0)
    check(disk, before)
