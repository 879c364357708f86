"""Images that cannot be read have a message for each cause, and complete images of all formats are read."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import importer
from siterig.blockfs.images.image_formats import ImageFormat
from tests.support.needs import needs_program

MIB = 1 << 20
SIZE = 8 * MIB

pytestmark = needs_program("qemu-img")


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def disk_file(folder: Path) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(2 * MIB) + bytes(SIZE - 2 * MIB))
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def encrypted(folder: Path) -> Path:
    """Return an image whose header names LUKS; qemu-img needs an exact measure of processor time to make one."""
    qemu_img("create", "-f", "qcow2", folder / "x.qcow2", SIZE)
    return patched(folder / "x.qcow2", 32, struct.pack(">I", 2))


def encrypted_with_aes(folder: Path) -> Path:
    """Return an image as an old program made it; QEMU no longer makes such images."""
    qemu_img("create", "-f", "qcow2", folder / "x.qcow2", SIZE)
    return patched(folder / "x.qcow2", 32, struct.pack(">I", 1))


def marked_corrupt(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "x.qcow2", SIZE)
    return patched(folder / "x.qcow2", 72, struct.pack(">Q", 2))


def with_a_data_file(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder}/ext.raw", folder / "x.qcow2", SIZE)
    return folder / "x.qcow2"


def with_a_backing_file(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-b", disk_file(folder), "-F", "raw", folder / "x.qcow2")
    return folder / "x.qcow2"


def with_a_backing_protocol(folder: Path) -> Path:
    qemu_img("create", "-u", "-f", "qcow2", "-b", "nbd://localhost:1/x", "-F", "raw", folder / "x.qcow2", SIZE)
    return folder / "x.qcow2"


def of_version_4(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "x.qcow2", SIZE)
    return patched(folder / "x.qcow2", 4, struct.pack(">I", 4))


def of_unknown_features(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "x.qcow2", SIZE)
    return patched(folder / "x.qcow2", 72, struct.pack(">Q", 1 << 40))


def truncated_qcow(folder: Path) -> Path:
    qemu_img("convert", "-f", "raw", "-O", "qcow", disk_file(folder), folder / "x.qcow")
    data = (folder / "x.qcow").read_bytes()
    (folder / "x.qcow").write_bytes(data[: len(data) // 2])
    return folder / "x.qcow"


def one_extent(folder: Path) -> Path:
    split = "subformat=twoGbMaxExtentSparse"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", split, disk_file(folder), folder / "x.vmdk")
    return folder / "x-s001.vmdk"


def descriptor(folder: Path) -> Path:
    one_extent(folder)
    return folder / "x.vmdk"


def differencing_vhd(folder: Path) -> Path:
    qemu_img("create", "-f", "vpc", folder / "x.vhd", SIZE)
    raw = bytearray((folder / "x.vhd").read_bytes())
    for at in (0, len(raw) - 512):
        footer = raw[at : at + 512]
        footer[60:64] = struct.pack(">I", 4)
        footer[64:68] = bytes(4)
        footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFF_FFFF)
        raw[at : at + 512] = footer
    name = "base.vhd".encode("utf-16-be")
    raw[512 + 64 : 512 + 64 + len(name)] = name
    (folder / "x.vhd").write_bytes(raw)
    return folder / "x.vhd"


def damaged_vhdx(folder: Path) -> Path:
    qemu_img("create", "-f", "vhdx", folder / "x.vhdx", SIZE)
    for at in (64 << 10, 128 << 10):
        patched(folder / "x.vhdx", at + 8, b"\xff")
    return folder / "x.vhdx"


def differencing_vdi(folder: Path) -> Path:
    qemu_img("create", "-f", "vdi", folder / "x.vdi", SIZE)
    return patched(folder / "x.vdi", 76, struct.pack("<I", 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (encrypted, "is an encrypted qcow2 image (LUKS): "),
        (encrypted_with_aes, "is an encrypted qcow2 image (AES): "),
        (marked_corrupt, "is marked corrupt by the program that wrote it: qemu-img check -r all"),
        (with_a_data_file, "needs another file, its data file {folder}/ext.raw"),
        (with_a_backing_file, "needs another file, {folder}/disk.raw"),
        (with_a_backing_protocol, "needs another file, nbd://localhost:1/x"),
        (of_version_4, "has qcow2 version 4; 2 and 3 are supported"),
        (of_unknown_features, "has incompatible features that are not supported"),
        (truncated_qcow, "is truncated: a cluster ends at byte"),
        (one_extent, "is one extent of a split VMDK and needs the other files"),
        (descriptor, "needs another file, x-s001.vmdk"),
        (differencing_vhd, "needs another file, its parent base.vhd"),
        (damaged_vhdx, "is damaged: neither of its two VHDX headers has the right checksum"),
        (differencing_vdi, "is a differencing VDI and needs another file, its parent"),
    ],
)
async def test_each_cause_has_its_own_message(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    image = make(tmp_path)
    with pytest.raises(RigError) as failed:
        await importer.look_at(image)
    assert failed.value.code == "ImageUnusable"
    assert failed.value.message.startswith(f"{image}: {says.format(folder=tmp_path)}"), failed.value.message


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["qcow2", "qcow", "vhdx", "vmdk", "vdi", "qed", "parallels"])
@pytest.mark.parametrize("name", ["disk.img", "as it is named"])
async def test_a_complete_image_is_imported_under_any_name(tmp_path: Path, format_: ImageFormat, name: str) -> None:
    disk = disk_file(tmp_path)
    image = tmp_path / (f"x.{format_}" if name == "as it is named" else name)
    qemu_img("convert", "-f", "raw", "-O", format_, disk, image)
    looked = await importer.look_at(image)
    assert (looked.format, looked.size_bytes, looked.sector_bytes) == (format_, SIZE, 512)
    if format_ != "parallels":
        assert (looked.remark is None) == (name == "as it is named")
    target = tmp_path / "target"
    with target.open("wb") as file:
        file.truncate(SIZE)
    await importer.fill(image, target, advance=lambda _done: None, format_=format_)
    assert target.read_bytes() == disk.read_bytes()


@pytest.mark.slow
async def test_a_raw_disk_that_begins_like_a_qcow2_is_reported(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "i.qcow2", 40 * MIB)
    disk = tmp_path / "disk.raw"
    disk.write_bytes((tmp_path / "i.qcow2").read_bytes()[:262144].ljust(SIZE, b"\0"))
    looked = await importer.look_at(disk)
    assert looked.remark == (
        f"{disk}: taken for qcow2 by its contents: a disk of {40 * MIB} bytes in a file of {SIZE}; "
        "if it is a raw image, --format raw takes every byte as the disk's"
    )
    looked = await importer.look_at(disk, "raw")
    assert (looked.size_bytes, looked.remark) == (SIZE, None)


async def test_a_write_to_an_image_during_its_import_is_an_error(tmp_path: Path) -> None:
    disk, target = disk_file(tmp_path), tmp_path / "target"
    with target.open("wb") as file:
        file.truncate(SIZE)

    def write(_done: int) -> None:
        patched(disk, 0, b"meanwhile")

    with pytest.raises(RigError, match="was written to while it was read") as failed:
        await importer.fill(disk, target, advance=write)
    assert failed.value.code == "ImageBusy"
