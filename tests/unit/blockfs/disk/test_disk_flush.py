"""A flush makes log and disk durable, and segments are handed out only after they are durable."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import RecordType, SegmentReader, scan_tail
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_report import describe
from tests.support.disks.opened_disk import SIZE, logs, reopen
from tests.support.io_faults import SYNC, failing, io_verdict


@pytest.fixture
def disk(tmp_path: Path, positions: PositionCounter) -> Disk:
    paths = DiskPaths(tmp_path, "web01", "os")
    make_raw(paths, SIZE)
    return Disk.open(paths, DiskOptions(positions), None)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the files and folders in the order in which they became durable."""
    import os

    names: list[str] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def recording(fd: int, real: Callable[[int], None] = real) -> None:
            names.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
            real(fd)

        monkeypatch.setattr(os, name, recording)

    def engine(operation: int, path: str, _offset: int, _size: int) -> int:
        if operation == SYNC:
            names.append(path)
        return 0

    with io_verdict(engine):
        yield names


async def test_a_flush_makes_all_segments_durable_then_the_disk(disk: Disk, synced: list[str]) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"a")
    disk.tracking.log.rotate()
    disk.write(0, b"b")
    synced.clear()
    await disk.flush()
    assert synced == [str(path) for path in [*logs(disk), disk.paths.file("img")]]
    synced.clear()
    disk.write(0, b"c")
    await disk.flush()
    assert synced == [str(path) for path in (logs(disk)[-1], disk.paths.file("img"))]
    synced.clear()
    await disk.flush()
    assert synced == [], "nothing was written after the last flush"


async def test_the_first_flush_of_a_process_syncs_earlier_writes_too(disk: Disk, synced: list[str]) -> None:
    await disk.flush()
    assert synced == [str(disk.paths.file("img"))]


async def test_segments_have_durable_names_before_they_take_records(disk: Disk, synced: list[str]) -> None:
    disk.tracking.start(new_generation=False)
    assert str(disk.paths.folder) in synced
    synced.clear()
    disk.tracking.log.provide_spare()
    assert synced == [str(disk.paths.folder)]


async def test_flushes_without_writes_between_them_are_one_record(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    await disk.flush()
    await disk.flush()
    assert disk.tracking.log.last_seq == 2
    with SegmentReader(logs(disk)[0]) as reader:
        assert [record.type for record in scan_tail(reader).records] == [RecordType.WRITE, RecordType.FLUSH]


@pytest.mark.parametrize("broken", [".img", ".hrl"])
async def test_after_a_failed_fsync_flushes_fail_until_the_disk_is_reopened(
    disk: Disk, positions: PositionCounter, broken: str
) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"x")
    with failing(SYNC, broken, errno.EIO), pytest.raises(OSError, match="Input/output error"):
        await disk.flush()
    disk.write(0, b"y")
    with pytest.raises(OSError, match="Input/output error"):
        await disk.flush()
    assert describe(disk, Path()).needs_resync == "SyncFailed"
    assert disk.tracking.dirty_ranges() == [(0, SIZE)], "the kernel does not report which pages were lost"
    disk = reopen(disk, positions)
    assert disk.state.needs_resync == "SyncFailed"
    await disk.flush()


async def test_segments_are_handed_out_after_a_sync_deleted_when_applied(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    disk.write(0, b"a")
    disk.tracking.tag(
        TagSeen(tag_id="t", kind="CrashConsistent", name="n", position=disk.tracking.log.last_position + 5, time_ns=0)
    )
    assert disk.tracking.segments() == []
    tagged = disk.tracking.log.last_position
    await disk.flush()
    (segment,) = disk.tracking.segments()
    assert (segment.first_seq, segment.last_seq, segment.complete_position) == (1, 2, tagged)
    disk.tracking.trim(1, 1)
    assert len(disk.tracking.segments()) == 1
    disk.tracking.trim(1, 2)
    assert disk.tracking.segments() == []
    assert not Path(segment.path).exists()


def test_closed_segments_are_handed_out_even_if_the_guest_never_syncs(disk: Disk, synced: list[str]) -> None:
    disk.tracking.start(new_generation=False)
    disk.tracking.log.provide_spare()
    for at in range(0, 300 << 10, 4096):
        disk.write(at, b"x" * 4096)
    assert disk.tracking.segments() == []
    synced.clear()
    disk.tracking.maintain()
    (segment,) = disk.tracking.segments()
    assert segment.path in synced


async def test_a_report_about_another_generation_deletes_no_segment(disk: Disk) -> None:
    disk.tracking.start(new_generation=False)
    disk.tracking.start(new_generation=True)
    disk.write(0, b"not applied anywhere")
    disk.tracking.log.rotate()
    await disk.flush()
    kept = logs(disk)
    for other in (1, 3):
        disk.tracking.trim(other, 1000)
    assert logs(disk) == kept
    assert len(disk.tracking.segments()) == 1
