"""A tracked disk: the log precedes the bytes, kills lose nothing, power loss is told."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockfs import disk_log
from blockfs.changelog import HEADER_BYTES, SegmentReader
from blockfs.disk import Disk, DiskPlace
from blockfs.disk_log import find_segments
from blockfs.errors import RigError
from blockfs.layers import RawLayer
from blockfs.part import TagSeen
from blockfs.position import PositionCounter
from tests.unit.disk_model import replay

SIZE = 1 << 20


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[PositionCounter]:
    counter = PositionCounter(tmp_path / "position")
    yield counter
    counter.close()


@pytest.fixture
def disk(tmp_path: Path, positions: PositionCounter) -> Disk:
    place = DiskPlace(tmp_path, "web01", "os")
    Disk.make_raw(place, SIZE)
    return Disk.open(place, positions, None)


def reopen(disk: Disk, positions: PositionCounter) -> Disk:
    """As after kill -9: nothing is closed in order."""
    disk.abandon()
    return Disk.open(disk.place, positions, None)


def contents(disk: Disk) -> bytes:
    return disk.read(0, disk.size_bytes)


def logs(disk: Disk) -> list[Path]:
    return [path for _, path in find_segments(disk.place.folder, "os")]


def scribble(disk: Disk, rng: random.Random, count: int) -> None:
    for _ in range(count):
        offset = rng.randrange(0, SIZE - 1)
        disk.write(offset, rng.randbytes(rng.randrange(1, min(9000, SIZE - offset) + 1)))


def test_size_must_be_a_multiple_of_a_sector_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="disk os: size is 1000 bytes; it must be a positive multiple of 512"):
        Disk.make_raw(DiskPlace(tmp_path, "web01", "os"), 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_write_past_the_end_is_refused_and_changes_nothing(disk: Disk) -> None:
    disk.start_tracking(new_generation=False)
    with pytest.raises(OSError, match="passes the end of disk web01/os") as failed:
        disk.write(SIZE - 3, b"four")
    assert failed.value.errno == errno.EFBIG
    assert disk.log.last_seq == 0
    assert contents(disk) == bytes(SIZE)


@pytest.mark.parametrize("seed", range(5))
def test_replaying_the_log_gives_the_disk(disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    scribble(disk, rng, 5)
    start = contents(disk)
    disk.start_tracking(new_generation=False)
    scribble(disk, rng, 60)
    assert replay(start, disk) == contents(disk)


async def test_a_disk_closed_in_order_goes_on_in_the_same_generation(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"before")
    disk.close()
    again = Disk.open(disk.place, positions, None)
    again.write(3, b"after")
    assert (again.state.generation, again.state.needs_resync) == (1, None)
    assert replay(bytes(SIZE), again) == contents(again)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_byte_of_the_last_record_loses_only_what_was_not_acknowledged(
    disk: Disk, positions: PositionCounter, seed: int
) -> None:
    rng = random.Random(seed)
    disk.start_tracking(new_generation=False)
    scribble(disk, rng, 10)
    acknowledged = contents(disk)
    whole = logs(disk)[-1].read_bytes()
    disk.write(100, b"last" * 20)
    longer = logs(disk)[-1].read_bytes()
    last = len(longer) - len(whole)
    for torn in range(0, last + 1, 7):
        disk.abandon()
        for path in logs(disk)[1:]:
            path.unlink()
        logs(disk)[0].write_bytes(longer[: len(whole) + torn])
        with (disk.place.file("img")).open("r+b") as image:  # the bytes may or may not have reached the disk
            image.write(acknowledged)
        disk = Disk.open(disk.place, positions, None)
        assert disk.state.generation == 1
        assert disk.log.next_seq == (12 if torn == last else 11)
        assert replay(bytes(SIZE), disk) == contents(disk)
        if torn < last:
            assert contents(disk) == acknowledged


def test_kills_in_a_row_keep_the_sequence_without_a_gap(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    rng = random.Random(1)
    for _ in range(8):
        scribble(disk, rng, 3)
        disk = reopen(disk, positions)
        disk = reopen(disk, positions)
    assert disk.log.next_seq == 25
    assert replay(bytes(SIZE), disk) == contents(disk)
    seqs = []
    for path in logs(disk):
        with SegmentReader(path) as reader:
            seqs += [record.seq for record in reader.records()]
    assert seqs == list(range(1, 25))


def test_positions_never_come_again_after_a_kill(disk: Disk, tmp_path: Path) -> None:
    counter = PositionCounter(tmp_path / "position")
    disk.start_tracking(new_generation=False)
    disk.write(0, b"x")
    newest = counter.value
    disk.abandon()
    (tmp_path / "position").unlink()
    fresh = PositionCounter(tmp_path / "position")
    Disk.open(disk.place, fresh, None)
    assert fresh.draw() > newest


def test_a_kill_while_a_segment_was_made_is_no_harm(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"x")
    disk_log.segment_path(disk.place.folder, "os", 2).write_bytes(b"SRIG")
    disk = reopen(disk, positions)
    assert disk.log.next_seq == 2


def test_power_loss_is_told_and_never_taken_for_clean(
    disk: Disk, positions: PositionCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"x")
    before = positions.value
    monkeypatch.setattr(disk_log, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    disk = reopen(disk, positions)
    assert disk.state.needs_resync == "PowerLoss"
    assert positions.value > before + (1 << 39)
    with pytest.raises(RigError, match=r"disk web01/os is not tracked \(PowerLoss: it needs a resync\)"):
        _ = disk.log
    disk.start_tracking(new_generation=True)
    state = disk.state
    assert (state.generation, state.needs_resync) == (2, None)
    assert len(logs(disk)) == 2, "the old generation is kept until the resync is applied"
    disk.applied(2, 0)
    assert len(logs(disk)) == 1


async def test_a_reboot_after_an_orderly_close_is_clean(
    disk: Disk, positions: PositionCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"x")
    disk.close()
    monkeypatch.setattr(disk_log, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    again = Disk.open(disk.place, positions, None)
    assert (again.state.needs_resync, again.state.generation) == (None, 1)


def test_rot_in_the_log_is_told(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"first")
    disk.write(0, b"second")
    raw = bytearray(logs(disk)[0].read_bytes())
    raw[HEADER_BYTES + 64] ^= 1
    logs(disk)[0].write_bytes(raw)
    assert reopen(disk, positions).state.needs_resync == "LogCorrupt"


def test_a_missing_segment_is_told(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    for text in (b"a", b"b", b"c"):
        disk.write(0, text)
        disk.log.rotate()
    logs(disk)[1].unlink()
    assert reopen(disk, positions).state.needs_resync == "LogCorrupt"


def test_a_full_host_disk_leaves_log_and_disk_as_they_were(
    disk: Disk, positions: PositionCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"good")
    size, seq = logs(disk)[0].stat().st_size, disk.log.last_seq

    def full(_layer: RawLayer, _offset: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RawLayer, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            disk.write(0, b"lost")
    assert (logs(disk)[0].stat().st_size, disk.log.last_seq) == (size, seq)
    assert contents(disk)[:4] == b"good"
    disk.write(4, b"!")
    disk = reopen(disk, positions)
    assert replay(bytes(SIZE), disk) == contents(disk)


def test_an_append_that_fails_half_way_leaves_no_torn_record(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    disk.start_tracking(new_generation=False)
    disk.write(0, b"good")
    real = os.pwritev

    def short(fd: int, buffers: list[bytes], offset: int) -> int:
        real(fd, [buffers[0][:10]], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", short)
        with pytest.raises(OSError, match="No space left"):
            disk.write(0, b"lost")
    disk.write(1, b"more")
    assert replay(bytes(SIZE), disk) == contents(disk)


def test_past_half_the_disk_in_unsent_log_the_log_is_given_up_durably(disk: Disk, positions: PositionCounter) -> None:
    disk.start_tracking(new_generation=False)
    for _ in range(20):
        disk.write(0, bytes(32 << 10))
    assert disk.state.needs_resync == "LogOverflow"
    assert reopen(disk, positions).state.needs_resync == "LogOverflow"


def test_if_the_mark_of_giving_up_cannot_be_written_the_write_fails(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockfs import disk_state

    disk.start_tracking(new_generation=False)
    disk.write(0, bytes(400 << 10))

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_state, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        disk.write(0, b"x" * (200 << 10))
    assert disk.log.last_seq == 1, "still tracked: nothing was written past the log"
    assert contents(disk)[0] == 0


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inodes in the order in which they were made durable."""
    import os

    inodes: list[int] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def recording(fd: int, real: Callable[[int], None] = real) -> None:
            inodes.append(os.fstat(fd).st_ino)
            real(fd)

        monkeypatch.setattr(os, name, recording)
    return inodes


async def test_a_flush_makes_all_segments_durable_then_their_names_then_the_disk(disk: Disk, synced: list[int]) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"a")
    disk.log.rotate()
    disk.write(0, b"b")
    synced.clear()
    await disk.flush()
    wanted = [*logs(disk), disk.place.folder, disk.place.file("img")]
    assert synced == [path.stat().st_ino for path in wanted]
    synced.clear()
    disk.write(0, b"c")
    await disk.flush()
    assert synced == [path.stat().st_ino for path in (logs(disk)[-1], disk.place.file("img"))]


async def test_the_first_segment_has_a_durable_name_before_the_disk_counts_as_tracked(disk: Disk, synced: list[int]) -> None:
    synced.clear()
    disk.start_tracking(new_generation=False)
    assert disk.place.folder.stat().st_ino in synced


async def test_a_failed_fsync_is_reported_and_marks_the_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"x")

    def broken(_layer: RawLayer) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(RawLayer, "sync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        await disk.flush()
    assert disk.state.needs_resync == "SyncFailed"


async def test_segments_are_handed_out_only_after_a_sync_and_deleted_when_applied(disk: Disk) -> None:
    disk.start_tracking(new_generation=False)
    disk.write(0, b"a")
    disk.tag(TagSeen(tag_id="t", kind="CrashConsistent", name="n", position=disk.log.last_position + 5, time_ns=0))
    assert disk.segments() == []
    await disk.flush()
    (segment,) = disk.segments()
    assert (segment.first_seq, segment.last_seq, segment.complete_position) == (1, 2, disk.log.last_position)
    disk.applied(1, 1)
    assert len(disk.segments()) == 1
    disk.applied(1, 2)
    assert disk.segments() == []
    assert not Path(segment.path).exists()


async def test_word_of_another_generation_deletes_nothing_of_this_one(disk: Disk) -> None:
    disk.start_tracking(new_generation=False)
    disk.start_tracking(new_generation=True)
    disk.write(0, b"not applied anywhere")
    disk.log.rotate()
    await disk.flush()
    kept = logs(disk)
    for other in (1, 3):
        disk.applied(other, 1000)
    assert logs(disk) == kept
    assert len(disk.segments()) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_snapshot_reads_as_the_disk_did_while_the_disk_changes(disk: Disk, seed: int) -> None:
    rng = random.Random(seed)
    disk.start_tracking(new_generation=False)
    scribble(disk, rng, 20)
    before = contents(disk)
    snapshot = disk.begin_snapshot()
    scribble(disk, rng, 20)
    assert snapshot.pread(0, SIZE) == before
    released = SIZE // 2
    snapshot.release(released)
    kept = snapshot.store_bytes
    disk.write(0, b"y" * 1000)
    assert snapshot.store_bytes == kept, "what is released is not preserved any more"
    assert snapshot.pread(released, SIZE - released) == before[released:]
    with pytest.raises(RigError, match="byte 0 was released"):
        snapshot.pread(0, 1)
    assert disk.log.next_seq > snapshot.first_seq
    disk.end_snapshot()
    assert not disk.place.file("snapshot").exists()


def test_a_snapshot_without_space_fails_and_the_disk_does_not(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    disk.start_tracking(new_generation=False)
    snapshot = disk.begin_snapshot()
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if fd == snapshot._fd:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    disk.write(0, b"goes on")
    assert contents(disk)[:7] == b"goes on"
    with pytest.raises(RigError, match="could not keep old data: No space left on device"):
        snapshot.pread(0, 1)


def test_a_bad_state_file_is_named(disk: Disk, positions: PositionCounter) -> None:
    path = disk.place.file("disk")
    good = path.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        with pytest.raises(RigError) as failed:
            Disk.open(disk.place, positions, None)
        assert str(path) in failed.value.message or failed.value.code == "StateVersion"
    path.write_bytes(good)
    Disk.open(disk.place, positions, None)
