"""Tests of orders of writes and syncs that random states reach too rarely."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from siterig.blockfs.changelog import disk_log
from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import HEADER_BYTES
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.cext._core import ffi, lib
from tests.crash.recording import Event, NamesSynced, Recorder, Renamed, Synced, Unnamed, Wrote
from tests.support.disks.disk_model import replay, replay_files
from tests.support.io_faults import WRITE, failing

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr(disk_log, "SEGMENT_BYTES_MIN", 8 << 10)
    paths = DiskPaths(tmp_path, "", "os")
    make_raw(paths, SIZE)
    with contextlib.closing(PositionCounter(tmp_path / "position")) as positions:
        disk = Disk.open(paths, DiskOptions(positions), None)
        disk.tracking.start(new_generation=False)
        yield disk
        disk.abandon()


def reopened(disk: Disk, options: DiskOptions | None = None) -> Disk:
    return Disk.open(disk.paths, options or disk.options, None)


@pytest.fixture
def unlimited(disk: Disk) -> Iterator[Disk]:
    """Return the disk with a log of unlimited size."""
    disk.close()
    disk = reopened(disk, replace(disk.options, policy=LogPolicy(kept_share_max=None)))
    yield disk
    disk.abandon()


@contextlib.contextmanager
def recorded(disk: Disk) -> Iterator[list[Event]]:
    recorder = Recorder(disk.paths.folder)
    with recorder.recording():
        yield recorder.events
    recorder.close()


def index_of(events: list[Event], event: Event, after: int = 0) -> int:
    return next(i for i, found in enumerate(events) if i >= after and found == event)


def close_segment(disk: Disk) -> None:
    disk.write(0, b"x" * 500)
    disk.tracking.log.rotate()
    disk.flush_now()


def test_a_recycled_segment_is_durably_empty_before_it_is_the_spare(disk: Disk) -> None:
    close_segment(disk)
    disk.tracking.trim(1, disk.tracking.log.last_seq)
    with recorded(disk) as events:
        disk.tracking.log.provide_spare()
    renamed = index_of(events, Renamed("os.recycled", "os.spare"))
    (zeroed,) = (i for i, event in enumerate(events) if isinstance(event, Wrote) and event.data == bytes(HEADER_BYTES))
    wrote = events[zeroed]
    assert isinstance(wrote, Wrote)
    assert zeroed < index_of(events, Synced(wrote.file)) < renamed < index_of(events, NamesSynced(), renamed)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_applied_segment_is_durably_gone_before_a_newer_one(disk: Disk, at_once: bool) -> None:
    """The earlier segment may end with the mark of a clean close, and then seem to be the newest."""
    close_segment(disk)
    disk.close()
    disk = reopened(disk)
    earlier = disk.tracking.log.last_seq
    close_segment(disk)
    with recorded(disk) as events:
        if not at_once:
            disk.tracking.trim(1, earlier)
        disk.tracking.trim(1, disk.tracking.log.last_seq)
    gone = [i for i, event in enumerate(events) if isinstance(event, Renamed | Unnamed)]
    assert len(gone) == 3, "it must be two of the earlier life, and one of this life"
    assert NamesSynced() in events[gone[1] : gone[2]]
    disk.abandon()


def test_the_dirty_bitmap_is_durable_before_the_mark_of_a_clean_close(disk: Disk) -> None:
    disk.write(0, bytes(SIZE // 2 + 1))
    assert not disk.tracking.active
    with recorded(disk) as events:
        disk.close()
    (mark,) = (event for event in events if isinstance(event, Wrote) and event.data.startswith(b"SRIGDRTY"))
    of_the_file = [event for event in events if isinstance(event, Wrote | Synced) and event.file == mark.file]
    assert of_the_file == [Synced(mark.file), mark, Synced(mark.file)]


class Killed(BaseException):
    """The end of a killed process."""


def test_writes_are_logged_until_the_state_records_the_end_of_tracking(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_state: DiskState, _path: Path) -> None:
        disk.write(4096, b"in between")
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(DiskState, "save", killed)
        disk.tracking.stop()
    disk.abandon()
    again = reopened(disk)
    assert again.tracking.active
    assert replay(bytes(SIZE), again) == again.read(0, SIZE)
    again.abandon()


@pytest.mark.parametrize("abandoned", [True, False])
def test_a_new_log_takes_nothing_from_the_old_one_before_the_state_names_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, abandoned: bool
) -> None:
    """After a kill the old log holds its writer's last work: a segment begun in the spare, or an abandoned log."""

    def killed(_state: DiskState, _path: Path) -> None:
        disk.write(4096, b"in the spare")
        if abandoned:
            disk.write(8192, bytes(SIZE // 2))
        raise Killed

    disk.tracking.log.provide_spare()
    disk.write(0, bytes(SIZE // 16 + 1))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(DiskState, "save", killed)
        disk.tracking.start(new_generation=True)
    disk.abandon()
    again = reopened(disk)
    assert (again.state.generation, again.state.needs_resync) == (1, "LogOverflow" if abandoned else None)
    if abandoned:
        assert again.tracking.dirty_ranges() == [(0, again.tracking.dirty_bytes)]
        assert again.tracking.dirty_bytes > SIZE // 2
    else:
        assert replay(bytes(SIZE), again) == again.read(0, SIZE)
    assert again.read(4096, 12) == b"in the spare"
    again.abandon()


def test_a_new_log_that_cannot_begin_is_not_an_abandoned_log(disk: Disk) -> None:
    with failing(WRITE, ".hrl", errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        disk.tracking.start(new_generation=True)
    assert (disk.tracking.active, disk.state.needs_resync) == (False, "LogFull")
    disk.abandon()
    again = reopened(disk)
    assert again.state.needs_resync == "LogCorrupt", "the changes since the last log are not known"
    again.write(0, b"goes on")
    again.tracking.start(new_generation=False)
    assert again.state.generation == disk.state.generation + 1
    again.abandon()


def test_new_logs_can_start_while_the_old_one_is_written_and_maintained(unlimited: Disk) -> None:
    """The log of the last generation, applied to the snapshot's disk, gives the disk."""
    disk = unlimited
    handle = lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, ffi.NULL, -1, 0)
    ended = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            data = number.to_bytes(8, "little") * 64
            if lib.sr_handle_write(handle, data, len(data), number % 100 * 4096) != len(data):
                failed.append(AssertionError("a write failed"))

    def maintain() -> None:
        try:
            while not ended.is_set():
                disk.tracking.maintain()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=task) for task in (write, maintain)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(25):
            disk.tracking.start(new_generation=True)
        snapshot = disk.begin_snapshot()
        start = snapshot.pread(0, SIZE)
        after = snapshot.first_seq - 1
        disk.end_snapshot()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        lib.sr_handle_close(handle)
    assert not failed
    generation = disk.state.generation
    disk.abandon()
    again = reopened(disk)
    assert (again.state.generation, again.state.needs_resync) == (generation, None)
    again.tracking.segments()  # the segment that the writer has just begun gets its name
    logs = [path for number, path in find_segments(disk.paths.folder, "os") if number >= again.state.first_segment]
    assert replay_files(start, logs, after_seq=after) == again.read(0, SIZE)
    again.abandon()


def test_a_close_refuses_later_writes(unlimited: Disk) -> None:
    """A write after the mark of a clean close would make the mark untrue."""
    disk = unlimited
    before = disk.tracking.log.next_seq
    handle = lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, ffi.NULL, -1, 0)
    results: list[int] = []

    def write() -> None:
        while not results or results[-1] > 0:
            results.append(lib.sr_handle_write(handle, b"x" * 512, 512, 0))

    thread = threading.Thread(target=write)
    thread.start()
    while len(results) < 10:
        pass
    disk.close()
    thread.join()
    lib.sr_handle_close(handle)
    assert results[-1] == -errno.EIO
    again = reopened(disk)
    assert again.tracking.log.next_seq == before + len(results) - 1 + 2, "it must count the writes, a FLUSH, and the mark"
    again.abandon()
