"""The segment of a part as the journal of an encrypted managed disk keeps it.

Payloads are encrypted by lines of 16 bytes (:mod:`siterig.blockfs.layers.disk_cipher`).  A record that does not begin and
end between lines is widened first: the bytes that complete its lines are those that the disk has there before the record.
So every state of the disk is the same as with the record as it came.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from siterig.blockfs.changelog.segment import HEADER_BYTES, PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, RecordType
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.layers.disk_cipher import LINE_BYTES, DiskCipher
from siterig.blockfs.transfer.part_index import PartIndex, decode_entries
from siterig.blockfs.transfer.part_name import PartName

_RECORD = struct.Struct("<IBBHQQQQQIIII")
_CHANGES = frozenset({RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD})

ReadDisk = Callable[[int, int], bytes]
"""Returns bytes of the disk before the part: offset and length."""


def encrypted_segment(
    cipher: DiskCipher, part: PartName, segment: bytes | bytearray, index: PartIndex, read: ReadDisk
) -> bytearray:
    """Return the encrypted form of a verified segment.

    Args:
        cipher: the key of the disk.
        part: the part, for messages.
        segment: the segment as it came.
        index: its content.
        read: reads the disk before the part; called only for records that are widened.
    Raises:
        RigError: ``PartRefused`` if a range of zeros is too long to be widened.
    """
    edges = {
        line
        for entry in decode_entries(index.entries)
        if entry.type in _CHANGES
        for line in _edges(entry.offset, entry.length)
    }
    if edges:
        segment = _widened(part, segment, {line: bytearray(read(line, LINE_BYTES)) for line in sorted(edges)})
    return cipher.encrypt_segment(segment)


def _edges(offset: int, length: int) -> Iterator[int]:
    """Yield the offsets of the lines that a range covers in part; an empty range covers none."""
    end = offset + length
    if length == 0:
        return
    if offset % LINE_BYTES:
        yield offset - offset % LINE_BYTES
    if end % LINE_BYTES:
        yield end - end % LINE_BYTES


@dataclass(frozen=True, slots=True)
class _Record:
    """A record; ``head`` has the fields of its header that stay."""

    head: tuple[int, ...]
    type: int
    offset: int
    length: int
    payload: bytes

    def encode(self) -> bytes:
        magic, _, flags, header_bytes, seq, position, time_ns = self.head
        fields = (magic, self.type, flags, header_bytes, seq, position, time_ns, self.offset, self.length, len(self.payload))
        return _RECORD.pack(*fields, 0, 0, 0) + self.payload  # C sets the checksum


def _records(segment: bytes | bytearray) -> Iterator[_Record]:
    at = HEADER_BYTES
    while at < len(segment):
        *head, offset, length, payload_bytes, _, _, _ = _RECORD.unpack_from(segment, at)
        at += RECORD_HEADER_BYTES
        yield _Record(tuple(head), head[1], offset, length, bytes(segment[at : at + payload_bytes]))
        at += payload_bytes


def _widened(part: PartName, segment: bytes | bytearray, lines: dict[int, bytearray]) -> bytes:
    """Return the segment with widened records.

    Args:
        part: the part.
        segment: the segment.
        lines: the content of the lines that a record covers in part, by their offset; it follows the records.
    """
    result = bytearray(segment[:HEADER_BYTES])
    for record in _records(segment):
        if record.type in _CHANGES:
            _follow(lines, record)
            if next(_edges(record.offset, record.length), None) is not None:
                record = _widen(part, record, lines)  # noqa: PLW2901
        result += record.encode()
    return bytes(result)


def _follow(lines: dict[int, bytearray], record: _Record) -> None:
    end = record.offset + record.length
    for line, content in lines.items():
        start, stop = max(line, record.offset), min(line + LINE_BYTES, end)
        if start < stop:
            piece = record.payload[start - record.offset : stop - record.offset] or bytes(stop - start)
            content[start - line : stop - line] = piece


def _widen(part: PartName, record: _Record, lines: dict[int, bytearray]) -> _Record:
    end = record.offset + record.length
    start, stop = record.offset - record.offset % LINE_BYTES, end + -end % LINE_BYTES
    if stop - start > PAYLOAD_BYTES_MAX:
        raise RigError(
            Code.PartRefused,
            f"part {part.blob()}: a record of {record.length} bytes at byte {record.offset} cannot be encrypted: it does "
            f"not begin and end at multiples of {LINE_BYTES} bytes, and is longer than {PAYLOAD_BYTES_MAX} bytes",
        )
    payload = bytearray(stop - start)
    payload[record.offset - start : end - start] = record.payload or bytes(record.length)
    for line in _edges(record.offset, record.length):
        payload[line - start : line - start + LINE_BYTES] = lines[line]
    return replace(record, type=RecordType.WRITE, offset=start, length=len(payload), payload=bytes(payload))
