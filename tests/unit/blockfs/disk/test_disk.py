"""A tracked disk: the log precedes the bytes, kills lose nothing, and a power loss is reported."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from siterig.blockfs.changelog import dirty_bitmap, disk_log
from siterig.blockfs.changelog.dirty_bitmap import CHUNK_BYTES
from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import HEADER_BYTES, SegmentReader
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk import snapshot as snapshot_module
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_report import describe
from siterig.cext._core import lib
from tests.support.disks.disk_model import replay
from tests.support.disks.opened_disk import SIZE, logs, reopen
from tests.support.io_faults import PUNCH, WRITE, failing


@pytest.fixture
def disk(tmp_path: Path, positions: PositionCounter) -> Disk:
    paths = DiskPaths(tmp_path, "web01", "os")
    make_raw(paths, SIZE)
    return Disk.open(paths, DiskOptions(positions), None)


def contents(disk: Disk) -> bytes:
    return disk.read(0, disk.size_bytes)


def end_of_log(disk: Disk) -> int:
    """Return the bytes of the current segment that are written."""
    number, path = find_segments(disk.paths.folder, "os")[-1]
    return disk.tracking.segment_bytes(number, path)


def scribble(disk: Disk, rng: random.Random, count: int) -> None:
    for _ in range(count):
        offset = rng.randrange(0, SIZE - 1)
        disk.write(offset, rng.randbytes(rng.randrange(1, min(9000, SIZE - offset) + 1)))


def test_a_size_that_is_no_multiple_of_a_sector_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="disk os: size is 1000 bytes; it must be a positive multiple of 512"):
        make_raw(DiskPaths(tmp_path, "web01", "os"), 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_write_past_the_end_is_refused_and_changes_nothing(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    for offset in (SIZE, SIZE + 1, 2**63 - 8):
        with pytest.raises(OSError, match=f"write of 4 bytes at {offset} is past the end of disk web01/os") as failed:
            disk.write(offset, b"four")
        assert failed.value.errno == errno.ENOSPC
    assert disk.tracking.log.last_seq == 0
    assert contents(disk) == bytes(SIZE)


def test_a_write_across_the_end_writes_and_logs_the_part_that_fits(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    assert disk.write(SIZE - 3, b"four") == 3
    assert contents(disk) == bytes(SIZE - 3) + b"fou"
    assert (disk.tracking.log.last_seq, disk.size_bytes) == (1, SIZE)
    assert replay(bytes(SIZE), disk) == contents(disk)


@pytest.mark.parametrize("seed", range(5))
def test_replaying_the_log_gives_the_disk(disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    scribble(disk, rng, 5)
    start = contents(disk)
    disk.tracking.start(new_generation=False)
    scribble(disk, rng, 40)
    assert replay(start, disk) == contents(disk)


async def test_a_cleanly_closed_disk_continues_the_same_generation(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"before")
    disk.close()
    again = Disk.open(disk.paths, DiskOptions(positions), None)
    again.write(3, b"after")
    assert (again.state.generation, again.state.needs_resync) == (1, None)
    assert replay(bytes(SIZE), again) == contents(again)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_in_the_last_record_loses_only_unacknowledged_bytes(
    disk: Disk, positions: PositionCounter, seed: int
) -> None:
    rng = random.Random(seed)
    disk.tracking.start(new_generation=False)
    scribble(disk, rng, 10)
    acknowledged = contents(disk)
    whole = logs(disk)[-1].read_bytes()[: end_of_log(disk)]
    disk.write(100, b"last" * 20)
    longer = logs(disk)[-1].read_bytes()[: end_of_log(disk)]
    last = len(longer) - len(whole)
    dirty_file = disk.paths.file("dirty").read_bytes()
    for torn in range(0, last + 1, 7):
        disk.abandon()
        for path in logs(disk)[1:]:
            path.unlink()
        logs(disk)[0].write_bytes(longer[: len(whole) + torn])
        disk.paths.file("dirty").write_bytes(dirty_file)
        with (disk.paths.file("img")).open("r+b") as image:  # the bytes may or may not have reached the disk
            image.write(acknowledged)
        disk = Disk.open(disk.paths, DiskOptions(positions), None)
        assert disk.state.generation == 1
        assert disk.tracking.log.next_seq == (12 if torn == last else 11)
        assert replay(bytes(SIZE), disk) == contents(disk)
        if torn < last:
            assert contents(disk) == acknowledged


def test_repeated_kills_leave_no_gap_in_the_sequence(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    rng = random.Random(1)
    for _ in range(8):
        scribble(disk, rng, 3)
        disk = reopen(disk, positions)
        disk = reopen(disk, positions)
    assert disk.tracking.log.next_seq == 25
    assert replay(bytes(SIZE), disk) == contents(disk)
    seqs = []
    for path in logs(disk)[:-1]:
        with SegmentReader(path) as reader:
            seqs += [record.seq for record in reader.records()]
    assert seqs == list(range(1, 25))


def test_positions_are_never_reused_after_a_kill(disk: Disk, tmp_path: Path) -> None:
    counter = PositionCounter(tmp_path / "position")
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    newest = counter.value
    disk.abandon()
    (tmp_path / "position").unlink()
    fresh = PositionCounter(tmp_path / "position")
    Disk.open(disk.paths, DiskOptions(fresh), None)
    assert fresh.draw() > newest


def test_a_kill_while_a_segment_is_created_does_no_harm(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    disk_log.segment_path(disk.paths.folder, "os", 2).write_bytes(b"SRIG")
    disk = reopen(disk, positions)
    assert disk.tracking.log.next_seq == 2


def test_a_power_loss_is_reported_and_needs_a_resync(
    disk: Disk, positions: PositionCounter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    before = positions.value
    monkeypatch.setattr(boot, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    positions = PositionCounter(tmp_path / "position")
    disk = reopen(disk, positions)
    assert disk.state.needs_resync == "PowerLoss"
    counter = PositionCounter(tmp_path / "position")
    assert counter.value > before + (1 << 39), "the position file may be old"
    counter.close()
    with pytest.raises(RigError, match=r"disk web01/os is not tracked \(PowerLoss: it needs a resync\)"):
        _ = disk.tracking.log
    disk.tracking.start(new_generation=True)
    state = disk.state
    assert (state.generation, state.needs_resync) == (2, None)
    assert len(logs(disk)) == 2, "the old generation is kept until the resync is applied"
    disk.tracking.trim(2, 0)
    assert len(logs(disk)) == 1
    disk.abandon()
    positions.close()


async def test_a_reboot_after_a_clean_close_needs_no_resync(
    disk: Disk, positions: PositionCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    disk.close()
    monkeypatch.setattr(boot, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    again = Disk.open(disk.paths, DiskOptions(positions), None)
    assert (again.state.needs_resync, again.state.generation) == (None, 1)


def test_a_corrupt_log_is_reported(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"first")
    disk.write(0, b"second")
    raw = bytearray(logs(disk)[0].read_bytes())
    raw[HEADER_BYTES + 64] ^= 1
    logs(disk)[0].write_bytes(raw)
    assert reopen(disk, positions).state.needs_resync == "LogCorrupt"


def test_a_missing_segment_is_reported(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    for text in (b"a", b"b", b"c"):
        disk.write(0, text)
        disk.tracking.log.rotate()
    logs(disk)[1].unlink()
    assert reopen(disk, positions).state.needs_resync == "LogCorrupt"


@pytest.mark.parametrize("full", [".img", ".hrl"])
def test_a_full_host_disk_leaves_log_and_disk_as_they_were(disk: Disk, positions: PositionCounter, full: str) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"good")
    size, seq = end_of_log(disk), disk.tracking.log.last_seq
    with failing(WRITE, full, errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        disk.write(0, b"lost")
    assert (end_of_log(disk), disk.tracking.log.last_seq) == (size, seq)
    assert contents(disk)[:4] == b"good"
    disk.write(4, b"!")
    disk = reopen(disk, positions)
    assert replay(bytes(SIZE), disk) == contents(disk)


@pytest.mark.parametrize("after_bytes", [10, 64, 66])
def test_an_append_that_fails_half_way_leaves_no_torn_record(
    disk: Disk, positions: PositionCounter, after_bytes: int
) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"good")
    with failing(WRITE, ".hrl", errno.ENOSPC, after_bytes=after_bytes), pytest.raises(OSError, match="No space left"):
        disk.write(0, b"lost")
    assert contents(disk)[:4] == b"good"
    assert replay(bytes(SIZE), disk) == contents(disk)
    again = reopen(disk, positions)
    assert again.tracking.log.next_seq == 2
    again.write(1, b"more")
    assert replay(bytes(SIZE), again) == contents(again)


@pytest.mark.parametrize("done", [1, 511, 4096, 5000])
def test_a_partial_write_is_logged_with_the_written_length(disk: Disk, positions: PositionCounter, done: int) -> None:
    disk.tracking.start(new_generation=False)
    with failing(WRITE, ".img", errno.ENOSPC, after_bytes=done):
        assert disk.write(100, b"x" * 6000) == done
    assert contents(disk)[100:6100] == b"x" * done + bytes(6000 - done)
    disk.write(50, b"y")
    assert replay(bytes(SIZE), disk) == contents(disk)
    disk = reopen(disk, positions)
    assert disk.tracking.log.next_seq == 3
    assert replay(bytes(SIZE), disk) == contents(disk)


def test_a_full_log_is_replaced_by_the_bitmap_if_the_policy_allows(tmp_path: Path, positions: PositionCounter) -> None:
    paths = DiskPaths(tmp_path, "web01", "os")
    make_raw(paths, SIZE)
    options = DiskOptions(positions, policy=LogPolicy(when_full="bitmap"))
    disk = Disk.open(paths, options, None)
    disk.tracking.start(new_generation=False)
    disk.write(3 * CHUNK_BYTES, b"logged")
    with failing(WRITE, ".hrl", errno.ENOSPC):
        disk.write(5 * CHUNK_BYTES - 1, b"not logged")
    disk.write(9 * CHUNK_BYTES, b"nor this")
    disk.abandon()
    disk = Disk.open(paths, options, None)
    assert disk.state.needs_resync == "LogFull"
    assert disk.tracking.dirty_ranges() == [(3 * CHUNK_BYTES, 3 * CHUNK_BYTES), (9 * CHUNK_BYTES, CHUNK_BYTES)]
    disk.write(12 * CHUNK_BYTES, b"goes on being noted")
    assert disk.tracking.dirty_ranges()[-1] == (12 * CHUNK_BYTES, CHUNK_BYTES)
    assert contents(disk)[9 * CHUNK_BYTES :][:8] == b"nor this"


@pytest.mark.parametrize("seed", range(5))
def test_a_log_of_half_the_disk_is_abandoned_without_losing_changes(
    disk: Disk, positions: PositionCounter, seed: int
) -> None:
    rng = random.Random(seed)
    disk.tracking.start(new_generation=False)
    scribble(disk, rng, 20)
    disk.tracking.log.rotate()
    sent = contents(disk)
    disk.flush_now()
    disk.tracking.trim(1, disk.tracking.log.last_seq)
    changed: set[int] = set()
    while describe(disk, Path()).tracked:
        offset = rng.randrange(SIZE - 9000)
        data = rng.randbytes(rng.randrange(1, 9000))
        disk.write(offset, data)
        changed.update(range(offset // CHUNK_BYTES, (offset + len(data) - 1) // CHUNK_BYTES + 1))
        if rng.random() < 0.1:
            disk = reopen(disk, positions)
    assert disk.state.needs_resync == "LogOverflow"
    disk = reopen(disk, positions)
    assert disk.state.needs_resync == "LogOverflow"
    assert disk.tracking.dirty_bytes == len(changed) * CHUNK_BYTES
    dirty = {
        at // CHUNK_BYTES
        for offset, length in disk.tracking.dirty_ranges()
        for at in range(offset, offset + length, CHUNK_BYTES)
    }
    assert dirty == changed
    now = contents(disk)
    for chunk in set(range(SIZE // CHUNK_BYTES)) - dirty:
        at = chunk * CHUNK_BYTES
        assert now[at : at + CHUNK_BYTES] == sent[at : at + CHUNK_BYTES]


def test_failed_zeroing_ends_the_log_because_the_bytes_are_unknown(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x" * 5000)
    with failing(PUNCH, ".img", errno.EIO), pytest.raises(OSError, match="Input/output error"):
        disk.zero(0, 4096)
    assert describe(disk, Path()).needs_resync == "WriteFailed"
    assert disk.tracking.dirty_ranges() == [(0, CHUNK_BYTES)]
    assert reopen(disk, positions).state.needs_resync == "WriteFailed"


@pytest.mark.parametrize("seed", range(3))
def test_zeros_discards_and_growth_are_logged_and_survive_kills(disk: Disk, positions: PositionCounter, seed: int) -> None:
    rng = random.Random(seed)
    disk.tracking.start(new_generation=False)
    for _ in range(6):
        scribble(disk, rng, 3)
        disk.zero(rng.randrange(SIZE), rng.randrange(1, 70_000), discard=rng.random() < 0.5)
        disk.resize(disk.size_bytes + 512 * rng.randrange(1, 100))
        disk.write(disk.size_bytes - 5, b"end")
        disk = reopen(disk, positions)
    assert disk.state.size_bytes == disk.size_bytes > SIZE
    assert replay(bytes(SIZE), disk) == contents(disk)


def test_a_disk_is_never_shrunk(disk: Disk) -> None:
    for size in (SIZE - 512, SIZE + 1, (64 << 40) + 512):
        with pytest.raises(RigError, match=f"new size is {size} bytes; it must be a multiple of 512, at least {SIZE} "):
            disk.resize(size)


def test_a_kill_before_growth_is_saved_in_the_state_does_no_harm(disk: Disk, positions: PositionCounter) -> None:
    state = disk.paths.file("disk").read_bytes()
    disk.tracking.start(new_generation=False)
    tracked = disk.paths.file("disk").read_bytes()
    disk.resize(2 * SIZE)
    disk.abandon()
    assert state != tracked
    disk.paths.file("disk").write_bytes(tracked)
    disk = Disk.open(disk.paths, DiskOptions(positions), None)
    assert (disk.size_bytes, disk.state.size_bytes) == (2 * SIZE, 2 * SIZE)
    assert replay(bytes(SIZE), disk) == contents(disk)


@pytest.mark.parametrize("seed", range(5))
def test_a_snapshot_keeps_its_bytes_while_the_disk_changes(disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    disk.tracking.start(new_generation=False)
    scribble(disk, rng, 15)
    before = contents(disk)
    snapshot = disk.begin_snapshot()
    for _ in range(3):
        offset = rng.randrange(SIZE - 9000)
        disk.write(offset, rng.randbytes(9000))
        disk.zero(rng.randrange(SIZE), 9000)
    disk.resize(2 * SIZE)
    assert snapshot.pread(0, SIZE) == before
    released = SIZE // 2
    snapshot.release(released)
    kept = snapshot.store_bytes
    disk.write(0, b"y" * 1000)
    assert snapshot.store_bytes == kept, "old bytes of a released range are no longer kept"
    assert snapshot.pread(released, SIZE - released) == before[released:]
    with pytest.raises(RigError, match="byte 0 was released"):
        snapshot.pread(0, 1)
    assert disk.tracking.log.next_seq > snapshot.first_seq
    disk.end_snapshot()
    assert not disk.paths.file("snapshot").exists()
    with pytest.raises(RigError, match="the snapshot was removed"):
        snapshot.pread(released, 1)


def test_ranges_of_a_snapshot_include_data_that_became_a_hole(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(5 * CHUNK_BYTES, b"x" * CHUNK_BYTES)
    with pytest.MonkeyPatch.context() as patch:
        real = snapshot_module.Snapshot.__init__

        def late(self: snapshot_module.Snapshot, *args: Any, **named: Any) -> None:
            disk.zero(0, SIZE)  # a guest's discard, right after the snapshot
            real(self, *args, **named)

        patch.setattr(snapshot_module.Snapshot, "__init__", late)
        snapshot = disk.begin_snapshot()
    assert any(at <= 5 * CHUNK_BYTES < at + length for at, length in snapshot.data_ranges)


def test_a_snapshot_without_space_fails_and_the_disk_does_not(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    snapshot = disk.begin_snapshot()
    with failing(WRITE, ".snapshot", errno.ENOSPC):
        disk.write(0, b"goes on")
    assert contents(disk)[:7] == b"goes on"
    with pytest.raises(RigError, match="could not keep old data: No space left on device"):
        snapshot.pread(0, 1)


def test_a_snapshot_takes_at_most_its_share_of_space(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    snapshot = disk.begin_snapshot()
    for at in range(0, SIZE, CHUNK_BYTES):
        disk.write(at, b"x")
    assert snapshot.store_bytes == snapshot.store_bytes_max == SIZE // 2
    assert contents(disk)[SIZE - CHUNK_BYTES :][:1] == b"x"
    with pytest.raises(RigError, match=f"could not keep old data: the {SIZE // 2} bytes that it may take are used up"):
        snapshot.pread(0, 1)


def test_a_segment_that_is_no_longer_read_becomes_the_spare(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"a" * 3000)
    disk.tracking.log.rotate()
    disk.flush_now()
    old = logs(disk)[0]
    inode = old.stat().st_ino
    assert disk.tracking.segments()
    disk.tracking.trim(1, 1000)
    disk.tracking.log.provide_spare()
    assert disk.paths.file("spare").stat().st_ino == inode
    disk.write(0, b"b" * 100)
    disk.tracking.log.rotate()
    disk.write(5, b"c" * 100)
    assert logs(disk)[-1].stat().st_ino == inode
    now = contents(disk)
    disk = reopen(disk, positions)
    assert contents(disk) == now
    assert disk.tracking.log.next_seq == 5, "records of its earlier use do not count"


def test_a_log_lists_only_its_own_segments(disk: Disk, positions: PositionCounter) -> None:
    paths = DiskPaths(disk.paths.folder, "web01", "data")
    make_raw(paths, SIZE)
    other = Disk.open(paths, DiskOptions(positions), None)
    for each in (disk, other):
        each.tracking.start(new_generation=False)
    for _ in range(3):
        other.write(0, b"x")
        other.tracking.log.rotate()
    log, written = disk.tracking.log, other.tracking.log.segment_bytes_of
    assert [number for number in range(1, 10) if written(number) is not None] == [1, 2, 3, 4]
    assert [log.segment_bytes_of(number) for number in (1, 2)] == [HEADER_BYTES, None]
    assert disk.tracking.segments() == [], "no segment is closed"


async def test_a_tag_closes_its_segment_even_if_the_segment_is_over_full(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    for at in range(0, 400 << 10, 4096):  # longer than a segment, because there was no spare
        disk.write(at, b"x" * 4096)
    disk.tracking.log.provide_spare()
    disk.tracking.tag(TagSeen(tag_id="t", kind="CrashConsistent", name="n", position=1000, time_ns=1))
    await disk.flush()
    assert [(s.number, s.last_seq) for s in disk.tracking.segments()] == [(1, 101)], "these are 100 writes and the tag"


@pytest.mark.parametrize("recycled", [False, True])
def test_a_switch_while_a_spare_is_created_loses_no_segment(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, recycled: bool
) -> None:
    disk.tracking.start(new_generation=False)
    start = contents(disk)
    if recycled:
        disk.write(0, b"a" * 3000)
        start = contents(disk)
        disk.tracking.log.rotate()
        disk.flush_now()
        disk.tracking.trim(1, disk.tracking.segments()[-1].last_seq)
    disk.tracking.log.provide_spare()
    disk.write(0, b"b" * 3000)
    reconcile_segments = disk.tracking.log.reconcile_segments

    def reconcile_and_be_overtaken() -> None:
        reconcile_segments()
        monkeypatch.setattr(disk.tracking.log, "reconcile_segments", reconcile_segments)
        assert lib.sr_log_rotate(disk.c) == 0, "the writer switches without help"
        disk.write(0, b"c" * 2000)

    monkeypatch.setattr(disk.tracking.log, "reconcile_segments", reconcile_and_be_overtaken)
    disk.tracking.log.provide_spare()
    disk.tracking.log.maintain()
    disk.tracking.log.rotate()
    disk.write(0, b"d" * 1000)
    disk.tracking.log.reconcile_segments()
    assert replay(start, disk) == contents(disk)


def test_a_segment_that_is_still_open_for_reading_is_not_reused(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"a" * 3000)
    disk.tracking.log.rotate()
    disk.flush_now()
    assert disk.tracking.segments()
    with logs(disk)[0].open("rb") as reader:
        before = reader.read()
        disk.tracking.trim(1, 1000)
        disk.tracking.log.provide_spare()
        reader.seek(0)
        assert reader.read() == before


def test_a_kill_right_after_a_switch_of_segments_loses_nothing(disk: Disk, positions: PositionCounter) -> None:
    disk.tracking.start(new_generation=False)
    disk.tracking.log.provide_spare()
    for at in range(0, 300 << 10, 4096):  # longer than a segment, while maintenance does not run
        disk.write(at, b"x" * 4096)
    assert disk.paths.file("spare").exists()
    now, next_seq = contents(disk), 76
    disk = reopen(disk, positions)
    assert (disk.tracking.log.next_seq, disk.state.generation, disk.state.needs_resync) == (next_seq, 1, None)
    assert contents(disk) == now == replay(bytes(SIZE), disk)


def test_without_a_spare_the_current_segment_continues_to_grow(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    for at in range(0, 400 << 10, 4096):
        disk.write(at, b"x" * 4096)
    assert len(logs(disk)) == 1
    assert end_of_log(disk) > 400 << 10
    assert replay(bytes(SIZE), disk) == contents(disk)


@pytest.mark.slow
def test_a_bad_state_file_is_an_error_that_names_it(disk: Disk, positions: PositionCounter) -> None:
    path = disk.paths.file("disk")
    good = path.read_bytes()
    codes = set()
    for at in range(len(good)):
        for bit in (0x01, 0x04):  # each of them gives another version of the format
            bad = bytearray(good)
            bad[at] ^= bit
            path.write_bytes(bad)
            with pytest.raises(RigError) as failed:
                Disk.open(disk.paths, DiskOptions(positions), None)
            assert str(path) in failed.value.message
            codes.add(failed.value.code)
    assert codes == {"DiskStateCorrupt", "StateVersion"}
    path.write_bytes(good)
    Disk.open(disk.paths, DiskOptions(positions), None)


@pytest.mark.parametrize("noted", [True, False])
def test_a_kill_at_the_start_of_a_log_never_hides_an_abandoned_one(
    disk: Disk, positions: PositionCounter, noted: bool
) -> None:
    """The new log's dirty file has replaced the old one, while the state still describes the old log."""
    disk.tracking.start(new_generation=False)
    disk.write(0, bytes(SIZE // 2 + 1))
    if noted:
        disk.tracking.note_abandoned()
    assert (disk.state.needs_resync, disk.state.tracked) == (("LogOverflow", False) if noted else (None, True))
    dirty_bitmap.make(disk.paths.file("dirty"), disk_id=disk.state.disk_id, generation=disk.state.generation + 1)
    disk = reopen(disk, positions)
    assert (disk.state.needs_resync, disk.state.tracked) == ("LogCorrupt", False)
    with pytest.raises(RigError, match="not known what has changed"):
        disk.tracking.dirty_ranges()
    disk.write(0, b"goes on")
    disk.abandon()
