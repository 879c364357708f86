"""Encryption of a disk's bytes at rest: AES-256-XTS in units of 4 KiB, in C (cext/src/base/xts.h).

Sixteen bytes at a multiple of 16 on the disk are a *line*.  A line is encrypted by itself, so encrypted ranges can be cut
and joined between lines.  An encrypted line of zeros is decrypted to zeros, because a hole reads so; real zeros are
encrypted like all other bytes, except whole blocks of 4 KiB, which stay zeros.
"""

from __future__ import annotations

import errno
import os

from typing_extensions import Buffer

from siterig.blockfs.files.os_errors import raised_by_c
from siterig.cext._core import ffi, lib

KEY_BYTES: int = lib.SR_XTS_KEY_BYTES
LINE_BYTES: int = lib.SR_XTS_LINE_BYTES


class DiskCipher:
    """One key; any thread may use it."""

    def __init__(self, secret: bytes) -> None:
        """Use a key of ``KEY_BYTES`` bytes."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"the key of a disk has {len(secret)} bytes; it must have {KEY_BYTES}")
        made = lib.sr_xts_new(secret)
        if made == ffi.NULL:
            raise OSError(errno.EIO, f"libcrypto does not accept the key ({os.strerror(ffi.errno)})")
        self.c = ffi.gc(made, lib.sr_xts_put)

    def use_vector(self, *, vector: bool) -> bool:
        """Choose the instructions for whole registers of lines, or libcrypto; return False if the processor lacks them.

        A new cipher uses them if it can.  For tests and measurements: no other call may run.
        """
        result = lib.sr_xts_use_vector(self.c, vector)
        if result != -errno.EOPNOTSUPP:
            _check(result)
        return bool(result == 0)

    def encrypt(self, data: Buffer, offset: int) -> bytes:
        """Return bytes of the disk from ``offset`` on, encrypted; both ends are between lines."""
        return self._changed(lib.sr_xts_encrypt, data, offset)

    def decrypt(self, data: Buffer, offset: int) -> bytes:
        """Return the bytes of the disk that :meth:`encrypt` was given."""
        return self._changed(lib.sr_xts_decrypt, data, offset)

    def _changed(self, change: object, data: Buffer, offset: int) -> bytes:
        result = bytearray(data)
        _check(change(self.c, ffi.from_buffer(result), len(result), offset))  # type: ignore[operator]
        return bytes(result)

    def encrypt_segment(self, segment: Buffer) -> bytearray:
        """Return a verified segment with encrypted payloads; its records begin and end between lines."""
        result = bytearray(segment)
        _check(lib.sr_encrypt_segment(self.c, ffi.from_buffer(result), len(result)))
        return result

    def decrypt_segment(self, segment: bytearray) -> int:
        """Turn a segment of an encrypted disk's log into one of format 1, in place; return the end of its good records.

        Raises:
            ValueError: its header is corrupt.
        """
        end = int(lib.sr_decrypt_segment(self.c, ffi.from_buffer(segment), len(segment)))
        if end == -errno.EINVAL:
            raise ValueError("the header of the segment is corrupt")
        _check(end)
        return end


def _check(result: int) -> None:
    if result < 0:
        raise raised_by_c(result)
