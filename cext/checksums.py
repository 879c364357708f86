"""Checksums and chunk tags, computed in C with the GIL released."""

from __future__ import annotations

import errno

from typing_extensions import Buffer

from siterig.cext._core import ffi, lib

KEY_BYTES = 32
TAG_BYTES = 16


def crc32c(data: Buffer, crc: int = 0) -> int:
    """Return the CRC32C (Castagnoli) of ``data``, continuing from ``crc``."""
    buf = ffi.from_buffer(data)
    return int(lib.sr_crc32c(crc, buf, len(buf)))


def is_zero(data: Buffer) -> bool:
    """Return True if every byte is zero (also for no bytes)."""
    buf = ffi.from_buffer(data)
    return bool(lib.sr_is_zero(buf, len(buf)))


def chunk_tag(key: bytes, index: int, data: Buffer) -> bytes:
    """Return the keyed tag of chunk ``index``: AES-256-GMAC (NIST SP 800-38D), or 16 zero bytes for a chunk of zeros.

    The message is the blocks of 4 KiB that are not zeros, then one bit for each block (cext/src/base/hasher.c).

    Args:
        key: 32 random bytes, new for each comparison; tags only travel over an authenticated channel.
        index: number of the chunk, used as the nonce.
        data: contents of the chunk, at most 1 MiB.
    """
    check_key(key)
    buf = ffi.from_buffer(data)
    tag = ffi.new("uint8_t[]", TAG_BYTES)
    if lib.sr_chunk_tag(key, index, buf, len(buf), tag) != 0:
        raise OSError(errno.EIO, "libcrypto could not compute a GMAC")
    return bytes(tag)


def check_key(key: bytes) -> None:
    """Raise ``ValueError`` unless the key has ``KEY_BYTES`` bytes."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"key has {len(key)} bytes; it must have {KEY_BYTES}")
