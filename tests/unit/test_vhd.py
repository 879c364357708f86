"""The fixed VHD footer, by the specification's own rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockfs.vhd import MIB, SIZE_BYTES_MAX, can_be_vhd, fixed_footer, geometry

DISK = "6a83da7e-b542-496d-a113-08b9b71d9e21"


def test_the_footer_says_what_the_disk_is() -> None:
    footer = fixed_footer(1 << 30, DISK)
    assert len(footer) == 512
    assert footer[:8] == b"conectix"
    assert struct.unpack(">Q", footer[16:24]) == (0xFFFFFFFFFFFFFFFF,)
    assert struct.unpack(">QQ", footer[40:56]) == (1 << 30, 1 << 30)
    assert struct.unpack(">HBBI", footer[56:64]) == (2080, 16, 63, 2)
    assert footer[68:84].hex() == DISK.replace("-", "")


@given(st.integers(1, SIZE_BYTES_MAX // MIB))
def test_the_checksum_is_the_complement_of_the_sum_of_all_other_bytes(mebibytes: int) -> None:
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
def test_only_whole_mebibytes_up_to_the_limit_have_a_vhd(size: int, can: bool) -> None:
    assert can_be_vhd(size) is can
