"""Bytes of a disk at rest: XTS as the library computes it, by lines that can be cut and joined while they are encrypted."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from siterig.blockfs.layers.disk_cipher import KEY_BYTES, LINE_BYTES, DiskCipher

KEY = bytes((7 * i + 3) % 256 for i in range(KEY_BYTES))
BLOCK = 4096
BLOCKS = 8


@pytest.fixture(params=["vector", "libcrypto"])
def cipher(request: pytest.FixtureRequest) -> DiskCipher:
    cipher = DiskCipher(KEY)
    if not cipher.use_vector(vector=request.param == "vector"):
        pytest.skip("the processor has no VAES")
    return cipher


def by_library(block: int, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(KEY), modes.XTS(block.to_bytes(16, "little"))).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def test_whole_blocks_are_xts_with_the_number_of_the_block_as_the_tweak(cipher: DiskCipher) -> None:
    rng = random.Random(1)
    for first in (0, 1, 1 << 33):
        data = rng.randbytes(BLOCKS * BLOCK)
        expected = b"".join(by_library(first + i, data[i * BLOCK : (i + 1) * BLOCK]) for i in range(BLOCKS))
        assert cipher.encrypt(data, first * BLOCK) == expected
        assert cipher.decrypt(expected, first * BLOCK) == data


@pytest.mark.parametrize("seed", range(3))
def test_ranges_between_lines_can_be_cut_and_joined(cipher: DiskCipher, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    disk = bytearray(BLOCKS * BLOCK)
    stored = bytearray(BLOCKS * BLOCK)
    for _ in range(200):
        start = rng.randrange(len(disk) // LINE_BYTES) * LINE_BYTES
        length = rng.randrange(1, min(700, (len(disk) - start) // LINE_BYTES) + 1) * LINE_BYTES
        piece = bytes(length) if rng.randrange(4) == 0 else rng.randbytes(length)
        disk[start : start + length] = piece
        hole = not any(piece) and rng.randrange(2) == 0
        stored[start : start + length] = piece if hole else cipher.encrypt(piece, start)
        at = rng.randrange(len(disk) // LINE_BYTES) * LINE_BYTES
        end = rng.randrange(at, len(disk) + 1, LINE_BYTES)
        assert cipher.decrypt(stored[at:end], at) == disk[at:end]


def test_only_whole_blocks_of_zeros_stay_zeros(cipher: DiskCipher) -> None:
    data = bytes(BLOCK) + bytes(BLOCK - LINE_BYTES) + b"x" * LINE_BYTES + bytes(BLOCK)
    stored = cipher.encrypt(data, 0)
    assert stored[:BLOCK] == stored[2 * BLOCK :] == bytes(BLOCK)
    assert stored[BLOCK : 2 * BLOCK] == by_library(1, data[BLOCK : 2 * BLOCK])
    assert bytes(LINE_BYTES) not in {stored[at : at + LINE_BYTES] for at in range(BLOCK, 2 * BLOCK, LINE_BYTES)}
    assert cipher.decrypt(stored, 0) == data
    assert cipher.decrypt(bytes(3 * LINE_BYTES), 32) == bytes(3 * LINE_BYTES)


def test_both_ways_give_the_same_bytes_for_each_range_of_a_block() -> None:
    vector, library, rng = DiskCipher(KEY), DiskCipher(KEY), random.Random(2)
    if not vector.use_vector(vector=True):
        pytest.skip("the processor has no VAES")
    library.use_vector(vector=False)
    data = bytearray(rng.randbytes(2 * BLOCK))
    for _ in range(60):  # lines of zeros
        at = rng.randrange(0, len(data), LINE_BYTES)
        data[at : at + LINE_BYTES] = bytes(LINE_BYTES)
    for start in range(0, BLOCK, LINE_BYTES):
        end = rng.randrange(start + LINE_BYTES, len(data) + 1, LINE_BYTES)
        place = rng.choice([0, BLOCK, 1 << 45]) + start
        assert vector.encrypt(data[start:end], place) == library.encrypt(data[start:end], place)
        assert vector.decrypt(data[start:end], place) == library.decrypt(data[start:end], place)


def test_other_places_and_other_keys_give_other_bytes() -> None:
    data = b"\x5a" * BLOCK
    stored = {DiskCipher(KEY).encrypt(data, place * BLOCK) for place in range(4)}
    stored.add(DiskCipher(KEY[::-1]).encrypt(data, 0))
    assert len(stored) == 5
    lines = [line[at : at + LINE_BYTES] for line in stored for at in range(0, BLOCK, LINE_BYTES)]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(("length", "offset"), [(15, 0), (16, 8), (17, 16), (4096, 1)])
def test_a_range_within_a_line_is_refused(length: int, offset: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        DiskCipher(KEY).encrypt(bytes([1]) * length, offset)


def test_a_bad_key_is_refused() -> None:
    with pytest.raises(ValueError, match="has 32 bytes; it must have 64"):
        DiskCipher(KEY[:32])
    with pytest.raises(OSError, match="libcrypto does not accept the key"):
        DiskCipher(KEY[:32] * 2)
