"""Tests of real mounts: reads, writes, logs, VHDs, and a kill."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.segment import HEADER_BYTES
from tests.support.disks.disk_model import replay_files
from tests.support.disks.disk_server import DISK_BYTES
from tests.support.disks.disk_server_process import DiskServer, message_of_failed_server
from tests.support.needs import needs_program

pytestmark = pytest.mark.system


@pytest.fixture
def server(tmp_path: Path, front_end: str) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path, front_end=front_end)
    try:
        server.start()
        yield server
    finally:
        server.clean_up()


def logs(server: DiskServer, name: str = "os") -> list[Path]:
    return sorted((server.root / "web01").glob(f"{name}.*.hrl"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, offset: int, data: bytes, *, sync: bool = False) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def test_the_mount_shows_disks_and_logs_and_refuses_other_changes(server: DiskServer) -> None:
    folder = server.mountpoint / "web01"
    files = ("000001.hrl", "img", "stats", "vhd")
    assert names(folder) == [f"{disk}.{suffix}" for disk in ("data", "os") for suffix in files]
    assert server.os_disk.stat().st_size == DISK_BYTES
    shown = (folder / "os.000001.hrl").read_bytes()
    assert len(shown) == HEADER_BYTES, "preallocated space is shown"
    assert shown == logs(server)[0].read_bytes()[:HEADER_BYTES]
    with pytest.raises(PermissionError):
        (folder / "os.000001.hrl").open("r+b")
    with pytest.raises(PermissionError):
        os.truncate(server.os_disk, 0)
    with pytest.raises(FileNotFoundError):
        (folder / "other.img").stat()
    with pytest.raises(PermissionError):
        (folder / "new").write_bytes(b"")


def test_written_bytes_are_read_and_the_log_replays_to_the_disk(server: DiskServer) -> None:
    write(server.os_disk, 1000, b"hello" * 1000)
    write(server.os_disk, DISK_BYTES - 4, b"last")
    with server.os_disk.open("rb") as disk:
        disk.seek(1000)
        assert disk.read(5000) == b"hello" * 1000
    fd = os.open(server.os_disk, os.O_RDWR)
    try:
        with pytest.raises(OSError, match="No space left on device") as failed:
            os.pwrite(fd, b"past", DISK_BYTES)
        assert failed.value.errno == errno.ENOSPC
    finally:
        os.close(fd)
    assert replay_files(bytes(DISK_BYTES), logs(server)) == (server.root / "web01" / "os.img").read_bytes()


def test_ext4_on_a_loop_device_is_sound_and_its_log_replays(server: DiskServer, tmp_path: Path) -> None:
    loop = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", server.os_disk], check=True, capture_output=True, text=True
    ).stdout.strip()
    guest = tmp_path / "guest"
    guest.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", loop], check=True)
        subprocess.run(["mount", loop, guest], check=True)
        try:
            for i in range(50):
                (guest / f"file{i}").write_bytes(os.urandom(20_000))
        finally:
            subprocess.run(["umount", guest], check=True)
        subprocess.run(["e2fsck", "-fn", loop], check=True, capture_output=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    assert replay_files(bytes(DISK_BYTES), logs(server)) == (server.root / "web01" / "os.img").read_bytes()


def test_after_kill_9_the_dead_mount_is_cleared_and_no_data_is_lost(server: DiskServer) -> None:
    write(server.os_disk, 0, b"one", sync=True)
    server.kill()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        names(server.mountpoint)
    server.start()
    with server.os_disk.open("rb") as disk:
        assert disk.read(3) == b"one"
    write(server.os_disk, 3, b"two")
    assert replay_files(bytes(DISK_BYTES), logs(server)) == (server.root / "web01" / "os.img").read_bytes()


def test_the_vhd_is_the_disk_and_a_footer(server: DiskServer) -> None:
    write(server.os_disk, DISK_BYTES - 5, b"bytes")
    with (server.mountpoint / "web01" / "os.vhd").open("rb") as vhd:
        assert vhd.seek(-512 - 5, os.SEEK_END) == DISK_BYTES - 5
        tail = vhd.read()
        assert (tail[:5], tail[5:13], len(tail)) == (b"bytes", b"conectix", 517)
        write(server.os_disk, DISK_BYTES - 5, b"other")
        vhd.seek(-512 - 5, os.SEEK_END)
        assert vhd.read(5) == b"other", "a later write to the disk is not seen"
    with pytest.raises(PermissionError):
        (server.mountpoint / "web01" / "os.vhd").open("r+b")


@needs_program("qemu-img")
def test_qemu_img_reads_the_same_disk_from_the_vhd(server: DiskServer) -> None:
    write(server.os_disk, 12_345, b"somewhere" * 100)
    disk, vhd = server.os_disk, server.mountpoint / "web01" / "os.vhd"
    info = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", "-f", "vpc", vhd], check=True, capture_output=True).stdout
    )
    assert (info["format"], info["virtual-size"]) == ("vpc", DISK_BYTES)
    subprocess.run(["qemu-img", "compare", "-f", "vpc", "-F", "raw", vhd, disk], check=True, capture_output=True)


def test_a_cut_closes_a_segment_that_the_mount_shows(server: DiskServer) -> None:
    write(server.os_disk, 0, b"x")
    assert server.cut() > 0
    write(server.os_disk, 0, b"y")
    assert server.cut() > 0
    assert [p.name for p in logs(server)] == ["os.000001.hrl", "os.000002.hrl", "os.000003.hrl"]
    assert "os.000003.hrl" in names(server.mountpoint / "web01")


def test_a_stop_unmounts(server: DiskServer) -> None:
    server.stop()
    assert names(server.mountpoint) == []
    assert not server.mountpoint.is_mount()


def test_a_second_server_of_the_same_disks_is_refused(server: DiskServer) -> None:
    write(server.os_disk, 0, b"x" * 5000)
    before = logs(server)[0].read_bytes()
    said = message_of_failed_server(server.root, server.folder / "mnt2", DISK_BYTES)
    assert f"{server.root}: another process serves its disks" in said
    assert logs(server)[0].read_bytes() == before


def test_a_second_mount_at_the_same_place_is_refused(server: DiskServer) -> None:
    assert "something is mounted here already" in message_of_failed_server(
        server.folder / "disks2", server.mountpoint, DISK_BYTES
    )
    assert server.os_disk.stat().st_size == DISK_BYTES
