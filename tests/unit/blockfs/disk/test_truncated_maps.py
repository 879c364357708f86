"""Mapped files are truncated while their disk is open: the process lives, some writes fail, and no wrong byte is read.

Each case runs in its own process, which an unhandled SIGBUS would end.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter, read_position
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.cext._core import lib
from tests.crash.crash_workload import FileViews

pytestmark = pytest.mark.slow

SIZE = 256 << 20
"""With this size the overlay map has two pages."""
ROOT = Path(__file__).parents[4]


class Opened:
    """A tracked disk with 5000 synced bytes, and in ``reported`` the reported changes."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.reported: list[str] = []
        self.folder = folder
        self.paths = DiskPaths(folder, "", "os")
        if kind == "raw":
            make_raw(self.paths, SIZE)
        else:
            with (folder / "below").open("wb") as file:
                file.write(b"below" * 1000)
                file.truncate(SIZE)
            make_over_managed_disk(self.paths, managed_disk="below", position=1, size_bytes=SIZE)
        self.open()
        self.disk.tracking.start(new_generation=False)
        self.disk.write(0, b"guest" * 1000)
        self.disk.flush_now()

    def open(self) -> None:
        self.positions = PositionCounter(self.folder / "position")
        options = DiskOptions(
            self.positions,
            policy=LogPolicy(kept_share_max=None),
            report_changed=lambda _paths, what: self.reported.append(what),
        )
        self.disk = Disk.open(self.paths, options, FileViews(self.folder / "below"))

    def refuses(self, work: Callable[[], object]) -> bool:
        try:
            work()
        except OSError as failed:
            return failed.errno == errno.EIO
        return False

    def close(self) -> None:
        try:
            self.disk.close()
        finally:
            self.disk.abandon()
            self.positions.close()


def a_present_map(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "top")
    os.truncate(opened.paths.file("top.present"), bytes_left)
    assert opened.disk.read(0, 5000) == b"guest" * 1000, "bytes of the backing must not be visible"
    assert opened.refuses(lambda: [opened.disk.write(n << 20, b"more") for n in range(1, 20)])
    assert opened.refuses(lambda: opened.disk.zero(SIZE - 8192, 4096))
    assert opened.refuses(opened.disk.flush_now)
    assert opened.disk.read(0, 5000) == b"guest" * 1000
    opened.disk.note_events()
    assert opened.disk.state.needs_resync == "ImageChanged"
    opened.close()
    assert "os.top.present was truncated by another program" in opened.reported[0]
    try:
        opened.open()
    except RigError as error:
        assert error.code == "DiskCorrupt"
    else:
        raise AssertionError("the disk was opened with blocks of the backing instead of its own")


def a_present_map_before_any_sync(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "top")
    opened.disk.write(1 << 20, b"not synced")
    os.truncate(opened.paths.file("top.present"), bytes_left)
    opened.close()
    assert "os.top.present was truncated by another program" in opened.reported[0]
    try:
        opened.open()
    except RigError as error:
        assert error.code == "DiskCorrupt"
    else:
        raise AssertionError("the disk was opened with blocks of the backing instead of its own")


def a_durable_map(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "top")
    os.truncate(opened.paths.file("top.durable"), bytes_left)
    opened.disk.write(1 << 20, b"more")
    assert opened.refuses(opened.disk.flush_now)
    assert opened.paths.file("top.durable").stat().st_size == bytes_left, (
        "a write after the truncation would make a map with a hole"
    )
    opened.close()
    assert "os.top.durable was truncated by another program" in opened.reported[0]


def a_dirty_file(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "raw")
    os.truncate(opened.paths.file("dirty"), bytes_left)
    assert opened.refuses(opened.disk.flush_now), "the reason for the end of the log could not be recorded"
    assert opened.refuses(lambda: opened.disk.write(0, b"more"))
    assert opened.refuses(lambda: opened.disk.zero(0, 4096))
    assert opened.refuses(lambda: opened.disk.resize(2 * SIZE))
    assert opened.disk.read(0, 5000) == b"guest" * 1000
    opened.disk.note_events()
    assert opened.disk.tracking.dirty_bytes == SIZE, "all bytes may have changed"
    assert DiskState.load(opened.paths.file("disk")).needs_resync == "ImageChanged"
    opened.close()
    assert "os.dirty was truncated by another program" in opened.reported[0]
    opened.open()
    assert (opened.disk.tracking.active, opened.disk.state.needs_resync) == (False, "LogCorrupt")
    opened.close()


def a_dirty_file_that_fills(folder: Path, bytes_left: int) -> None:
    """The log was abandoned before, so each write is first recorded in the dirty file."""
    opened = Opened(folder, "raw")
    lib.sr_log_limit(opened.disk.c, 1)
    opened.disk.write(0, b"the log is too long")
    opened.disk.note_events()
    assert opened.disk.state.needs_resync == "LogOverflow"
    os.truncate(opened.paths.file("dirty"), bytes_left)
    assert opened.refuses(lambda: opened.disk.write(SIZE - 4096, b"more"))
    assert opened.disk.read(SIZE - 4096, 4) == bytes(4), "a write that cannot be recorded is not done"
    opened.close()


def a_dirty_file_and_a_new_log(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "raw")
    os.truncate(opened.paths.file("dirty"), bytes_left)
    opened.disk.write(0, b"guest")
    assert opened.refuses(opened.disk.flush_now)
    opened.disk.tracking.start(new_generation=True)
    opened.disk.write(0, b"more")
    opened.disk.flush_now()
    assert (opened.disk.tracking.active, opened.disk.file_trouble) == (True, None)
    opened.close()
    assert dirty_bitmap.read(opened.paths.file("dirty")).reason is None


def a_dirty_file_that_is_not_used(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "raw")
    os.truncate(opened.paths.file("dirty"), bytes_left)
    opened.close()
    assert "os.dirty was truncated by another program" in opened.reported[0]
    assert opened.disk.state.needs_resync == "ImageChanged"


def a_position_file(folder: Path, bytes_left: int) -> None:
    opened = Opened(folder, "raw")
    newest = opened.positions.value
    os.truncate(folder / "position", bytes_left)
    assert [opened.positions.draw(), opened.positions.draw()] == [newest + 1, newest + 2]
    opened.disk.write(0, b"more")
    assert opened.disk.tracking.log.last_position == newest + 3
    opened.close()
    assert opened.reported == [f"{folder / 'position'} was truncated by another program, or its medium failed"]
    assert opened.disk.state.needs_resync == "ImageChanged"
    assert read_position(folder / "position") == newest + 3
    opened.open()
    assert opened.positions.draw() == newest + 4
    opened.close()


def many_disks(folder: Path, bytes_left: int) -> None:
    """Truncate a file of one disk; the other disks continue to work."""
    disks = []
    for number in range(4):
        (folder / str(number)).mkdir()
        disks.append(Opened(folder / str(number), "top"))
    os.truncate(disks[1].paths.file("top.present"), bytes_left)
    assert disks[1].refuses(lambda: [disks[1].disk.write(n << 20, b"more") for n in range(1, 20)])
    for other in (disks[0], disks[2], disks[3]):
        other.disk.write(1 << 20, b"more")
        other.disk.flush_now()
        assert other.disk.tracking.active
    for opened in disks:
        opened.close()
    assert [len(opened.reported) for opened in disks] == [0, 1, 0, 0]


def a_signal_that_is_sent(folder: Path, _bytes_left: int) -> None:
    assert PositionCounter(folder / "position").draw() == 1
    os.kill(os.getpid(), signal.SIGBUS)


def a_map_that_is_no_disks_map(folder: Path, bytes_left: int) -> None:
    assert PositionCounter(folder / "position").draw() == 1
    with (folder / "other").open("w+b") as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as mapped:
            file.truncate(bytes_left)
            mapped[0] = 1


def ended(case: Callable[[Path, int], None], folder: Path, bytes_left: int) -> int:
    code = f"import sys; from pathlib import Path; from {__name__} import {case.__name__} as c; "
    done = subprocess.run(
        [sys.executable, "-c", code + "c(Path(sys.argv[1]), int(sys.argv[2]))", str(folder), str(bytes_left)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stderr)
    return done.returncode


@pytest.mark.parametrize(
    ("case", "bytes_left"),
    [
        (a_present_map, 0),
        (a_present_map, 1),
        (a_present_map, 4097),
        (a_present_map_before_any_sync, 0),
        (a_durable_map, 1),
        (a_durable_map, 4097),
        (a_dirty_file, 0),
        (a_dirty_file, 4097),
        (a_dirty_file_that_fills, 0),
        (a_dirty_file_and_a_new_log, 0),
        (a_dirty_file_that_is_not_used, 0),
        (a_dirty_file_that_is_not_used, 4097),
        (a_position_file, 0),
        (a_position_file, 3),
        (many_disks, 0),
    ],
)
def test_a_truncated_map_is_an_error_of_its_disk_only(
    case: Callable[[Path, int], None], bytes_left: int, tmp_path: Path
) -> None:
    assert ended(case, tmp_path, bytes_left) == 0


@pytest.mark.parametrize("case", [a_signal_that_is_sent, a_map_that_is_no_disks_map])
def test_a_sigbus_from_any_other_cause_ends_the_process(case: Callable[[Path, int], None], tmp_path: Path) -> None:
    assert ended(case, tmp_path, 0) == -signal.SIGBUS
