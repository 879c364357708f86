"""Segments are sorted, checked and replayed; wrong ones are refused, and an incomplete replay is reported."""

from __future__ import annotations

import errno
import random
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.replay import FileSummary, Replay, TornTail, check, in_order, open_image, verify
from siterig.blockfs.changelog.segment import HEADER_BYTES, RecordType, SegmentReader
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.sync_stream import SyncStream
from tests.support.disks.log_row import DISK_BYTES, DISK_ID, START, LogRow, operations
from tests.support.repo.examples import examples


def row_of_three(folder: Path) -> LogRow:
    row = LogRow(folder)
    for number in range(3):
        row.rotate()
        row.write(512 * number, bytes([number + 1]) * 700)
        row.write(40_000, bytes([number + 1]) * 100)
    row.close()
    return row


def replayed(folder: Path, paths: list[Path], *, upto: int | None = None, start: bytes = START) -> bytes:
    image = folder / "image"
    image.write_bytes(start)
    log = check(paths, upto=upto)
    onto = open_image(image, log, writable=True)
    Replay(log, onto).run()
    onto.close()
    return image.read_bytes()


def faults(paths: list[Path]) -> list[str | None]:
    return [found.code if isinstance(found, RigError) else None for _, found in verify(paths)]


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(operations(1), st.randoms(use_true_random=False))
def test_a_replay_gives_the_disk_at_every_position(ops: list[tuple[RecordType, int, int, int]], rng: object) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = LogRow(folder)
        for index, op in enumerate(ops):
            if index % 4 == 0:
                row.rotate()
            row.do(op)
        row.close()
        paths = list(reversed(row.paths))
        assert replayed(folder, paths) == bytes(row.data)
        for position, state in list(row.states.items())[:: max(len(row.states) // 4, 1)]:
            assert replayed(folder, paths, upto=position) == state
            assert replayed(folder, paths, upto=position + 1) == state


def test_files_are_sorted_by_their_records_not_by_their_names(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    a, b, c = row.paths
    renamed = [b.rename(tmp_path / "z"), c.rename(tmp_path / "a"), a.rename(tmp_path / "m")]
    assert [file.path.name for file in in_order(renamed)] == ["m", "z", "a"]
    assert replayed(tmp_path, renamed) == bytes(row.data)


def test_an_empty_segment_comes_before_its_successor(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(0, b"x")
    row.rotate()
    row.rotate()
    row.write(1, b"y")
    row.close()
    row.paths[1] = row.paths[1].rename(tmp_path / "z")
    assert [file.path for file in in_order(row.paths[::-1])] == [row.paths[0], row.paths[1], row.paths[2]]
    assert faults(row.paths) == [None, None, None]
    assert replayed(tmp_path, row.paths) == bytes(row.data)


def test_growth_is_replayed_and_a_larger_image_keeps_its_size(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.do((RecordType.RESIZE, 0, 8192, 0))
    row.write(DISK_BYTES + 8000, b"end" * 64)
    row.close()
    assert replayed(tmp_path, row.paths) == bytes(row.data)
    assert len(row.data) == DISK_BYTES + 8192
    larger = START + bytes(20_000)
    assert replayed(tmp_path, row.paths, start=larger) == bytes(row.data).ljust(len(larger), b"\0")


def test_a_repeated_replay_changes_nothing(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    once = replayed(tmp_path, row.paths)
    assert replayed(tmp_path, row.paths, start=once) == once


def test_a_missing_segment_is_a_gap(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    with pytest.raises(RigError) as failed:
        check([row.paths[2], row.paths[0]])
    assert (failed.value.code, failed.value.message) == (
        "LogGap",
        f"{row.paths[2]}: begins with record 5; the segment with record 3 is missing",
    )
    assert faults([row.paths[0], row.paths[2]]) == [None, "LogGap"]


def test_the_same_segment_twice_is_refused(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    assert faults([row.paths[0], row.paths[0]]) == [None, "LogGap"]


def test_logs_of_two_disks_are_not_one_log(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    other = LogRow(tmp_path, disk_id=str(uuid.UUID(int=5)), name="data")
    other.seq = 6
    other.write(0, b"x")
    other.close()
    with pytest.raises(RigError) as failed:
        check(row.paths + other.paths)
    assert failed.value.code == "LogMismatch"
    assert failed.value.message == (
        f"{other.paths[0]}: is the log of disk {uuid.UUID(int=5)}; {row.paths[0]} is of disk {DISK_ID}"
    )


def test_two_generations_are_not_one_log(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    later = LogRow(tmp_path, generation=3, name="later")
    later.seq = 6
    later.write(0, b"x")
    later.close()
    assert faults(later.paths + row.paths) == [None, None, None, "LogMismatch"]


def test_a_torn_tail_is_skipped_in_the_last_segment_only(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    before = row.states[row.position - 3]
    last = row.paths[2]
    last.write_bytes(last.read_bytes()[:-1])
    log = check(row.paths)
    assert log.torn is not None
    assert (log.torn.path, log.torn.torn_bytes) == (last, 64 + 100 - 1)
    assert replayed(tmp_path, row.paths) == before
    first = row.paths[0]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(RigError, match=r"000001.hrl: has a torn tail of 163 bytes at byte \d+, but .*000002.hrl follows it"):
        check(row.paths)


def test_an_incomplete_header_is_a_torn_tail_but_no_log_by_itself(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    stub = tmp_path / "os.000004.hrl"
    stub.write_bytes(row.paths[0].read_bytes()[: HEADER_BYTES - 1])
    assert faults([stub, *row.paths]) == [None] * 4
    assert replayed(tmp_path, [stub, *row.paths]) == bytes(row.data)
    assert faults([stub]) == ["LogCorrupt"]
    with pytest.raises(RigError, match="header has 127 bytes; it must have 128"):
        check([stub])


def test_a_corrupt_segment_does_not_hide_the_others(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    raw = bytearray(row.paths[1].read_bytes())
    raw[HEADER_BYTES + 80] ^= 1
    row.paths[1].write_bytes(raw)
    assert faults(row.paths) == [None, "LogCorrupt", None]
    row.paths[1].write_bytes(bytes(raw[: HEADER_BYTES - 1]) + b"\xff" + bytes(raw[HEADER_BYTES:]))
    assert sorted(faults(row.paths), key=str) == ["LogCorrupt", "LogGap", None]  # without a header no segment fills the gap


def test_a_bad_end_of_the_log_is_refused_unless_the_replay_ends_before(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    row.rotate()
    row.write(0, b"first")
    row.write(0, b"second")
    row.write(0, b"third")
    row.close()
    raw = bytearray(row.paths[3].read_bytes())
    raw[-2 * 64 - 8] ^= 1
    row.paths[3].write_bytes(raw)
    with pytest.raises(RigError, match="but good records follow"):
        check(row.paths)
    upto = row.position - 9  # only one record after this position is read
    assert replayed(tmp_path, row.paths, upto=upto) == row.states[upto]


def test_records_beyond_the_end_of_the_disk_and_shrinks_are_refused(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(DISK_BYTES - 1, b"xy")
    row.close()
    with pytest.raises(
        RigError, match=f"WRITE of 2 bytes at {DISK_BYTES - 1} passes the end of a disk of {DISK_BYTES} bytes"
    ):
        check(row.paths)
    shrunk = LogRow(tmp_path, name="shrunk")
    shrunk.rotate()
    del shrunk.data[512:]
    shrunk.do((RecordType.RESIZE, 0, 0, 0))
    shrunk.close()
    with pytest.raises(RigError, match=f"RESIZE from {DISK_BYTES} to 512 bytes; disks only grow"):
        check(shrunk.paths)


def test_an_image_that_is_too_small_or_not_a_file_is_refused(tmp_path: Path) -> None:
    log = check(row_of_three(tmp_path).paths)
    image = tmp_path / "image"
    with pytest.raises(RigError, match="image: does not exist"):
        open_image(image, log, writable=True)
    with pytest.raises(RigError, match="is a folder; an image is a file that holds the bytes of a disk, or a block device"):
        open_image(tmp_path, log, writable=True)
    image.write_bytes(START[:-1])
    with pytest.raises(RigError) as failed:
        open_image(image, log, writable=True)
    assert failed.value.message == f"{image}: has {DISK_BYTES - 1} bytes; the log is of a disk of {DISK_BYTES} bytes"


def test_a_lower_position_in_the_next_segment_is_refused(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    row.write(0, b"x")
    row.rotate()
    row.position -= 4
    row.write(0, b"y")
    row.close()
    with pytest.raises(RigError, match=r"000002\.hrl: change log is corrupt at record 2: position 42 after 43"):
        check(row.paths)


def test_a_record_that_is_completed_during_the_reading_is_not_lost(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    whole = row.paths[0].read_bytes()
    row.paths[0].write_bytes(whole[:-20])
    with SegmentReader(row.paths[0]) as reader:
        tail = TornTail(reader)
        records = tail.records()
        assert next(records).seq == 1
        row.paths[0].write_bytes(whole)
        assert [record.seq for record in records] == [2]
        assert tail.torn_bytes == 0


def test_the_parts_of_a_sync_stream_can_be_replayed_too(tmp_path: Path) -> None:
    folder = tmp_path / "sync"
    folder.mkdir()
    stream = SyncStream(
        folder,
        disk_id=DISK_ID,
        generation=1,
        disk_size_bytes=DISK_BYTES,
        position=9,
        time_ns=0,
        first_seq=1,
        part_bytes_max=9999,
    )
    target = bytes(reversed(START))
    for at in range(0, DISK_BYTES, 8192):
        stream.add(at, target[at : at + 8192], 8192)
    stream.finish()
    parts = sorted(folder.iterdir(), reverse=True)
    assert len(parts) > 3
    assert replayed(tmp_path, parts) == target
    row = row_of_three(tmp_path)
    assert faults(parts[2:] + parts[:1]) == [None] * (len(parts) - 2) + ["LogGap"]
    assert faults([*parts, row.paths[0]])[-1] == "LogMismatch"


def test_replaying_a_disks_log_gives_the_disk_even_after_a_kill(tmp_path: Path) -> None:
    positions = PositionCounter(tmp_path / "position")
    folder = tmp_path / "web01"
    folder.mkdir()
    paths = DiskPaths(folder, "web01", "os")
    make_raw(paths, DISK_BYTES)
    disk = Disk.open(paths, DiskOptions(positions), None)
    disk.write(0, START)
    disk.tracking.start(new_generation=False)
    rng = random.Random(5)
    for number in range(40):
        offset = rng.randrange(DISK_BYTES - 1)
        disk.write(offset, rng.randbytes(rng.randrange(1, min(600, DISK_BYTES - offset) + 1)))
        if number == 12:
            disk.tracking.log.rotate()
        if number == 25:
            disk.abandon()
            disk = Disk.open(paths, DiskOptions(positions), None)
    assert disk.tracking.log.last_seq == 40
    assert replayed(tmp_path, sorted(folder.glob("os.*.hrl"), reverse=True)) == disk.read(0, DISK_BYTES)
    disk.abandon()
    positions.close()


def test_a_replay_ends_with_a_sync(tmp_path: Path) -> None:
    class Watched(RawLayer):
        unsynced = False

        def pwrite(self, offset: int, data: bytes | memoryview) -> None:
            super().pwrite(offset, data)
            self.unsynced = True

        def sync(self) -> None:
            super().sync()
            self.unsynced = False

    image = tmp_path / "image"
    image.write_bytes(START)
    onto = Watched(image, writable=True)
    Replay(check(row_of_three(tmp_path).paths), onto).run()
    onto.close()
    assert not onto.unsynced


class FullLayer(RawLayer):
    """A layer that accepts two writes, and then reports that the disk is full."""

    left = 2

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "full")
        self.left -= 1
        super().pwrite(offset, data)


def test_an_interrupted_replay_reports_its_last_record(tmp_path: Path) -> None:
    row = row_of_three(tmp_path)
    image = tmp_path / "image"
    image.write_bytes(START)
    onto = FullLayer(image, writable=True)
    replay = Replay(check(row.paths), onto)
    with pytest.raises(OSError, match="full"):
        replay.run()
    onto.close()
    assert replay.last is not None
    assert (replay.last.seq, image.read_bytes()) == (2, row.states[replay.last.position])


def test_a_check_reports_how_many_bytes_it_has_read(tmp_path: Path) -> None:
    row = LogRow(tmp_path)
    for _ in range(3):
        row.write(0, bytes(60_000))
    row.rotate()
    row.write(0, b"x")
    row.close()
    reported: list[int] = []
    log = check(row.paths, advance=reported.append)
    assert sum(reported) == sum(path.stat().st_size - HEADER_BYTES for path in row.paths)
    assert log.files[0].written_bytes == 180_000


def test_an_unreadable_log_file_is_reported_with_its_name(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 256)
    found = dict(verify([tmp_path / "none", tmp_path, long]))
    messages = {str(fault) for fault in found.values() if not isinstance(fault, FileSummary)}
    assert messages == {
        f"{tmp_path}/none: does not exist",
        f"{tmp_path}: is a folder; a change log is a file",
        f"{long}: cannot be opened: File name too long",
    }
