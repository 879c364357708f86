"""Tests of the logged disk for users' tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from siterig.testing.logged_disk import LoggedDisk, mkfs, mounted
from tests.support.disks.guest import run
from tests.support.disks.mount_namespace import copied_mount

pytestmark = pytest.mark.system
MIB = 1 << 20


def write(disk: LoggedDisk, offset: int, data: bytes) -> int:
    with disk.path.open("r+b", buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)
    return disk.position


def image_with_ext4(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    mkfs(path)
    return path


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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mounted_state_is_never_an_older_one_of_the_same_file(tmp_path: Path) -> None:
    """Another mount namespace keeps the older state mounted, and its loop device attached."""
    state, other, guest = tmp_path / "state", tmp_path / "other", tmp_path / "guest"
    for image, name in ((state, "older"), (other, "newer")):
        image_with_ext4(image)
        with mounted(image, guest):
            (guest / name).touch()
    with mounted(state, guest), ExitStack() as copied:
        assert (guest / "older").exists()
        copied.enter_context(copied_mount(guest))
        kept = copied.pop_all()
    with kept:
        shutil.copyfile(other, state)
        with mounted(state, guest):
            assert (guest / "newer").exists()


def test_a_disk_that_cannot_be_mounted_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "disk.mnt").mkdir()
    (tmp_path / "disk.mnt" / "file").touch()
    with pytest.raises(RuntimeError, match=r"not mounted: .*disk\.mnt"), LoggedDisk(tmp_path, MIB):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_failed_test_with_an_open_file_leaves_no_mount(tmp_path: Path) -> None:
    """The error stays that of the test, and the mounts end with the last open file."""

    def work(open_files: ExitStack) -> None:
        with LoggedDisk(tmp_path, 16 * MIB) as disk:
            mkfs(disk.path)
            with mounted(disk.path, tmp_path / "guest") as guest:
                open_files.enter_context((guest / "file").open("w"))
                raise AssertionError("the check failed")

    with ExitStack() as open_files, pytest.raises(AssertionError, match="the check failed") as raised:
        work(open_files)
    assert "is in use: close its files" in "".join(raised.value.__notes__)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert str(tmp_path) not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_left_open_in_a_mounted_state_is_an_error(tmp_path: Path) -> None:
    state = image_with_ext4(tmp_path / "state")
    with ExitStack() as open_files:
        with (
            pytest.raises(RuntimeError, match="guest is in use: close its files"),
            mounted(state, tmp_path / "guest") as guest,
        ):
            open_files.enter_context((guest / "file").open("w"))
        assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert str(tmp_path) not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_program_that_is_ending_does_not_keep_a_state_mounted(tmp_path: Path) -> None:
    """PostgreSQL does so: ``pg_ctl stop`` returns before the server has ended."""
    state = image_with_ext4(tmp_path / "state")
    with mounted(state, tmp_path / "guest") as guest:
        ending = subprocess.Popen(["sleep", "1"], cwd=guest)
    assert ending.wait() == 0
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert str(tmp_path) not in run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")
