"""Segments: written records are read back, and no bad byte is ever accepted as part of a good record."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siterig.blockfs.changelog.segment import (
    HEADER_BYTES,
    RECORD_HEADER_BYTES,
    RecordType,
    SegmentHeader,
    SegmentReader,
    SegmentWriter,
    scan_tail,
)
from siterig.blockfs.changelog.tags import TagSeen, decode_tag, encode_tag
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.codec import pack, unpack
from siterig.blockfs.transfer.part_name import PartName
from tests.support.repo.examples import examples

DISK = "6a83da7e-b542-496d-a113-08b9b71d9e21"


def header(*, first_seq: int = 5, disk_id: str = DISK) -> SegmentHeader:
    return SegmentHeader(disk_id, 3, "log", first_seq, current_boot_id(), 1_700_000_000_000_000_000, 1 << 20)


def write_segment(path: Path, payloads: list[bytes], *, first_seq: int = 5) -> list[int]:
    """Write a segment, and return the file offsets at which records begin, and the end."""
    writer = SegmentWriter.create(path, header(first_seq=first_seq))
    edges = [writer.end]
    for i, payload in enumerate(payloads):
        writer.append(
            RecordType.WRITE,
            seq=first_seq + i,
            position=100 + i,
            time_ns=i,
            offset=512 * i,
            length=len(payload),
            payload=payload,
        )
        edges.append(writer.end)
    writer.close()
    return edges


def read_all(path: Path) -> list[bytes]:
    with SegmentReader(path) as reader:
        return [reader.payload(record) for record in reader.records()]


def test_records_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    write_segment(path, [b"one", b"", b"three" * 1000])
    with SegmentReader(path) as reader:
        assert reader.header == header()
        records = list(reader.records())
        assert [r.seq for r in records] == [5, 6, 7]
        assert [r.position for r in records] == [100, 101, 102]
        assert reader.payload(records[2]) == b"three" * 1000


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    write_segment(path, [b"payload one", b"payload two"])
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << (at % 8)
        path.write_bytes(bad)
        with pytest.raises(RigError) as failed:
            read_all(path)
        assert failed.value.code in ("LogCorrupt", "LogVersion"), at


def test_every_truncation_is_found_or_leaves_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    edges = write_segment(path, [b"payload one", b"payload two"])
    good = path.read_bytes()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        if size in edges:
            assert len(read_all(path)) == edges.index(size)
            continue
        with pytest.raises(RigError, match="change log is corrupt at byte"):
            read_all(path)


def test_scan_keeps_everything_before_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    edges = write_segment(path, [b"x" * 50, b"y" * 50])
    good = path.read_bytes()
    for size in range(HEADER_BYTES, len(good)):
        path.write_bytes(good[:size])
        with SegmentReader(path) as reader:
            scan = scan_tail(reader)
        whole = max(i for i, edge in enumerate(edges) if edge <= size)
        assert (len(scan.records), scan.end, scan.torn_bytes) == (whole, edges[whole], size - edges[whole])


def test_a_scan_distinguishes_a_corrupt_record_from_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    edges = write_segment(path, [b"x" * 50, b"y" * 50, b"z" * 50])
    raw = bytearray(path.read_bytes())
    raw[edges[1] + RECORD_HEADER_BYTES] ^= 1
    path.write_bytes(raw)
    with SegmentReader(path) as reader, pytest.raises(RigError, match="but good records follow"):
        scan_tail(reader)


def test_a_record_of_another_segment_is_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a.hrl", tmp_path / "b.hrl"
    write_segment(a, [b"old"])
    writer = SegmentWriter.create(b, header(disk_id=str(uuid.uuid4())))
    writer.close()
    b.write_bytes(b.read_bytes() + a.read_bytes()[HEADER_BYTES:])
    with pytest.raises(RigError, match="record checksum does not match"):
        read_all(b)


def test_a_gap_in_the_sequence_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    writer = SegmentWriter.create(path, header())
    writer.append(RecordType.FLUSH, seq=5, position=1, time_ns=0)
    writer.append(RecordType.FLUSH, seq=7, position=2, time_ns=0)
    writer.close()
    with pytest.raises(RigError, match="sequence number 7; 6 comes next"):
        read_all(path)


def test_an_older_or_newer_format_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.hrl"
    write_segment(path, [])
    raw = bytearray(path.read_bytes())
    raw[8] = 9
    path.write_bytes(raw)
    with pytest.raises(RigError, match="change log format 9; this siterig reads 1") as failed:
        SegmentReader(path)
    assert failed.value.code == "LogVersion"


def test_a_segment_that_is_truncated_while_it_is_read_ends_there(tmp_path: Path) -> None:
    """The writer truncates the preallocated end in this way.  A scan for records after the end does not fail either."""
    path = tmp_path / "a.hrl"
    edges = write_segment(path, [b"x" * 1_000_000] * 12)
    with SegmentReader(path) as reader:
        records = reader.records()
        assert next(records).seq == 5
        os.truncate(path, edges[1])
        with pytest.raises(RigError, match=r"bytes left|checksum does not match"):
            list(records)
        assert scan_tail(reader).end == edges[1]


@pytest.mark.slow
@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600), st.integers(0, 400))
def test_garbage_is_an_error_never_a_crash(tmp_path: Path, garbage: bytes, keep: int) -> None:
    path = tmp_path / "fuzz.hrl"
    path.unlink(missing_ok=True)
    write_segment(path, [b"abc" * 20, b"def" * 20])
    path.write_bytes(path.read_bytes()[:keep] + garbage)
    try:
        found = read_all(path)
    except RigError:
        return
    assert found in ([], [b"abc" * 20], [b"abc" * 20, b"def" * 20])


def test_a_tag_is_decoded_and_garbage_is_refused() -> None:
    tag = TagSeen(tag_id="t", kind="ApplicationConsistent", name="é", position=9, time_ns=8)
    assert decode_tag(encode_tag(tag)) == tag
    with pytest.raises(RigError, match="TAG record: "):
        decode_tag(b"{}")


class TestPart:
    def packed(self, tmp_path: Path) -> tuple[PartName, bytes, Path]:
        path = tmp_path / "a.hrl"
        write_segment(path, [b"one" * 500, b"two" * 500])
        return PartName(DISK, 3, "log", 5, 6), pack(path), path

    def test_a_part_is_unpacked_to_the_same_bytes(self, tmp_path: Path) -> None:
        name, data, path = self.packed(tmp_path)
        assert unpack(name, data, tmp_path / "b.hrl") == header()
        assert (tmp_path / "b.hrl").read_bytes() == path.read_bytes()

    def test_every_flipped_byte_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        name, data, path = self.packed(tmp_path)
        target = tmp_path / "b.hrl"
        for at in range(len(data)):
            bad = bytearray(data)
            bad[at] ^= 0x41
            try:
                unpack(name, bytes(bad), target)
            except RigError as exc:
                assert exc.code == "PartCorrupt"
                assert not target.exists()
            else:  # a bit that zstd ignores: the content is the same
                assert target.read_bytes() == path.read_bytes()

    def test_a_part_under_another_name_is_refused(self, tmp_path: Path) -> None:
        _, data, _ = self.packed(tmp_path)
        wrong = PartName(DISK, 3, "log", 5, 7)
        with pytest.raises(RigError, match=f"holds {DISK}/00000003/log/{5:020d}-{6:020d}"):
            unpack(wrong, data, tmp_path / "b.hrl")

    def test_names_of_parts_are_parsed_and_other_names_are_refused(self) -> None:
        name = PartName(DISK, 3, "sync", 1, 1)
        assert PartName.parse(name.blob()) == name
        with pytest.raises(RigError, match="is not a replication part"):
            PartName.parse("notes.txt")
