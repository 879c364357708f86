"""siterig's VHDX code agrees with QEMU for sectors of 512 bytes, and with itself for sectors of 4096 bytes."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import importer, vhdx
from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.blockfs.images.vhdx_writer import BLOCK_BYTES, VhdxWriter
from siterig.images import image_export
from tests.support.needs import needs_program

MIB = 1 << 20


def disk_file(path: Path, size_bytes: int) -> Path:
    """Create a disk file with data at the start, in the middle and in the last sector, and holes elsewhere."""
    rng = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for at in (0, size_bytes // 2 // 4096 * 4096, size_bytes - 4096):
            file.seek(at)
            file.write(rng.randbytes(4096))
    return path


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def ignore(_done: int) -> None:
    pass


async def write(disk: Path, to: Path, sector_bytes: int) -> Path:
    reported: list[int] = []
    with disk.open("rb") as source, to.open("w+b") as target:
        size_bytes = disk.stat().st_size
        await VhdxWriter(disk, source.fileno(), to, target.fileno(), size_bytes, sector_bytes).run(reported.append)
    assert sum(reported) == size_bytes
    return to


def read(path: Path) -> bytes:
    """Return the disk's bytes in an image, with the block table as the only source."""
    with path.open("rb") as file:
        image = ImageBytes(path, file.fileno(), path.stat().st_size)
        header = vhdx.read_header(image)
        found = bytearray(header.size_bytes)
        for place, at, length in vhdx.blocks(image, header):
            found[place : place + length] = image.read(at, length)
    return bytes(found)


SIZES = pytest.mark.parametrize("size_bytes", [4096, 8 * MIB, BLOCK_BYTES, 2 * BLOCK_BYTES + 4096])


@pytest.mark.slow
@SIZES
@needs_program("qemu-img")
async def test_qemu_reads_an_image_with_sectors_of_512(tmp_path: Path, size_bytes: int) -> None:
    disk = disk_file(tmp_path / "disk", size_bytes)
    image = await write(disk, tmp_path / "x.vhdx", 512)
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vhdx", str(disk), str(image)]
    assert b"identical" in (await trio.run_process(compare, capture_stdout=True)).stdout
    await trio.run_process(["qemu-img", "check", "-f", "vhdx", str(image)], capture_stdout=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["subformat=dynamic", "subformat=fixed", "block_size=1M"])
@needs_program("qemu-img")
def test_an_image_that_qemu_wrote_is_read(tmp_path: Path, options: str) -> None:
    """With blocks of 1 MiB, the table has entries of sector bitmaps only after 4 GiB; the next test covers these."""
    disk = disk_file(tmp_path / "disk", 40 * MIB)
    image = tmp_path / "x.vhdx"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, disk, image], check=True)
    assert read(image) == disk.read_bytes()


@pytest.mark.slow
@needs_program("qemu-img")
def test_entries_of_sector_bitmaps_are_skipped(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk", 9 << 30)
    places = [0, (4 << 30) - 4096, 4 << 30, (8 << 30) + MIB]
    with disk.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"\x5a" * 4096)
    image = tmp_path / "x.vhdx"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", disk, image], check=True)
    with image.open("rb") as file:
        found = ImageBytes(image, file.fileno(), image.stat().st_size)
        blocks = {place: at for place, at, _ in vhdx.blocks(found, vhdx.read_header(found))}
        assert sorted(blocks) == [place // MIB * MIB for place in places]
        for place in places:
            assert found.read(blocks[place // MIB * MIB] + place % MIB, 4096) == b"\x5a" * 4096


@pytest.mark.slow
@SIZES
async def test_a_disk_with_4096_byte_sectors_keeps_them_in_export_and_import(tmp_path: Path, size_bytes: int) -> None:
    disk = disk_file(tmp_path / "disk", size_bytes)
    image = tmp_path / "x.vhdx"
    await image_export.export(disk, image, "vhdx", force=False, advance=ignore, sector_bytes=4096)
    assert read(image) == disk.read_bytes()
    looked = await importer.look_at(image)
    assert (looked.format, looked.size_bytes, looked.sector_bytes) == ("vhdx", size_bytes, 4096)
    back = sparse(tmp_path / "back", size_bytes)
    reported: list[int] = []
    await importer.fill(image, back, advance=reported.append)
    assert back.read_bytes() == disk.read_bytes()
    assert sum(reported) == size_bytes
    assert back.stat().st_blocks * 512 <= 3 * (64 << 10) + 4096, "zeros must become holes"


async def test_a_truncated_image_with_4096_byte_sectors_is_refused(tmp_path: Path) -> None:
    image = await write(disk_file(tmp_path / "disk", 8 * MIB), tmp_path / "x.vhdx", 4096)
    os.truncate(image, image.stat().st_size - BLOCK_BYTES + MIB)
    with pytest.raises(RigError, match="is truncated: the block at byte 0 of the disk is at byte") as failed:
        await importer.look_at(image)
    assert failed.value.code == "ImageUnusable"


async def test_other_sector_sizes_are_refused(tmp_path: Path) -> None:
    image = await write(disk_file(tmp_path / "disk", MIB), tmp_path / "x.vhdx", 4096)
    raw = image.read_bytes()
    at = 2 * MIB + (64 << 10) + 8 + 8 + 16  # after the file parameters, the size and the id of the disk
    assert raw[at : at + 4] == struct.pack("<I", 4096)
    image.write_bytes(raw[:at] + struct.pack("<I", 2048) + raw[at + 4 :])
    with pytest.raises(RigError, match="has logical sectors of 2048 bytes; 512 and 4096 are supported"):
        await importer.look_at(image)
