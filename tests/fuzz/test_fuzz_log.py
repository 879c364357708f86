"""Damaged change logs give one clear error or exactly the good records, in bounded time."""

from __future__ import annotations

import struct
from pathlib import Path

from siterig.blockfs.changelog.segment import RecordType, SegmentHeader, SegmentWriter
from siterig.blockfs.core.boot import current_boot_id
from tests.fuzz import damage, disk_damage, disk_targets, log_targets
from tests.fuzz import strict_log as log
from tests.fuzz.run import fuzz


def test_the_two_ways_to_write_a_segment_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    writer = SegmentWriter.create(path, SegmentHeader(damage.DISK_ID, 2, "log", 7, current_boot_id(), 1, 4096))
    writer.append(RecordType.WRITE, seq=7, position=9, time_ns=70, offset=512, length=3, payload=b"abc")
    writer.append(RecordType.FLUSH, seq=8, position=10, time_ns=80, flags=1)
    writer.close()
    head = log.make_header(disk_id=damage.DISK_ID, first_seq=7, disk_size_bytes=4096, boot_id=current_boot_id())
    seed: int = struct.unpack_from("<I", head, 124)[0]
    ours = head + log.make_record(seed, log.WRITE, seq=7, position=9, offset=512, length=3, payload=b"abc")
    ours += log.make_record(seed, log.FLUSH, seq=8, position=10, flags=1)
    assert path.read_bytes() == ours == log.reseal(ours)


def test_damaged_segments_are_read_as_the_strict_reader_reads_them() -> None:
    seen = fuzz(lambda pick: damage.segment(pick, current_boot_id()), log_targets.segment, share=0.2)
    assert {"good", "torn", "corrupt", "LogCorrupt"} <= seen.keys()


def test_indexes_of_damaged_segments_match_the_strict_reader() -> None:
    seen = fuzz(lambda pick: damage.segment(pick, current_boot_id()), log_targets.index, share=0.1)
    assert {"good", "PartCorrupt", "PartRefused"} <= seen.keys()


def test_damaged_consecutive_segments_match_the_strict_reader() -> None:
    seen = fuzz(lambda pick: damage.row(pick, current_boot_id()), log_targets.row, share=0.2)
    assert {"good", "encrypted", "LogCorrupt", "LogGap"} <= seen.keys()


def test_damaged_parts_match_the_strict_reader() -> None:
    seen = fuzz(
        lambda pick: damage.part(pick, current_boot_id()), lambda part, folder: log_targets.part(*part, folder), share=0.1
    )
    assert {"good", "PartCorrupt"} <= seen.keys()


def test_damaged_folders_of_a_disk_match_the_strict_reader() -> None:
    seen = fuzz(lambda pick: disk_damage.folder(pick, current_boot_id()), disk_targets.disk, share=0.2)
    assert {"good", "LogCorrupt", "PowerLoss", "LogOverflow"} <= seen.keys()
