"""The checksums of the C core are compared with published values and with plain Python."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siterig.cext.checksums import chunk_tag, crc32c, is_zero

KEY = bytes(range(32))


def test_crc32c_matches_rfc3720_vectors() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@given(st.binary(), st.binary())
def test_a_crc32c_can_be_continued(a: bytes, b: bytes) -> None:
    assert crc32c(b, crc32c(a)) == crc32c(a + b)


def bitwise(data: bytes, crc: int = 0) -> int:
    """Return the CRC32C of RFC 3720, computed bit by bit."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [4031, 4032, 4033, 4096, 8064, 8071, 12_103])
def test_crc32c_of_long_data_in_lanes_equals_the_one_bit_by_bit(length: int) -> None:
    data = random.Random(length).randbytes(length + 3)
    for start in (0, 3):  # aligned and not aligned
        assert crc32c(data[start : start + length], 0x1234_5678) == bitwise(data[start : start + length], 0x1234_5678)


@given(st.integers(0, 70), st.integers(0, 69), st.integers(1, 255))
def test_is_zero_finds_any_byte_that_is_not_zero(length: int, at: int, value: int) -> None:
    assert is_zero(bytes(length))
    if at < length:
        data = bytearray(length)
        data[at] = value
        assert not is_zero(data)


def test_chunk_tag_is_aes_gmac_of_the_blocks_that_are_not_zeros() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = (7).to_bytes(8, "little") + bytes(4)
    first, last = os.urandom(4096), b"part of a block"
    data = first + bytes(2 * 4096) + first + bytes(4 * 4096) + last
    message = first + first + last.ljust(4096, b"\0") + bytes([0b1001, 0b1])
    assert chunk_tag(KEY, 7, data) == AESGCM(KEY).encrypt(nonce, b"", message)


def test_chunk_tag_of_zeros_is_zeros_and_depends_on_index_and_key() -> None:
    assert chunk_tag(KEY, 3, bytes(4096)) == bytes(16)
    assert len({chunk_tag(KEY, 0, b"x"), chunk_tag(KEY, 1, b"x"), chunk_tag(bytes(32), 0, b"x")}) == 3


def test_a_key_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="key has 3 bytes; it must have 32"):
        chunk_tag(b"abc", 0, b"")
