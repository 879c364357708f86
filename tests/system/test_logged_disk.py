"""Tests of the logged disk for users' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.testing.logged_disk import LoggedDisk

pytestmark = pytest.mark.system
MIB = 1 << 20


def write(disk: LoggedDisk, offset: int, data: bytes) -> int:
    with disk.path.open("r+b", buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)
    return disk.position


def test_a_state_has_all_writes_up_to_its_position_and_none_after_it(tmp_path: Path) -> None:
    with LoggedDisk(tmp_path, MIB) as disk:
        first = write(disk, 0, b"a" * 512)
        second = write(disk, 0, b"b" * 512)
    assert disk.positions() == [first, second]
    assert disk.positions(1) == [second]
    assert disk.state_at(first, tmp_path / "state").read_bytes() == b"a" * 512 + bytes(MIB - 512)
    assert disk.state_at(second, tmp_path / "state").read_bytes() == disk.image.read_bytes()


def test_a_killed_server_loses_nothing_and_its_log_continues(tmp_path: Path) -> None:
    with LoggedDisk(tmp_path, MIB) as disk:
        first = write(disk, 0, b"a" * 512)
        disk.kill()
        disk.start()
        second = write(disk, 512, b"b" * 512)
    assert set(disk.positions()) >= {first, second}
    assert disk.state_at(second, tmp_path / "state").read_bytes() == disk.image.read_bytes()


def test_a_disk_that_cannot_be_mounted_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "disk.mnt").mkdir()
    (tmp_path / "disk.mnt" / "file").touch()
    with pytest.raises(RuntimeError, match=r"not mounted: .*disk\.mnt"), LoggedDisk(tmp_path, MIB):
        pass
