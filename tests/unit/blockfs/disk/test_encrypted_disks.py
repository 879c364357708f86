"""Disks of recovered VMs: their files have no byte of the guest, and behave like those of any other disk."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import SegmentReader
from siterig.blockfs.changelog.shown_log import open_decrypted
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import stream_of
from siterig.blockfs.disk import disk_faults
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_faults import PowerLoss
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.transfer.codec import verify
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext._core import lib
from tests.support.disks.disk_model import replay, replay_files
from tests.support.disks.opened_disk import SIZE, logs
from tests.support.io_faults import PUNCH, WRITE, failing, io_verdict
from tests.support.stores.one_key import CIPHER, KEY_ID, make_encrypted, open_encrypted

MARKER = b"a marker that only the guest may see, on any byte."
TORN = 7


@pytest.fixture
def disk(tmp_path: Path, positions: PositionCounter) -> Iterator[Disk]:
    make_encrypted(DiskPaths(tmp_path, "web01", "os"), SIZE)
    disk = open_encrypted(tmp_path, positions)
    disk.tracking.start(new_generation=False)
    yield disk
    if disk.is_open:
        disk.abandon()


def contents(disk: Disk) -> bytes:
    return disk.read(0, disk.size_bytes)


def reopened(disk: Disk, positions: PositionCounter) -> Disk:
    disk.abandon()
    return open_encrypted(disk.paths.folder, positions)


def assert_hidden(folder: Path) -> None:
    for path in folder.iterdir():
        assert MARKER[:16] not in path.read_bytes(), path


def test_no_file_has_a_byte_of_the_guest(disk: Disk, tmp_path: Path, positions: PositionCounter) -> None:
    for at in (0, 4096 + 5, 70_000, SIZE - 2000):
        disk.write(at, MARKER * 40)
    snapshot, was = disk.begin_snapshot(), contents(disk)
    disk.write(1, MARKER * 100)
    disk.zero(70_003, 20)
    disk.flush_now()
    assert (tmp_path / "os.snapshot").stat().st_size > 0
    assert_hidden(tmp_path)
    assert snapshot.pread(0, SIZE) == was
    assert [snapshot.pread(at, 33) for at in (3, 65_530, 70_001)] == [was[at : at + 33] for at in (3, 65_530, 70_001)]
    now = contents(disk)
    assert now[1 : 1 + len(MARKER)] == MARKER
    disk.end_snapshot()
    disk.close()
    assert_hidden(tmp_path)
    again = open_encrypted(tmp_path, positions)
    assert contents(again) == now == replay(bytes(SIZE), again)
    again.abandon()


def test_equal_bytes_at_two_places_are_stored_as_different_bytes(disk: Disk, tmp_path: Path) -> None:
    disk.write(0, b"e" * 8192)
    stored = (tmp_path / "os.img").read_bytes()
    assert stored[:4096] != stored[4096:8192]
    assert stored[:8192] == CIPHER.encrypt(b"e" * 8192, 0)


def test_a_write_within_a_line_keeps_its_other_bytes(disk: Disk) -> None:
    rng, model = random.Random(1), bytearray(SIZE)
    disk.write(0, data := rng.randbytes(300))
    model[:300] = data
    for at in range(40):
        for length in (1, 3, 15, 16, 17, 40):
            disk.write(at, data := rng.randbytes(length))
            model[at : at + length] = data
            disk.zero(at + 100, length, discard=bool(length % 2))
            model[at + 100 : at + 100 + length] = bytes(length)
    assert contents(disk) == model == replay(bytes(SIZE), disk)


def test_a_kill_between_log_and_disk_loses_nothing(disk: Disk, tmp_path: Path, positions: PositionCounter) -> None:
    """The record is written again without the key, also where it begins and ends within lines."""
    disk.write(0, b"old " * 100)
    expected = bytearray(contents(disk))
    for at, data in ((5, b"n" * 50), (0, b"m" * 4096), (17, b"x")):
        before = (tmp_path / "os.img").read_bytes()
        disk.write(at, data)
        expected[at : at + len(data)] = data
        disk.abandon()
        (tmp_path / "os.img").write_bytes(before)  # the write never came to the disk
        disk = open_encrypted(tmp_path, positions)
        assert disk.state.needs_resync is None
        assert contents(disk) == expected
    disk.abandon()


@pytest.mark.parametrize("done", [1, 15, 16, 511, 4096, 5000])
def test_a_partial_write_ends_between_lines(disk: Disk, positions: PositionCounter, done: int) -> None:
    asked = []

    def verdict(operation: int, path: str, _offset: int, size: int) -> int:
        if operation != WRITE or not path.endswith(".img"):
            return 0
        asked.append(size)
        return done if len(asked) == 1 else 0

    disk.write(0, b"o" * 8192)
    with io_verdict(verdict):
        written = disk.write(100, b"x" * 6000)
    assert written == min(-(-done // 16) * 16 - 4, 6000)
    assert contents(disk)[100:6100] == b"x" * written + b"o" * (6000 - written)
    assert replay(bytes(SIZE), disk) == contents(disk)
    disk = reopened(disk, positions)
    assert replay(bytes(SIZE), disk) == contents(disk)
    disk.abandon()


def test_a_line_that_cannot_be_completed_ends_the_log(disk: Disk) -> None:
    disk.write(0, b"o" * 64)
    with failing(WRITE, ".img", errno.ENOSPC, after_bytes=TORN), pytest.raises(OSError, match="Input/output error"):
        disk.write(16, b"x" * 16)
    assert contents(disk)[:16] + contents(disk)[32:64] == b"o" * 48
    assert not disk.tracking.active
    assert disk.state.needs_resync == "WriteFailed"


def test_a_failed_write_changes_nothing(disk: Disk, positions: PositionCounter) -> None:
    disk.write(0, b"good" * 10)
    before = contents(disk)
    for suffix in (".img", ".hrl"):
        with failing(WRITE, suffix, errno.ENOSPC), pytest.raises(OSError, match="No space left"):
            disk.write(3, b"lost" * 20)
    with failing(PUNCH, ".img", errno.EIO), pytest.raises(OSError, match="Input/output error"):
        disk.zero(0, 4096)
    assert contents(disk) == before


async def test_a_power_loss_leaves_sectors_of_the_guest(disk: Disk) -> None:
    """Old bytes are kept in memory as the guest wrote them, and come back encrypted for their place."""
    rng, old, new = random.Random(2), {}, {}
    disk.faults.keep_unsynced()
    for at in (0, 8192 + 512, 65536 + 7):
        old[at], new[at] = rng.randbytes(1536), rng.randbytes(1536)
        disk.write(at, old[at])
    disk.flush_now()
    flushed = contents(disk)
    for at, data in new.items():
        disk.write(at, data)
    disk.zero(8192, 4096)
    how = PowerLoss(stream=stream_of(3, "power loss"), keeps=True, tear_bytes=512)
    await disk_faults.lose_power([disk.faults], how)
    now = contents(disk)
    for sector in range(0, SIZE, 512):
        allowed = [flushed[sector : sector + 512], bytes(512)]
        for at, data in new.items():
            changed = bytearray(flushed)
            changed[at : at + 1536] = data
            allowed.append(bytes(changed[sector : sector + 512]))
        assert now[sector : sector + 512] in allowed, sector
    assert now != flushed
    assert replay(bytes(SIZE), disk) == now
    await disk_faults.lose_power([disk.faults], PowerLoss(stream=1, keeps=False, tear_bytes=0))


def test_the_log_is_shown_decrypted(disk: Disk, tmp_path: Path, positions: PositionCounter) -> None:
    for at in (0, 5, 70_000):
        disk.write(at, MARKER * 30)
    disk.zero(16, 40)
    now, path = contents(disk), logs(disk)[0]
    written = disk.tracking.segment_bytes(1, path)
    with SegmentReader(path) as reader:
        assert reader.header.key_id == KEY_ID
        with pytest.raises(RigError) as caught:
            reader.payload(next(reader.records()))
    assert caught.value.code == Code.KeyMissing
    assert "rig's mount, which decrypts it" in caught.value.message
    fd = open_decrypted(path, CIPHER, written)
    shown = tmp_path / "shown.hrl"
    shown.write_bytes(os.pread(fd, written + 1, 0))
    os.close(fd)
    assert shown.stat().st_size == written
    assert replay_files(bytes(SIZE), [shown]) == now
    with SegmentReader(shown) as reader:
        assert reader.header.key_id is None
        assert reader.payload(next(reader.records()))[: len(MARKER)] == MARKER


def test_a_bad_record_is_shown_as_bad(disk: Disk, tmp_path: Path) -> None:
    for at in (0, 4096, 8192):
        disk.write(at, MARKER)
    path = logs(disk)[0]
    written, data = disk.tracking.segment_bytes(1, path), bytearray(path.read_bytes())
    second = 128 + 64 + 64 + 64  # its payload: the records have whole lines
    data[second + 3] ^= 1
    path.write_bytes(data)
    fd = open_decrypted(path, CIPHER, written)
    shown = tmp_path / "shown.hrl"
    shown.write_bytes(os.pread(fd, written, 0))
    os.close(fd)
    with SegmentReader(shown) as reader, pytest.raises(RigError, match="corrupt at byte 256"):
        list(reader.records())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="header of the segment is corrupt"):
        open_decrypted(path, CIPHER, written)


def test_a_segment_of_an_encrypted_disk_is_no_part(disk: Disk) -> None:
    disk.write(0, MARKER)
    disk.tracking.maintain()  # makes the next segment
    assert lib.sr_log_rotate(disk.c) == 0
    disk.tracking.maintain()  # the preallocated end is truncated
    path = logs(disk)[0]
    with pytest.raises(RigError) as caught:
        verify(PartName(disk.state.disk_id, 1, "log", 1, 1), path)
    assert caught.value.code == Code.PartCorrupt
    assert KEY_ID in caught.value.message


def test_a_disk_without_its_key_is_refused(disk: Disk, tmp_path: Path, positions: PositionCounter) -> None:
    disk.close()
    with pytest.raises(RigError) as caught:
        Disk.open(disk.paths, DiskOptions(positions), None)
    assert caught.value.code == Code.NotARecoveryHost
    state = DiskState.load(tmp_path / "os.disk")
    assert state.key is not None
    assert state.key.key_id == KEY_ID
