"""An envelope opens only with its key, under its name, and with every byte unchanged."""

from __future__ import annotations

import dataclasses
import random
import uuid

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer import envelope
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_name import PartName

PART = PartName("4f1f0f5e-8f4b-4b52-a5c1-0123456789ab", 2, "log", 7, 9)
KEY = DataKey(uuid.UUID(int=5), bytes(range(32)))
PACKED = b"a compressed segment" * 50


def refused(key: DataKey, part: PartName, blob: bytes) -> str:
    with pytest.raises(RigError) as caught:
        envelope.open_sealed(key, part, blob)
    assert (caught.value.code, caught.value.recoverable) == ("PartCorrupt", False)
    return caught.value.message.removeprefix(f"part {part.blob()}: ")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 70_001])
def test_an_envelope_returns_the_sealed_bytes(size: int) -> None:
    packed = random.Random(size).randbytes(size)
    blob = envelope.seal(KEY, PART, packed)
    assert len(blob) == size + envelope.OVERHEAD_BYTES
    assert envelope.open_sealed(KEY, PART, blob) == packed


def test_the_bytes_are_those_of_the_format_page() -> None:
    blob = envelope.seal(KEY, PART, PACKED)
    assert blob[:12] == b"SRIGSEAL" + (1).to_bytes(2, "little") + (40).to_bytes(2, "little")
    assert blob[12:28] == KEY.key_id.bytes
    assert AESGCM(KEY.secret).decrypt(blob[28:40], blob[40:], blob[:40] + PART.blob().encode()) == PACKED


def test_each_seal_has_another_nonce_and_no_plaintext() -> None:
    blobs = [envelope.seal(KEY, PART, PACKED) for _ in range(20)]
    assert len({blob[28:40] for blob in blobs}) == len({blob[40:] for blob in blobs}) == 20
    assert not any(b"segment" in blob for blob in blobs)


def test_every_changed_byte_is_found() -> None:
    blob = envelope.seal(KEY, PART, b"short")
    for at in range(len(blob)):
        for bit in (1, 0x80):
            refused(KEY, PART, blob[:at] + bytes([blob[at] ^ bit]) + blob[at + 1 :])
    for length in range(len(blob)):
        refused(KEY, PART, blob[:length])
    refused(KEY, PART, blob + b"\0")


@pytest.mark.parametrize(
    "other",
    [{"disk_id": "4f1f0f5e-8f4b-4b52-a5c1-0123456789ac"}, {"generation": 3}, {"stream": "sync"}, {"first": 8}, {"last": 10}],
)
def test_a_blob_under_another_name_does_not_open(other: dict[str, object]) -> None:
    part = dataclasses.replace(PART, **other)  # type: ignore[arg-type]
    assert "or it was encrypted for another name" in refused(KEY, part, envelope.seal(KEY, PART, PACKED))


def test_each_refusal_names_its_reason() -> None:
    blob = envelope.seal(KEY, PART, PACKED)
    assert "is not encrypted" in refused(KEY, PART, b"\x28\xb5\x2f\xfd" + bytes(100))
    assert "version 2" in refused(KEY, PART, blob[:8] + b"\2\0" + blob[10:])
    other = DataKey(uuid.UUID(int=6), KEY.secret)
    assert refused(other, PART, blob) == (
        f"is encrypted with key {KEY.key_id}; the key of this disk and generation is {other.key_id}"
    )
    assert "does not open" in refused(DataKey(KEY.key_id, bytes(32)), PART, blob)


def test_a_key_does_not_show_its_secret() -> None:
    key = DataKey.generate()
    assert "secret" not in repr(key)
    assert key.secret.hex() not in repr(key)
    assert str(key.secret) not in str(key)
