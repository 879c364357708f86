"""The footer of a fixed VHD follows the specification, and footers of qemu-img are read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.images.vhd import MIB, SIZE_BYTES_MAX, can_be_vhd, fixed_footer, geometry, read_footer

DISK = "6a83da7e-b542-496d-a113-08b9b71d9e21"


def test_the_footer_describes_the_disk() -> None:
    footer = fixed_footer(1 << 30, DISK)
    assert len(footer) == 512
    assert footer[:8] == b"conectix"
    assert struct.unpack(">Q", footer[16:24]) == (0xFFFFFFFFFFFFFFFF,)
    assert struct.unpack(">QQ", footer[40:56]) == (1 << 30, 1 << 30)
    assert struct.unpack(">HBBI", footer[56:64]) == (2080, 16, 63, 2)
    assert footer[68:84].hex() == DISK.replace("-", "")


@given(st.integers(1, SIZE_BYTES_MAX // MIB))
def test_the_checksum_is_the_complement_of_the_sum_of_other_bytes(mebibytes: int) -> None:
    footer = fixed_footer(mebibytes * MIB, DISK)
    (checksum,) = struct.unpack(">I", footer[64:68])
    assert checksum == ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF


@given(st.integers(2048, 65535 * 16 * 255))
def test_the_geometry_is_within_the_disk_and_close_to_it(sectors: int) -> None:
    cylinders, heads, per_track = geometry(sectors)
    assert cylinders <= 65535
    assert 0 <= sectors - cylinders * heads * per_track < heads * per_track


@pytest.mark.parametrize(
    ("size", "can"), [(0, False), (512, False), (MIB, True), (MIB + 512, False), (SIZE_BYTES_MAX, True), (4 << 40, False)]
)
def test_only_disks_of_whole_mebibytes_up_to_the_limit_have_a_vhd(size: int, can: bool) -> None:
    assert can_be_vhd(size) is can


# ---- reading a footer


def vhd(tmp_path: Path, footer: bytes, disk_bytes: int = MIB) -> Path:
    path = tmp_path / "disk.vhd"
    with path.open("wb") as file:
        file.truncate(disk_bytes)
        file.seek(0, os.SEEK_END)
        file.write(footer)
    return path


def signed(footer: bytes, at: int, value: bytes) -> bytes:
    """Return the footer with other bytes at ``at``, and with the right checksum."""
    blank = footer[:at] + value + footer[at + len(value) :]
    blank = blank[:64] + bytes(4) + blank[68:]
    return blank[:64] + struct.pack(">I", ~sum(blank) & 0xFFFF_FFFF) + blank[68:]


GOOD = fixed_footer(MIB, DISK)


def test_our_own_footer_is_read(tmp_path: Path) -> None:
    assert read_footer(vhd(tmp_path, GOOD)) == MIB


@pytest.mark.parametrize(
    ("footer", "code", "says"),
    [
        (signed(GOOD, 60, struct.pack(">I", 3)), "VhdUnsupported", "is a dynamic VHD"),
        (signed(GOOD, 60, struct.pack(">I", 4)), "VhdUnsupported", "is a differencing VHD, which needs its parent"),
        (signed(GOOD, 60, struct.pack(">I", 7)), "VhdUnsupported", "is a VHD of type 7"),
        (signed(GOOD, 12, b"\x00\x02\x00\x01"), "VhdUnsupported", "VHD format version 2.1; 1.0 is supported"),
        (GOOD[:511], "VhdUnsupported", "its footer has 511 bytes"),
        (signed(GOOD, 48, struct.pack(">Q", 2 * MIB)), "VhdCorrupt", "a disk of 2097152 bytes; 1048576 bytes are before"),
        (GOOD[:300] + b"\x01" + GOOD[301:], "VhdCorrupt", "its checksum is"),
        (GOOD[:510], "VhdCorrupt", "its last 512 bytes are no VHD footer"),
        (GOOD + bytes(512), "VhdCorrupt", "its last 512 bytes are no VHD footer"),
        (b"", "VhdCorrupt", "its last 512 bytes are no VHD footer"),
    ],
)
def test_a_file_that_is_no_fixed_vhd_is_refused_with_the_reason(tmp_path: Path, footer: bytes, code: str, says: str) -> None:
    path = vhd(tmp_path, footer)
    with pytest.raises(RigError) as refused:
        read_footer(path)
    assert refused.value.code == code
    assert refused.value.message.startswith(f"{path}: ")
    assert says in refused.value.message


@pytest.mark.parametrize("size", [0, 1, 8, 511])
def test_a_file_too_short_for_a_footer_is_corrupt(tmp_path: Path, size: int) -> None:
    with pytest.raises(RigError, match="are no VHD footer") as refused:
        read_footer(vhd(tmp_path, b"", size))
    assert refused.value.code == "VhdCorrupt"


def test_a_truncated_dynamic_vhd_is_not_taken_for_a_raw_image(tmp_path: Path) -> None:
    path = vhd(tmp_path, b"")
    with path.open("r+b") as file:
        file.write(signed(GOOD, 60, struct.pack(">I", 3)))
    with pytest.raises(RigError, match="begins like a dynamic VHD") as refused:
        read_footer(path)
    assert refused.value.code == "VhdCorrupt"


@given(st.integers(0, 512 * 8 - 1))
def test_each_flipped_bit_of_a_footer_is_found(bit: int) -> None:
    flipped = bytearray(GOOD)
    flipped[bit // 8] ^= 1 << bit % 8
    with tempfile.TemporaryDirectory() as folder, pytest.raises(RigError):
        read_footer(vhd(Path(folder), bytes(flipped)))


needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img (Debian: qemu-utils)")


def qemu_img(path: Path, options: str, size: str) -> Path:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vpc", "-o", options, path, size], check=True, stdin=subprocess.DEVNULL
    )
    return path


@pytest.mark.slow
@needs_qemu_img
@pytest.mark.parametrize(
    ("options", "size_bytes"), [("subformat=fixed", 10_514_432), ("subformat=fixed,force_size=on", 10 * MIB)]
)
def test_a_fixed_vhd_of_qemu_img_is_read(tmp_path: Path, options: str, size_bytes: int) -> None:
    path = qemu_img(tmp_path / "disk.vhd", options, "10M")
    assert read_footer(path) == size_bytes == path.stat().st_size - 512


@pytest.mark.slow
@needs_qemu_img
def test_a_dynamic_vhd_of_qemu_img_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="is a dynamic VHD") as refused:
        read_footer(qemu_img(tmp_path / "disk.vhd", "subformat=dynamic", "10M"))
    assert refused.value.code == "VhdUnsupported"
