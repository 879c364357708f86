"""A truncated image (a broken download, a full disk) is never imported with zeros for the missing bytes."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import importer, vhd
from tests.support.needs import needs_program

MIB = 1 << 20
SIZE = 24 * MIB

pytestmark = [pytest.mark.slow, needs_program("qemu-img")]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Return a sparse disk file whose second half has no holes, so that a truncation removes data."""
    path = tmp_path / "os.img"
    with path.open("wb") as file:
        file.seek(SIZE // 2)
        file.write(random.Random(1).randbytes(SIZE // 2))
    return path


def converted(disk: Path, to: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, disk, to], check=True)
    return to


def fixed_vhd(disk: Path) -> Path:
    made = disk.with_name("fixed.vhd")
    made.write_bytes(disk.read_bytes() + vhd.fixed_footer(SIZE, "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42"))
    return made


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3 | 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.qcow2", ["-O", "qcow2"]),
        ("compressed.qcow2", ["-O", "qcow2", "-c"]),
        ("x.vhdx", ["-O", "vhdx"]),
        ("x.vmdk", ["-O", "vmdk"]),
        ("stream.vmdk", ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("dynamic.vhd", ["-O", "vpc", "-o", "force_size=on"]),
        ("x.vdi", ["-O", "vdi"]),
        ("x.qcow", ["-O", "qcow"]),
        ("x.qed", ["-O", "qed"]),
        ("x.parallels", ["-O", "parallels"]),
    ],
)
async def test_a_truncated_image_is_refused(tmp_path: Path, disk: Path, name: str, options: list[str]) -> None:
    image = converted(disk, tmp_path / name, *options)
    assert (await importer.look_at(image)).size_bytes == SIZE
    cut(image)
    with pytest.raises(RigError, match=rf"{name}: .*(cut off|truncated|Could not open)") as failed:
        await importer.look_at(image)
    assert failed.value.code == "ImageUnusable"
    assert "\n" not in failed.value.message
    target = tmp_path / "target.img"
    with target.open("wb") as file:
        file.truncate(SIZE)
    with pytest.raises(RigError, match=name):  # truncated after it was examined
        await importer.fill(image, target, advance=lambda _done: None)
    assert target.stat().st_blocks == 0


@pytest.mark.parametrize("format_", ["qcow2", "vhdx", "vmdk", "vdi", "qcow", "qed", "parallels"])
@pytest.mark.parametrize("lost", [1, 4096])
async def test_an_image_without_its_last_bytes_is_reported_as_truncated(
    tmp_path: Path, disk: Path, format_: str, lost: int
) -> None:
    """``qemu-img check`` accepts an image if its last cluster begins before the end of the file."""
    image = converted(disk, tmp_path / f"x.{format_}", "-O", format_)
    os.truncate(image, image.stat().st_size - lost)
    with pytest.raises(RigError, match=rf"x\.{format_}: is truncated: ") as failed:
        await importer.look_at(image)
    assert failed.value.code == "ImageUnusable"


async def test_clusters_without_data_may_be_after_the_end_of_the_file(tmp_path: Path) -> None:
    image = tmp_path / "x.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(image), str(SIZE + 512)]
    await trio.run_process(create)
    assert (await importer.look_at(image)).size_bytes == SIZE + 512


async def test_truncated_raw_images_and_fixed_vhds_are_refused(disk: Path) -> None:
    fixed = fixed_vhd(disk)
    for image, code in ((fixed, "VhdCorrupt"), (disk, "InvalidDiskSize")):
        assert (await importer.look_at(image)).size_bytes == SIZE
        cut(image)
        with pytest.raises(RigError) as failed:
            await importer.look_at(image)
        assert failed.value.code == code


async def test_a_qcow2_with_leaked_clusters_is_accepted(tmp_path: Path, disk: Path) -> None:
    image = converted(disk, tmp_path / "x.qcow2", "-O", "qcow2")
    with image.open("r+b") as file:
        file.seek(48)  # the header has the offset of the refcount table here
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        end = image.stat().st_size // 65536  # in clusters
        file.truncate((end + 1) * 65536)
        file.seek(block + end * 2)
        file.write((1).to_bytes(2, "big"))
    said = await trio.run_process(["qemu-img", "check", str(image)], capture_stdout=True, capture_stderr=True, check=False)
    assert said.returncode == 3, said
    assert (await importer.look_at(image)).size_bytes == SIZE


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
async def test_a_vmdk_of_several_files_is_refused_with_the_missing_file(tmp_path: Path, disk: Path, subformat: str) -> None:
    image = converted(disk, tmp_path / "x.vmdk", "-O", "vmdk", "-o", f"subformat={subformat}")
    with pytest.raises(RigError, match=r"x\.vmdk: needs another file, .*x-.*\.vmdk: qemu-img convert makes one") as failed:
        await importer.look_at(image)
    assert failed.value.code == "ImageUnusable"
