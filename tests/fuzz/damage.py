"""Inputs of the fuzzers: valid logs, with damage that takes the positions of the fields into account.

Damage is done to lists of pieces (header, records), then to the joined bytes.  In half of the cases the checksums are
corrected afterwards, so that the damage reaches the code after the checksum test.  All choices are taken from a string of
bytes (:class:`Choices`), which hypothesis draws at random and shrinks, and a coverage-guided fuzzer mutates.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Sequence
from typing import TypeVar

import zstandard

from siterig.blockfs.transfer.part_name import PartName
from tests.fuzz import strict_log as log

DISK_ID = "6a83da7e-b542-496d-a113-08b9b71d9e21"
OTHER_ID = str(uuid.UUID(int=5))
GENERATION = 2
DISK_BYTES = 64 * 1024
KEY_ID = uuid.UUID(int=77).bytes
KEY_IDS = [bytes(16), bytes(16), KEY_ID]
EDGES = [
    0,
    1,
    2,
    5,
    6,
    7,
    63,
    64,
    65,
    127,
    128,
    255,
    512,
    4095,
    4096,
    DISK_BYTES,
    (1 << 16) - 1,
    log.PAYLOAD_BYTES_MAX,
    log.PAYLOAD_BYTES_MAX + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
KINDS = [log.WRITE, log.WRITE, log.ZERO, log.DISCARD, log.FLUSH, log.TAG, log.RESIZE]

T = TypeVar("T")
Pieces = list[bytes]
"""The pieces of a segment: its header, then its records."""


class Choices:
    """Reads choices from bytes; after the last byte, every choice is the first option."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def bytes(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def below(self, end: int) -> int:
        """Return a number from 0 to ``end - 1``; ``end`` is at most 65536."""
        return int.from_bytes(self.bytes(1 if end <= 256 else 2), "little") % end

    def of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def once_in(self, times: int) -> bool:
        return self.below(times) == times - 1


def tag_payload(name: str, position: int) -> bytes:
    tag = {"tag_id": OTHER_ID, "kind": "CrashConsistent", "name": name, "position": position, "time_ns": 7}
    return json.dumps(tag).encode()


class RowMaker:
    """Makes good consecutive segments; those with a key are encrypted, and change whole lines."""

    def __init__(self, boot_id: str, *, stream: int = 0, first_seq: int = 1, key_id: bytes = bytes(16)) -> None:
        self.boot_id, self.stream, self.key_id = boot_id, stream, key_id
        self.first_seq, self.seq = first_seq, first_seq if stream == 0 else 1
        self.position, self.size = 40, DISK_BYTES
        self.segments: list[Pieces] = []

    def begin(self) -> None:
        number = self.seq
        if self.stream:
            number, self.seq = self.first_seq + len(self.segments), 1
        head = log.make_header(
            disk_id=DISK_ID,
            first_seq=number,
            disk_size_bytes=self.size,
            boot_id=self.boot_id,
            stream=self.stream,
            generation=GENERATION,
            key_id=self.key_id,
        )
        self.segments.append([head])

    def add(self, kind: int, offset: int, length: int, *, flags: int = 0) -> None:
        seed: int = struct.unpack_from("<I", self.segments[-1][0], 124)[0]
        payload = b""
        if any(self.key_id):
            offset, length = offset // 16 * 16, -(-length // 16) * 16
        if kind == log.WRITE:
            payload = bytes((offset + at) % 251 for at in range(length))
        elif kind == log.TAG:
            offset = length = 0
            payload = tag_payload("tag", self.position)
        elif kind == log.RESIZE:
            self.size += length * 512
            offset, length = 0, self.size
        elif kind == log.FLUSH:
            offset = length = 0
        record = log.make_record(
            seed, kind, seq=self.seq, position=self.position, offset=offset, length=length, payload=payload, flags=flags
        )
        self.segments[-1].append(record)
        self.seq += 1
        self.position += 3 if self.stream == 0 else 0


def good_row(
    pick: Choices, boot_id: str, *, segments_max: int = 4, stream: int = 0, key_id: bytes = bytes(16)
) -> list[Pieces]:
    row = RowMaker(boot_id, stream=stream, first_seq=pick.of([1, 1, 7]), key_id=key_id)
    for _ in range(1 + pick.below(segments_max)):
        row.begin()
        for _ in range(pick.below(7)):
            row.add(pick.of(KINDS), pick.below(DISK_BYTES - 600), pick.of([0, 1, 3, 64, 100, 513]))
    if pick.once_in(4):
        row.add(log.FLUSH, 0, 0, flags=log.CLOSED)
    return row.segments


def poke(raw: bytes, fields: dict[str, tuple[int, str]], pick: Choices) -> bytes:
    """Set a field to another value, most often to a value at the limit of the allowed ones."""
    at, form = fields[pick.of(sorted(fields))]
    size = struct.calcsize("<" + form)
    if size > 8:
        return raw[:at] + pick.bytes(size) + raw[at + size :]
    old = int.from_bytes(raw[at : at + size], "little")
    number = pick.of([old ^ 1 << pick.below(size * 8), old + 1, old - 1, *EDGES])
    return raw[:at] + (number & (1 << size * 8) - 1).to_bytes(size, "little") + raw[at + size :]


def _damage_pieces(segments: list[Pieces], pick: Choices) -> None:
    """Make one change to the pieces, in place."""
    pieces, other = pick.of(segments), pick.of(segments)
    which = pick.below(len(pieces))
    where = 1 + pick.below(len(pieces))
    match pick.of(["header", "record", "record", "copy", "move", "splice", "swap"]):
        case "header":
            pieces[0] = poke(pieces[0], log.HEADER_FIELDS, pick)
        case "record" if which:
            pieces[which] = poke(pieces[which], log.RECORD_FIELDS, pick)
        case "copy" if which:
            pieces.insert(where, pieces[which])
        case "move" if which:
            pieces.insert(min(where, len(pieces) - 1), pieces.pop(which))
        case "splice" if len(other) > 1:
            pieces.insert(where, other[1 + pick.below(len(other) - 1)])
        case "swap":
            pieces[0], other[0] = other[0], pieces[0]
        case _:
            pass


def damage_bytes(raw: bytes, pick: Choices) -> bytes:
    """Make one change that does not depend on fields."""
    at = pick.below(len(raw) + 1)
    match pick.of(["flip", "cut", "zeros", "junk", "remove", "again"]):
        case "flip" if at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ 1 << pick.below(8)]) + raw[at + 1 :]
        case "cut":
            raw = raw[:at]
        case "zeros":  # the end of a preallocated segment
            raw += bytes(pick.of([1, 63, 64, 500]))
        case "junk":
            raw = raw[:at] + pick.bytes(1 + pick.below(80)) + raw[at:]
        case "remove":
            raw = raw[:at] + raw[at + 1 + pick.below(80) :]
        case "again":  # a recycled file: the end of an older, longer segment after the new one
            raw += raw[at:]
        case _:
            pass
    return raw


def damage_row(segments: list[Pieces], pick: Choices) -> list[bytes]:
    """Join the pieces of each segment, mostly with one to three kinds of damage."""
    for _ in range(pick.of([0, 1, 1, 2])):
        _damage_pieces(segments, pick)
    done = [b"".join(pieces) for pieces in segments]
    if pick.once_in(2):
        done = [log.reseal(raw) for raw in done]
    for _ in range(pick.of([0, 0, 1, 1, 2])):
        which = pick.below(len(done))
        done[which] = damage_bytes(done[which], pick)
        if pick.once_in(4):
            done[which] = log.reseal(done[which])
    return done


def segment(pick: Choices, boot_id: str) -> bytes:
    """Return the last of one or two segments, mostly damaged."""
    stream = pick.of([0, 0, 1])
    key_id = bytes(16) if stream else pick.of(KEY_IDS)
    return damage_row(good_row(pick, boot_id, segments_max=2, stream=stream, key_id=key_id), pick)[-1]


def row(pick: Choices, boot_id: str) -> list[bytes]:
    """Return up to five segments, which may be unsorted, incomplete or duplicated."""
    stream = pick.of([0, 0, 0, 1])
    key_id = bytes(16) if stream else pick.of(KEY_IDS)
    files = damage_row(good_row(pick, boot_id, stream=stream, key_id=key_id), pick)
    match pick.below(8):
        case 1 if len(files) > 1:
            files.pop(pick.below(len(files)))
        case 2:
            files.append(pick.of(files))
        case 3:
            files.append(pick.of(files)[: log.HEADER_BYTES - 1])
        case 4:
            files.reverse()
        case _:
            pass
    return files


def part(pick: Choices, boot_id: str) -> tuple[PartName, bytes]:
    """Return the name of a part, and a packed segment."""
    stream = pick.below(2)
    raw = b"".join(good_row(pick, boot_id, segments_max=2, stream=stream)[-1])
    found = log.read_segment(raw, of_disk=False)
    first = found.header.first_seq
    last = first if stream else first + len(found.records) - 1
    generation, last = pick.of([(GENERATION, last)] * 4 + [(GENERATION + 1, last), (GENERATION, last + 1)])
    name = PartName(DISK_ID, generation, "sync" if stream else "log", first, last)
    if pick.once_in(3):
        raw = segment(pick, boot_id)
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=pick.once_in(2), write_content_size=not pick.once_in(8))
    data = compressor.compress(raw)
    nothing = [b"\x50\x2a\x4d\x18\x01\0\0\0x", compressor.compress(b"")]
    match pick.below(8):
        case 1 | 2:
            data = damage_bytes(data, pick)
        case 3:
            data += pick.of([b"\0", data, *nothing])
        case 4:
            data = pick.of(nothing) + data
        case _:
            pass
    return name, data
