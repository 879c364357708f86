"""Block devices as sources of images, and as targets of exports and replays: loop devices over files of the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.replay import CheckedLog
from siterig.blockfs.changelog.replay import open_image as open_replay_target
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import importer
from siterig.blockfs.images.image_file import open_image
from siterig.images import image_export

MIB = 1 << 20
SIZE = 4 * MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices"),
]


def losetup(*arguments: object) -> str:
    return subprocess.run(["losetup", *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """Provide a loop device of 5 MiB, filled with ones."""
    (tmp_path / "backing").write_bytes(b"\1" * (SIZE + MIB))
    loop = losetup("--find", "--show", tmp_path / "backing")
    yield Path(loop)
    losetup("--detach", loop)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a disk file with data, stored zeros, and a hole at the end."""
    path = tmp_path / "os.img"
    with path.open("wb") as file:
        file.write(os.urandom(MIB) + bytes(MIB))
        file.truncate(SIZE)
    return path


@pytest.fixture
def held(device: Path) -> Iterator[None]:
    """Hold the device exclusively, as a mount does."""
    fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    yield
    os.close(fd)


def ignore(_done: int) -> None:
    pass


async def test_a_device_is_imported_as_a_raw_disk_with_its_sector_size(tmp_path: Path, device: Path) -> None:
    looked = await importer.look_at(device)
    assert (looked.format, looked.size_bytes, looked.remark) == ("raw", SIZE + MIB, None)
    assert looked.sector_bytes == 512
    target = tmp_path / "target"
    with target.open("wb") as file:
        file.truncate(SIZE + MIB)
    await importer.fill(device, target, advance=ignore)
    assert target.read_bytes() == b"\1" * (SIZE + MIB)


async def test_a_device_that_begins_like_an_image_is_raw_and_reported(device: Path) -> None:
    with device.open("r+b") as file:
        file.write(b"QFI\xfb\0\0\0\3")
    looked = await importer.look_at(device)
    assert looked.format == "raw"
    assert looked.remark is not None
    assert "is a block device, taken for raw although it begins like a qcow2 image; --format overrides" in looked.remark


async def test_a_forced_export_overwrites_only_the_disks_bytes_of_a_device(disk: Path, device: Path) -> None:
    with pytest.raises(RigError, match="is a block device: --force overwrites its contents") as failed:
        image_export.check(device, "raw", force=False)
    assert failed.value.code == "FileExists"
    with pytest.raises(RigError, match="takes format raw and not qcow2"):
        image_export.check(device, "qcow2", force=True)
    image_export.check(device, "raw", force=True)
    reported: list[int] = []
    await image_export.export(disk, device, "raw", force=True, advance=reported.append)
    assert sum(reported) == SIZE
    assert device.read_bytes() == disk.read_bytes() + b"\1" * MIB
    assert device.is_block_device()


async def test_a_device_that_is_too_small_is_not_changed(tmp_path: Path, device: Path) -> None:
    disk = tmp_path / "large.img"
    with disk.open("wb") as file:
        file.truncate(SIZE + 2 * MIB)
    with pytest.raises(RigError, match=f"has {SIZE + MIB} bytes; the disk has {SIZE + 2 * MIB}") as failed:
        await image_export.export(disk, device, "raw", force=True, advance=ignore)
    assert failed.value.code == "InvalidDiskSize"
    assert device.read_bytes() == b"\1" * (SIZE + MIB)


@pytest.mark.usefixtures("held")
async def test_a_device_in_use_is_refused(disk: Path, device: Path) -> None:
    async def replay() -> None:
        open_replay_target(device, CheckedLog([], 0, 0), writable=True)

    async def check() -> None:
        image_export.check(device, "raw", force=True)

    uses = [
        lambda: open_image(device),
        lambda: open_image(device, read_only=True),
        lambda: importer.look_at(device),
        lambda: image_export.export(disk, device, "raw", force=True, advance=ignore),
        check,
        replay,
    ]
    for use in uses:
        with pytest.raises(RigError, match="is in use: another program has it") as failed:
            await use()
        assert failed.value.code == "ImageBusy"
    assert device.read_bytes() == b"\1" * (SIZE + MIB)


async def test_the_sector_size_of_a_device_becomes_that_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "backing").write_bytes(bytes(SIZE))
    loop = losetup("--find", "--show", "--sector-size", 4096, tmp_path / "backing")
    try:
        assert (await importer.look_at(Path(loop))).sector_bytes == 4096
    finally:
        losetup("--detach", loop)


async def test_a_device_is_mounted_as_a_raw_disk_that_cannot_grow(device: Path) -> None:
    image = await open_image(device)
    assert (image.format, image.size_bytes, image.is_device) == ("raw", SIZE + MIB, True)
    image.close()
