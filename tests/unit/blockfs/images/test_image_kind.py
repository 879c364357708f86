"""The type of an image is detected from its contents: refused types are named, and doubtful guesses are reported."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
from bz2 import compress as bzip2
from pathlib import Path

import pytest
import zstandard

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images import importer, vhd
from siterig.blockfs.images.image_file import open_image
from siterig.core.parsing import parse_import, parse_of_disks

MIB = 1 << 20
DISK = bytes(range(256)) * 4096
FOOTER = vhd.fixed_footer(MIB, "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42")


def tar(name: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(DISK)
        archive.addfile(member, io.BytesIO(DISK))
    return made.getvalue()


def tar_v7(name: str) -> bytes:
    """Return an archive of ``tar --format=v7``: without magic bytes, and with another end of the checksum field."""
    made = bytearray(tar(name))
    made[257:512] = bytes(255)
    made[148:156] = b" " * 8
    made[148:156] = b"%6o\0 " % sum(made[:512])
    return bytes(made)


def zip_() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("disk.img", DISK)
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "title", "command"),
    [
        (gzip.compress(DISK), "a gzip archive", "gzip -dc"),
        (lzma.compress(DISK), "an xz archive", "xz -dc"),
        (zstandard.compress(DISK), "a zstd archive", "zstd -dc"),
        (bzip2(DISK), "a bzip2 archive", "bzip2 -dc"),
        (zip_(), "a zip archive", "unzip"),
        (tar("disk.vmdk"), "a tar archive", "tar -xf"),
        (tar("web.ovf"), "an OVA archive (tar)", "import the .vmdk files"),
        (tar_v7("disk.img"), "a tar archive", "tar -xf"),
        (lzma.compress(DISK, lzma.FORMAT_ALONE), "an lzma archive", "xz --format=lzma -dc"),
        (b"\x1f\x9d\x90", "a compress archive (.Z)", "uncompress -c"),
        (b"070701", "a cpio archive", "cpio -idF"),
        (b"Salted__", "an encrypted file (openssl enc)", "openssl enc -d"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
        (b"LUKS\xba\xbe\0\2", "an encrypted disk (LUKS)", "qemu-img convert --object secret"),
        (bytes(MIB) + b"koly\0\0\0\4".ljust(512, b"\0"), "a compressed Apple disk image (DMG)", "dmg2img"),
    ],
)
@pytest.mark.parametrize("name", ["disk.img", "disk", "the disk.bin"])
async def test_archives_and_encrypted_disks_are_refused_with_a_command(
    tmp_path: Path, name: str, content: bytes, title: str, command: str
) -> None:
    path = tmp_path / name
    path.write_bytes(
        content + bytes(-len(content) % 512) if "DMG" not in title else content
    )  # whole sectors, as in a raw disk
    for read in (importer.look_at, open_image):
        with pytest.raises(RigError) as failed:
            await read(path)
        assert failed.value.code == "ImageUnusable"
        assert failed.value.message.startswith(f"{path}: is {title}, not a disk: ")
        assert command in failed.value.message
        assert "--format raw" in failed.value.message
    looked = await importer.look_at(path, "raw")
    assert (looked.format, looked.size_bytes, looked.remark) == ("raw", path.stat().st_size, None)


async def test_a_disk_that_only_resembles_an_archive_is_accepted(tmp_path: Path) -> None:
    """Examples are an ISO image, ``BZh`` without a bzip2 block, and ``ustar`` at another offset."""
    for content in (
        bytes(32769) + b"CD001",
        b"BZh9 is no archive",
        bytes(256) + b"ustar",
        bytes(148) + b"000000\0 ",
        b"]\0\0",
    ):
        path = tmp_path / "disk.img"
        path.write_bytes(content.ljust(MIB, b"\0"))
        assert (await importer.look_at(path)).format == "raw"


async def test_a_given_format_overrides_name_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(bytes(MIB))
    with pytest.raises(RigError, match=r"is named as a VHD, .* give --format raw"):
        await importer.look_at(path)
    assert (await importer.look_at(path, "raw")).size_bytes == MIB
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB) + FOOTER)
    with pytest.raises(RigError, match="give --format vhd, or --format raw"):
        await importer.look_at(path)
    assert (await importer.look_at(path, "raw")).size_bytes == MIB + 512
    assert (await importer.look_at(path, "vhd")).size_bytes == MIB
    with pytest.raises(RigError, match="is no qcow2 image"):
        await importer.look_at(path, "qcow2")


def test_an_image_whose_name_ends_like_a_size_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_import("os=x:1GiB") == ("os", "x", 1 << 30)
    Path("x:1GiB").touch()
    assert parse_import("os=x:1GiB") == ("os", "x:1GiB", None)
    assert parse_import("os=x:1GiB:2GiB") == ("os", "x:1GiB", 2 << 30)
    assert parse_import("os=x:1GiB:") == ("os", "x:1GiB", None)
    Path("x").touch()
    with pytest.raises(RigError, match="there is an image 'x' and an image 'x:1GiB'; write os=x:1GiB: for the second one"):
        parse_import("os=x:1GiB")
    assert parse_import("os=x:1GiB:") == ("os", "x:1GiB", None)
    assert parse_import("os=x:1024MiB") == ("os", "x", 1 << 30)
    assert parse_import("os=x:") == ("os", "x", None)


def test_an_option_of_disks_applies_to_all_disks_or_to_one() -> None:
    allowed, disks = ("raw", "qcow2"), ("os", "data")
    assert parse_of_disks("--format", ["raw"], allowed, disks) == {"os": "raw", "data": "raw"}
    assert parse_of_disks("--format", ["data=qcow2", "raw"], allowed, disks) == {"os": "raw", "data": "qcow2"}
    assert parse_of_disks("--format", [], allowed, disks) == {}
    with pytest.raises(RigError, match="'img' is not one of raw, qcow2"):
        parse_of_disks("--format", ["img"], allowed, disks)
    with pytest.raises(RigError, match="there is no --disk 'web'; there are: os, data"):
        parse_of_disks("--format", ["web=raw"], allowed, disks)
