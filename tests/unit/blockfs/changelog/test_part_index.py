"""The index of a part covers the whole segment, or there is one clear error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from siterig.blockfs.changelog.segment import RecordType, SegmentReader
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.part_index import (
    ENTRY_BYTES,
    PIECE_BYTES,
    PartIndex,
    SegmentEntry,
    decode_entries,
    index_segment,
)
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext.checksums import crc32c
from tests.fuzz import strict_log as log
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, Packed, SiteDisk
from tests.support.stores.volume import cut_at_blocks


def site(tmp_path: Path, seed: int = 1) -> SiteDisk:
    return SiteDisk(tmp_path, random.Random(seed))


def index(packed: Packed, size_bytes: int = SIZE_BYTES) -> PartIndex:
    part, data = packed
    return index_segment(decompress(part, data), part, size_bytes)


def by_the_reader(raw: bytes, path: Path) -> tuple[list[SegmentEntry], bytes]:
    """Return the entries and pieces that follow from the records of the other reader."""
    path.write_bytes(raw)
    entries, sums = [], b""
    with SegmentReader(path) as reader:
        for record in reader.records():
            if record.type in (RecordType.FLUSH, RecordType.TAG):
                continue
            is_write = record.type is RecordType.WRITE
            first, at = (len(sums) // 4, record.payload_offset) if is_write else (0, 0)
            entries.append(
                SegmentEntry(record.position, record.time_ns, record.offset, record.length, at, first, record.type)
            )
            if is_write:
                cuts = cut_at_blocks(record.offset, reader.payload(record))
                sums += b"".join(struct.pack("<I", crc32c(cut)) for cut in cuts)
    return entries, sums


@pytest.mark.parametrize("seed", range(5))
def test_an_index_has_each_change_its_pieces_and_the_parts_totals(tmp_path: Path, seed: int) -> None:
    disk = site(tmp_path, seed)
    disk.scribble(3)
    first_position = min(disk.states, default=disk.position)
    disk.resize(SIZE_BYTES + 8192)
    disk.write(SIZE_BYTES - 100, b"x" * 5000)
    tags = [disk.tag("one"), disk.tag("two", "ApplicationConsistent")]
    disk.scribble(20)
    position = disk.position
    part, data = disk.close_log()
    raw = bytes(decompress(part, data))
    found = index_segment(raw, part, SIZE_BYTES)
    entries, sums = by_the_reader(raw, tmp_path / "x.hrl")
    assert list(decode_entries(found.entries)) == entries
    assert found.pieces == sums
    assert (found.position, found.time_ns) == (position, position * 10)
    assert found.first_position <= first_position
    assert (found.records, found.size_bytes_after) == (part.last, SIZE_BYTES + 8192)
    assert (found.tags, found.sync_end_seq) == (tuple(tags), None)
    assert (found.header.disk_id, found.header.first_seq) == (DISK_ID, 1)
    assert (ENTRY_BYTES, PIECE_BYTES) == (48, 4096)


def test_the_last_sync_part_has_the_next_sequence_number_and_the_size(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.scribble(20)
    disk.close_log()
    disk.data.extend(bytes(4096))
    *others, last = disk.sync()
    assert {index(packed).sync_end_seq for packed in others} == {None}
    found = index(last)
    assert (found.sync_end_seq, found.tags, found.size_bytes_after) == (disk.seq + 1, (), SIZE_BYTES + 4096)
    assert found.position == disk.position


def refused(packed: Packed, size_bytes: int = SIZE_BYTES) -> RigError:
    with pytest.raises(RigError) as caught:
        index(packed, size_bytes)
    assert packed[0].blob() in caught.value.message
    return caught.value


def test_a_part_of_a_smaller_disk_is_refused(tmp_path: Path) -> None:
    packed = site(tmp_path).sync()[-1]
    error = refused(packed, SIZE_BYTES + 512)
    assert (error.code, error.message) == (
        "PartRefused",
        f"part {packed[0].blob()}: is of a disk of {SIZE_BYTES} bytes; "
        f"the managed disk has {SIZE_BYTES + 512} and cannot shrink",
    )


@pytest.mark.parametrize(
    ("kind", "offset", "length", "why"),
    [
        (
            RecordType.RESIZE,
            0,
            SIZE_BYTES + 511,
            f"record 2 resizes the disk to {SIZE_BYTES + 511} bytes; a disk has whole sectors of 512",
        ),
        (RecordType.RESIZE, 0, SIZE_BYTES - 512, f"record 2 shrinks the disk from {SIZE_BYTES} to {SIZE_BYTES - 512} bytes"),
        (RecordType.ZERO, SIZE_BYTES - 512, 1024, f"record 2 ends at byte {SIZE_BYTES + 512} of a disk of {SIZE_BYTES}"),
        (RecordType.DISCARD, SIZE_BYTES + 512, 0, f"record 2 ends at byte {SIZE_BYTES + 512} of a disk of {SIZE_BYTES}"),
    ],
)
def test_the_first_record_that_does_not_fit_the_disk_is_named(
    tmp_path: Path, kind: RecordType, offset: int, length: int, why: str
) -> None:
    disk = site(tmp_path)
    disk.write(0, b"good")
    disk.note(kind, offset, length)
    disk.note(RecordType.ZERO, 0, SIZE_BYTES * 2)
    packed = disk.close_log()
    error = refused(packed)
    assert (error.code, error.message) == ("PartRefused", f"part {packed[0].blob()}: {why}")


def test_a_resize_counts_for_all_records_after_it(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.resize(SIZE_BYTES * 2)
    disk.write(SIZE_BYTES * 2 - 1, b"!")
    assert index(disk.close_log()).size_bytes_after == SIZE_BYTES * 2


def test_a_part_without_records_is_refused(tmp_path: Path) -> None:
    error = refused(site(tmp_path).close_log())
    assert (error.code, error.message.partition(": ")[2]) == ("PartRefused", "holds no record")


def test_a_part_under_another_name_is_corrupt(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.write(0, b"x")
    part, data = disk.close_log()
    other = PartName(DISK_ID, 2, "log", part.first, part.last)
    error = refused((other, data))
    held = f"holds {DISK_ID}/00000001/log/, from number {part.first} on"
    assert (error.code, error.message) == ("PartCorrupt", f"part {other.blob()}: {held}")
    longer = PartName(DISK_ID, 1, "log", part.first, part.last + 1)
    error = refused((longer, data))
    assert (error.code, error.message) == ("PartCorrupt", f"part {longer.blob()}: holds {part.blob()}")


@pytest.mark.slow
def test_each_bad_byte_is_corrupt_with_the_message_of_the_other_reader(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.write(0, b"x" * 5000)
    disk.tag("tag")
    disk.scribble(5)
    part, data = disk.close_log()
    raw = decompress(part, data)
    path = tmp_path / "bad.hrl"
    for at in [*range(200), *disk.rng.sample(range(200, len(raw)), 200)]:
        bad = bytearray(raw)
        bad[at] ^= 1 << disk.rng.randrange(8)
        with pytest.raises(RigError) as caught:
            index_segment(bad, part, SIZE_BYTES)
        path.write_bytes(bad)
        with pytest.raises(RigError) as wanted, SegmentReader(path) as reader:
            list(reader.records())
        assert caught.value.code == "PartCorrupt"
        assert caught.value.message == f"part {wanted.value.message.replace(str(path), part.blob())}"


@pytest.mark.parametrize(
    ("seq", "position", "why"),
    [(3, 7, "sequence number 3; 2 comes next"), (1, 7, "sequence number 1; 2 comes next"), (2, 6, "position 6 after 7")],
)
def test_a_record_out_of_sequence_with_a_good_checksum_is_corrupt(seq: int, position: int, why: str) -> None:
    head = log.make_header(disk_id=DISK_ID, first_seq=1, disk_size_bytes=4096, boot_id=DISK_ID)
    seed: int = struct.unpack_from("<I", head, 124)[0]
    raw = head + log.make_record(seed, log.FLUSH, seq=1, position=7)
    raw += log.make_record(seed, log.FLUSH, seq=seq, position=position)
    part = PartName(DISK_ID, 2, "log", 1, 2)
    with pytest.raises(RigError) as caught:
        index_segment(raw, part, 4096)
    assert caught.value.message == f"part {part.blob()}: change log is corrupt at byte 192: {why}"


def test_a_time_that_no_frame_can_hold_is_corrupt() -> None:
    head = log.make_header(disk_id=DISK_ID, first_seq=1, disk_size_bytes=4096, boot_id=DISK_ID)
    seed: int = struct.unpack_from("<I", head, 124)[0]
    part = PartName(DISK_ID, 2, "log", 1, 1)
    late = (1 << 63) - 1
    found = index_segment(head + log.make_record(seed, log.FLUSH, seq=1, position=7, time_ns=late), part, 4096)
    assert found.time_ns == late
    with pytest.raises(RigError) as caught:
        index_segment(head + log.make_record(seed, log.FLUSH, seq=1, position=7, time_ns=late + 1), part, 4096)
    assert caught.value.code == "PartCorrupt"
    assert f"time {late + 1}, range 0+0: beyond any disk" in caught.value.message


def test_a_segment_truncated_at_any_byte_is_corrupt(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.write(0, b"x" * 100)
    disk.tag("tag")
    part, data = disk.close_log()
    raw = decompress(part, data)
    for end in range(len(raw)):
        with pytest.raises(RigError, match=f"^part {part.blob()}: ") as caught:
            index_segment(raw[:end], part, SIZE_BYTES)
        assert caught.value.code == "PartCorrupt"


def test_an_invalid_tag_is_reported_before_later_records(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.note(RecordType.TAG, payload=b'{"tag_id": 1}')
    disk.note(RecordType.ZERO, 0, SIZE_BYTES * 2)
    packed = disk.close_log()
    error = refused(packed)
    assert error.code == "PartCorrupt"
    assert error.message.startswith(f"part {packed[0].blob()}: change log is corrupt at byte 128: TAG record: ")


def test_corruption_is_reported_before_records_that_do_not_fit(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.note(RecordType.ZERO, 0, SIZE_BYTES * 2)
    disk.write(0, b"x")
    part, data = disk.close_log()
    raw = decompress(part, data)
    with pytest.raises(RigError) as caught:
        index_segment(raw[:-1] + b"y", part, SIZE_BYTES)
    assert caught.value.code == "PartCorrupt"


def test_a_change_of_zero_bytes_is_not_in_the_index() -> None:
    head = log.make_header(disk_id=DISK_ID, first_seq=1, disk_size_bytes=4096, boot_id=DISK_ID)
    seed: int = struct.unpack_from("<I", head, 124)[0]
    raw = head + log.make_record(seed, log.WRITE, seq=1, position=5, offset=4096)
    raw += log.make_record(seed, log.ZERO, seq=2, position=5)
    found = index_segment(raw, PartName(DISK_ID, 2, "log", 1, 2), 4096)
    assert (found.entries, found.pieces, found.records) == (b"", b"", 2)


def test_a_segment_can_be_at_any_address_in_memory(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.scribble(10)
    part, data = disk.close_log()
    raw = decompress(part, data)
    want = index_segment(raw, part, SIZE_BYTES)
    for shift in range(1, 8):
        assert index_segment(memoryview(bytes(shift) + raw)[shift:], part, SIZE_BYTES) == want
