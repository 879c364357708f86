"""The bytes of a disk that a write to a change log or a managed disk stores: the ones that a fault of it would damage."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from siterig.blockfs.changelog.segment import CHANGES, HEADER_BYTES, RECORD_HEADER_BYTES, RecordType, decode_header
from siterig.blockfs.core.errors import RigError
from siterig.scenarios.faults.operations import OperationRange

_RECORD = struct.Struct("<IB3xQQQQQI")
"""Magic number, type, sequence number, position, time, offset, length and payload (docs/reference/formats/hrl.md)."""
_RECORD_MAGIC = 0x52435253


@dataclass(frozen=True, slots=True)
class WrittenBytes:
    """Bytes of a write, and the bytes of the disk that they hold.

    Args:
        at: the first byte in the file.
        length: number of bytes in the file.
        disk_at: the first byte on the disk.
        disk_length: number of bytes on the disk.
        is_whole: damage of one byte is damage of all of them; otherwise byte ``at + n`` is byte ``disk_at + n`` of the disk.
    """

    at: int
    length: int
    disk_at: int
    disk_length: int
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class RecordHead:
    """The beginning of a record; ``changes`` is the range of the disk that it changes, None if it changes none."""

    type: int
    position: int
    changes: OperationRange | None
    payload_bytes: int


def read_head(head: bytes) -> RecordHead | None:
    """Return the head of a record of which ``head`` has the first bytes; None if it is none."""
    if len(head) < _RECORD.size:
        return None
    magic, kind, _, position, _, offset, length, payload_bytes = _RECORD.unpack_from(head)
    if magic != _RECORD_MAGIC:
        return None
    return RecordHead(kind, position, (offset, length) if kind in CHANGES else None, payload_bytes)


@dataclass(slots=True)
class SegmentWalk:
    """Follows a segment that is written to a journal in several writes, one after the other.

    Args:
        next_at: the byte in the file at which the next write of the segment begins.
    """

    next_at: int
    _skip: int = HEADER_BYTES
    """Bytes of the segment's header that are still to come."""
    _head: bytearray = field(default_factory=bytearray)
    _left: int = 0
    """Bytes of the payload that are still to come."""
    _disk_at: int | None = None
    """The byte of the disk that the next byte of the payload is for; None if it is for none."""

    @staticmethod
    def of(data: bytes, offset: int) -> SegmentWalk | None:
        """Begin with a write that begins a segment; None if it does not."""
        try:
            decode_header("", data[:HEADER_BYTES], of_disk=True)
        except RigError:
            return None
        return SegmentWalk(offset)

    def follow(self, data: bytes, offset: int) -> list[WrittenBytes] | None:
        """Return the bytes of the disk in the next write; None if it does not continue the segment, which has ended then."""
        if offset != self.next_at:
            return None
        found: list[WrittenBytes] = []
        at = min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            if self._left:
                count = min(self._left, len(data) - at)
                if self._disk_at is not None:
                    found.append(WrittenBytes(offset + at, count, self._disk_at, count))
                    self._disk_at += count
                self._left -= count
                at += count
                continue
            taken = data[at : at + RECORD_HEADER_BYTES - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) < RECORD_HEADER_BYTES:
                break
            head = read_head(bytes(self._head))
            self._head.clear()
            if head is None:
                return None
            is_data = head.type == RecordType.WRITE and head.changes is not None and head.changes[1] == head.payload_bytes
            self._left, self._disk_at = head.payload_bytes, head.changes[0] if is_data and head.changes else None
        self.next_at = offset + len(data)
        return found


def record_position(pieces: Sequence[bytes | memoryview]) -> int | None:
    """Return the position of a record that is appended to a log; None if the bytes are none."""
    head = _head_of(pieces)
    return None if head is None else head.position


def record_bytes(pieces: Sequence[bytes | memoryview], offset: int) -> list[WrittenBytes]:
    """Return the bytes of the disk that a record changes, which is appended to a log at an offset."""
    head = _head_of(pieces)
    if head is None or head.changes is None or not head.changes[1]:
        return []
    return [WrittenBytes(offset, sum(map(len, pieces)), *head.changes, is_whole=True)]


def _head_of(pieces: Sequence[bytes | memoryview]) -> RecordHead | None:
    return read_head(bytes(pieces[0][: _RECORD.size])) if pieces else None


def nth_byte(ranges: Sequence[OperationRange], byte: int) -> int:
    """Return the offset of a byte that is counted within ranges, from 0."""
    for start, length in ranges:
        if byte < length:
            return start + byte
        byte -= length
    raise AssertionError(f"byte {byte} is behind the last range")
