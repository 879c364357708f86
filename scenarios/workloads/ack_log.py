"""The acknowledgement log of a ledger: the transactions that a client outside the disks was promised.

Fault contract: the file lies outside the virtual disks and is only ever appended to, one record in one write.  A kill
may tear the last record.  It is dropped: its transaction was never acknowledged.  Any other damage is an error.

Format: records of 36 bytes, little endian: n (u64), position before the transaction began (u64), position after its last
commit returned (u64), wall time in ns (u64), CRC32 of the 32 bytes before (u32).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files

_BODY = struct.Struct("<QQQQ")
_CRC = struct.Struct("<I")
RECORD_BYTES = _BODY.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Ack:
    """Transaction ``n`` is durable.

    All its writes have positions above ``begin_position`` and up to ``end_position`` (of the disk host's counter).
    """

    n: int
    begin_position: int
    end_position: int
    time_ns: int

    def encode(self) -> bytes:
        """Return the record as bytes."""
        body = _BODY.pack(self.n, self.begin_position, self.end_position, self.time_ns)
        return body + _CRC.pack(zlib.crc32(body))


class AckWriter:
    """Appends to an acknowledgement log; a torn record at its end is removed first.

    Args:
        path: the file.
        check: is called before each record, and raises ``OSError`` if the step may be on no disk.
    """

    def __init__(self, path: Path, check: Callable[[], None] | None = None) -> None:
        self._check = check
        self._fd = safe_files.open_file(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.ftruncate(self._fd, len(read_acks(path)) * RECORD_BYTES)

    def append(self, ack: Ack) -> None:
        """Write one record.

        Raises:
            OSError: the check before it failed, and nothing was written.
        """
        self.check()
        os.write(self._fd, ack.encode())

    def check(self) -> None:
        """Check, before a record or at any other time, that steps go to their disks.

        Raises:
            OSError: they do not.
        """
        if self._check is not None:
            self._check()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_acks(path: Path) -> list[Ack]:
    """Return all complete records in the order of writing; a missing file has none.

    Raises:
        RigError: ``AckFileCorrupt`` names the damaged record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    acks: list[Ack] = []
    for offset in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES):
        body = data[offset : offset + _BODY.size]
        if _CRC.unpack_from(data, offset + _BODY.size)[0] != zlib.crc32(body):
            if offset + 2 * RECORD_BYTES > len(data):
                break  # the last whole record: torn as well
            raise RigError(Code.AckFileCorrupt, f"{path}: record {len(acks)} at offset {offset} has a wrong checksum")
        acks.append(Ack(*_BODY.unpack(body)))
    return acks
