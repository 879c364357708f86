"""Requests at the end of a disk: writes across the end, and fallocate, which grows the disk by the rules of truncate."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.host.disk_tree import SingleDisk
from siterig.cext._core import ffi, lib
from tests.support.disks.disk_model import replay
from tests.support.io_faults import RESIZE, WRITE, failing

SIZE = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40


class Opened:
    """A tracked disk with a handle, as in a mount."""

    def __init__(self, folder: Path, *, can_grow: bool = True) -> None:
        self.positions = PositionCounter(folder / "position")
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.options = DiskOptions(self.positions, self.event_fd, can_grow=can_grow)
        paths = DiskPaths(folder, "web01", "os")
        make_raw(paths, SIZE)
        self.disk = Disk.open(paths, self.options, None)
        self.disk.tracking.start(new_generation=False)
        os.eventfd_read(self.event_fd)
        self.handle = self._open()

    def _open(self) -> int:
        return int(lib.sr_handle_open(self.disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0))

    def write(self, offset: int, data: bytes) -> int:
        return int(lib.sr_handle_write(self.handle, ffi.from_buffer(data), len(data), offset))

    def fallocate(self, mode: int, offset: int, length: int) -> int:
        return int(lib.sr_handle_fallocate(self.handle, mode, offset, length))

    def reopen(self) -> None:
        """Open the disk again in the state that kill -9 leaves."""
        self.disk.abandon()
        self.disk = Disk.open(self.disk.paths, self.options, None)
        self.handle = self._open()

    def contents(self) -> bytes:
        return self.disk.read(0, self.disk.size_bytes)

    @property
    def event_raised(self) -> bool:
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self.disk.abandon()
        self.positions.close()
        os.close(self.event_fd)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("before", [1, 511, 512, 4096, 300_001])
def test_a_request_across_the_end_writes_the_part_that_fits(opened: Opened, before: int) -> None:
    data = os.urandom(before + 5000)
    assert opened.write(SIZE - before, data) == before
    assert opened.contents() == bytes(SIZE - before) + data[:before]
    assert opened.write(SIZE, data) == -errno.ENOSPC
    assert opened.disk.tracking.log.last_seq == 1
    assert replay(bytes(SIZE), opened.disk) == opened.contents()
    opened.reopen()
    assert opened.contents() == bytes(SIZE - before) + data[:before]


def test_a_write_of_nothing_at_the_end_is_no_error(opened: Opened) -> None:
    assert opened.write(SIZE, b"") == 0
    assert opened.disk.tracking.log.last_seq == 0


def test_a_write_across_the_end_on_a_full_host_logs_the_written_part(opened: Opened) -> None:
    with failing(WRITE, ".img", errno.ENOSPC, after_bytes=100):
        assert opened.write(SIZE - 200, b"x" * 4096) == 100
    assert opened.contents() == bytes(SIZE - 200) + b"x" * 100 + bytes(100)
    assert replay(bytes(SIZE), opened.disk) == opened.contents()


@pytest.mark.parametrize("mode", [0, KEEP_SIZE])
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 1), (4096, 8192), (SIZE - 1, 1)])
def test_allocating_within_the_disk_changes_nothing(opened: Opened, mode: int, offset: int, length: int) -> None:
    opened.write(5000, b"bytes")
    before = opened.contents()
    assert opened.fallocate(mode, offset, length) == 0
    assert opened.contents() == before
    assert (opened.disk.tracking.log.last_seq, opened.disk.size_bytes) == (1, SIZE)


@pytest.mark.parametrize("mode", [KEEP_SIZE, KEEP_SIZE | ZERO_RANGE, KEEP_SIZE | PUNCH_HOLE])
def test_fallocate_that_keeps_the_size_never_grows_the_disk(opened: Opened, mode: int) -> None:
    opened.write(SIZE - 3, b"end")
    assert opened.fallocate(mode, SIZE - 2, SIZE) == 0
    assert opened.disk.size_bytes == SIZE
    assert opened.contents()[-3:] == (b"end" if mode == KEEP_SIZE else b"e\0\0")
    assert replay(bytes(SIZE), opened.disk) == opened.contents()


@pytest.mark.parametrize("mode", [0, ZERO_RANGE])
def test_allocating_past_the_end_grows_the_disk_as_truncate_does(opened: Opened, mode: int) -> None:
    opened.write(SIZE - 3, b"end")
    assert not opened.event_raised
    assert opened.fallocate(mode, SIZE - 1, SIZE + 1) == 0
    assert opened.disk.size_bytes == 2 * SIZE
    assert opened.contents() == bytes(SIZE - 3) + (b"end" if mode == 0 else b"en\0") + bytes(SIZE)
    assert replay(bytes(SIZE), opened.disk) == opened.contents()
    assert opened.event_raised, "without the event the state would keep the old size"
    opened.disk.note_events()
    assert opened.disk.state.size_bytes == 2 * SIZE
    assert opened.write(2 * SIZE - 1, b"end") == 1


def test_a_kill_before_the_state_has_the_new_size_does_no_harm(opened: Opened) -> None:
    assert opened.fallocate(0, 0, 2 * SIZE) == 0
    opened.write(2 * SIZE - 3, b"end")
    assert opened.disk.state.size_bytes == SIZE
    opened.reopen()
    assert (opened.disk.state.size_bytes, opened.disk.state.needs_resync) == (2 * SIZE, None)
    assert replay(bytes(SIZE), opened.disk) == opened.contents() == bytes(2 * SIZE - 3) + b"end"


def test_a_clean_end_saves_the_new_size(opened: Opened) -> None:
    assert opened.fallocate(0, 0, 2 * SIZE) == 0
    opened.disk.close()
    assert opened.disk.state.load(opened.disk.paths.file("disk")).size_bytes == 2 * SIZE


def test_growth_by_a_request_raises_the_limit_of_the_log(opened: Opened) -> None:
    before = opened.disk.tracking.log_bytes_max
    assert opened.fallocate(0, 0, 4 * SIZE) == 0
    opened.disk.note_events()
    assert before is not None
    assert opened.disk.tracking.log_bytes_max == 4 * before
    for number in range(12):  # more than the limit of the small disk
        assert opened.write(number * 65536, b"x" * 65536) == 65536
    assert opened.disk.tracking.active


@pytest.mark.parametrize(
    ("end", "error"),
    [(SIZE + 1, errno.EINVAL), (SIZE + 511, errno.EINVAL), (DISK_BYTES_MAX + 512, errno.EFBIG), (2**63 - 512, errno.EFBIG)],
)
@pytest.mark.parametrize("mode", [0, ZERO_RANGE])
def test_a_size_that_truncate_refuses_is_refused_and_changes_nothing(
    opened: Opened, mode: int, end: int, error: int
) -> None:
    opened.write(0, b"bytes")
    assert opened.fallocate(mode, 0, end) == -error
    assert (opened.disk.size_bytes, opened.disk.tracking.log.last_seq) == (SIZE, 1)
    assert opened.contents()[:5] == b"bytes"


def test_a_range_beyond_64_bits_is_too_large(opened: Opened) -> None:
    assert opened.fallocate(0, 2**64 - 1, 4096) == -errno.EFBIG


@pytest.mark.parametrize(("file", "operation"), [(".img", RESIZE), (".hrl", WRITE)])
def test_growth_without_space_leaves_log_and_disk_unchanged(opened: Opened, file: str, operation: int) -> None:
    with failing(operation, file, errno.ENOSPC):
        assert opened.fallocate(0, 0, 2 * SIZE) == -errno.ENOSPC
    assert (opened.disk.size_bytes, opened.disk.tracking.log.last_seq) == (SIZE, 0)
    assert opened.fallocate(0, 0, 2 * SIZE) == 0
    assert replay(bytes(SIZE), opened.disk) == opened.contents()


def test_a_disk_that_cannot_grow_refuses_growth_and_allocates_within(tmp_path: Path) -> None:
    opened = Opened(tmp_path, can_grow=False)
    try:
        assert opened.fallocate(0, 0, SIZE) == 0
        assert opened.fallocate(KEEP_SIZE, 0, 2 * SIZE) == 0
        assert opened.fallocate(0, 0, 2 * SIZE) == -errno.EFBIG
        assert opened.fallocate(ZERO_RANGE, SIZE - 512, 1024) == -errno.EFBIG
        assert opened.write(SIZE - 1, b"end") == 1
        assert opened.disk.size_bytes == SIZE
    finally:
        opened.close()


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE, PUNCH_HOLE, PUNCH_HOLE | ZERO_RANGE])
def test_other_fallocate_modes_are_not_supported(opened: Opened, mode: int) -> None:
    assert opened.fallocate(mode, 0, 4096) == -errno.EOPNOTSUPP
    assert opened.disk.tracking.log.last_seq == 0


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, ZERO_RANGE, PUNCH_HOLE | KEEP_SIZE])
def test_a_read_only_handle_cannot_allocate(opened: Opened, mode: int) -> None:
    reader = int(lib.sr_handle_open(opened.disk.c, lib.SR_HANDLE_DISK, 0, b"", -1, 0))
    assert lib.sr_handle_fallocate(reader, mode, 0, 2 * SIZE) == -errno.EBADF
    vhd = int(lib.sr_handle_open(opened.disk.c, lib.SR_HANDLE_VHD, 0, bytes(512), -1, 0))
    assert lib.sr_handle_fallocate(vhd, mode, 0, 2 * SIZE) == -errno.EOPNOTSUPP
    assert opened.disk.size_bytes == SIZE


async def test_the_new_size_is_saved_while_the_disk_is_served(opened: Opened) -> None:
    tree = SingleDisk(opened.disk, opened.event_fd)
    async with trio.open_nursery() as tasks:
        tasks.start_soon(tree.run_maintenance)
        assert opened.fallocate(0, 0, 2 * SIZE) == 0
        with trio.fail_after(60):
            while opened.disk.state.size_bytes == SIZE:
                await trio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
