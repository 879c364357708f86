"""``loop_devices`` reads the mounts from the kernel, and refuses wrong requests before it uses the kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests import loop_devices

MIB = 1024 * 1024


def test_mountinfo_gives_device_source_and_unescaped_mount_point() -> None:
    text = (
        "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "88 29 7:3 / /mnt/with\\040space rw - xfs /dev/loop3 rw,attr2\n"
        "90 29 0:52 /sub /mnt/b rw master:3 shared:9 - btrfs /dev/loop12p1 rw\n"
    )
    assert loop_devices.parse_mountinfo(text) == [
        ("254:0", "/dev/vda", "/"),
        ("7:3", "/dev/loop3", "/mnt/with space"),
        ("0:52", "/dev/loop12p1", "/mnt/b"),
    ]


async def test_an_xfs_below_300_mib_is_refused_with_both_sizes(tmp_path: Path) -> None:
    disk = tmp_path / "small.img"
    disk.touch()
    with disk.open("r+b") as file:
        file.truncate(299 * MIB)
    with pytest.raises(RigError) as caught:
        await loop_devices.mkfs(str(disk), "xfs", "data")
    assert caught.value.code == "DiskTooSmall"
    assert caught.value.message == f"{disk} has {299 * MIB} bytes: xfs needs at least {300 * MIB} (300 MiB)"


async def test_an_unknown_file_system_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(RigError) as caught:
        await loop_devices.mkfs("/dev/null", "ntfs", "data")
    assert caught.value.message == "file system 'ntfs' is not supported; allowed: ext4, xfs, btrfs"


async def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RigError) as caught:
        await loop_devices.mkfs("/dev/null", "ext4", "os")
    assert caught.value.code == "ToolMissing"
    assert caught.value.message == "program mkfs.ext4 is not installed; on Debian: apt-get install e2fsprogs"


async def test_an_unused_disk_has_no_uses(tmp_path: Path) -> None:
    disk = tmp_path / "idle.img"
    disk.touch()
    assert await loop_devices.uses(disk) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices")
async def test_a_device_that_another_process_attaches_at_once_is_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free loop device has no owner: ``losetup --find`` of any process takes it."""
    disk, other, programs = tmp_path / "disk.img", tmp_path / "other.img", tmp_path / "programs"
    for path in (disk, other):
        path.write_bytes(bytes(MIB))
    programs.mkdir()
    losetup = shutil.which("losetup")
    assert losetup is not None
    loop = await loop_devices.attach(disk)
    fake = programs / "losetup"
    fake.write_text(f'#!/bin/sh\n{losetup} "$@" && {losetup} {loop} {other}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    try:
        await loop_devices.detach(loop)
        assert [use.disk for use in loop_devices.loop_uses() if use.loop == loop] == [str(other)]
    finally:
        await trio.run_process([losetup, "--detach", loop])


@pytest.mark.slow
async def test_a_mount_that_another_process_released_meanwhile_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = loop_devices.DiskUse(str(tmp_path / "disk.img"), None, (str(tmp_path / "mnt"),))
    monkeypatch.setattr(loop_devices, "loop_uses", lambda: [gone])
    assert await loop_devices.release_below(tmp_path) == []


def test_mountinfo_with_any_name_can_be_read() -> None:
    text = os.fsdecode(b"29 1 0:5 / /mnt/\xff\xc2\x85\x0c rw - fuse.siterig siterig:/a,b\\134c rw\n")
    assert loop_devices.parse_mountinfo(text) == [("0:5", "siterig:/a,b\\c", os.fsdecode(b"/mnt/\xff\xc2\x85\x0c"))]
