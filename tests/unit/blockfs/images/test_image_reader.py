"""An image of any format is read range by range as its disk, without a file that has its bytes."""

from __future__ import annotations

import fcntl
import random
import subprocess
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files.open_file_locks import lock_request
from siterig.blockfs.images import image_file, image_reader
from siterig.blockfs.images.image_reader import UNIT_BYTES, open_reader, whole_units
from siterig.blockfs.images.vhd import fixed_footer
from siterig.blockfs.images.vhdx_writer import VhdxWriter

MIB = 1 << 20
SIZE_BYTES = 3 * MIB + 512
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def disk() -> bytes:
    rng = random.Random(7)
    data = bytearray(SIZE_BYTES)
    for at in (0, 300_000, MIB, 2 * MIB + 12_345, SIZE_BYTES - 700):
        data[at : at + 700] = rng.randbytes(700)
    return bytes(data)


def image_of(folder: Path, disk: bytes, kind: str) -> Path:
    raw = folder / "disk.img"
    with raw.open("wb") as file:  # sparse
        file.truncate(len(disk))
        for at in range(0, len(disk), 4096):
            if any(disk[at : at + 4096]):
                file.seek(at)
                file.write(disk[at : at + 4096])
    if kind == "raw":
        return raw
    image = folder / f"disk.{kind}"
    if kind == "vhd":
        image.write_bytes(disk + fixed_footer(len(disk), "6f1c2f5e-8a51-4d10-9a7e-0d6f5f3c2b1a"))
    else:
        options = ["-c"] if kind == "qcow2" else []
        subprocess.run(["qemu-img", "convert", *options, "-O", kind, str(raw), str(image)], check=True)
    return image


@pytest.mark.parametrize("kind", ["raw", "vhd", "vhdx", "qcow2"])
async def test_every_format_reads_as_its_disk(
    tmp_path: Path, disk: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "WINDOW_BYTES", MIB)
    image = image_of(tmp_path, disk, kind)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    async with open_reader(image) as reader:
        assert reader.source.size_bytes == len(disk)
        ranges = await reader.data_ranges()
        found = bytearray(len(disk))
        for offset, length in ranges:
            found[offset : offset + length] = await reader.read(offset, length)
        assert found == disk
        if kind in ("raw", "qcow2"):
            assert sum(length for _, length in ranges) < len(disk)  # holes are not read
        assert await reader.read(MIB - 10, 20) == disk[MIB - 10 : MIB + 10]  # over the border of a window
        assert await reader.read(len(disk) - 5, 10) == disk[-5:] + bytes(5)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


async def test_an_image_that_is_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "LOCK_PATIENCE_S", 0.1)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    with image.open("r+b") as writer:
        fcntl.fcntl(writer, fcntl.F_OFD_SETLK, lock_request(fcntl.F_WRLCK, 0, 0))
        with pytest.raises(RigError) as caught:
            async with open_reader(image):
                pass
    assert caught.value.code == "ImageBusy"


async def test_a_vhdx_with_large_sectors_reads_as_its_disk(tmp_path: Path, disk: bytes) -> None:
    padded = disk.ljust(-(-len(disk) // 4096) * 4096, b"\0")
    raw, image = image_of(tmp_path, padded, "raw"), tmp_path / "disk.vhdx"
    with raw.open("rb") as source, image.open("w+b") as target:
        await VhdxWriter(raw, source.fileno(), image, target.fileno(), len(padded), 4096).run(lambda _done: None)
    async with open_reader(image) as reader:
        assert reader.source.sector_bytes == 4096
        assert sum(length for _, length in await reader.data_ranges()) <= len(padded)
        assert await reader.read(0, len(padded) + 7) == padded + bytes(7)
        assert await reader.read(MIB - 10, 20) == padded[MIB - 10 : MIB + 10]


def test_ranges_are_extended_to_whole_units_and_joined() -> None:
    assert whole_units([(1, 2), (UNIT_BYTES - 1, 2), (5 * UNIT_BYTES, 100)], 5 * UNIT_BYTES + 512) == [
        (0, 2 * UNIT_BYTES),
        (5 * UNIT_BYTES, 512),
    ]
