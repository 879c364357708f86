"""The change log of an encrypted disk, as the mount shows it: decrypted, and like that of any other disk (format 1).

Fault contract: the decrypted bytes are in memory only.  A segment that is being written is shown as it was when it was
opened.  Records whose checksum does not match are shown as they are, so a reader finds them corrupt.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from siterig.blockfs.changelog.segment import ENCRYPTED_VERSION, HEADER_BYTES
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.layers.disk_cipher import DiskCipher

_VERSION_AT = 8


def open_decrypted(path: Path, cipher: DiskCipher, segment_bytes: int) -> int:
    """Return a descriptor of a file in memory with the first ``segment_bytes`` bytes of a segment, decrypted.

    Raises:
        OSError: the file cannot be read; ``EIO`` if its header is corrupt.
    """
    with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
        data = bytearray(host_calls.read_open(file, segment_bytes))
    if len(data) >= HEADER_BYTES and int.from_bytes(data[_VERSION_AT : _VERSION_AT + 2], "little") == ENCRYPTED_VERSION:
        try:
            cipher.decrypt_segment(data)
        except ValueError as exc:
            raise OSError(errno.EIO, str(exc), str(path)) from exc
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
